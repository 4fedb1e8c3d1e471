package dcapmint

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee/dcap"
)

// The JSON of the provisioning certification service, API version 4, members in
// its order.
type (
	tcbInfo struct {
		ID                   string     `json:"id"`
		Version              int        `json:"version"`
		IssueDate            string     `json:"issueDate"`
		NextUpdate           string     `json:"nextUpdate"`
		FMSPC                string     `json:"fmspc"`
		PCEID                string     `json:"pceId"`
		TCBType              int        `json:"tcbType"`
		EvaluationDataNumber int        `json:"tcbEvaluationDataNumber"`
		Module               *module    `json:"tdxModule,omitempty"`
		Modules              []module   `json:"tdxModuleIdentities,omitempty"`
		Levels               []tcbLevel `json:"tcbLevels"`
	}
	module struct {
		ID             string         `json:"id,omitempty"`
		MRSigner       string         `json:"mrsigner"`
		Attributes     string         `json:"attributes"`
		AttributesMask string         `json:"attributesMask"`
		Levels         []enclaveLevel `json:"tcbLevels,omitempty"`
	}
	tcbLevel struct {
		TCB struct {
			SGX    []component `json:"sgxtcbcomponents"`
			PCESVN uint16      `json:"pcesvn"`
			TDX    []component `json:"tdxtcbcomponents,omitempty"`
		} `json:"tcb"`
		verdict
	}
	component struct {
		SVN uint8 `json:"svn"`
	}
	verdict struct {
		Date       string   `json:"tcbDate"`
		Status     string   `json:"tcbStatus"`
		Advisories []string `json:"advisoryIDs,omitempty"`
	}
	enclaveLevel struct {
		TCB struct {
			ISVSVN uint16 `json:"isvsvn"`
		} `json:"tcb"`
		verdict
	}
	qeIdentity struct {
		ID                   string         `json:"id"`
		Version              int            `json:"version"`
		IssueDate            string         `json:"issueDate"`
		NextUpdate           string         `json:"nextUpdate"`
		EvaluationDataNumber int            `json:"tcbEvaluationDataNumber"`
		MiscSelect           string         `json:"miscselect"`
		MiscSelectMask       string         `json:"miscselectMask"`
		Attributes           string         `json:"attributes"`
		AttributesMask       string         `json:"attributesMask"`
		MRSigner             string         `json:"mrsigner"`
		ISVProdID            uint16         `json:"isvprodid"`
		Levels               []enclaveLevel `json:"tcbLevels"`
	}
)

func upper(b []byte) string { return strings.ToUpper(hex.EncodeToString(b)) }

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// TCBInfo signs a TCB info. The issuer chain of t is not looked at.
func (a *Authority) TCBInfo(t *dcap.TCBInfo) (dcap.Signed, error) {
	w := tcbInfo{
		ID: t.ID, Version: t.Version, IssueDate: date(t.IssueDate), NextUpdate: date(t.NextUpdate),
		FMSPC: upper(t.FMSPC[:]), PCEID: upper(t.PCEID[:]), TCBType: t.TCBType, EvaluationDataNumber: t.EvaluationDataNumber,
	}
	if t.Module != nil {
		m := moduleOf(*t.Module)
		w.Module = &m
	}
	for _, m := range t.Modules {
		w.Modules = append(w.Modules, moduleOf(m))
	}
	for _, from := range t.Levels {
		l := tcbLevel{verdict: verdict{date(from.Date), string(from.Status), from.Advisories}}
		l.TCB.SGX, l.TCB.PCESVN = components(from.SGX), from.PCESVN
		if t.ID == "TDX" {
			l.TCB.TDX = components(from.TDX)
		}
		w.Levels = append(w.Levels, l)
	}
	return a.sign("tcbInfo", w)
}

func components(svn [16]byte) []component {
	out := make([]component, len(svn))
	for i, n := range svn {
		out[i].SVN = n
	}
	return out
}

func moduleOf(m dcap.ModuleIdentity) module {
	return module{ID: m.ID, MRSigner: upper(m.MRSigner[:]), Attributes: upper(m.Attributes[:]), AttributesMask: upper(m.AttributesMask[:]), Levels: enclaveLevels(m.Levels)}
}

func enclaveLevels(levels []dcap.EnclaveLevel) []enclaveLevel {
	var out []enclaveLevel
	for _, from := range levels {
		l := enclaveLevel{verdict: verdict{date(from.Date), string(from.Status), from.Advisories}}
		l.TCB.ISVSVN = from.ISVSVN
		out = append(out, l)
	}
	return out
}

// QEIdentity signs the identity of a quoting enclave. The issuer chain of q is
// not looked at.
func (a *Authority) QEIdentity(q *dcap.QEIdentity) (dcap.Signed, error) {
	return a.sign("enclaveIdentity", qeIdentity{
		ID: q.ID, Version: q.Version, IssueDate: date(q.IssueDate), NextUpdate: date(q.NextUpdate), EvaluationDataNumber: q.EvaluationDataNumber,
		MiscSelect: upper(q.MiscSelect[:]), MiscSelectMask: upper(q.MiscSelectMask[:]),
		Attributes: upper(q.Attributes[:]), AttributesMask: upper(q.AttributesMask[:]),
		MRSigner: upper(q.MRSigner[:]), ISVProdID: q.ISVProdID, Levels: enclaveLevels(q.Levels),
	})
}

func (a *Authority) sign(member string, doc any) (dcap.Signed, error) {
	inner, err := json.Marshal(doc)
	if err != nil {
		return dcap.Signed{}, fmt.Errorf("dcapmint: %s: %w", member, err)
	}
	return a.SignDocument(member, inner)
}

// SignDocument signs the exact bytes of a document's inner object and wraps it:
// {"<member>":<inner>,"signature":"<hex>"}.
func (a *Authority) SignDocument(member string, inner []byte) (dcap.Signed, error) {
	signature, err := signRaw(a.Signing.Key, inner)
	if err != nil {
		return dcap.Signed{}, err
	}
	body := fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, member, inner, signature)
	return dcap.Signed{Body: body, IssuerChain: chainPEM(a.Signing.Certificate, a.Root.Certificate)}, nil
}

// signRaw signs the SHA-256 of a message; the signature is r and s, 32 bytes
// each, big-endian.
func signRaw(key *ecdsa.PrivateKey, message []byte) (out [64]byte, err error) {
	sum := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return out, fmt.Errorf("dcapmint: signature: %w", err)
	}
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}
