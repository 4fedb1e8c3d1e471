package tests

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/coffer-project/coffer/internal/trustee"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/tdx"
)

// environment is published evidence and what the trustee has to make of it.
type environment struct {
	tee      tee.Name
	evidence json.RawMessage
	// data is the raw report data that the evidence is bound to.
	data []byte
	// submods are the names in the token; empty: cpu0.
	submods []string
	// claims are some of the claims of the first.
	claims map[string]any
	// references are reference values by the claim that they allow, one of the
	// first submodule or, "name:claim", of another.
	references map[string]string
	// before and after are the findings' rules, before and after the values
	// are registered; status is what the token says then.
	before, after []string
	status        string
	// missing is the collateral, "check field", without which the environment
	// cannot be judged here; then nothing of the above is looked at.
	missing []string
	// mutations are places of one bit each, "path@index", and the check that
	// refuses each.
	mutations map[string]string
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func unhex(t testing.TB, s string) []byte {
	return must[[]byte](t)(hex.DecodeString(strings.TrimSpace(s)))
}

func snpEvidence(t testing.TB, report, vcek string) (json.RawMessage, []byte) {
	t.Helper()
	raw := vector(t, "snp/testdata/"+report)
	e := must[*snp.Evidence](t)(snp.NewEvidence(raw, []snp.Certificate{{Type: snp.CertVCEK, Data: vector(t, "snp/testdata/"+vcek)}}))
	return must[[]byte](t)(json.Marshal(e)), raw[0x50:0x90]
}

func device(t testing.TB, arch nvidia.Arch, report, chain string) (json.RawMessage, []byte) {
	t.Helper()
	d := nvidia.Device{Arch: arch, UUID: "1111-2222-33333-444444-555555", Report: unhex(t, string(vector(t, "nvidia/testdata/"+report))), Chain: vector(t, "nvidia/testdata/"+chain)}
	return must[json.RawMessage](t)((&nvidia.Evidence{Devices: []nvidia.Device{d}}).JSON()), d.Report[4:36]
}

// machineOfGPUs is the published evidence of a machine with Protected PCIe.
func machineOfGPUs(t testing.TB) (json.RawMessage, []byte) {
	t.Helper()
	var list []json.RawMessage
	var nonce []byte
	for _, name := range []string{"gpu_evidence.json", "switch_evidence.json"} {
		var some []json.RawMessage
		var first []struct{ Nonce string }
		doc := vector(t, "nvidia/testdata/"+name)
		if err := errors.Join(json.Unmarshal(doc, &some), json.Unmarshal(doc, &first)); err != nil {
			t.Fatal(err)
		}
		list, nonce = append(list, some...), unhex(t, first[0].Nonce)
	}
	return must[[]byte](t)(json.Marshal(map[string]any{"device_evidence_list": list})), nonce
}

// environments are what has been published of hardware, and is good today.
func environments(t testing.TB) map[string]environment {
	t.Helper()
	j := must[json.RawMessage](t)
	out := map[string]environment{}
	for name, files := range map[string][2]string{
		"snp milan":    {"test-report.bin", "test-vcek.der"},
		"snp genoa v3": {"azure-genoa-report.bin", "azure-genoa-vcek.der"},
		"snp genoa v5": {"genoa-v5-report.bin", "genoa-v5-vcek.der"},
		"snp turin":    {"turin-report.bin", "turin-vcek.der"},
	} {
		evidence, data := snpEvidence(t, files[0], files[1])
		out[name] = environment{
			tee: tee.SNP, evidence: evidence, data: data,
			claims:     map[string]any{"simulated": false, "policy_debug_allowed": false, "policy_migrate_ma": false},
			references: map[string]string{"snp_launch_measurement": "measurement", "snp_bootloader": "reported_tcb_bootloader", "snp_snp_svn": "reported_tcb_snp", "snp_smt_enabled": "platform_smt_enabled"},
			before:     []string{"snp.launch-measurement"}, status: "affirming",
			mutations: map[string]string{
				"attestation_report/measurement@0": "snp.signature", "attestation_report/signature/r@0": "snp.signature", "attestation_report/chip_id@0": "snp.chip_id", "cert_chain/0/data@1000": "snp.chain",
			},
		}
	}
	quote := dcaptest.File(t, "tdx_quote_v4_debug.bin")
	tdxReferences := map[string]string{"mr_td": "quote/body/mr_td", "rtmr_1": "quote/body/rtmr_1", "rtmr_2": "quote/body/rtmr_2", "mr_seam": "quote/body/mr_seam"}
	tdxMeasured := []string{"tdx.mr_td", "tdx.rtmr_1", "tdx.rtmr_2"}
	out["tdx v4, a debug guest, old collateral"] = environment{
		tee: tee.TDX, evidence: j((&tdx.Evidence{Quote: quote}).JSON()), data: quote[48+520 : 48+584],
		claims:     map[string]any{"collateral_expiration_status": "1", "td_attributes/debug": true, "simulated": false, "fmspc": "50806f000000"},
		references: tdxReferences, before: append(slices.Clone(tdxMeasured), "tdx.collateral_expiration_status", "tdx.td_attributes.debug"), after: []string{"tdx.collateral_expiration_status", "tdx.td_attributes.debug"}, status: "contraindicated",
		mutations: map[string]string{"quote@60": "tdx.signature"},
	}
	quote = dcaptest.File(t, "sgx_quote_v3_debug.bin")
	out["sgx, a debug enclave without collateral"] = environment{
		tee: tee.SGX, evidence: j(sgx.FromRaw(quote)), data: []byte("test"),
		missing:   []string{"sgx.collateral qe_identity", "sgx.collateral tcb_info"},
		mutations: map[string]string{"quote@60": "sgx.signature"},
	}
	for name, file := range map[string]string{"v0": "snp-v0.json", "v1": "snp-v1.json", "v2": "snp-v2.json"} {
		e := environment{
			tee: tee.AzureSNPVTPM, evidence: vector(t, "azure/testdata/"+file), data: []byte("challenge"),
			claims:     map[string]any{"simulated": false, "evidence_version": json.Number(name[1:]), "hardware_report_fresh": name == "v2"},
			references: map[string]string{"measurement": "measurement", "snp_pcr11": "tpm/pcr11", "tcb_snp": "reported_tcb_snp"},
			before:     []string{"az-snp-vtpm.measurement", "az-snp-vtpm.snp_pcr11"}, status: "affirming",
			mutations: map[string]string{"tpm_quote/message@40": "az-snp-vtpm.signature", "hcl_report@200": "snp.signature"},
		}
		switch name {
		case "v0":
			e.mutations = map[string]string{"quote/message@40": "az-snp-vtpm.signature", "report@200": "snp.signature"}
		case "v2":
			e.data = unhex(t, "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef")
		}
		out["az-snp-vtpm "+name] = e
	}
	for name, file := range map[string]string{"v0": "tdx-v0.json", "v1": "tdx-v1.json"} {
		out["az-tdx-vtpm "+name+", without collateral"] = environment{
			tee: tee.AzureTDXVTPM, evidence: vector(t, "azure/testdata/"+file), data: []byte("challenge"),
			missing:   []string{"tdx.collateral tcb_info"},
			mutations: map[string]string{"tpm_quote/message@40": "az-tdx-vtpm.signature", "td_quote@60": "tdx.signature"},
		}
	}
	out["tpm"] = environment{
		tee: tee.TPM, evidence: vector(t, "tpm/testdata/evidence.json"),
		data:       unhex(t, "a04182b506878d4f29b91ee606a71a0d3361ccf1b22db20c98adcaa537bea393ef0e41a18b3569ab678f1497fbc5c120"),
		claims:     map[string]any{"signature_scheme": "RSASSA-SHA256", "ak_trusted": false, "reset_count": json.Number("2")},
		references: map[string]string{"tpm_pcr11": "pcr11", "trusted_aks": "ak_public", "tpm_pcr00": "pcr00"},
		before:     []string{"tpm.tpm_pcr11", "tpm.trusted_aks"}, status: "affirming",
		mutations: map[string]string{"tpm_quote/message@40": "tpm.signature", "tpm_quote/signature@40": "tpm.signature"},
	}
	token := vector(t, "cca/testdata/token.cbor")
	var golden struct {
		ReportData string `json:"report_data"`
	}
	if err := json.Unmarshal(vector(t, "cca/testdata/token.claims.json"), &golden); err != nil {
		t.Fatal(err)
	}
	out["cca, an emulated platform"] = environment{
		tee: tee.CCA, evidence: j(cca.FromRaw(token)), data: unhex(t, golden.ReportData),
		claims:     map[string]any{"simulated": true, "platform/cca-platform-lifecycle": json.Number("12291")},
		references: map[string]string{"cca_realm_initial_measurement": "realm/cca-realm-initial-measurement", "cca_platform_implementation_id": "platform/cca-platform-implementation-id"},
		before:     []string{"cca.cca_realm_initial_measurement", "evidence.simulated"}, after: []string{"evidence.simulated"}, status: "warning",
		mutations: map[string]string{"token@400": "cca.platform_signature", "token@2200": "cca.realm_signature"},
	}
	if err := json.Unmarshal(vector(t, "csv/testdata/report.claims.json"), &golden); err != nil {
		t.Fatal(err)
	}
	out["csv, a guest that shares its keys"] = environment{
		tee: tee.CSV, evidence: j(csv.FromRaw(vector(t, "csv/testdata/report.bin"))), data: unhex(t, golden.ReportData),
		claims:     map[string]any{"serial_number": "NZA9T14052605", "simulated": false, "policy/nodbg": json.Number("1")},
		references: map[string]string{"csv_measure": "measure", "csv_serial_number": "serial_number"},
		before:     []string{"csv.csv_measure", "csv.policy"}, after: []string{"csv.policy"}, status: "warning",
		mutations: map[string]string{"attestation_report/data@100": "csv.report_signature"},
	}
	for name, d := range map[string]struct {
		arch          nvidia.Arch
		report, chain string
		submod, kind  string
	}{
		"nvidia hopper":    {nvidia.Hopper, "hopperAttestationReport.txt", "hopper_cert_chain_case1.txt", "gpu0", "gpu"},
		"nvidia blackwell": {nvidia.Blackwell, "blackwell.txt", "blackwell-chain.pem", "gpu0", "gpu"},
		"nvidia switch":    {nvidia.LS10, "ls10.txt", "ls10-chain.pem", "switch0", "switch"},
	} {
		evidence, data := device(t, d.arch, d.report, d.chain)
		out[name] = environment{
			tee: tee.NVIDIA, evidence: evidence, data: data, submods: []string{d.submod},
			claims:     map[string]any{"simulated": false, "x-nvidia-" + d.kind + "-attestation-report-nonce-match": true},
			references: map[string]string{"nvidia_" + d.kind + "_measurement_1": "measurements/1", "nvidia_" + d.kind + "_measurement_7": "measurements/7"},
			before:     []string{"nvidia.measurements"}, status: "affirming",
			mutations: map[string]string{"device_evidence_list/0/evidence@60": "nvidia.signature"},
		}
	}
	machine, nonce := machineOfGPUs(t)
	out["nvidia, a machine of eight GPUs and four switches"] = environment{
		tee: tee.NVIDIA, evidence: machine, data: nonce,
		submods:    []string{"gpu0", "gpu1", "gpu2", "gpu3", "gpu4", "gpu5", "gpu6", "gpu7", "ppcie0", "switch0", "switch1", "switch2", "switch3"},
		references: map[string]string{"nvidia_gpu_measurement_10": "measurements/10", "nvidia_switch_measurement_10": "switch0:measurements/10"},
		before:     []string{"nvidia.measurements"}, status: "affirming",
		mutations: map[string]string{"device_evidence_list/0/evidence@60": "nvidia.signature"},
	}
	out["sample"] = environment{
		tee: tee.Sample, evidence: json.RawMessage(`{"svn":"1","report_data":"dGVzdA=="}`), data: []byte("test"),
		claims: map[string]any{"svn": "1", "simulated": true}, before: []string{"evidence.simulated", "sample.never-affirming"}, after: []string{"evidence.simulated", "sample.never-affirming"}, status: "contraindicated",
		mutations: map[string]string{"report_data@0": "sample.report_data"},
	}
	return out
}

// everything enables all environments whose evidence has been published, with
// what debug guests and emulated platforms need.
func everything(t testing.TB, dir, store string) string {
	t.Helper()
	write(t, filepath.Join(dir, "anchors.json"), string(vector(t, "cca/testdata/tastore.json")))
	text := "attestation_service.listen = \"127.0.0.1:0\"\ncollateral.offline = true\ncollateral.stores = [" + quote(store) + "]\n"
	for _, name := range []string{"tpm", "cca", "sample"} {
		text += "tee." + name + ".enabled = true\n"
	}
	for _, key := range []string{"tdx.allow_debug", "tdx.allow_stale_collateral", "sgx.allow_debug", "sgx.allow_stale_collateral"} {
		text += "tee." + key + " = true\n"
	}
	// Nobody has published a revocation list of AMD's, nor answers of NVIDIA's
	// responder, with the evidence.
	return text + "tee.snp.check_revocation = false\ntee.nvidia.check_revocation = false\ntee.nvidia.compare_rim = false\ntee.cca.development_anchors = [\"anchors.json\"]\n"
}

// TestEnvironments has the trustee judge what has been published of every
// environment: the right claims, the documented findings, affirmed once the
// reference values are registered, and refused with a check's name when a bit or
// the report data is another.
func TestEnvironments(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := launch(t, the.plain, dir, everything(t, dir, published(t, intelNow()...)))
	n := 0
	for name, x := range environments(t) {
		n++
		j := s.judge(fmt.Sprintf("tenant-%d", n))
		t.Run(name, func(t *testing.T) {
			if x.missing != nil {
				j.with(t).lacking(x, x.missing)
				j.with(t).mutated(x)
				return
			}
			j.with(t).environment(x)
		})
	}
}

// environment is the whole of what is expected of one.
func (j *judge) environment(x environment) {
	j.t.Helper()
	if x.submods == nil {
		x.submods = []string{"cpu0"}
	}
	list, e := j.evaluate(x.tee, x.evidence, x.data)
	if e != nil {
		j.t.Fatalf("%v\n%s", e, tail(j.log.String()))
	}
	for _, name := range x.submods {
		if _, ok := list[name]; !ok || len(list) != len(x.submods) {
			j.t.Fatalf("submodules %v, want %v", list, x.submods)
		}
	}
	first := list[x.submods[0]]
	for path, want := range x.claims {
		if got := first.claim(x.tee, path); got != want {
			j.t.Errorf("claim %s: got %v (%T), want %v", path, got, got, want)
		}
	}
	if got, _ := first.Evidence["report_data"].(string); !strings.HasPrefix(got, hex.EncodeToString(x.data)) {
		j.t.Errorf("report_data: %v", first.Evidence["report_data"])
	}
	slices.Sort(x.before)
	if first.Status == "affirming" || !slices.Equal(first.rules(), x.before) {
		j.t.Errorf("before: %s, findings %q; want %q", first.Status, first.rules(), x.before)
	}
	a := j.admin(j.tenant)
	for name, path := range x.references {
		from := first
		if submod, rest, ok := strings.Cut(path, ":"); ok {
			from, path = list[submod], rest
		}
		got := from.claim(x.tee, path)
		if got == nil {
			j.t.Fatalf("claim %s is missing", path)
		}
		j.must(a.SetReferenceValue(j.t.Context(), admin.ReferenceValue{Name: name, Values: []any{got}}))
	}
	list, e = j.evaluate(x.tee, x.evidence, x.data)
	if e != nil {
		j.t.Fatal(e)
	}
	slices.Sort(x.after)
	for _, name := range x.submods {
		if m := list[name]; m.Status != x.status || !slices.Equal(m.rules(), x.after) {
			j.t.Errorf("%s after: %s %v, findings %q; want %s, %q", name, m.Status, m.Vector, m.rules(), x.status, x.after)
		}
	}
	_, e = j.evaluate(x.tee, x.evidence, []byte("another handshake's report data"))
	j.denied("other report data", e, http.StatusForbidden, string(x.tee)+".report_data")
	j.mutated(x)
}

// mutated flips the bits that each have to be noticed by a check.
func (j *judge) mutated(x environment) {
	j.t.Helper()
	for where, check := range x.mutations {
		path, at, _ := strings.Cut(where, "@")
		var i int
		_, err := fmt.Sscan(at, &i)
		j.must(err)
		_, e := j.evaluate(x.tee, flip(j.t, x.evidence, path, i), x.data)
		j.denied(where, e, http.StatusForbidden, check)
	}
}

// TestCurrentCollateral: with collateral that is in force, only the debug
// attribute is held against the published TDX guest; the same guest with its
// event log is one whose log was replayed; and without the option for debug
// guests it is refused, by the attribute's name.
func TestCurrentCollateral(t *testing.T) {
	t.Parallel()
	evidence := environments(t)["tdx v4, a debug guest, old collateral"]
	evidence.claims = map[string]any{"collateral_expiration_status": "0", "tcb_status": "UpToDate", "earliest_expiration_date": "2023-07-08T07:24:59Z"}
	evidence.before = []string{"tdx.mr_td", "tdx.rtmr_1", "tdx.rtmr_2", "tdx.td_attributes.debug"}
	evidence.after = []string{"tdx.td_attributes.debug"}
	evidence.status = "warning"
	const service = "attestation_service.listen = \"127.0.0.1:0\"\ncollateral.offline = true\n"
	stores := "collateral.stores = [" + quote(published(t, intel2023()...)) + "]\n"
	s := embedAt(t, dcaptest.At2023(), "", service+stores+"tee.tdx.allow_debug = true\n", developmentLater)
	s.judge("debug").environment(evidence)
	// A week later Intel's documents have expired, and nothing fresher is to be had.
	s.clock.advance(14 * 24 * time.Hour)
	j := s.judge("later")
	_, e := j.evaluate(tee.TDX, evidence.evidence, evidence.data)
	j.denied("collateral past its date", e, http.StatusForbidden, "tdx.collateral")

	strict := embedAt(t, dcaptest.At2023(), "", service+stores, developmentLater).judge("strict")
	_, e = strict.evaluate(tee.TDX, evidence.evidence, evidence.data)
	strict.denied("a debug guest", e, http.StatusForbidden, "tdx.debug")
}

// developmentLater drops the tests' own root, which is of today: it is not valid
// in the past.
func developmentLater(o *trustee.Options) { o.Config.TEE.SNP.DevelopmentRoots = nil }

// TestMissingCollateral: evidence whose collateral is not to be had is not
// forged. The answer names what is missing and when to come again, the record
// has it, and it is counted apart from refusals; where it was looked for stays
// with the operator.
func TestMissingCollateral(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := everything(t, dir, t.TempDir())
	for _, lenient := range []string{"tdx.allow_stale_collateral = true", "sgx.allow_stale_collateral = true", "snp.check_revocation = false", "nvidia.check_revocation = false", "nvidia.compare_rim = false"} {
		text = strings.Replace(text, "tee."+lenient+"\n", "", 1)
	}
	s := launch(t, the.plain, dir, text)
	j := s.judge("missing")
	all := environments(t)
	for name, want := range map[string][]string{
		"snp milan": {"snp.collateral crl"},
		"sgx, a debug enclave without collateral": {"sgx.collateral pck_crl", "sgx.collateral qe_identity", "sgx.collateral root_ca_crl", "sgx.collateral tcb_info"},
		"tdx v4, a debug guest, old collateral":   {"tdx.collateral pck_crl", "tdx.collateral qe_identity", "tdx.collateral root_ca_crl", "tdx.collateral tcb_info"},
		"az-snp-vtpm v2":                          {"snp.collateral crl"},
		"csv, a guest that shares its keys":       {"csv.chain cert_chain.hsk_cek"},
		"nvidia hopper": {
			"nvidia.revocation device_evidence_list[0].certificate: GH100 A01 GSP BROM", "nvidia.revocation device_evidence_list[0].certificate: NVIDIA GH100 Identity",
			"nvidia.revocation device_evidence_list[0].certificate: NVIDIA GH100 Provisioner ICA 1",
			"nvidia.rim device_evidence_list[0].manifest NV_GPU_DRIVER_GH100_550.90.07", "nvidia.rim device_evidence_list[0].manifest NV_GPU_VBIOS_1010_0200_882_96009F0001",
		},
	} {
		t.Run(name, func(t *testing.T) { j.with(t).lacking(all[name], want) })
	}
	entries, err := s.admin("missing").Audit(t.Context(), admin.AuditQuery{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, x := range entries {
		if strings.Contains(string(x.Body), `"status":503`) && strings.Contains(string(x.Body), `"rule":"tdx.collateral"`) {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d records of what was missing for TDX among %d; want one for REST and one for gRPC", n, len(entries))
	}
}

// lacking demands that evidence is neither affirmed nor refused, and what for.
func (j *judge) lacking(x environment, want []string) {
	j.t.Helper()
	if x.data == nil {
		j.t.Fatal("there is no such evidence")
	}
	count := func(name string) float64 {
		f, _ := j.scrape()
		return value(f, name, "tee_type="+string(x.tee))
	}
	unavailable, refused := count("coffer_attestation_unavailable_total"), count("kbs_attestation_failures_total")
	_, e := j.evaluate(x.tee, x.evidence, x.data)
	if e == nil || e.Status != http.StatusServiceUnavailable || e.Info.Reason == nil {
		j.t.Fatalf("got %v", e)
	}
	var got []string
	for _, r := range e.Info.Reasons {
		got = append(got, r.Rule+" "+r.Claim)
		if r.Got != "missing" || r.Expected == "" || r.Help == "" {
			j.t.Errorf("reason %+v", r)
		}
	}
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		j.t.Errorf("missing %q, want %q", got, want)
	}
	if d := count("coffer_attestation_unavailable_total") - unavailable; d != 2 {
		j.t.Errorf("counted %v times; want once for REST and once for gRPC", d)
	}
	if count("kbs_attestation_failures_total") != refused {
		j.t.Error("counted as refused")
	}
	// What does speak against it comes before what is missing.
	_, e = j.evaluate(x.tee, x.evidence, []byte("another handshake"))
	j.denied("other report data", e, http.StatusForbidden, string(x.tee)+".report_data")
}
