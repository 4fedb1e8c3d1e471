package sgx

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// Inspect decodes a raw quote or evidence JSON for a reader, without trust. It
// fails only where the data is no SGX quote of version 3 at all.
func Inspect(data []byte) (*tee.Inspection, error) {
	raw, out := data, &tee.Inspection{TEE: tee.SGX, Format: "quote, version 3", Fields: map[string]any{}}
	if text := bytes.TrimSpace(data); len(text) > 0 && text[0] == '{' {
		var loose struct {
			Quote []byte `json:"quote"`
		}
		if err := json.Unmarshal(text, &loose); err != nil {
			return nil, fmt.Errorf("sgx: evidence: %w", err)
		}
		if _, err := ParseEvidence(data); err != nil {
			out.Odd = append(out.Odd, err.Error())
		}
		raw = loose.Quote
	}
	q, section, err := parseBody(raw)
	if err != nil {
		return nil, fmt.Errorf("sgx: %w", err)
	}
	qe, pce := q.QESVN(), q.PCESVN()
	header := q.Header.Fields()
	header["qe_svn"], header["pce_svn"] = hex.EncodeToString(qe[:]), hex.EncodeToString(pce[:])
	out.Fields["header"], out.Fields["body"] = header, q.Report.Fields()
	if q.Header.VendorID != dcapquote.IntelQE() {
		out.Odd = append(out.Odd, "header: vendor_id is not that of Intel's quoting enclave")
	}
	fields, odd := dcapquote.Inspect(section, q.Header.Version)
	out.Fields["signature_data"] = fields
	out.Odd = append(append(out.Odd, q.Report.Odd()...), odd...)
	return out, nil
}
