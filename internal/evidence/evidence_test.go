package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
)

func vector(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../tee", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func at(year int) func() time.Time {
	return func() time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
}

func TestUnwrap(t *testing.T) {
	t.Parallel()
	const inner = `{"svn":"1","report_data":"dGU="}`
	url := base64.RawURLEncoding.EncodeToString
	for name, tc := range map[string]struct {
		in   string
		tee  tee.Name
		want string
		as   tee.Name
	}{
		"bare":                {inner, "", inner, ""},
		"raw":                 {"\x02\x00", tee.SNP, "\x02\x00", tee.SNP},
		"an attestation":      {`{"runtime-data":{},"tee-evidence":{"primary_evidence":` + inner + `,"additional_evidence":""}}`, "", inner, ""},
		"tee-evidence":        {`{"primary_evidence":` + inner + `}`, tee.Sample, inner, tee.Sample},
		"a request":           {`{"verification_requests":[{"tee":"sample","evidence":"` + url([]byte(inner)) + `"}]}`, "", inner, tee.Sample},
		"of several, by name": {`{"verification_requests":[{"tee":"sample","evidence":"` + url([]byte("{}")) + `"},{"tee":"cca","evidence":"` + url([]byte(inner)) + `"}]}`, tee.CCA, inner, tee.CCA},
		"of another TEE":      {`{"verification_requests":[{"tee":"sample","evidence":"e30"}]}`, tee.SNP, `{"verification_requests":[{"tee":"sample","evidence":"e30"}]}`, tee.SNP},
		"no base64url":        {`{"verification_requests":[{"tee":"sample","evidence":"!"}]}`, "", `{"verification_requests":[{"tee":"sample","evidence":"!"}]}`, ""},
		"other types":         {`{"tee-evidence":7}`, "", `{"tee-evidence":7}`, ""},
		"cut":                 {`{"tee-evidence":`, "", `{"tee-evidence":`, ""},
	} {
		if got, as := unwrap([]byte(tc.in), tc.tee); string(got) != tc.want || as != tc.as {
			t.Errorf("%s: expected %q as %q, got %q as %q", name, tc.want, tc.as, got, as)
		}
	}
}

func TestVerifyErrors(t *testing.T) {
	t.Parallel()
	report := vector(t, "snp/testdata/test-report.bin")
	for name, tc := range map[string]struct {
		tee     tee.Name
		data    []byte
		o       Options
		input   bool // and not a verdict
		content bool
		message string
	}{
		"no verifier":     {tee.SE, []byte("{}"), Options{}, true, false, "cannot be verified here"},
		"not known":       {tee.HygonDCU, []byte("{}"), Options{}, true, false, "expected one of snp, tdx"},
		"something else":  {tee.TDX, []byte("remember the milk"), Options{}, true, true, "expected evidence of tdx, raw or as JSON"},
		"trailing bytes":  {tee.SNP, append(bytes.Clone(report), 1, 2, 3), Options{}, false, false, "snp.format"},
		"other JSON":      {tee.SNP, []byte(`{"a":1}`), Options{}, false, false, "snp.format"},
		"anchors":         {tee.SNP, report, Options{Anchors: []string{"absent"}}, true, false, "the vendor's root is pinned"},
		"no file":         {tee.SNP, report, Options{Roots: []string{"absent"}}, true, false, "development root: open absent"},
		"no PEM":          {tee.TPM, vector(t, "tpm/testdata/evidence.json"), Options{Anchors: []string{"evidence.go"}}, true, false, "evidence.go: expected public keys"},
		"a TPM's root":    {tee.TPM, vector(t, "tpm/testdata/evidence.json"), Options{Roots: []string{"evidence.go"}}, true, false, "a TPM has none"},
		"sample's anchor": {tee.Sample, []byte("{}"), Options{Anchors: []string{"evidence.go"}}, true, false, "do not apply"},
		"nothing beside":  {tee.NVIDIA, vector(t, "nvidia/testdata/hopperAttestationReport.txt"), Options{Beside: []string{"absent"}}, true, false, "absent"},
		"no chain":        {tee.NVIDIA, vector(t, "nvidia/testdata/hopperAttestationReport.txt"), Options{}, false, false, "certificate chain in PEM after the report"},
	} {
		results, err := Verify(t.Context(), tc.tee, tc.data, tee.Expected{AnyReportData: true}, tc.o)
		if err == nil || len(results) > 0 || !strings.Contains(err.Error(), tc.message) {
			t.Errorf("%s: expected an error with %q, got %v", name, tc.message, err)
			continue
		}
		input, ok := errors.AsType[*InputError](err)
		if ok != tc.input || ok && input.Content != tc.content {
			t.Errorf("%s: expected input %t (content %t), got %#v", name, tc.input, tc.content, err)
		}
		if refused, ok := errors.AsType[*tee.Error](err); ok == tc.input || ok && len(refused.Failures) == 0 {
			t.Errorf("%s: got %#v", name, err)
		}
	}
}

// TestBeside finds a chain among other files, of which one is another device's.
func TestBeside(t *testing.T) {
	t.Parallel()
	o := Options{Now: at(2025), AllowMissingCollateral: true, Beside: []string{"../../tee/nvidia/testdata"}}
	results, err := Verify(t.Context(), tee.NVIDIA, vector(t, "nvidia/testdata/blackwell.txt"), tee.Expected{AnyReportData: true}, o)
	if err != nil || results[0].Claims["arch"] != "Blackwell" {
		t.Errorf("a chain among others: got %v", err)
	}
	// The VLEK of the report is found; what is left is the level it was asked for at.
	o = Options{Now: func() time.Time { return time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC) }, AllowMissingCollateral: true, Beside: []string{"../../tee/snp/testdata"}}
	_, err = Verify(t.Context(), tee.SNP, vector(t, "snp/testdata/test-vlek-report.bin"), tee.Expected{AnyReportData: true}, o)
	if e, ok := errors.AsType[*tee.Error](err); !ok || len(e.Failures) != 1 || e.Failures[0].Check != "snp.vmpl" {
		t.Errorf("a VLEK beside: got %v", err)
	}
	if got := withVLEK(vector(t, "snp/testdata/test-report.bin"), [][]byte{vector(t, "snp/testdata/test-vlek.der")}); got != nil {
		t.Error("a report by a VCEK: expected nothing to be added")
	}
	files := make([][]byte, 2*maxWays)
	for i := range files {
		files[i] = vector(t, "nvidia/testdata/blackwell-chain.pem")
	}
	if got := withDeviceChain([]byte("report"), files); len(got) != maxWays {
		t.Errorf("many chains: expected %d, got %d", maxWays, len(got))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, maxBesideFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readBeside([]string{dir}); err != nil || len(got) != 0 {
		t.Errorf("a large file: got %d files, %v", len(got), err)
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]tee.Name{
		"snp/testdata/test-report.bin": tee.SNP, "snp/testdata/genoa-evidence.json": tee.SNP,
		"dcap/dcaptest/testdata/tdx_quote_v5.bin": tee.TDX, "dcap/dcaptest/testdata/sgx_as_request.json": tee.SGX,
		"azure/testdata/snp-v0.json": tee.AzureSNPVTPM, "azure/testdata/tdx-v0.json": tee.AzureTDXVTPM,
		"csv/testdata/evidence.json": tee.CSV, "csv/testdata/report.bin": tee.CSV, "tpm/testdata/evidence.json": tee.TPM,
		"cca/testdata/token.cbor": tee.CCA, "nvidia/testdata/gpu_evidence.json": tee.NVIDIA,
	} {
		x, err := Inspect(vector(t, file), "")
		if err != nil || x.TEE != want {
			t.Errorf("%s: expected %s, got %v, %v", file, want, x, err)
			continue
		}
		if _, err := json.Marshal(x); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, only := range []tee.Name{"", tee.SNP, tee.SE, tee.HygonDCU} {
		if x, err := Inspect([]byte(`{"a":1}`), only); err == nil {
			t.Errorf("other JSON as %q: expected an error, got %v", only, x)
		}
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	message := func(payload string) string {
		return `{"version":"0.1.0","type":"sample","payload":"` + base64.StdEncoding.EncodeToString([]byte(payload)) + `"}`
	}
	for _, in := range []string{`{"a":"00ff"}`, ` {"a":["00ff"]}`, message(`{"a":["00ff"]}`)} {
		refs, err := ParseReferences(t.Context(), []byte(in), at(2025))
		if err != nil || len(refs) != 1 {
			t.Errorf("%s: got %v, %v", in, refs, err)
		}
		if r, ok, err := refs.Reference(t.Context(), "", "a"); err != nil || !ok || r.Name != "a" {
			t.Errorf("%s: got %v, %t, %v", in, r, ok, err)
		}
		if _, ok, _ := refs.Reference(t.Context(), "", "b"); ok {
			t.Errorf("%s: expected no value b", in)
		}
	}
	for _, in := range []string{"", "[]", "{", `{"a":1,"a":2}`, "remember the milk", message("["), `{"version":"9","type":"sample","payload":"e30="}`, strings.Repeat(" ", maxReferences+1)} {
		if refs, err := ParseReferences(t.Context(), []byte(in), at(2025)); err == nil {
			t.Errorf("%.40q: expected an error, got %v", in, refs)
		}
	}
}

func TestAppraise(t *testing.T) {
	t.Parallel()
	results := []*tee.Result{{TEE: tee.SNP, Class: tee.CPU, Simulated: true, Claims: map[string]any{
		"measurement": "00ff", "policy_debug_allowed": false, "policy_migrate_ma": false, "reported_tcb_snp": 8,
	}}}
	for in, want := range map[string][]string{
		`{"snp_launch_measurement":"00FF"}`:                        nil,
		`{"snp_launch_measurement":["11"]}`:                        {"appraisal.executables measurement"},
		`{"other":1}`:                                              {"appraisal.executables measurement"},
		`{"snp_launch_measurement":"00ff","snp_snp_svn":9}`:        {"appraisal.hardware reported_tcb_snp"},
		`{"snp_launch_measurement":"00ff","snp_smt_enabled":true}`: {"appraisal.configuration platform_smt_enabled"},
	} {
		refs, err := ParseReferences(t.Context(), []byte(in), at(2025))
		if err != nil {
			t.Fatal(err)
		}
		failures, err := Appraise(t.Context(), results, refs, at(2025))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range failures {
			if f.Expected == "" || f.Got == "" || f.Help == "" {
				t.Errorf("%s: a failure without all it should say: %v", in, f)
			}
			got = append(got, f.Check+" "+f.Field)
		}
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Errorf("%s: expected %q, got %q", in, want, got)
		}
	}
}

func FuzzInspect(f *testing.F) {
	for _, file := range []string{"snp/testdata/test-report.bin", "csv/testdata/report.bin", "cca/testdata/token.cbor", "tpm/testdata/evidence.json"} {
		f.Add(vector(f, file))
	}
	f.Add([]byte(`{"verification_requests":[{"tee":"sample","evidence":"e30"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if x, err := Inspect(data, ""); err == nil {
			if _, err := json.Marshal(x); err != nil {
				t.Error(err)
			}
		}
	})
}
