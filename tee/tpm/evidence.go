package tpm

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Limits on evidence from the other side.
const (
	// MaxEvidence is the greatest size of evidence JSON in bytes.
	MaxEvidence = 1 << 20
	// MaxKey is the greatest length of an attestation key in bytes.
	MaxKey = 2 << 10
	// MaxCertificates is the greatest number of certificates of the key.
	MaxCertificates = 5
	// MaxCertificate is the greatest length of one of them in bytes.
	MaxCertificate = 8 << 10
	// MaxEventLog is the greatest length of the firmware's event log in bytes.
	MaxEventLog = 512 << 10

	maxDepth = 4
)

// Evidence is what a TPM attester sends: the value of "primary_evidence" in the
// KBS protocol.
type Evidence struct {
	// AKPublic is the attestation key: SubjectPublicKeyInfo, DER. The
	// evidence itself says nothing about whose key it is.
	AKPublic []byte
	Quote    Quote
	// AKCertificates is the chain of the key, DER, the key's certificate
	// first. It is an extension of this implementation ("ak_certificates" in
	// JSON), which others ignore, and left out where it is empty.
	AKCertificates [][]byte
	// EventLog is the firmware's log of what it measured, in the TCG2 format.
	// It is an extension of this implementation ("event_log" in JSON), which
	// others ignore, and left out where it is empty.
	EventLog []byte
}

// Quote is a TPM's statement about its registers.
type Quote struct {
	// Signature is a TPMT_SIGNATURE over Message.
	Signature []byte
	// Message is a TPMS_ATTEST; see [ParseAttest].
	Message []byte
	// PCRs are values whose digest Message holds, where it selects them.
	PCRs PCRs
}

// wireEvidence is the JSON form: byte strings are standard base64 with padding,
// registers are lower-case hex.
type wireEvidence struct {
	TPMQuote       wireQuote `json:"tpm_quote"`
	AKPublic       string    `json:"ak_public"`
	AKCertificates []string  `json:"ak_certificates,omitempty"`
	EventLog       string    `json:"event_log,omitempty"`
}

type wireQuote struct {
	Signature string           `json:"signature"`
	Message   string           `json:"message"`
	PCRs      [PCRCount]string `json:"pcrs"`
}

// ParseEvidence decodes evidence from the other side. It refuses unknown and
// duplicate keys, other than 24 registers, everything beyond the limits, and
// base64 with anything in it that is not needed. The binary structures are not
// looked into.
func ParseEvidence(data json.RawMessage) (*Evidence, error) {
	var w wireEvidence
	if err := strictjson.Decode(data, &w, strictjson.Limits{Bytes: MaxEvidence, Depth: maxDepth}); err != nil {
		return nil, fmt.Errorf("tpm: evidence: %w", err)
	}
	var d decoder
	e := &Evidence{
		AKPublic: d.base64("ak_public", w.AKPublic, MaxKey),
		Quote: Quote{
			Signature: d.base64("tpm_quote.signature", w.TPMQuote.Signature, MaxSignature),
			Message:   d.base64("tpm_quote.message", w.TPMQuote.Message, MaxMessage),
		},
	}
	if len(w.AKCertificates) > MaxCertificates {
		d.fail("ak_certificates", "expected at most %d certificates, got %d", MaxCertificates, len(w.AKCertificates))
	} else if len(w.AKCertificates) > 0 {
		e.AKCertificates = make([][]byte, len(w.AKCertificates))
		for i, c := range w.AKCertificates {
			e.AKCertificates[i] = d.base64(fmt.Sprintf("ak_certificates[%d]", i), c, MaxCertificate)
		}
	}
	if w.EventLog != "" {
		e.EventLog = d.base64("event_log", w.EventLog, MaxEventLog)
	}
	var err error
	if e.Quote.PCRs, err = PCRsFromHex(w.TPMQuote.PCRs[:]); err != nil {
		d.err = errors.Join(d.err, fmt.Errorf("tpm: evidence: tpm_quote.pcrs: %w", err))
	}
	if d.err != nil {
		return nil, d.err
	}
	return e, nil
}

// decoder collects what is wrong.
type decoder struct{ err error }

func (d *decoder) fail(field, format string, args ...any) {
	d.err = errors.Join(d.err, fmt.Errorf("tpm: evidence: %s: "+format, append([]any{field}, args...)...))
}

// base64 decodes a byte string of 1 to limit bytes.
func (d *decoder) base64(field, s string, limit int) []byte {
	enc := base64.StdEncoding.Strict()
	if len(s) > enc.EncodedLen(limit) || len(s) == 0 {
		d.fail(field, "expected base64 of 1 to %d bytes, got %d characters", limit, len(s))
		return nil
	}
	out, err := enc.DecodeString(s)
	switch {
	case err != nil:
		d.fail(field, "expected standard base64 with padding: %v", err)
	case enc.EncodedLen(len(out)) != len(s): // Go's decoder skips line ends
		d.fail(field, "expected base64 without line ends")
	case len(out) > limit:
		d.fail(field, "expected at most %d bytes, got %d", limit, len(out))
	default:
		return out
	}
	return nil
}

const hexDigits = "0123456789abcdef"

// PCRsFromHex reads 24 register values of 64 lower-case hex digits each.
func PCRsFromHex(values []string) (PCRs, error) {
	var out PCRs
	if len(values) != PCRCount {
		return out, fmt.Errorf("expected %d registers, got %d", PCRCount, len(values))
	}
	for i, v := range values {
		if len(v) != hex.EncodedLen(len(out[i])) {
			return PCRs{}, fmt.Errorf("[%d]: expected %d hex digits, got %d", i, hex.EncodedLen(len(out[i])), len(v))
		}
		for j := range out[i] {
			high, low := strings.IndexByte(hexDigits, v[2*j]), strings.IndexByte(hexDigits, v[2*j+1])
			if high < 0 || low < 0 {
				return PCRs{}, fmt.Errorf("[%d]: expected lower-case hex digits, got %q", i, v)
			}
			out[i][j] = byte(high<<4 | low)
		}
	}
	return out, nil
}

// Hex is the register values as [PCRsFromHex] reads them.
func (p *PCRs) Hex() []string {
	out := make([]string, len(p))
	for i := range p {
		out[i] = hex.EncodeToString(p[i][:])
	}
	return out
}

// JSON encodes the evidence.
func (e *Evidence) JSON() (json.RawMessage, error) {
	enc := base64.StdEncoding.EncodeToString
	w := wireEvidence{
		AKPublic: enc(e.AKPublic),
		TPMQuote: wireQuote{Signature: enc(e.Quote.Signature), Message: enc(e.Quote.Message), PCRs: [PCRCount]string(e.Quote.PCRs.Hex())},
		EventLog: enc(e.EventLog),
	}
	for _, c := range e.AKCertificates {
		w.AKCertificates = append(w.AKCertificates, enc(c))
	}
	data, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("tpm: evidence: %w", err)
	}
	// What cannot be read back is not sent.
	if _, err := ParseEvidence(data); err != nil {
		return nil, err
	}
	return data, nil
}

// FromRaw always fails: a quote without the attestation key, the signature and
// the register values is no evidence. It says so.
func FromRaw([]byte) (json.RawMessage, error) {
	return nil, errors.New("tpm: raw bytes: evidence of a TPM is a JSON document with the quote, its signature, the attestation key and the register values; a bare structure is not enough")
}
