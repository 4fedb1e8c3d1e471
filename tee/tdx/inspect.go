package tdx

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// Inspect decodes a raw quote or evidence JSON for a reader, without trust. It
// fails only where the data is no TDX quote at all.
func Inspect(data []byte) (*tee.Inspection, error) {
	raw, out := data, &tee.Inspection{TEE: tee.TDX, Fields: map[string]any{}}
	if text := bytes.TrimSpace(data); len(text) > 0 && text[0] == '{' {
		var loose struct {
			Quote    []byte `json:"quote"`
			EventLog []byte `json:"cc_eventlog"`
		}
		if err := json.Unmarshal(text, &loose); err != nil {
			return nil, fmt.Errorf("tdx: evidence: %w", err)
		}
		if _, err := ParseEvidence(data); err != nil {
			out.Odd = append(out.Odd, err.Error())
		}
		raw = loose.Quote
		out.Fields["cc_eventlog_bytes"] = len(loose.EventLog)
	}
	q, section, err := parseBody(raw)
	if err != nil {
		return nil, fmt.Errorf("tdx: %w", err)
	}
	out.Format = fmt.Sprintf("quote, version %d, TD report 1.0", q.Header.Version)
	if q.BodyType == BodyTDReport15 {
		out.Format = fmt.Sprintf("quote, version %d, TD report 1.5", q.Header.Version)
	}
	out.Fields["header"], out.Fields["body"] = q.Header.Fields(), q.fields()
	fields, odd := dcapquote.Inspect(section, q.Header.Version)
	out.Fields["signature_data"] = fields
	out.Odd = append(append(out.Odd, q.odd()...), odd...)
	return out, nil
}

func (q *Quote) fields() map[string]any {
	out := map[string]any{
		"tcb_svn": hex.EncodeToString(q.TEETCBSVN[:]), "mr_seam": hex.EncodeToString(q.MRSEAM[:]), "mrsigner_seam": hex.EncodeToString(q.MRSignerSEAM[:]),
		"seam_attributes": hex.EncodeToString(q.SEAMAttributes[:]), "td_attributes": fmt.Sprintf("%#x", uint64(q.TDAttributes)), "xfam": fmt.Sprintf("%#x", q.XFAM),
		"mr_td": hex.EncodeToString(q.MRTD[:]), "mr_config_id": hex.EncodeToString(q.MRConfigID[:]), "mr_owner": hex.EncodeToString(q.MROwner[:]),
		"mr_owner_config": hex.EncodeToString(q.MROwnerConfig[:]), "report_data": hex.EncodeToString(q.ReportData[:]),
	}
	for i := range q.RTMR {
		out[fmt.Sprintf("rtmr_%d", i)] = hex.EncodeToString(q.RTMR[i][:])
	}
	if q.TEETCBSVN2 != nil {
		out["tee_tcb_svn2"], out["mr_servicetd"] = hex.EncodeToString(q.TEETCBSVN2[:]), hex.EncodeToString(q.MRServiceTD[:])
	}
	return out
}

func (q *Quote) odd() []string {
	var out []string
	if q.Header.Reserved != [4]byte{} {
		out = append(out, "header: reserved bytes that are not zero")
	}
	if q.Header.VendorID != dcapquote.IntelQE() {
		out = append(out, "header: vendor_id is not that of Intel's quoting enclave")
	}
	a := q.TDAttributes
	if a&AttributesUntrusted != 0 {
		out = append(out, "td_attributes: the host can debug or profile the TD")
	}
	if a.Unknown() != 0 {
		out = append(out, fmt.Sprintf("td_attributes: unknown bits %#x", uint64(a.Unknown())))
	}
	if a&AttributeSEPTVEDisable == 0 {
		out = append(out, "td_attributes: SEPT_VE_DISABLE is not set")
	}
	if unknown, missing := CheckXFAM(q.XFAM); unknown|missing != 0 {
		out = append(out, fmt.Sprintf("xfam: unknown bits %#x, lacking bits %#x", unknown, missing))
	}
	return out
}
