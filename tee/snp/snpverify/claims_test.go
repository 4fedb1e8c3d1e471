package snpverify

import (
	"encoding/hex"
	"strings"
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
		"policy_debug_allowed": false, "policy_single_socket": false, "policy_cxl_allowed": false, "policy_mem_aes_256_xts": false,
		"policy_rapl_disabled": false, "policy_ciphertext_hiding": false, "policy_page_swap_disabled": false,
		"platform_tsme_enabled": false, "platform_smt_enabled": true, "platform_ecc_enabled": false, "platform_rapl_disabled": false,
		"platform_ciphertext_hiding_enabled": false, "platform_alias_check_complete": false, "platform_iommu_write_safe": false, "platform_tio_enabled": false,
		"author_key_enabled": false, "mask_chip_key": false,
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

// Evidence as another implementation's attester sent it, of a Genoa chip.
func TestGenoaEvidence(t *testing.T) {
	t.Parallel()
	data := vector(t, "genoa-evidence.json")
	e, err := snp.ParseEvidence(data)
	if err != nil {
		t.Fatal(err)
	}
	report := e.AttestationReport
	v := newVerifier(t, Options{Now: at("2026-01-01")})
	r, err := v.Verify(t.Context(), data, tee.Expected{ReportData: report.ReportData[:], InitData: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	const reportData = "7e7320889600c7ac133aea7b896c51f41026002982292a7369559796999c1bf929eef3ff23c46e858f0b1982f9a92b17c51b578d958cde6b0c92978f150cf9b0"
	for claim, want := range map[string]any{
		"generation": "Genoa", "version": 3, "report_data": reportData, "measurement": hex.EncodeToString(report.Measurement[:]),
		"reported_tcb_bootloader": 10, "reported_tcb_tee": 0, "reported_tcb_snp": 23, "reported_tcb_microcode": 25,
		"platform_smt_enabled": true, "platform_tsme_enabled": false, "platform_ecc_enabled": true, "platform_alias_check_complete": true,
		"policy_smt_allowed": true, "policy_debug_allowed": false, "current_version": "1.55.40", "simulated": false,
	} {
		if diff := cmp.Diff(want, r.Claims[claim]); diff != "" {
			t.Errorf("claim %s: %s", claim, diff)
		}
	}
	if _, ok := r.Claims["launch_mit_vector"]; ok {
		t.Error("version 3 has no mitigation vectors")
	}
}

// VLEK evidence says whose key it is.
func TestVLEKClaims(t *testing.T) {
	t.Parallel()
	report := vector(t, "test-vlek-report.bin")
	v := newVerifier(t, Options{Now: at("2025-02-01"), VMPL: []uint32{1}})
	data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVLEK, Data: vector(t, "test-vlek.der")})
	r, err := v.Verify(t.Context(), data, tee.Expected{ReportData: report[0x50:0x90]})
	if err != nil {
		t.Fatal(err)
	}
	if r.Claims["signer"] != "VLEK" || r.Claims["vmpl"] != 1 || r.Claims["chip_id"] != strings.Repeat("0", 128) {
		t.Errorf("got %v", r.Claims)
	}
	if id, ok := r.Claims["csp_id"].(string); !ok || id == "" {
		t.Errorf("claim csp_id: got %v", r.Claims["csp_id"])
	}
}

// Reports of version 5 by real chips.
func TestVersion5Claims(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		want map[string]any
	}{
		{"turin", map[string]any{
			"generation": "Turin", "version": 5, "reported_tcb_fmc": 0, "reported_tcb_bootloader": 1, "reported_tcb_tee": 0, "reported_tcb_snp": 2,
			"reported_tcb_microcode": 0x47, "chip_id": "3b42092f69c656d3" + strings.Repeat("0", 112), "platform_iommu_write_safe": true,
			"platform_smt_enabled": true, "platform_tsme_enabled": true, "launch_mit_vector": "0000000000000000",
		}},
		{"genoa-v5", map[string]any{
			"generation": "Genoa", "version": 5, "reported_tcb_bootloader": 10, "reported_tcb_snp": 25, "reported_tcb_microcode": 84,
			"reported_tcb_fmc": nil, "launch_mit_vector": "0000000000000001", "current_mit_vector": "0000000000000001",
		}},
	} {
		report := vector(t, tc.name+"-report.bin")
		v := newVerifier(t, Options{Now: at("2025-12-01")})
		data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(t, tc.name+"-vcek.der")})
		r, err := v.Verify(t.Context(), data, tee.Expected{ReportData: report[0x50:0x90]})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		for claim, want := range tc.want {
			if diff := cmp.Diff(want, r.Claims[claim]); diff != "" {
				t.Errorf("%s: claim %s: %s", tc.name, claim, diff)
			}
		}
	}
}
