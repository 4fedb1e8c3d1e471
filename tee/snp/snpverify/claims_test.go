package snpverify

import (
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// Policies depend on the names, types and values of claims.
func TestClaims(t *testing.T) {
	t.Parallel()
	report := vector(t, "test-report.bin")
	v := newVerifier(t, Options{Now: at("2024-06-01")})
	data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(t, "test-vcek.der")})
	result, err := v.Verify(t.Context(), data, tee.Expected{ReportData: report[0x50:0x90]})
	if err != nil {
		t.Fatal(err)
	}
	field := func(from, to int) string { return hex.EncodeToString(report[from:to]) }
	want := map[string]any{
		"policy_abi_major": 0, "policy_abi_minor": 31, "policy_smt_allowed": true, "policy_migrate_ma": false,
		"policy_debug_allowed": false, "policy_single_socket": false,
		"platform_tsme_enabled": false, "platform_smt_enabled": true,
		"measurement": field(0x90, 0xC0), "report_data": field(0x50, 0x90), "init_data": field(0xC0, 0xE0), "chip_id": field(0x1A0, 0x1E0),
		"reported_tcb_bootloader": 3, "reported_tcb_tee": 0, "reported_tcb_snp": 8, "reported_tcb_microcode": 0x73,
		"committed_tcb_bootloader": 3, "committed_tcb_tee": 0, "committed_tcb_snp": 8, "committed_tcb_microcode": 0x73,
		"launch_tcb_bootloader": 3, "launch_tcb_tee": 0, "launch_tcb_snp": 8, "launch_tcb_microcode": 0x73,
		"current_tcb_bootloader": 3, "current_tcb_tee": 0, "current_tcb_snp": 8, "current_tcb_microcode": 0xCE,
		"simulated": false, "generation": "Milan", "signer": "VCEK", "version": 2, "guest_svn": 4, "vmpl": 0,
		"host_data": field(0xC0, 0xE0), "family_id": field(0x10, 0x20), "image_id": field(0x20, 0x30),
		"id_key_digest": field(0xE0, 0x110), "author_key_digest": field(0x110, 0x140),
		"report_id": field(0x140, 0x160), "report_id_ma": field(0x160, 0x180),
		"current_version": "1.52.4", "committed_version": "1.52.4",
	}
	if diff := cmp.Diff(want, result.Claims); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
