package tdxverify

import (
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/tdx"
)

// checkTD checks how the TD was launched, as far as it can only be wrong.
func (v *Verifier) checkTD(l *checks.List, q *tdx.Quote) {
	a := q.TDAttributes
	got := fmt.Sprintf("%#016x", uint64(a))
	if a&tdx.AttributesUntrusted != 0 {
		l.FailUnless(v.options.AllowDebug, tee.Failure{
			Check: "tdx.debug", Field: "td_attributes", Expected: "no attribute of the untrusted group (bits 0 to 7: debug, profiling)", Got: got,
			Help: "the host can read the TD's memory: launch it without the debug attribute",
		})
	}
	if unknown := a.Unknown(); unknown != 0 {
		l.Fail(tee.Failure{
			Check: "tdx.attributes", Field: "td_attributes", Expected: "reserved bits that are zero", Got: fmt.Sprintf("%#x in %s", uint64(unknown), got),
			Help: "this attribute is not known to the verifier, and neither is what it opens",
		})
	}
	if a&tdx.AttributeMigratable != 0 {
		l.Warn(tee.Failure{
			Check: "tdx.attributes", Field: "td_attributes", Expected: "a TD that stays on its platform", Got: got + ", migratable",
			Help: "a migration TD can move this TD to another platform; mr_servicetd tells which",
		})
	}
	if a&tdx.AttributeSEPTVEDisable == 0 {
		l.Warn(tee.Failure{
			Check: "tdx.attributes", Field: "td_attributes", Expected: "SEPT_VE_DISABLE", Got: got,
			Help: "the host may take pages away without the TD stopping: launch it with SEPT_VE_DISABLE",
		})
	}
	if unknown, missing := tdx.CheckXFAM(q.XFAM); unknown != 0 || missing != 0 {
		l.Fail(tee.Failure{
			Check: "tdx.xfam", Field: "xfam", Expected: "x87 and SSE, and otherwise only known features", Got: fmt.Sprintf("%#x: unknown %#x, lacking %#x", q.XFAM, unknown, missing),
		})
	}
}

// checkIntelModule stands in for the identity of the TDX module where there is
// no collateral: the signer and the attributes of Intel's modules are zero
// ("Intel TDX Module 1.5 ABI Specification", TEE_TCB_INFO).
func checkIntelModule(l *checks.List, q *tdx.Quote) {
	for _, f := range []struct {
		field string
		value []byte
	}{{"mrsigner_seam", q.MRSignerSEAM[:]}, {"seam_attributes", q.SEAMAttributes[:]}} {
		for _, b := range f.value {
			if b != 0 {
				l.Fail(tee.Failure{Check: "tdx.module", Field: f.field, Expected: "zero, as with Intel's TDX modules", Got: claim(f.value)})
				break
			}
		}
	}
}
