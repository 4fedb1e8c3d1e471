package collateral

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// toolCollateral is the output of Intel's client tool for machines without a
// network (intel/confidential-computing.tee.dcap, tools/PcsClientTool), which
// Trustee reads at file:// addresses
// (confidential-containers/trustee, deps/verifier/src/intel_dcap/collateral_service.rs).
type toolCollateral struct {
	TCBInfos toolTCBInfos `json:"tcbinfos"`
	PCK      struct {
		Processor string `json:"processorCrl"`
		Platform  string `json:"platformCrl"`
	} `json:"pckcacrl"`
	QE           json.RawMessage `json:"qeidentity"`
	QEEarly      json.RawMessage `json:"qeidentity_early"`
	TDQE         json.RawMessage `json:"tdqeidentity"`
	TDQEEarly    json.RawMessage `json:"tdqeidentity_early"`
	Certificates struct {
		TCBInfo  string `json:"TCB-Info-Issuer-Chain"`
		Identity string `json:"SGX-Enclave-Identity-Issuer-Chain"`
		PCK      struct {
			Processor string `json:"PROCESSOR"`
			Platform  string `json:"PLATFORM"`
		} `json:"SGX-PCK-Certificate-Issuer-Chain"`
	} `json:"certificates"`
	RootCRL string `json:"rootcacrl"`
}

type toolTCBInfo struct {
	SGX      json.RawMessage `json:"sgx_tcbinfo"`
	SGXEarly json.RawMessage `json:"sgx_tcbinfo_early"`
	TDX      json.RawMessage `json:"tdx_tcbinfo"`
	TDXEarly json.RawMessage `json:"tdx_tcbinfo_early"`
}

const maxToolTCBInfos = 1024

// toolTCBInfos are counted while they are read: an empty one is two bytes in the
// file and a hundred in memory.
type toolTCBInfos []toolTCBInfo

// UnmarshalJSON implements json.Unmarshaler.
func (t *toolTCBInfos) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if first, err := d.Token(); err != nil || first != json.Delim('[') {
		return errors.New("tcbinfos: expected a list")
	}
	for d.More() {
		if len(*t) == maxToolTCBInfos {
			return fmt.Errorf("tcbinfos: expected at most %d platform families, got more", maxToolTCBInfos)
		}
		var n toolTCBInfo
		if err := d.Decode(&n); err != nil {
			return err
		}
		*t = append(*t, n)
	}
	return nil
}

// clientTool reads the output of Intel's client tool.
func (r *recognized) clientTool(data []byte) error {
	var t toolCollateral
	if err := json.Unmarshal(data, &t); err != nil {
		return fmt.Errorf("collateral of Intel's client tool: %w", err)
	}
	documents := []struct {
		raw   json.RawMessage
		chain string
		u     Update
	}{
		{t.QE, t.Certificates.Identity, Standard}, {t.QEEarly, t.Certificates.Identity, Early},
		{t.TDQE, t.Certificates.Identity, Standard}, {t.TDQEEarly, t.Certificates.Identity, Early},
	}
	for _, n := range t.TCBInfos {
		for _, d := range []struct {
			raw json.RawMessage
			u   Update
		}{{n.SGX, Standard}, {n.SGXEarly, Early}, {n.TDX, Standard}, {n.TDXEarly, Early}} {
			documents = append(documents, struct {
				raw   json.RawMessage
				chain string
				u     Update
			}{d.raw, t.Certificates.TCBInfo, d.u})
		}
	}
	for _, d := range documents {
		if len(d.raw) == 0 || string(d.raw) == "null" {
			continue
		}
		// Intel signs without blanks, which the tool puts in.
		var plain bytes.Buffer
		if err := json.Compact(&plain, d.raw); err != nil {
			return err
		}
		chain, err := url.PathUnescape(d.chain)
		if err != nil {
			return fmt.Errorf("issuer chain: %w", err)
		}
		if err := r.document(plain.Bytes(), []byte(chain), d.u); err != nil {
			return err
		}
	}
	for _, l := range [][2]string{
		{t.PCK.Processor, t.Certificates.PCK.Processor}, {t.PCK.Platform, t.Certificates.PCK.Platform}, {t.RootCRL, ""},
	} {
		if err := r.hexList(l[0], l[1]); err != nil {
			return err
		}
	}
	return r.something()
}

// something refuses a file in which there is nothing.
func (r *recognized) something() error {
	if len(r.candidates) == 0 {
		return errors.New("there is no collateral in it")
	}
	return nil
}

// hexList adds a revocation list in hex digits; none where there is none.
func (r *recognized) hexList(text, chain string) error {
	if text == "" {
		return nil
	}
	der, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return fmt.Errorf("revocation list: expected hex digits: %w", err)
	}
	unescaped, err := url.PathUnescape(chain)
	if err != nil {
		return fmt.Errorf("issuer chain: %w", err)
	}
	n := len(r.candidates)
	if err := r.der(der); err != nil {
		return err
	}
	for i := n; i < len(r.candidates); i++ {
		r.candidates[i].chain = []byte(unescaped)
	}
	return nil
}

// quoteCollateral reads what Intel's quote verification library takes, as JSON:
// the form of Phala-Network/dcap-qvl (QuoteCollateralV3).
func (r *recognized) quoteCollateral(data []byte) error {
	var q struct {
		TCBInfo           string `json:"tcb_info"`
		TCBInfoSignature  string `json:"tcb_info_signature"`
		TCBInfoChain      string `json:"tcb_info_issuer_chain"`
		Identity          string `json:"qe_identity"`
		IdentitySignature string `json:"qe_identity_signature"`
		IdentityChain     string `json:"qe_identity_issuer_chain"`
		PCKCRL            string `json:"pck_crl"`
		PCKCRLChain       string `json:"pck_crl_issuer_chain"`
		RootCRL           string `json:"root_ca_crl"`
	}
	if err := json.Unmarshal(data, &q); err != nil {
		return fmt.Errorf("quote collateral: %w", err)
	}
	for _, d := range [][4]string{
		{"tcbInfo", q.TCBInfo, q.TCBInfoSignature, q.TCBInfoChain}, {"enclaveIdentity", q.Identity, q.IdentitySignature, q.IdentityChain},
	} {
		signature, err := json.Marshal(d[2])
		if err != nil {
			return err
		}
		body := fmt.Appendf(nil, `{%q:%s,"signature":%s}`, d[0], d[1], signature)
		if err := r.document(body, []byte(d[3]), Standard); err != nil {
			return err
		}
	}
	if err := r.hexList(q.PCKCRL, url.PathEscape(q.PCKCRLChain)); err != nil {
		return err
	}
	return r.hexList(q.RootCRL, "")
}
