package snp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Limits on evidence from the other side.
const (
	// MaxEvidence is the greatest size of evidence JSON in bytes.
	MaxEvidence = 1 << 20
	// MaxCertificates is the greatest number of certificates in it.
	MaxCertificates = 16
	// MaxCertificate is the greatest size of one certificate in bytes.
	MaxCertificate = 32 << 10

	maxDepth = 6
)

// CertType says what a certificate of the evidence is.
type CertType string

// The certificate types of the JSON form.
const (
	CertVCEK  CertType = "VCEK"
	CertVLEK  CertType = "VLEK"
	CertASK   CertType = "ASK" // also the ASVK
	CertARK   CertType = "ARK"
	CertCRL   CertType = "CRL"
	CertEmpty CertType = "Empty"
	CertOther CertType = "OTHER" // Certificate.GUID says which
)

// Certificate is an entry of the certificate table that the host attaches.
type Certificate struct {
	Type CertType
	// GUID is the entry's identifier in text form; only for CertOther.
	GUID string
	// Data is the certificate, DER.
	Data []byte
}

// wireCertificate is the JSON form. Data is an array of numbers, which []byte
// would not be; there are thousands, so they are handled without reflection.
type wireCertificate struct {
	CertType json.RawMessage `json:"cert_type"`
	Data     json.RawMessage `json:"data"`
}

// appendNumbers writes data as a JSON array of numbers.
func appendNumbers(out, data []byte) []byte {
	out = append(out, '[')
	for i, b := range data {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(b), 10)
	}
	return append(out, ']')
}

// parseNumbers reads a JSON array of at most limit numbers from 0 to 255, which
// is known to be valid JSON.
func parseNumbers(array json.RawMessage, limit int) ([]byte, error) {
	inner, opened := bytes.CutPrefix(bytes.TrimSpace(array), []byte("["))
	inner, closed := bytes.CutSuffix(inner, []byte("]"))
	if !opened || !closed {
		return nil, fmt.Errorf("expected an array of numbers, got %.20q", array)
	}
	out := []byte{}
	if len(bytes.TrimSpace(inner)) == 0 {
		return out, nil
	}
	for item := range bytes.SplitSeq(inner, []byte(",")) {
		if len(out) == limit {
			return nil, fmt.Errorf("expected at most %d bytes, got more", limit)
		}
		item = bytes.TrimSpace(item)
		n, ok := 0, len(item) > 0 && len(item) <= 3
		for _, c := range item {
			ok = ok && c >= '0' && c <= '9'
			n = n*10 + int(c-'0')
		}
		if !ok || n > 0xFF {
			return nil, fmt.Errorf("[%d]: expected a number from 0 to 255, got %.20q", len(out), item)
		}
		out = append(out, byte(n))
	}
	return out, nil
}

type wireOther struct {
	Other string `json:"OTHER"`
}

// MarshalJSON implements json.Marshaler.
func (c Certificate) MarshalJSON() ([]byte, error) {
	var name any = string(c.Type)
	if c.Type == CertOther {
		name = wireOther{c.GUID}
	}
	kind, err := json.Marshal(name)
	if err != nil {
		return nil, err
	}
	return json.Marshal(wireCertificate{CertType: kind, Data: appendNumbers(nil, c.Data)})
}

// UnmarshalJSON implements json.Unmarshaler; it is as strict as
// [ParseEvidence].
func (c *Certificate) UnmarshalJSON(data []byte) error {
	limits := strictjson.Limits{Bytes: MaxEvidence, Depth: maxDepth}
	var w wireCertificate
	if err := strictjson.Decode(data, &w, limits); err != nil {
		return err
	}
	out := Certificate{}
	if len(w.CertType) > 0 && w.CertType[0] == '{' {
		var other wireOther
		if err := strictjson.Decode(w.CertType, &other, limits); err != nil {
			return err
		}
		if len(other.Other) != len(guidText([16]byte{})) {
			return fmt.Errorf("snp: cert_type: OTHER: expected a GUID of 36 characters, got %d", len(other.Other))
		}
		out.Type, out.GUID = CertOther, other.Other
	} else {
		var name string
		if err := strictjson.Decode(w.CertType, &name, limits); err != nil {
			return err
		}
		switch t := CertType(name); t {
		case CertVCEK, CertVLEK, CertASK, CertARK, CertCRL, CertEmpty:
			out.Type = t
		default:
			return fmt.Errorf("snp: cert_type: expected VCEK, VLEK, ASK, ARK, CRL, Empty or an object OTHER, got %.40q", name)
		}
	}
	var err error
	if out.Data, err = parseNumbers(w.Data, MaxCertificate); err != nil {
		return fmt.Errorf("snp: cert_chain: data: %w", err)
	}
	*c = out
	return nil
}

// Evidence is what an SNP attester sends: the value of "primary_evidence" in
// the KBS protocol.
type Evidence struct {
	AttestationReport Report        `json:"attestation_report"`
	CertChain         []Certificate `json:"cert_chain"`
}

// ParseEvidence decodes evidence from the other side. It refuses unknown and
// duplicate keys, arrays of another length than the field has, numbers that do
// not fit, everything beyond the limits, and reports that have no exact binary
// form.
func ParseEvidence(data json.RawMessage) (*Evidence, error) {
	e, ok := scanEvidence(data)
	if !ok {
		var err error
		if e, err = decodeEvidence(data); err != nil {
			return nil, err
		}
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	return e, nil
}

func decodeEvidence(data []byte) (*Evidence, error) {
	e := new(Evidence)
	if err := strictjson.Decode(data, e, strictjson.Limits{Bytes: MaxEvidence, Depth: maxDepth}); err != nil {
		return nil, fmt.Errorf("snp: evidence: %w", err)
	}
	return e, nil
}

// NewEvidence makes evidence of a raw report and the certificates that came
// with it (none: the verifier has to find them).
func NewEvidence(report []byte, certs []Certificate) (*Evidence, error) {
	r, err := DecodeReport(report)
	if err != nil {
		return nil, err
	}
	e := &Evidence{AttestationReport: *r, CertChain: certs}
	if err := e.check(); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Evidence) check() error {
	if len(e.CertChain) > MaxCertificates {
		return fmt.Errorf("snp: cert_chain: expected at most %d certificates, got %d", MaxCertificates, len(e.CertChain))
	}
	for i, c := range e.CertChain {
		if len(c.Data) > MaxCertificate {
			return fmt.Errorf("snp: cert_chain[%d]: expected at most %d bytes, got %d", i, MaxCertificate, len(c.Data))
		}
	}
	_, err := e.AttestationReport.check()
	return err
}

// Report rebuilds the 1184 bytes that the security processor produced.
func (e *Evidence) Report() ([]byte, error) { return e.AttestationReport.Bytes() }

// JSON encodes the evidence.
func (e *Evidence) JSON() (json.RawMessage, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("snp: evidence: %w", err)
	}
	return data, nil
}

// Certificate returns the first certificate of type t.
func (e *Evidence) Certificate(t CertType) (Certificate, bool) {
	for _, c := range e.CertChain {
		if c.Type == t {
			return c, true
		}
	}
	return Certificate{}, false
}
