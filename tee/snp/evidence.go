package snp

import (
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee/internal/numbers"
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

// wireCertificate is the JSON form. Data is an array of numbers.
type wireCertificate struct {
	CertType json.RawMessage `json:"cert_type"`
	Data     json.RawMessage `json:"data"`
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
	return json.Marshal(wireCertificate{CertType: kind, Data: numbers.Append(nil, c.Data)})
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
	if out.Data, err = numbers.Parse(w.Data, MaxCertificate); err != nil {
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
