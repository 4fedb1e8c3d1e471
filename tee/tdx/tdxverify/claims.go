package tdxverify

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/coffer-project/coffer/tee/tdx"
)

func claim(b []byte) string { return hex.EncodeToString(b) }

func claim16(n uint16) string { return claim(binary.LittleEndian.AppendUint16(nil, n)) }
func claim32(n uint32) string { return claim(binary.LittleEndian.AppendUint32(nil, n)) }
func claim64(n uint64) string { return claim(binary.LittleEndian.AppendUint64(nil, n)) }

// quoteClaims are documented in the package comment.
func quoteClaims(q *tdx.Quote) map[string]any {
	header := map[string]any{
		"version":      claim16(q.Header.Version),
		"att_key_type": claim16(q.Header.AttestationKeyType),
		"tee_type":     claim32(q.Header.TEEType),
		"reserved":     claim(q.Header.Reserved[:]),
		"vendor_id":    claim(q.Header.VendorID[:]),
		"user_data":    claim(q.Header.UserData[:]),
	}
	body := map[string]any{
		"tcb_svn":         claim(q.TEETCBSVN[:]),
		"mr_seam":         claim(q.MRSEAM[:]),
		"mrsigner_seam":   claim(q.MRSignerSEAM[:]),
		"seam_attributes": claim(q.SEAMAttributes[:]),
		"td_attributes":   claim64(uint64(q.TDAttributes)),
		"xfam":            claim64(q.XFAM),
		"mr_td":           claim(q.MRTD[:]),
		"mr_config_id":    claim(q.MRConfigID[:]),
		"mr_owner":        claim(q.MROwner[:]),
		"mr_owner_config": claim(q.MROwnerConfig[:]),
		"report_data":     claim(q.ReportData[:]),
	}
	for i := range q.RTMR {
		body[fmt.Sprintf("rtmr_%d", i)] = claim(q.RTMR[i][:])
	}
	quote := map[string]any{"header": header, "body": body}
	if q.BodyType == tdx.BodyTDReport15 {
		body["tee_tcb_svn2"] = claim(q.TEETCBSVN2[:])
		body["mr_servicetd"] = claim(q.MRServiceTD[:])
	}
	if q.Header.Version == 5 {
		quote["type"] = claim16(uint16(q.BodyType))
		quote["size"] = claim32(q.BodySize)
	}
	a := q.TDAttributes
	return map[string]any{
		"quote": quote,
		"td_attributes": map[string]any{
			"debug":           a&tdx.AttributeDebug != 0,
			"septve_disable":  a&tdx.AttributeSEPTVEDisable != 0,
			"protection_keys": a&tdx.AttributePKS != 0,
			"key_locker":      a&tdx.AttributeKeyLocker != 0,
			"perfmon":         a&tdx.AttributePerfMon != 0,
			"migratable":      a&tdx.AttributeMigratable != 0,
			"lass":            a&tdx.AttributeLASS != 0,
			"icssd":           a&tdx.AttributeICSSD != 0,
			"tpa":             a&tdx.AttributeTPA != 0,
			"profiling":       a&(tdx.AttributeHGSPlusProf|tdx.AttributePerfProf|tdx.AttributePMTProf) != 0,
		},
	}
}
