package csv

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/numbers"
)

// Limits on evidence from the other side.
const (
	// MaxEvidence is the greatest size of evidence JSON in bytes.
	MaxEvidence = 2 << 20
	// MaxEventLog is the greatest size of the event log in bytes.
	MaxEventLog = 1 << 20
)

// Evidence is what a CSV attester sends.
type Evidence struct {
	// Page, Magic and Flags are the report: see [ParseReport].
	Page  []byte
	Magic [16]byte
	Flags uint32
	// HSK (832 bytes) and CEK (2084 bytes) are both there or both nil: the
	// verifier then has to find them by the serial number.
	HSK, CEK []byte
	// PEK is the certificate of the key that signed the report, 2084 bytes.
	PEK []byte
	// Serial is the chip's serial number, text padded with zeros to 64 bytes.
	Serial []byte
	// EventLog is a CCEL log; nil: none.
	EventLog []byte
}

type wireEvidence struct {
	Report struct {
		Magic [16]byte      `json:"magic"`
		Flags uint32        `json:"flags"`
		Data  numbers.Bytes `json:"data"`
	} `json:"attestation_report"`
	Chain struct {
		HSKCEK *wireHSKCEK     `json:"hsk_cek,omitempty"`
		PEK    wireCertificate `json:"pek"`
	} `json:"cert_chain"`
	Serial   numbers.Bytes `json:"serial_number"`
	EventLog *string       `json:"cc_eventlog"`
}

type wireHSKCEK struct {
	HSK wireCA          `json:"hsk"`
	CEK wireCertificate `json:"cek"`
}

// ParseEvidence decodes evidence JSON. It checks names and sizes; what the
// report and the certificates say is for [Evidence.Report], [ParseCACertificate]
// and [ParseCertificate].
func ParseEvidence(data json.RawMessage) (*Evidence, error) {
	var w wireEvidence
	if err := strictjson.Decode(data, &w, strictjson.Limits{Bytes: MaxEvidence, Depth: 10}); err != nil {
		return nil, fmt.Errorf("csv: evidence: %w", err)
	}
	e := &Evidence{Page: w.Report.Data, Magic: w.Report.Magic, Flags: w.Report.Flags, Serial: w.Serial}
	var err error
	if e.PEK, err = w.Chain.PEK.binary(); err != nil {
		return nil, fmt.Errorf("csv: evidence: cert_chain.pek: %w", err)
	}
	if pair := w.Chain.HSKCEK; pair != nil {
		if e.HSK, err = pair.HSK.binary(); err != nil {
			return nil, fmt.Errorf("csv: evidence: cert_chain.hsk_cek.hsk: %w", err)
		}
		if e.CEK, err = pair.CEK.binary(); err != nil {
			return nil, fmt.Errorf("csv: evidence: cert_chain.hsk_cek.cek: %w", err)
		}
	}
	if w.EventLog != nil {
		if len(*w.EventLog) > base64.StdEncoding.EncodedLen(MaxEventLog) {
			return nil, fmt.Errorf("csv: evidence: cc_eventlog: expected at most %d bytes, got more", MaxEventLog)
		}
		if e.EventLog, err = base64.StdEncoding.Strict().DecodeString(*w.EventLog); err != nil {
			return nil, fmt.Errorf("csv: evidence: cc_eventlog: %w", err)
		}
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Evidence) check() error {
	var err error
	size := func(name string, b []byte, want int) {
		if len(b) != want {
			err = errors.Join(err, fmt.Errorf("csv: evidence: %s: expected %d bytes, got %d", name, want, len(b)))
		}
	}
	size("attestation_report.data", e.Page, PageSize)
	size("cert_chain.pek", e.PEK, CertificateSize)
	size("serial_number", e.Serial, SerialSize)
	if e.HSK != nil || e.CEK != nil {
		size("cert_chain.hsk_cek.hsk", e.HSK, CACertificateSize)
		size("cert_chain.hsk_cek.cek", e.CEK, CertificateSize)
	}
	if len(e.EventLog) > MaxEventLog {
		err = errors.Join(err, fmt.Errorf("csv: evidence: cc_eventlog: expected at most %d bytes, got %d", MaxEventLog, len(e.EventLog)))
	}
	return err
}

// JSON encodes the evidence.
func (e *Evidence) JSON() (json.RawMessage, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	var w wireEvidence
	w.Report.Magic, w.Report.Flags, w.Report.Data = e.Magic, e.Flags, e.Page
	w.Chain.PEK, w.Serial = *newWireCertificate(e.PEK), e.Serial
	if e.HSK != nil {
		w.Chain.HSKCEK = &wireHSKCEK{*newWireCA(e.HSK), *newWireCertificate(e.CEK)}
	}
	if e.EventLog != nil {
		text := base64.StdEncoding.EncodeToString(e.EventLog)
		w.EventLog = &text
	}
	data, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("csv: evidence: %w", err)
	}
	return data, nil
}

// Report decodes the report.
func (e *Evidence) Report() (*Report, error) { return ParseReport(e.Page, e.Magic, e.Flags) }

// SerialNumber is the chip's serial number as text. It fails where that is not
// 1 to 64 letters and digits with zeros behind.
func (e *Evidence) SerialNumber() (string, error) {
	text := bytes.TrimRight(e.Serial, "\x00")
	ok := len(text) > 0
	for _, c := range text {
		ok = ok && (c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z')
	}
	if !ok {
		return "", fmt.Errorf("csv: evidence: serial_number: expected letters and digits, got %q", text)
	}
	return string(text), nil
}

// newEvidence makes evidence of what the firmware returned: a report with its
// signer, perhaps padded to a page. Version 2 and 3 look the same but for host
// data, which version 2 has as reserved zeros.
func newEvidence(raw []byte) (*Evidence, error) {
	e := &Evidence{Page: make([]byte, PageSize)}
	body := raw
	if len(raw) == PageSize {
		body = bytes.TrimRight(raw, "\x00")
	}
	switch {
	case len(raw) != infoV1+signerSize && len(raw) != infoV2+signerSize && len(raw) != PageSize:
		return nil, fmt.Errorf("csv: report: expected %d or %d bytes, or a page of %d, got %d", infoV1+signerSize, infoV2+signerSize, PageSize, len(raw))
	case len(body) > infoV1+signerSize:
		e.Magic, e.Flags = [16]byte([]byte(extMagic)), flagsVersion2
		if !zero(raw[hostDataAt:signedV2]) {
			e.Flags = flagsVersion3
		}
	}
	copy(e.Page, raw)
	r, err := e.Report()
	if err != nil {
		return nil, err
	}
	e.PEK, e.Serial = r.Signer.PEK, r.Signer.Serial
	pek, err := ParseCertificate(e.PEK)
	if err == nil && pek.Key.Usage != UsagePEK {
		err = fmt.Errorf("csv: report: signer: expected a %s, got %s", UsagePEK, pek.Key.Usage)
	}
	if err == nil {
		_, err = e.SerialNumber()
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// FromRaw makes evidence JSON, without HSK and CEK, of what the firmware
// returned: 2548 bytes (version 1) or 3380 bytes (versions 2 and 3), or either of
// them padded with zeros to a page of 4096.
func FromRaw(raw []byte) (json.RawMessage, error) {
	e, err := newEvidence(raw)
	if err != nil {
		return nil, err
	}
	return e.JSON()
}

// Inspect decodes a report, or evidence JSON, without verifying it.
func Inspect(data []byte) (*tee.Inspection, error) {
	var e *Evidence
	var err error
	form := "CSV attestation report, version %d"
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		e, err = ParseEvidence(data)
		form += ", in evidence JSON"
	} else {
		e, err = newEvidence(data)
	}
	if err != nil {
		return nil, err
	}
	r, err := e.Report()
	if err != nil {
		return nil, err
	}
	out := &tee.Inspection{TEE: tee.CSV, Format: fmt.Sprintf(form, r.Version), Fields: r.Claims()}
	out.Fields["has_hsk_cek"], out.Fields["event_log_bytes"] = e.HSK != nil, len(e.EventLog)
	odd := func(wrong bool, format string, args ...any) {
		if wrong {
			out.Odd = append(out.Odd, fmt.Sprintf(format, args...))
		}
	}
	serial, err := e.SerialNumber()
	odd(err != nil, "%v", err)
	if err == nil {
		out.Fields["serial_number"] = serial
	}
	if pek, err := ParseCertificate(e.PEK); err != nil {
		odd(true, "%v", err)
	} else {
		odd(pek.Key.Usage != UsagePEK, "cert_chain.pek: expected a PEK, got %s", pek.Key.Usage)
	}
	odd(!bytes.Equal(e.PEK, r.Signer.PEK), "cert_chain.pek is not the certificate in the report")
	odd(!bytes.Equal(e.Serial, r.Signer.Serial), "serial_number is not the one in the report")
	odd(!r.Policy.NoDebug(), "policy: nodbg is not set: the host may read and write the guest's memory")
	odd(r.SigUsage != UsagePEK || r.SigAlgorithm != AlgorithmSM2, "signed by %s with algorithm %d, not by a PEK with %d", r.SigUsage, r.SigAlgorithm, AlgorithmSM2)
	return out, nil
}
