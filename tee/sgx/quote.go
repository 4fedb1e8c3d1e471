// Package sgx is the evidence format of Intel SGX: the DCAP quote in its binary
// form and the JSON that the KBS protocol carries. Verification is in package
// sgxverify. Nothing here trusts what it decodes.
//
// Source: "Intel SGX ECDSA QuoteLibReference DCAP API", appendix A.4 (quote
// version 3).
package sgx

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

const (
	// MaxQuote bounds a quote in bytes. Real ones have about 5 kB.
	MaxQuote = dcapquote.MaxQuote
	// MaxEvidence bounds evidence JSON in bytes.
	MaxEvidence = 2 * MaxQuote

	signedSize = dcapquote.HeaderSize + dcapquote.EnclaveReportSize
)

// Quote is an SGX quote of version 3.
type Quote struct {
	Header dcapquote.Header
	// Report is that of the application enclave.
	Report *dcapquote.EnclaveReport

	// Signed are the bytes under the quote's signature: header and report.
	// Signature points into the quote as well.
	Signed    []byte
	Signature *dcapquote.Signature
}

// QESVN and PCESVN are the header's versions of quoting and provisioning
// certification enclave, as on the wire.
func (q *Quote) QESVN() [2]byte { return [2]byte(q.Header.Reserved[:2]) }

// PCESVN is documented at [Quote.QESVN].
func (q *Quote) PCESVN() [2]byte { return [2]byte(q.Header.Reserved[2:]) }

// ParseQuote reads an SGX quote of version 3 with an ECDSA P-256 signature,
// exactly. The quote keeps pointing into raw.
func ParseQuote(raw []byte) (*Quote, error) {
	q, section, err := parseBody(raw)
	if err != nil {
		return nil, fmt.Errorf("sgx: %w", err)
	}
	if q.Signature, err = dcapquote.ParseSignature(section, q.Header.Version); err != nil {
		return nil, fmt.Errorf("sgx: %w", err)
	}
	return q, nil
}

// parseBody reads all but the signature section, which it returns.
func parseBody(raw []byte) (*Quote, []byte, error) {
	h, err := dcapquote.ParseHeader(raw)
	if err != nil {
		return nil, nil, err
	}
	if h.Version != 3 {
		return nil, nil, fmt.Errorf("quote: header: version: expected 3, got %d", h.Version)
	}
	if h.TEEType != dcapquote.TEETypeSGX {
		return nil, nil, fmt.Errorf("quote: header: att_key_data_0: expected 0, got %#x", h.TEEType)
	}
	if len(raw) < signedSize {
		return nil, nil, fmt.Errorf("quote: body: expected %d bytes, got %d", dcapquote.EnclaveReportSize, len(raw)-dcapquote.HeaderSize)
	}
	q := &Quote{Header: h, Signed: raw[:signedSize:signedSize]}
	if q.Report, err = dcapquote.ParseEnclaveReport(raw[dcapquote.HeaderSize:signedSize]); err != nil {
		return nil, nil, fmt.Errorf("quote: body: %w", err)
	}
	return q, raw[signedSize:], nil
}

// SignedBytes encodes header and report, the bytes that a quoting enclave signs:
// the inverse of parsing them.
func (q *Quote) SignedBytes() []byte {
	out := make([]byte, dcapquote.HeaderSize, signedSize)
	q.Header.Put(out)
	return append(out, q.Report.Bytes()...)
}

// Evidence is what an SGX attester sends: the value of "primary_evidence" in
// the KBS protocol, {"quote": BASE64}.
type Evidence struct {
	Quote []byte
}

// ParseEvidence decodes evidence from the other side. It refuses unknown and
// duplicate names, base64 in any but the canonical form, and what is beyond the
// limits. It does not look into the quote.
func ParseEvidence(data json.RawMessage) (*Evidence, error) {
	var w struct {
		Quote *string `json:"quote"`
	}
	if err := strictjson.Decode(data, &w, strictjson.Limits{Bytes: MaxEvidence, Depth: 2}); err != nil {
		return nil, fmt.Errorf("sgx: evidence: %w", err)
	}
	if w.Quote == nil {
		return nil, errors.New("sgx: evidence: quote: expected base64, got none")
	}
	if strings.ContainsAny(*w.Quote, "\r\n") {
		return nil, errors.New("sgx: evidence: quote: expected base64 without line breaks")
	}
	quote, err := base64.StdEncoding.Strict().DecodeString(*w.Quote)
	if err != nil {
		return nil, fmt.Errorf("sgx: evidence: quote: expected canonical base64: %w", err)
	}
	if len(quote) > MaxQuote {
		return nil, fmt.Errorf("sgx: evidence: quote: expected at most %d bytes, got %d", MaxQuote, len(quote))
	}
	return &Evidence{Quote: quote}, nil
}

// JSON encodes the evidence.
func (e *Evidence) JSON() (json.RawMessage, error) {
	if len(e.Quote) == 0 || len(e.Quote) > MaxQuote {
		return nil, fmt.Errorf("sgx: evidence: quote: expected 1 to %d bytes, got %d", MaxQuote, len(e.Quote))
	}
	return json.Marshal(struct {
		Quote []byte `json:"quote"`
	}{e.Quote})
}

// FromRaw makes evidence JSON of a raw quote. It refuses what is no SGX quote of
// version 3.
func FromRaw(raw []byte) (json.RawMessage, error) {
	if _, err := ParseQuote(raw); err != nil {
		return nil, err
	}
	return (&Evidence{Quote: raw}).JSON()
}
