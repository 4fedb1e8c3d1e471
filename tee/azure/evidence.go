package azure

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

// Limits on evidence from the other side.
const (
	// MaxEvidence is the greatest size of evidence JSON in bytes.
	MaxEvidence = 256 << 10
	// MaxCertificate is the greatest size of the VCEK certificate in bytes.
	MaxCertificate = 16 << 10
	// MaxTDQuote is the greatest size of a TD quote in bytes.
	MaxTDQuote = 32 << 10

	maxEvidenceDepth = 4
)

// Evidence is what an attester in an Azure confidential VM sends: the value of
// "primary_evidence" in the KBS protocol.
type Evidence struct {
	// TEE is [tee.AzureSNPVTPM] or [tee.AzureTDXVTPM].
	TEE tee.Name
	// Version is 0, 1 or 2; version 0 has no such member on the wire.
	Version int
	Quote   Quote
	// HCLReport is the paravisor's report; see [ParseReport].
	HCLReport []byte
	// VCEK is the chip's certificate, DER; SNP only. In version 0 it is PEM on
	// the wire, and VCEKPEM holds it.
	VCEK    []byte
	VCEKPEM []byte
	// TDQuote is the quote of the TDX report in HCLReport; TDX only.
	TDQuote []byte
}

// Quote is the virtual TPM's statement about its registers. Other than in
// tee/tpm the signature is bare.
type Quote struct {
	// Signature is RSASSA-PKCS1-v1_5 with SHA-256 over Message.
	Signature []byte
	// Message is a TPMS_ATTEST.
	Message []byte
	PCRs    tpm.PCRs
}

// oldQuote is the quote of version 0: arrays of numbers.
type oldQuote struct {
	Signature json.RawMessage          `json:"signature"`
	Message   json.RawMessage          `json:"message"`
	PCRs      *[tpm.PCRCount][32]uint8 `json:"pcrs"`
}

// newQuote is the quote since version 1: lower-case hex.
type newQuote struct {
	Signature string               `json:"signature"`
	Message   string               `json:"message"`
	PCRs      [tpm.PCRCount]string `json:"pcrs"`
}

// The forms on the wire. Byte strings are arrays of numbers in version 0 and
// base64 (URL-safe, padded) since version 1.
type (
	oldSNP struct {
		Quote  oldQuote        `json:"quote"`
		Report json.RawMessage `json:"report"`
		VCEK   string          `json:"vcek"` // PEM
	}
	oldTDX struct {
		TPMQuote  oldQuote        `json:"tpm_quote"`
		HCLReport json.RawMessage `json:"hcl_report"`
		TDQuote   json.RawMessage `json:"td_quote"`
	}
	newSNP struct {
		Version   int      `json:"version"`
		TPMQuote  newQuote `json:"tpm_quote"`
		HCLReport string   `json:"hcl_report"`
		VCEK      string   `json:"vcek"`
	}
	newTDX struct {
		Version   int      `json:"version"`
		TPMQuote  newQuote `json:"tpm_quote"`
		HCLReport string   `json:"hcl_report"`
		TDQuote   string   `json:"td_quote"`
	}
)

// ParseEvidence decodes evidence for name from the other side. It refuses unknown
// and duplicate keys, those of another version or environment, other than 24
// registers, and everything beyond the limits. The binary structures are not
// looked into.
func ParseEvidence(name tee.Name, data json.RawMessage) (*Evidence, error) {
	e, d := &Evidence{TEE: name}, new(decoder)
	// Only version 0 has no such member. Where the guess is wrong, the form
	// refuses what it does not know.
	old := !bytes.Contains(data, []byte(`"version"`))
	switch {
	case name == tee.AzureSNPVTPM && old:
		d.oldSNP(e, data)
	case name == tee.AzureSNPVTPM:
		d.newSNP(e, data)
	case name == tee.AzureTDXVTPM && old:
		d.oldTDX(e, data)
	case name == tee.AzureTDXVTPM:
		d.newTDX(e, data)
	default:
		return nil, fmt.Errorf("azure: expected %s or %s, got %q", tee.AzureSNPVTPM, tee.AzureTDXVTPM, name)
	}
	if !old && e.Version != 1 && e.Version != 2 && d.err == nil {
		d.fail("version", "expected 1 or 2, or none, got %d", e.Version)
	}
	if d.err != nil {
		return nil, d.err
	}
	return e, nil
}

func (d *decoder) oldSNP(e *Evidence, data []byte) {
	var w oldSNP
	if d.document(data, &w) {
		d.oldQuote(e, "quote", &w.Quote)
		e.HCLReport = d.numbers("report", w.Report, MaxReport)
		if e.VCEKPEM = []byte(w.VCEK); len(w.VCEK) == 0 || len(w.VCEK) > 2*MaxCertificate {
			d.fail("vcek", "expected 1 to %d bytes of PEM, got %d", 2*MaxCertificate, len(w.VCEK))
		}
	}
}

func (d *decoder) oldTDX(e *Evidence, data []byte) {
	var w oldTDX
	if d.document(data, &w) {
		d.oldQuote(e, "tpm_quote", &w.TPMQuote)
		e.HCLReport = d.numbers("hcl_report", w.HCLReport, MaxReport)
		e.TDQuote = d.numbers("td_quote", w.TDQuote, MaxTDQuote)
	}
}

func (d *decoder) newSNP(e *Evidence, data []byte) {
	var w newSNP
	if d.document(data, &w) {
		e.Version = w.Version
		d.newQuote(e, &w.TPMQuote)
		e.HCLReport = d.base64("hcl_report", w.HCLReport, MaxReport)
		e.VCEK = d.base64("vcek", w.VCEK, MaxCertificate)
	}
}

func (d *decoder) newTDX(e *Evidence, data []byte) {
	var w newTDX
	if d.document(data, &w) {
		e.Version = w.Version
		d.newQuote(e, &w.TPMQuote)
		e.HCLReport = d.base64("hcl_report", w.HCLReport, MaxReport)
		e.TDQuote = d.base64("td_quote", w.TDQuote, MaxTDQuote)
	}
}

func (d *decoder) oldQuote(e *Evidence, field string, q *oldQuote) {
	e.Quote.Signature = d.numbers(field+".signature", q.Signature, maxRSA)
	e.Quote.Message = d.numbers(field+".message", q.Message, tpm.MaxMessage)
	if q.PCRs == nil {
		d.fail(field+".pcrs", "missing")
		return
	}
	e.Quote.PCRs = tpm.PCRs(*q.PCRs)
}

func (d *decoder) newQuote(e *Evidence, q *newQuote) {
	e.Quote.Signature = d.hex("tpm_quote.signature", q.Signature, maxRSA)
	e.Quote.Message = d.hex("tpm_quote.message", q.Message, tpm.MaxMessage)
	var err error
	if e.Quote.PCRs, err = tpm.PCRsFromHex(q.PCRs[:]); err != nil {
		d.fail("tpm_quote.pcrs", "%v", err)
	}
}

// JSON encodes evidence of version 1 or 2.
func (e *Evidence) JSON() (json.RawMessage, error) {
	if e.Version != 1 && e.Version != 2 {
		return nil, fmt.Errorf("azure: evidence: version: expected 1 or 2 to encode, got %d", e.Version)
	}
	enc := base64.URLEncoding.EncodeToString
	out := struct {
		Version   int      `json:"version"`
		TPMQuote  newQuote `json:"tpm_quote"`
		HCLReport string   `json:"hcl_report"`
		VCEK      string   `json:"vcek,omitempty"`
		TDQuote   string   `json:"td_quote,omitempty"`
	}{
		Version:   e.Version,
		HCLReport: enc(e.HCLReport), VCEK: enc(e.VCEK), TDQuote: enc(e.TDQuote),
		TPMQuote: newQuote{
			Signature: hex.EncodeToString(e.Quote.Signature), Message: hex.EncodeToString(e.Quote.Message),
			PCRs: [tpm.PCRCount]string(e.Quote.PCRs.Hex()),
		},
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("azure: evidence: %w", err)
	}
	// What cannot be read back is not sent.
	if _, err := ParseEvidence(e.TEE, data); err != nil {
		return nil, err
	}
	return data, nil
}

// FromRaw always fails: a hardware report or quote alone says nothing about the
// guest, which is in the TPM's quote. It says so.
func FromRaw([]byte) (json.RawMessage, error) {
	return nil, errors.New("azure: raw bytes: evidence of an Azure confidential VM is a JSON document with the TPM's quote, the paravisor's report and the hardware's endorsement; one of them is not enough")
}
