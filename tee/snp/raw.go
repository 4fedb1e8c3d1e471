package snp

import (
	"encoding/json"
	"fmt"
)

// MaxRaw is the greatest size of raw evidence in bytes: a report and a
// certificate table.
const MaxRaw = ReportSize + 1<<17

// FromRaw makes evidence JSON of a report of 1184 bytes, or of the extended
// form: the report and then the certificate table that the host attaches
// ([ParseCertTable]). It refuses everything that is not exactly one of these.
func FromRaw(raw []byte) (json.RawMessage, error) {
	e, err := ParseRaw(raw)
	if err != nil {
		return nil, err
	}
	return e.JSON()
}

// ParseRaw is [FromRaw] without the encoding.
func ParseRaw(raw []byte) (*Evidence, error) {
	if len(raw) < ReportSize || len(raw) > MaxRaw {
		return nil, fmt.Errorf("snp: raw evidence: expected a report of %d bytes, or with a certificate table at most %d, got %d", ReportSize, MaxRaw, len(raw))
	}
	if len(raw) == ReportSize {
		return NewEvidence(raw, nil)
	}
	certs, err := ParseCertTable(raw[ReportSize:])
	if err != nil {
		return nil, err
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("snp: raw evidence: expected a certificate table after the %d bytes of the report, got an empty one", ReportSize)
	}
	return NewEvidence(raw[:ReportSize], certs)
}
