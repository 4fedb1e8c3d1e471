package appraisal

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

// byTenant are reference values that tenants do not share.
type byTenant map[tenant.Name]fakeReferences

func (b byTenant) Reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, bool, error) {
	return b[t].Reference(ctx, t, name)
}

// claims reads a JSON object, from testdata where it is a file's name.
func claims(t *testing.T, doc string) map[string]any {
	t.Helper()
	text := []byte(doc)
	if strings.HasSuffix(doc, ".json") {
		var err error
		if text, err = os.ReadFile(filepath.Join("testdata", doc)); err != nil {
			t.Fatal(err)
		}
	}
	var out map[string]any
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.UseNumber()
	if err := dec.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// set replaces a member of nested objects; nil removes it.
func set(path string, v any) func(map[string]any) {
	return func(c map[string]any) {
		names := strings.Split(path, "/")
		for _, n := range names[:len(names)-1] {
			c = c[n].(map[string]any) //nolint:forcetypeassert // of the test's own making
		}
		if c[names[len(names)-1]] = v; v == nil {
			delete(c, names[len(names)-1])
		}
	}
}

const (
	mrTD   = "705ee9381b8633a9fbe532b52345e8433343d2868959f57889d84ca377c395b689cac1"
	good   = `"UpToDate"`
	vendor = "00112233445566778899aabbccddeeff"
)

// remoteGPU is what NVIDIA's service says of a good device (claims version 3.0).
const remoteGPU = `{
 "measres": "success", "secboot": true, "dbgstat": "disabled", "hwmodel": "GH100 A01 GSP BROM", "x-nvidia-overall-att-result": true,
 "x-nvidia-gpu-attestation-report-cert-chain": {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good", "x-nvidia-cert-expiration-date": "9999-12-31T23:59:59Z"},
 "x-nvidia-gpu-attestation-report-cert-chain-fwid-match": true, "x-nvidia-gpu-attestation-report-signature-verified": true,
 "x-nvidia-gpu-attestation-report-nonce-match": true,
 "x-nvidia-gpu-driver-rim-signature-verified": true, "x-nvidia-gpu-driver-rim-version-match": true,
 "x-nvidia-gpu-vbios-rim-signature-verified": true, "x-nvidia-gpu-vbios-rim-version-match": true,
 "x-nvidia-gpu-driver-version": "550.90.07", "x-nvidia-gpu-vbios-version": "96.00.9f.00.01"}`

const remoteSwitch = `{
 "measres": "success", "secboot": true, "dbgstat": "disabled",
 "x-nvidia-switch-attestation-report-cert-chain": {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"},
 "x-nvidia-switch-attestation-report-cert-chain-fwid-match": true, "x-nvidia-switch-attestation-report-signature-verified": true,
 "x-nvidia-switch-attestation-report-nonce-match": true,
 "x-nvidia-switch-bios-rim-signature-verified": true, "x-nvidia-switch-bios-rim-version-match": true,
 "x-nvidia-switch-bios-version": "96.10.57.00.01"}`

// localGPU and localSwitch are what the trustee's own verifier says of good devices.
const localGPU = `{
 "arch": "Hopper", "uuid": "unknown", "measurements": {"1": "aa"}, "config": {"vbios_version": "96.00.9f.00.01", "driver_version": "550.90.07"},
 "measres": "success", "secboot": true, "dbgstat": "disabled", "simulated": false,
 "x-nvidia-gpu-attestation-report-cert-chain": {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"},
 "x-nvidia-gpu-attestation-report-cert-chain-fwid-match": true, "x-nvidia-gpu-attestation-report-signature-verified": true,
 "x-nvidia-gpu-attestation-report-nonce-match": true,
 "x-nvidia-gpu-driver-rim-signature-verified": true, "x-nvidia-gpu-driver-rim-version-match": true,
 "x-nvidia-gpu-vbios-rim-signature-verified": true, "x-nvidia-gpu-vbios-rim-version-match": true,
 "x-nvidia-gpu-driver-version": "550.90.07", "x-nvidia-gpu-vbios-version": "96.00.9F.00.01"}`

const localSwitch = `{
 "arch": "LS10", "uuid": "unknown", "measurements": {"1": "aa"}, "config": {"vbios_version": "96.10.57.00.01"},
 "measres": "success", "secboot": true, "dbgstat": "disabled", "simulated": false,
 "x-nvidia-switch-attestation-report-cert-chain": {"x-nvidia-cert-status": "valid"},
 "x-nvidia-switch-attestation-report-signature-verified": true, "x-nvidia-switch-attestation-report-nonce-match": true,
 "x-nvidia-switch-bios-rim-signature-verified": true, "x-nvidia-switch-bios-rim-version-match": true,
 "x-nvidia-switch-bios-version": "96.10.57.00.01"}`

// Every value of this one is a string, as its verifier writes them.
const azureSNP = `{
 "measurement": "m6Y/zA==", "policy_debug_allowed": "false", "policy_migrate_ma": "false", "policy_smt_allowed": "true",
 "platform_smt_enabled": "true", "platform_tsme_enabled": "false", "reported_tcb_snp": "23", "policy_abi_major": "0",
 "policy_abi_minor": "31", "policy_single_socket": "false",
 "reported_tcb_bootloader": "4", "reported_tcb_tee": "0", "reported_tcb_microcode": "213", "tpm": {"pcr11": "aa11", "pcr00": "00"}}`

const sgxClaims = `{"header": {"version": "0300"}, "tcb_status": "UpToDate", "collateral_expiration_status": "0",
 "body": {"mr_enclave": "e1", "mr_signer": "51", "isv_prod_id": "0100", "isv_svn": "0200", "attributes.flags": "0500000000000000", "attributes.xfrm": "e700000000000000"}}`

const csvClaims = `{"version": "2", "measure": "c5", "rtmr1": "r1", "serial_number": "sn",
 "policy": {"nodbg": 1, "noks": 1, "es": 1, "nosend": 1, "domain": 1, "csv": 1, "csv3": 0, "api_major": 1, "api_minor": 4}}`

func TestBuiltInPolicies(t *testing.T) {
	t.Parallel()
	tdxRefs := fakeReferences{
		"mr_td": list(`"` + mrTD + `"`), "rtmr_1": list(`"x1"`), "rtmr_2": list(`"x2"`),
	}
	goodTDX := []func(map[string]any){
		set("quote/body/rtmr_1", "x1"), set("quote/body/rtmr_2", "X2"), set("td_attributes/debug", false), set("quote/body/mr_td", mrTD),
		set("tcb_status", "UpToDate"), set("collateral_expiration_status", "0"),
	}
	const eventDigest = "5b7aa6572f649714ff00b6a2b9170516a068fd1a0ba72aa8de27574131d454e6396d3bfa1727d9baf421618a942977fa"
	azTDX := `{"quote": {"body": {"mr_td": "td", "xfam": "e7"}}, "td_attributes": {"debug": false}, "tcb_status": "UpToDate", "collateral_expiration_status": "0", "tpm": {"pcr11": "11"}}`
	azTDXRefs := fakeReferences{"mr_td": list(`"td"`), "tdx_pcr11": list(`"11"`)}
	azSNPRefs := fakeReferences{"measurement": list(`"m6Y/zA=="`), "snp_pcr11": list(`"AA11"`)}
	sgxRefs := fakeReferences{"sgx_mr_enclave": list(`"e1"`)}
	ccaRefs := fakeReferences{"cca_realm_initial_measurement": list(`"Q0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQw=="`)}
	tpm := `{"pcr11": "p11", "pcr07": "p7", "ak_public": "AK=="}`
	direct := `{"pcr04": "p4", "pcr09": "p9", "pcr11": "00", "ak_public": "AK=="}`
	directRefs := fakeReferences{"tpm_pcr04": list(`"p4"`), "tpm_pcr09": list(`"p9"`), "trusted_aks": list(`"AK=="`)}
	tpmRefs := fakeReferences{"tpm_pcr11": list(`"p11"`), "trusted_aks": list(`"AK=="`)}
	se := `{"cuid": "c", "version": 256, "tag": "t4", "image_phkh": "i", "attestation_phkh": "a"}`
	seRefs := fakeReferences{"se_tag": list(`"t4"`)}
	gpuRefs := fakeReferences{"nvidia_gpu_measurement_10": list(`"059b32e712a153f490dbfb7976a9e275d789e28bd4803c357def2b6123327c430526bfaecc200f496d4e149fc5eade03"`)}
	with := func(base fakeReferences, name string, r refvalues.Reference) fakeReferences {
		out := maps.Clone(base)
		out[name] = r
		return out
	}
	// One engine for all, whose policies are prepared once; each case is a tenant.
	refs := byTenant{}
	e := New(Options{Policies: fakePolicies{}, References: refs, Now: func() time.Time { return now }})
	// hec are hardware, executables, configuration.
	type hec [3]int8
	cases := []struct {
		name   string
		tee    tee.Name
		class  tee.Class
		claims string
		change []func(map[string]any)
		refs   fakeReferences
		want   hec
		// findings are the rules, in any order.
		findings []string
	}{
		{name: "tdx", tee: tee.TDX, claims: "tdx-claims.json", change: goodTDX, refs: tdxRefs, want: hec{2, 3, 3}},
		{name: "tdx as it came", tee: tee.TDX, claims: "tdx-claims.json", refs: tdxRefs, want: hec{97, 33, 36},
			findings: []string{"tdx.mr_td", "tdx.rtmr_1", "tdx.rtmr_2", "tdx.tcb_status", "tdx.collateral_expiration_status", "tdx.td_attributes.debug"}},
		{name: "tdx debug", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("td_attributes/debug", true)), refs: tdxRefs,
			want: hec{2, 3, 36}, findings: []string{"tdx.td_attributes.debug"}},
		{name: "tdx without attributes", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("td_attributes", nil)), refs: tdxRefs,
			want: hec{2, 3, 36}, findings: []string{"tdx.td_attributes.debug"}},
		{name: "tdx migratable", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("td_attributes/migratable", true), set("quote/body/mr_servicetd", "5e")), refs: tdxRefs,
			want: hec{2, 3, 36}, findings: []string{"tdx.mr_servicetd"}},
		{name: "tdx migratable, by a registered TD", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("td_attributes/migratable", true), set("quote/body/mr_servicetd", "5e")),
			refs: with(tdxRefs, "mr_servicetd", list(`"5e"`)), want: hec{2, 3, 3}},
		{name: "tdx not migratable", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("td_attributes/migratable", false)), refs: tdxRefs, want: hec{2, 3, 3}},
		{name: "tdx out of date", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("tcb_status", "OutOfDate")), refs: tdxRefs,
			want: hec{97, 3, 3}, findings: []string{"tdx.tcb_status"}},
		{name: "tdx level accepted", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("tcb_status", "SWHardeningNeeded")),
			refs: with(tdxRefs, "tcb_status", list(good, `"SWHardeningNeeded"`)), want: hec{2, 3, 3}},
		{name: "tdx level not accepted", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("tcb_status", "Revoked")),
			refs: with(tdxRefs, "tcb_status", list(good, `"SWHardeningNeeded"`)), want: hec{97, 3, 3}, findings: []string{"tdx.tcb_status"}},
		{name: "tdx collateral", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("collateral_expiration_status", "1")), refs: tdxRefs,
			want: hec{97, 3, 3}, findings: []string{"tdx.collateral_expiration_status"}},
		{name: "tdx other vendor", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("quote/header/vendor_id", vendor)), refs: tdxRefs,
			want: hec{97, 3, 3}, findings: []string{"tdx.quote.header.vendor_id"}},
		{name: "tdx xfam", tee: tee.TDX, claims: "tdx-claims.json", change: goodTDX, refs: with(tdxRefs, "xfam", list(`"e702060000000000"`)),
			want: hec{2, 3, 36}, findings: []string{"tdx.xfam"}},
		{name: "tdx kernel in the log", tee: tee.TDX, claims: "tdx-claims.json", change: goodTDX,
			refs: with(tdxRefs, "tdvfkernel", refvalues.Reference{Scalar: true, Entries: []refvalues.Entry{{Value: json.RawMessage(`"` + eventDigest + `"`)}}}), want: hec{2, 3, 3}},
		{name: "tdx other kernel", tee: tee.TDX, claims: "tdx-claims.json", change: goodTDX, refs: with(tdxRefs, "tdvfkernel", list(`"00"`)),
			want: hec{2, 33, 3}, findings: []string{"tdx.tdvfkernel"}},
		{name: "tdx no log", tee: tee.TDX, claims: "tdx-claims.json", change: append(slices.Clone(goodTDX), set("uefi_event_logs", nil)), refs: with(tdxRefs, "tdvfkernelparams", list(`"00"`)),
			want: hec{2, 33, 3}, findings: []string{"tdx.tdvfkernelparams"}},

		{name: "az-tdx", tee: tee.AzureTDXVTPM, claims: azTDX, refs: azTDXRefs, want: hec{2, 3, 3}},
		{name: "az-tdx other image", tee: tee.AzureTDXVTPM, claims: azTDX, change: []func(map[string]any){set("tpm/pcr11", "12")}, refs: azTDXRefs,
			want: hec{2, 33, 3}, findings: []string{"az-tdx-vtpm.tdx_pcr11"}},
		{name: "az-tdx nothing registered", tee: tee.AzureTDXVTPM, claims: azTDX, refs: fakeReferences{"xfam": list(`"00"`)},
			want: hec{2, 33, 36}, findings: []string{"az-tdx-vtpm.tdx_pcr11", "az-tdx-vtpm.mr_td", "az-tdx-vtpm.xfam"}},

		{name: "sgx", tee: tee.SGX, claims: sgxClaims, refs: sgxRefs, want: hec{2, 3, 3}},
		{name: "sgx by signer", tee: tee.SGX, claims: sgxClaims, refs: fakeReferences{"sgx_mr_signer": list(`"51"`), "sgx_isv_prod_id": list(`"0100"`), "sgx_isv_svn": list(`"0200"`)}, want: hec{2, 3, 3}},
		{name: "sgx by signer alone", tee: tee.SGX, claims: sgxClaims, refs: fakeReferences{"sgx_mr_signer": list(`"51"`)},
			want: hec{2, 33, 3}, findings: []string{"sgx.sgx_mr_enclave"}},
		{name: "sgx debug", tee: tee.SGX, claims: sgxClaims, change: []func(map[string]any){set("body/attributes.flags", "0700000000000000")}, refs: sgxRefs,
			want: hec{2, 3, 36}, findings: []string{"sgx.debug"}},
		{name: "sgx no flags", tee: tee.SGX, claims: sgxClaims, change: []func(map[string]any){set("body/attributes.flags", nil)}, refs: sgxRefs,
			want: hec{2, 3, 36}, findings: []string{"sgx.debug"}},
		{name: "sgx no status", tee: tee.SGX, claims: sgxClaims, change: []func(map[string]any){set("tcb_status", nil)}, refs: sgxRefs,
			want: hec{97, 3, 3}, findings: []string{"sgx.tcb_status"}},
		{name: "sgx xfrm", tee: tee.SGX, claims: sgxClaims, refs: with(sgxRefs, "sgx_xfrm", list(`"00"`)), want: hec{2, 3, 36}, findings: []string{"sgx.sgx_xfrm"}},

		{name: "az-snp", tee: tee.AzureSNPVTPM, claims: azureSNP, refs: azSNPRefs, want: hec{2, 3, 3}},
		{name: "az-snp numbers", tee: tee.AzureSNPVTPM, claims: azureSNP, refs: with(with(with(azSNPRefs, "tcb_snp", list(`23`)), "smt_enabled", list(`true`)), "tcb_tee", list(`"0"`)), want: hec{2, 3, 3}},
		{name: "az-snp other TCB", tee: tee.AzureSNPVTPM, claims: azureSNP, refs: with(azSNPRefs, "tcb_snp", list(`24`)), want: hec{97, 3, 3}, findings: []string{"az-snp-vtpm.tcb_snp"}},
		{name: "az-snp debug", tee: tee.AzureSNPVTPM, claims: azureSNP, change: []func(map[string]any){set("policy_debug_allowed", "true")}, refs: azSNPRefs,
			want: hec{2, 3, 36}, findings: []string{"az-snp-vtpm.policy_debug_allowed"}},
		{name: "az-snp other image", tee: tee.AzureSNPVTPM, claims: azureSNP, change: []func(map[string]any){set("tpm/pcr11", "bb")}, refs: azSNPRefs,
			want: hec{2, 33, 3}, findings: []string{"az-snp-vtpm.snp_pcr11"}},
		{name: "az-snp other paravisor", tee: tee.AzureSNPVTPM, claims: azureSNP, change: []func(map[string]any){set("measurement", "x")}, refs: azSNPRefs,
			want: hec{2, 33, 3}, findings: []string{"az-snp-vtpm.measurement"}},

		{name: "tpm", tee: tee.TPM, claims: tpm, refs: tpmRefs, want: hec{2, 3, 3}},
		{name: "tpm direct boot", tee: tee.TPM, claims: direct, refs: directRefs, want: hec{2, 3, 3}},
		{name: "tpm direct boot, other kernel", tee: tee.TPM, claims: direct, change: []func(map[string]any){set("pcr04", "x")}, refs: directRefs,
			want: hec{2, 33, 36}, findings: []string{"tpm.tpm_pcr04", "tpm.tpm_pcr04"}},
		{name: "tpm direct boot, other command line", tee: tee.TPM, claims: direct, change: []func(map[string]any){set("pcr09", "x")}, refs: directRefs,
			want: hec{2, 33, 36}, findings: []string{"tpm.tpm_pcr09", "tpm.tpm_pcr09"}},
		{name: "tpm direct boot, kernel alone", tee: tee.TPM, claims: direct, refs: fakeReferences{"tpm_pcr04": list(`"p4"`), "trusted_aks": list(`"AK=="`)},
			want: hec{2, 33, 3}, findings: []string{"tpm.tpm_pcr11"}},
		{name: "tpm direct boot where an image is registered", tee: tee.TPM, claims: direct, refs: with(directRefs, "tpm_pcr11", list(`"p11"`)),
			want: hec{2, 33, 3}, findings: []string{"tpm.tpm_pcr11"}},
		{name: "tpm of anyone", tee: tee.TPM, claims: tpm, refs: fakeReferences{"tpm_pcr11": list(`"p11"`)}, want: hec{97, 3, 3}, findings: []string{"tpm.trusted_aks"}},
		{name: "tpm secure boot", tee: tee.TPM, claims: tpm, refs: with(tpmRefs, "tpm_pcr07", list(`"x"`)), want: hec{2, 3, 36}, findings: []string{"tpm.tpm_pcr07"}},

		{name: "cca", tee: tee.CCA, claims: "cca-claims.json", refs: ccaRefs, want: hec{2, 3, 3}},
		{name: "cca debug lifecycle", tee: tee.CCA, claims: "cca-claims.json", change: []func(map[string]any){set("platform/cca-platform-lifecycle", 0x4001)}, refs: ccaRefs,
			want: hec{97, 3, 3}, findings: []string{"cca.lifecycle"}},
		{name: "cca no lifecycle", tee: tee.CCA, claims: "cca-claims.json", change: []func(map[string]any){set("platform", nil)}, refs: ccaRefs, want: hec{97, 3, 3}, findings: []string{"cca.lifecycle"}},
		{name: "cca firmware", tee: tee.CCA, claims: "cca-claims.json", refs: with(ccaRefs, "cca_platform_sw_components", list(`"x"`)),
			want: hec{97, 3, 3}, findings: []string{"cca.cca_platform_sw_components"}},
		{name: "cca firmware registered", tee: tee.CCA, claims: "cca-claims.json", refs: with(ccaRefs, "cca_platform_sw_components", list(`"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM="`)), want: hec{2, 3, 3}},
		{name: "cca extensible measurement", tee: tee.CCA, claims: "cca-claims.json", refs: with(ccaRefs, "cca_realm_extensible_measurement_2", list(`"x"`)),
			want: hec{2, 33, 3}, findings: []string{"cca.cca_realm_extensible_measurement_2"}},
		{name: "cca config", tee: tee.CCA, claims: "cca-claims.json", refs: with(ccaRefs, "cca_platform_config", list(`"x"`)), want: hec{2, 3, 36}, findings: []string{"cca.cca_platform_config"}},

		{name: "csv", tee: tee.CSV, claims: csvClaims, refs: fakeReferences{"csv_measure": list(`"c5"`)}, want: hec{2, 3, 3}},
		{name: "csv debug", tee: tee.CSV, claims: csvClaims, change: []func(map[string]any){set("policy/nodbg", json.Number("0")), set("policy/noks", nil)}, refs: fakeReferences{"csv_measure": list(`"c5"`)},
			want: hec{2, 3, 36}, findings: []string{"csv.policy", "csv.policy"}},
		{name: "csv other guest", tee: tee.CSV, claims: csvClaims, refs: fakeReferences{"csv_rtmr1": list(`"x"`)}, want: hec{2, 33, 3}, findings: []string{"csv.csv_measure", "csv.csv_rtmr1"}},

		{name: "se", tee: tee.SE, claims: se, refs: seRefs, want: hec{2, 3, 2}},
		{name: "se other image", tee: tee.SE, claims: se, refs: fakeReferences{}, want: hec{2, 33, 2}, findings: []string{"se.se_tag"}},
		{name: "se other machine", tee: tee.SE, claims: se, refs: with(seRefs, "se_attestation_phkh", list(`"x"`)), want: hec{97, 3, 2}, findings: []string{"se.se_attestation_phkh"}},

		{name: "gpu by service", tee: tee.NVIDIA, class: tee.GPU, claims: remoteGPU, refs: fakeReferences{}, want: hec{2, 3, 3}},
		{name: "gpu versions", tee: tee.NVIDIA, class: tee.GPU, claims: remoteGPU,
			refs: fakeReferences{"allowed_vbios_versions": list(`"96.00.9F.00.01"`), "allowed_driver_versions": list(`"550.90.07"`)}, want: hec{2, 3, 2}},
		{name: "gpu other driver", tee: tee.NVIDIA, class: tee.GPU, claims: remoteGPU, refs: fakeReferences{"allowed_driver_versions": list(`"560"`)},
			want: hec{2, 3, 36}, findings: []string{"nvidia.allowed_driver_versions"}},
		{name: "gpu revoked", tee: tee.NVIDIA, class: tee.GPU, claims: remoteGPU,
			change: []func(map[string]any){set("x-nvidia-gpu-attestation-report-cert-chain/x-nvidia-cert-ocsp-status", "revoked")}, refs: fakeReferences{},
			want: hec{97, 3, 3}, findings: []string{"nvidia.x-nvidia-gpu-attestation-report-cert-chain.x-nvidia-cert-ocsp-status"}},
		{name: "gpu measurements", tee: tee.NVIDIA, class: tee.GPU, claims: remoteGPU, change: []func(map[string]any){set("measres", "fail")}, refs: fakeReferences{},
			want: hec{2, 33, 3}, findings: []string{"nvidia.measres"}},
		{name: "gpu in developer mode", tee: tee.NVIDIA, class: tee.GPU, claims: remoteGPU, change: []func(map[string]any){set("dbgstat", "enabled"), set("secboot", nil)}, refs: fakeReferences{},
			want: hec{2, 3, 36}, findings: []string{"nvidia.dbgstat", "nvidia.secboot"}},
		{name: "gpu here", tee: tee.NVIDIA, class: tee.GPU, claims: "nvidia-hopper-claims.json", refs: gpuRefs, want: hec{2, 3, 3}},
		{name: "gpu here, versions", tee: tee.NVIDIA, class: tee.GPU, claims: "nvidia-hopper-claims.json",
			refs: with(with(gpuRefs, "allowed_vbios_versions", list(`"96.00.9F.00.01"`)), "allowed_driver_versions", list(`"550.90.07"`)), want: hec{2, 3, 2}},
		{name: "gpu here, nothing registered", tee: tee.NVIDIA, class: tee.GPU, claims: "nvidia-hopper-claims.json", refs: fakeReferences{},
			want: hec{2, 33, 3}, findings: []string{"nvidia.measurements"}},
		{name: "gpu here, other measurement", tee: tee.NVIDIA, class: tee.GPU, claims: "nvidia-hopper-claims.json", refs: with(gpuRefs, "nvidia_gpu_measurement_7", list(`"00"`)),
			want: hec{2, 33, 3}, findings: []string{"nvidia.nvidia_gpu_measurement_7"}},
		{name: "gpu here, compared", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, refs: fakeReferences{}, want: hec{2, 3, 3}},
		{name: "gpu here, compared, versions", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU,
			refs: fakeReferences{"allowed_vbios_versions": list(`"96.00.9F.00.01"`), "allowed_driver_versions": list(`"550.90.07"`)}, want: hec{2, 3, 2}},
		{name: "gpu here, collateral", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, change: []func(map[string]any){set("collateral_expiration_status", "0")}, refs: fakeReferences{}, want: hec{2, 3, 3}},
		{name: "gpu here, expired collateral", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, change: []func(map[string]any){set("collateral_expiration_status", "1")}, refs: fakeReferences{},
			want: hec{97, 3, 3}, findings: []string{"nvidia.collateral_expiration_status"}},
		{name: "switch here, expired collateral", tee: tee.NVIDIA, class: Switch, claims: localSwitch, change: []func(map[string]any){set("collateral_expiration_status", "1")}, refs: fakeReferences{},
			want: hec{97, 3, 3}, findings: []string{"nvidia.collateral_expiration_status"}},
		{name: "gpu here, compared, registered too", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, refs: fakeReferences{"nvidia_gpu_measurement_1": list(`"bb"`)},
			want: hec{2, 33, 3}, findings: []string{"nvidia.nvidia_gpu_measurement_1"}},
		{name: "gpu here, other firmware", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, change: []func(map[string]any){set("measres", "fail")},
			refs: fakeReferences{"nvidia_gpu_measurement_1": list(`"aa"`)}, want: hec{2, 33, 3}, findings: []string{"nvidia.measres"}},
		{name: "gpu here, not compared", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, change: []func(map[string]any){set("measres", nil)}, refs: fakeReferences{},
			want: hec{2, 33, 3}, findings: []string{"nvidia.measurements"}},
		{name: "gpu here, not compared, registered", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, change: []func(map[string]any){set("measres", nil)},
			refs: fakeReferences{"nvidia_gpu_measurement_1": list(`"aa"`)}, want: hec{2, 3, 3}},
		{name: "gpu here, revoked", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, refs: fakeReferences{},
			change: []func(map[string]any){set("x-nvidia-gpu-attestation-report-cert-chain/x-nvidia-cert-ocsp-status", "revoked")},
			want:   hec{97, 3, 3}, findings: []string{"nvidia.x-nvidia-gpu-attestation-report-cert-chain.x-nvidia-cert-ocsp-status"}},
		{name: "gpu here, revocation not checked", tee: tee.NVIDIA, class: tee.GPU, claims: localGPU, refs: fakeReferences{},
			change: []func(map[string]any){set("x-nvidia-gpu-attestation-report-cert-chain/x-nvidia-cert-ocsp-status", nil)}, want: hec{2, 3, 3}},
		{name: "switch here", tee: tee.NVIDIA, class: Switch, claims: localSwitch, refs: fakeReferences{}, want: hec{2, 3, 3}},
		{name: "switch here, other firmware", tee: tee.NVIDIA, class: Switch, claims: localSwitch, change: []func(map[string]any){set("measres", "fail")}, refs: fakeReferences{},
			want: hec{2, 33, 3}, findings: []string{"nvidia.measres"}},
		{name: "switch here, not compared", tee: tee.NVIDIA, class: Switch, claims: localSwitch, change: []func(map[string]any){set("measres", nil)}, refs: fakeReferences{},
			want: hec{2, 33, 3}, findings: []string{"nvidia.measurements"}},
		{name: "switch here, not compared, registered", tee: tee.NVIDIA, class: Switch, claims: localSwitch, change: []func(map[string]any){set("measres", nil)},
			refs: fakeReferences{"nvidia_switch_measurement_1": list(`"aa"`)}, want: hec{2, 3, 3}},
		{name: "switch here, other nonce", tee: tee.NVIDIA, class: Switch, claims: localSwitch, refs: fakeReferences{},
			change: []func(map[string]any){set("x-nvidia-switch-attestation-report-nonce-match", false)},
			want:   hec{97, 3, 3}, findings: []string{"nvidia.x-nvidia-switch-attestation-report-nonce-match"}},

		{name: "switch", tee: tee.NVIDIA, class: Switch, claims: remoteSwitch, refs: fakeReferences{}, want: hec{2, 3, 3}},
		{name: "switch version", tee: tee.NVIDIA, class: Switch, claims: remoteSwitch, refs: fakeReferences{"allowed_switch_bios_versions": list(`"96.10.57.00.01"`)}, want: hec{2, 3, 2}},
		{name: "switch other version", tee: tee.NVIDIA, class: Switch, claims: remoteSwitch, refs: fakeReferences{"allowed_switch_bios_versions": list(`"97"`)},
			want: hec{2, 3, 36}, findings: []string{"nvidia.allowed_switch_bios_versions"}},
		{name: "switch nonce", tee: tee.NVIDIA, class: Switch, claims: remoteSwitch, change: []func(map[string]any){set("x-nvidia-switch-attestation-report-nonce-match", false)}, refs: fakeReferences{},
			want: hec{97, 3, 3}, findings: []string{"nvidia.x-nvidia-switch-attestation-report-nonce-match"}},
		{name: "ppcie", tee: tee.NVIDIA, class: PPCIe, claims: `{"switch_count": 4, "gpu_count": 8}`, refs: fakeReferences{}, want: hec{0, 0, 2}},
		{name: "ppcie incomplete", tee: tee.NVIDIA, class: PPCIe, claims: `{"switch_count": 4, "gpu_count": 7}`, refs: fakeReferences{}, want: hec{0, 0, 36}, findings: []string{"nvidia.gpu_count"}},
		{name: "dcu", tee: tee.HygonDCU, class: DCU, claims: `{"body": {"measure": "d1", "chip_id": "c", "version": 1}}`, refs: fakeReferences{"dcu_measure": list(`"d1"`)}, want: hec{2, 3, 3}},
		{name: "dcu unknown", tee: tee.HygonDCU, class: DCU, claims: `{"body": {"measure": "d1", "chip_id": "c"}}`, refs: fakeReferences{"dcu_chip_id": list(`"x"`)},
			want: hec{97, 33, 3}, findings: []string{"hygondcu.dcu_measure", "hygondcu.dcu_chip_id"}},
		{name: "dpu", tee: BlueField, class: NVIDIADPU, claims: `{"architecture": "bf3"}`, refs: fakeReferences{}, want: hec{2, 33, 3}, findings: []string{"nvidia-dpu.nvidia_dpu_fwid"}},
		{name: "sampledevice", tee: tee.SampleDevice, class: tee.GPU, claims: `{"svn": "1"}`, refs: fakeReferences{}, want: hec{97, 33, 36}, findings: []string{"sampledevice.never-affirming"}},
		{name: "sample", tee: tee.Sample, claims: `{"svn": "1"}`, refs: fakeReferences{}, want: hec{97, 33, 36}, findings: []string{"sample.never-affirming"}},
	}
	for _, tc := range cases {
		refs[tenant.Name(tc.name)] = tc.refs
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := &tee.Result{TEE: tc.tee, Class: tc.class, Claims: claims(t, tc.claims)}
			if r.Class == "" {
				r.Class = tee.CPU
			}
			for _, change := range tc.change {
				change(r.Claims)
			}
			out, err := e.Appraise(t.Context(), Evidence{Tenant: tenant.Name(tc.name), Parts: []Part{{Result: r}}})
			if err != nil {
				t.Fatal(err)
			}
			m := out.Submods[out.Names[0]]
			if got := (hec{m.Vector.Hardware, m.Vector.Executables, m.Vector.Configuration}); got != tc.want {
				t.Errorf("hardware, executables, configuration: got %v, want %v", got, tc.want)
			}
			var rules []string
			for _, f := range m.Findings {
				rules = append(rules, f.Rule)
				if f.Affects == "" || f.Claim == "" || f.Expected == "" || f.Got == "" || f.Help == "" {
					t.Errorf("finding lacks something: %+v", f)
				}
			}
			slices.Sort(rules)
			slices.Sort(tc.findings)
			if !slices.Equal(rules, tc.findings) {
				t.Errorf("findings: got %v, want %v", rules, tc.findings)
			}
		})
	}
}

// Without a single claim nothing is affirming but what has nothing to say, and
// no evidence, however malformed, makes a policy fail.
func TestBuiltInPoliciesWithoutClaims(t *testing.T) {
	t.Parallel()
	e := New(Options{Policies: fakePolicies{}, References: fakeReferences{}, Now: func() time.Time { return now }})
	for class, environments := range families() {
		for name := range environments {
			for _, doc := range []string{`{}`, `{"quote":1,"body":[],"tpm":"x","policy":null,"platform":{"cca-platform-sw-components":[1]},"realm":[1],"td_attributes":"debug",
				"measurement":5,"measure":{},"uefi_event_logs":[1,{"digests":{"a":{"digest":null}}}],"measurements":"x","measres":[],"tcb_status":7,
				"advisory_ids":3,"reported_tcb_snp":"999999999999999999999999","x-nvidia-gpu-attestation-report-cert-chain":"valid","gpu_count":"8"}`} {
				out, err := e.Appraise(t.Context(), one(&tee.Result{TEE: name, Class: class, Claims: claims(t, doc)}))
				if err != nil {
					t.Errorf("%s of class %s: %v", name, class, err)
					continue
				}
				m := out.Submods[out.Names[0]]
				if m.Status == ear.Affirming || len(m.Findings) == 0 {
					t.Errorf("%s of class %s: %s, findings %v", name, class, m.Status, m.Findings)
				}
			}
		}
	}
}

// The policy for a whole class, which is what its author starts from, compiles
// and judges as its parts do.
func TestDefaultModules(t *testing.T) {
	t.Parallel()
	for _, c := range Classes() {
		if _, err := policy.Compile(t.Context(), policy.Options{
			Name: string(c), Modules: DefaultModules(c), Rules: []string{ruleClaims, ruleFindings}, Functions: functions(),
		}); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
	if DefaultModules("other") != nil {
		t.Error("a class without a policy has one")
	}
}
