// Package reference turns predicted measurements into reference values, under
// the names that a trustee's built-in policies read: snp_launch_measurement,
// mr_td, rtmr_0 to rtmr_3, sgx_mr_enclave and so on.
//
// A [Prediction] is also a document of its own as JSON, with what was measured
// and each event that was assumed. [Prediction.Message] is what a trustee
// registers (an RVPS message of type "sample"), [Prediction.CoRIM] the same as a
// CoRIM, which [SignCoRIM] signs.
package reference

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/sigstruct"
	"github.com/coffer-project/coffer/tee/measure/snpid"
)

// Prediction is what evidence of a launch will say.
type Prediction struct {
	TEE tee.Name `json:"tee"`
	// Layout says how the firmware was measured; empty for enclaves.
	Layout measure.Layout `json:"layout,omitempty"`
	// Inputs are what was measured: measure.Inputs, measure.TDXInputs, …
	Inputs     any         `json:"inputs"`
	References []Reference `json:"references"`
	// Unknown are references that could not be predicted.
	Unknown []Unknown `json:"unknown,omitempty"`
	// Events are the events that were assumed, in their order.
	Events []measure.Event `json:"events,omitempty"`
	// IDBlock is an ID block for the one launch digest that was predicted.
	IDBlock *IDBlock `json:"id_block,omitempty"`
}

// IDBlock says how to start a guest with an ID block, and what its reports show.
type IDBlock struct {
	// QEMU is to be appended to -object sev-snp-guest,….
	QEMU            string `json:"qemu"`
	IDKeyDigest     string `json:"id_key_digest"`
	AuthorKeyDigest string `json:"author_key_digest,omitempty"`
}

// SetIDBlock describes s, which was signed for p's launch digest.
func (p *Prediction) SetIDBlock(s snpid.Signed) {
	p.IDBlock = &IDBlock{QEMU: s.QEMU(), IDKeyDigest: hex.EncodeToString(s.IDKeyDigest[:])}
	if s.HasAuthorKey {
		p.IDBlock.AuthorKeyDigest = hex.EncodeToString(s.AuthorKeyDigest[:])
	}
}

// Reference is one name with the values that are accepted for it.
type Reference struct {
	Name   string  `json:"name"`
	Values []Value `json:"values"`
}

// Value is one accepted value.
type Value struct {
	// Value is lower-case hex.
	Value string `json:"value"`
	// Description says what it is of.
	Description string `json:"description,omitempty"`
}

// Unknown is a reference without a value.
type Unknown struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// add adds a value, after those of the same name.
func (p *Prediction) add(name string, value []byte, format string, args ...any) {
	v := Value{hex.EncodeToString(value), fmt.Sprintf(format, args...)}
	for i := range p.References {
		if p.References[i].Name == name {
			p.References[i].Values = append(p.References[i].Values, v)
			return
		}
	}
	p.References = append(p.References, Reference{name, []Value{v}})
}

// SNP predicts the launch digest of l for each of counts, numbers of virtual CPUs
// in any order; l.VCPUs is not used.
func SNP(l measure.Launch, counts []int) (Prediction, error) {
	most := 0
	for _, n := range counts {
		if n < 1 {
			return Prediction{}, fmt.Errorf("reference: vcpus: expected at least 1, got %d", n)
		}
		most = max(most, n)
	}
	if most == 0 {
		return Prediction{}, errors.New("reference: vcpus: expected at least one number")
	}
	l.VCPUs = most
	seed, err := measure.NewSeed(l)
	if err != nil {
		return Prediction{}, err
	}
	digests, err := seed.Digests(most)
	if err != nil {
		return Prediction{}, err
	}
	p := Prediction{TEE: tee.SNP, Layout: seed.Layout, Inputs: l.Inputs()}
	for _, n := range counts {
		p.add("snp_launch_measurement", digests[n-1][:], "vcpus=%d", n)
	}
	return p, nil
}

// TDX predicts MRTD and the RTMRs of l. RTMR3 is included only where l says what
// extends it, for what runs in the guest may.
func TDX(l measure.TDXLaunch) (Prediction, error) {
	r, err := measure.TDX(l)
	if err != nil {
		return Prediction{}, err
	}
	p := Prediction{TEE: tee.TDX, Layout: r.Layout, Inputs: l.Inputs(), Events: r.Events}
	p.add("mr_td", r.MRTD[:], "firmware")
	what := [4]string{"memory, variables, ACPI tables", "kernel", "command line, initrd", "given extensions"}
	for i, v := range r.RTMR {
		name := fmt.Sprintf("rtmr_%d", i)
		switch {
		case r.Unknown[i] != "":
			p.Unknown = append(p.Unknown, Unknown{name, r.Unknown[i]})
		case i == 3 && len(l.RTMR3) == 0:
		default:
			p.add(name, v[:], "%s", what[i])
		}
	}
	return p, nil
}

// SGXBy is what an enclave is known by.
type SGXBy string

// The ways to know an enclave.
const (
	// SGXByEnclave accepts this one enclave: MRENCLAVE.
	SGXByEnclave SGXBy = "enclave"
	// SGXBySigner accepts every enclave of the signer with this product
	// identifier and security version.
	SGXBySigner SGXBy = "signer"
)

// SGX predicts what quotes of an enclave will say, from its SIGSTRUCT. Numbers
// are written as quotes carry them: little-endian bytes in hex.
func SGX(s sigstruct.Sigstruct, by SGXBy) (Prediction, error) {
	p := Prediction{TEE: tee.SGX, Inputs: sgxInputs(s)}
	switch by {
	case SGXByEnclave:
		p.add("sgx_mr_enclave", s.MRENCLAVE[:], "enclave")
	case SGXBySigner:
		p.add("sgx_mr_signer", s.MRSIGNER[:], "signer")
		p.add("sgx_isv_prod_id", binary.LittleEndian.AppendUint16(nil, s.ProductID), "product %d", s.ProductID)
		p.add("sgx_isv_svn", binary.LittleEndian.AppendUint16(nil, s.SVN), "security version %d", s.SVN)
	default:
		return Prediction{}, fmt.Errorf("reference: by: expected %q or %q, got %q", SGXByEnclave, SGXBySigner, by)
	}
	if s.Attributes.Flags&sigstruct.FlagKSS != 0 {
		p.add("sgx_isv_family_id", s.FamilyID[:], "family")
		p.add("sgx_isv_ext_prod_id", s.ExtProductID[:], "extended product identifier")
	}
	return p, nil
}

// sgxSummary is a SIGSTRUCT for people and for records.
type sgxSummary struct {
	MREnclave   string `json:"mr_enclave"`
	MRSigner    string `json:"mr_signer"`
	ProductID   uint16 `json:"isv_prod_id"`
	SVN         uint16 `json:"isv_svn"`
	Date        string `json:"date"`
	Flags       string `json:"attributes.flags"`
	XFRM        string `json:"attributes.xfrm"`
	AllowsDebug bool   `json:"allows_debug"`
}

func sgxInputs(s sigstruct.Sigstruct) sgxSummary {
	word := func(v uint64) string { return hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, v)) }
	return sgxSummary{
		MREnclave: hex.EncodeToString(s.MRENCLAVE[:]), MRSigner: hex.EncodeToString(s.MRSIGNER[:]), ProductID: s.ProductID, SVN: s.SVN,
		Date: fmt.Sprintf("%08x", s.Date), Flags: word(s.Attributes.Flags), XFRM: word(s.Attributes.XFRM), AllowsDebug: s.AllowsDebug(),
	}
}

// JSON is the whole prediction.
func (p Prediction) JSON() ([]byte, error) { return json.MarshalIndent(p, "", "  ") }

// Message is the RVPS message that registers the references as lists: version,
// type "sample", and the payload in base64.
func (p Prediction) Message() ([]byte, error) {
	values := map[string][]string{}
	for _, r := range p.References {
		for _, v := range r.Values {
			values[r.Name] = append(values[r.Name], v.Value)
		}
	}
	if len(values) == 0 {
		return nil, errors.New("reference: nothing was predicted")
	}
	payload, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Version string `json:"version"`
		Type    string `json:"type"`
		Payload string `json:"payload"`
	}{"0.1.0", "sample", base64.StdEncoding.EncodeToString(payload)})
}
