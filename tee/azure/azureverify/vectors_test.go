package azureverify_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/azure/azureverify"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

// v2Data is the report data of the published evidence of version 2.
const v2Data = "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef"

// now is when all published certificates were valid.
func now() time.Time { return time.Date(2025, 11, 1, 0, 0, 0, 0, time.UTC) }

func file(t testing.TB, name string) json.RawMessage {
	t.Helper()
	raw, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	out, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func snpVerifier(t testing.TB, o azureverify.Options) tee.Verifier {
	t.Helper()
	v, err := snpverify.New(snpverify.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return azureverify.NewSNP(v, o)
}

// tdxVerifier has no collateral: what needs it are warnings.
func tdxVerifier(t testing.TB, o azureverify.Options) tee.Verifier {
	t.Helper()
	v, err := tdxverify.New(tdxverify.Options{Now: now, AllowMissingCollateral: true})
	if err != nil {
		t.Fatal(err)
	}
	o.AllowMissingCollateral = true
	return azureverify.NewTDX(v, o)
}

type vector struct {
	name    tee.Name
	version int
	data    []byte
	pcr0    string
}

func vectors(t testing.TB) map[string]vector {
	return map[string]vector{
		"snp-v0.json":       {tee.AzureSNPVTPM, 0, []byte("challenge"), "e15c44796beabf46abcec7c57e590942041e47497e4ec27571c8b7664f48dced"},
		"snp-v1.json":       {tee.AzureSNPVTPM, 1, []byte("challenge"), "e15c44796beabf46abcec7c57e590942041e47497e4ec27571c8b7664f48dced"},
		"snp-v2.json":       {tee.AzureSNPVTPM, 2, unhex(t, v2Data), "84275b2f4312cd4fc6cbe6b152ad3c3683e513d9f1e23c34fca160c8cca7a6a7"},
		"snp-genoa-v0.json": {tee.AzureSNPVTPM, 0, unhex(t, "0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f"), ""},
		"tdx-v0.json":       {tee.AzureTDXVTPM, 0, []byte("challenge"), "782b20b10f55cc46e2142cc2145d548698073e5beb82752c8d7f9279f0d8a273"},
		"tdx-v1.json":       {tee.AzureTDXVTPM, 1, []byte("challenge"), "782b20b10f55cc46e2142cc2145d548698073e5beb82752c8d7f9279f0d8a273"},
	}
}

func verifierFor(t testing.TB, x vector, o azureverify.Options) tee.Verifier {
	t.Helper()
	if x.name == tee.AzureTDXVTPM {
		return tdxVerifier(t, o)
	}
	return snpVerifier(t, o)
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for f, x := range vectors(t) {
		v := verifierFor(t, x, azureverify.Options{})
		got, err := v.Verify(t.Context(), file(t, f), tee.Expected{ReportData: x.data})
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		pcrs, ok := got.Claims["tpm"].(map[string]any)
		if !ok || len(pcrs) != 24 || x.pcr0 != "" && pcrs["pcr00"] != x.pcr0 {
			t.Errorf("%s: tpm: %v", f, got.Claims["tpm"])
		}
		if got.TEE != x.name || v.TEE() != x.name || got.Class != tee.CPU || got.Simulated || string(got.ReportData) != string(x.data) ||
			got.Claims["report_data"] != hex.EncodeToString(x.data) || got.Claims["init_data"] != pcrs["pcr08"] ||
			got.Claims["evidence_version"] != x.version || got.Claims["hardware_report_fresh"] != (x.version == 2) || got.Claims["simulated"] != false {
			t.Errorf("%s: %+v", f, got)
		}
		old := slices.ContainsFunc(got.Warnings, func(w tee.Failure) bool { return w.Check == string(x.name)+".version" })
		if old != (x.version < 2) {
			t.Errorf("%s: warnings %v", f, got.Warnings)
		}
		if _, err := json.Marshal(got.Claims); err != nil {
			t.Error(err)
		}
		if _, err := verifierFor(t, x, azureverify.Options{RequireV2: true}).Verify(t.Context(), file(t, f), tee.Expected{ReportData: x.data}); (err == nil) != (x.version == 2) {
			t.Errorf("%s, with RequireV2: %v", f, err)
		}
		if got, err := v.Verify(t.Context(), file(t, f), tee.Expected{AnyReportData: true}); err != nil || !slices.ContainsFunc(got.Warnings, func(w tee.Failure) bool { return w.Check == string(x.name)+".report_data" }) {
			t.Errorf("%s, without report data: %v", f, err)
		}
	}
}

// TestSNPClaims: what relying parties read, in the shape that they expect.
func TestSNPClaims(t *testing.T) {
	t.Parallel()
	got, err := snpVerifier(t, azureverify.Options{}).Verify(t.Context(), file(t, "snp-v2.json"), tee.Expected{ReportData: unhex(t, v2Data)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := azure.ParseEvidence(tee.AzureSNPVTPM, file(t, "snp-v2.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"policy_abi_major": "0", "policy_abi_minor": "31", "policy_smt_allowed": "true", "policy_migrate_ma": "false", "policy_debug_allowed": "false", "policy_single_socket": "false",
		"platform_smt_enabled": "true", "measurement": base64.StdEncoding.EncodeToString(e.HCLReport[32+0x90 : 32+0xC0]), "vmpl": "0", "generation": "Milan",
		"user_data": v2Data + strings.Repeat("0", 32),
	} {
		if got.Claims[name] != want {
			t.Errorf("%s: expected %v, got %v", name, want, got.Claims[name])
		}
	}
	for _, name := range []string{"reported_tcb_bootloader", "reported_tcb_tee", "reported_tcb_snp", "reported_tcb_microcode", "platform_tsme_enabled"} {
		if s, ok := got.Claims[name].(string); !ok || s == "" {
			t.Errorf("%s: expected a string, got %v", name, got.Claims[name])
		}
	}
	if c, ok := got.Claims["vm_configuration"].(map[string]any); !ok || c["secure-boot"] != true {
		t.Errorf("vm_configuration: %v", got.Claims["vm_configuration"])
	}
}

// TestTDXClaims: as those of plain TDX.
func TestTDXClaims(t *testing.T) {
	t.Parallel()
	got, err := tdxVerifier(t, azureverify.Options{}).Verify(t.Context(), file(t, "tdx-v1.json"), tee.Expected{ReportData: []byte("challenge")})
	if err != nil {
		t.Fatal(err)
	}
	quote, _ := got.Claims["quote"].(map[string]any)
	body, _ := quote["body"].(map[string]any)
	attributes, _ := got.Claims["td_attributes"].(map[string]any)
	if body["mr_td"] != "024a32b070383331181619fa387cb4d55d1e38879f989933055ccad5bc2db795d1737b66205949d15469dc8c1ba7ab7b" || attributes["debug"] != false {
		t.Errorf("claims: %v", got.Claims)
	}
}

// refused returns the checks that failed, and fails the test where none did.
func refused(t testing.TB, v tee.Verifier, raw json.RawMessage, want tee.Expected) []string {
	t.Helper()
	r, err := v.Verify(context.Background(), raw, want)
	e, ok := errors.AsType[*tee.Error](err)
	if !ok || r != nil {
		t.Fatalf("expected *tee.Error, got %v", err)
	}
	var out []string
	for _, f := range e.Failures {
		if f.Field == "" || f.Check == "" || f.Expected+f.Got == "" {
			t.Errorf("a failure that says too little: %+v", f)
		}
		out = append(out, f.Check)
	}
	return out
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	data := unhex(t, v2Data)
	v1, err := azure.ParseEvidence(tee.AzureSNPVTPM, file(t, "snp-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*azure.Evidence)
		want   tee.Expected
		checks []string
	}{
		"other report data":   {nil, tee.Expected{ReportData: make([]byte, 48)}, []string{"az-snp-vtpm.report_data", "az-snp-vtpm.user_data"}},
		"padded report data":  {nil, tee.Expected{ReportData: append(slices.Clone(data), 0)}, []string{"az-snp-vtpm.report_data"}},
		"cut report data":     {nil, tee.Expected{ReportData: data[:47]}, []string{"az-snp-vtpm.report_data"}},
		"empty report data":   {nil, tee.Expected{ReportData: []byte{}}, []string{"az-snp-vtpm.report_data", "az-snp-vtpm.user_data"}},
		"long report data":    {nil, tee.Expected{ReportData: make([]byte, 100)}, []string{"az-snp-vtpm.report_data", "az-snp-vtpm.user_data"}},
		"no report data":      {nil, tee.Expected{}, []string{"az-snp-vtpm.report_data"}},
		"init data not bound": {nil, tee.Expected{ReportData: data, InitData: make([]byte, 32)}, []string{"az-snp-vtpm.init_data"}},
		"long init data":      {nil, tee.Expected{ReportData: data, InitData: make([]byte, 48)}, []string{"az-snp-vtpm.init_data"}},
		"another VCEK":        {func(e *azure.Evidence) { e.VCEK = v1.VCEK }, tee.Expected{ReportData: data}, []string{"snp.signature"}},
		"another HCL report":  {func(e *azure.Evidence) { e.HCLReport = v1.HCLReport }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.signature", "az-snp-vtpm.user_data"}},
		"another quote":       {func(e *azure.Evidence) { e.Quote = v1.Quote }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.signature", "az-snp-vtpm.report_data"}},
		"called version 1":    {func(e *azure.Evidence) { e.Version = 1 }, tee.Expected{ReportData: data}, nil},
		"register":            {func(e *azure.Evidence) { e.Quote.PCRs[11][3] ^= 4 }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.pcr_digest"}},
		"zero signature":      {func(e *azure.Evidence) { e.Quote.Signature = make([]byte, 256) }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.signature"}},
		"no quote":            {func(e *azure.Evidence) { e.Quote.Message = []byte{1} }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.signature", "az-snp-vtpm.quote"}},
		"claims changed":      {func(e *azure.Evidence) { e.HCLReport = change(e.HCLReport, "secure-boot", "sekure-boot") }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.var_data"}},
		"claims malformed":    {func(e *azure.Evidence) { e.HCLReport = change(e.HCLReport, "HCLAkPub", "HCLBkPub") }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.hcl_report"}},
		"header":              {func(e *azure.Evidence) { e.HCLReport = change(e.HCLReport, "HCLA", "HCLB") }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.hcl_report"}},
		"padded header":       {func(e *azure.Evidence) { e.HCLReport = append(slices.Clone(e.HCLReport), 1) }, tee.Expected{ReportData: data}, []string{"az-snp-vtpm.hcl_report"}},
	} {
		e, err := azure.ParseEvidence(tee.AzureSNPVTPM, file(t, "snp-v2.json"))
		if err != nil {
			t.Fatal(err)
		}
		if c.change != nil {
			c.change(e)
		}
		raw, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if c.checks == nil {
			if _, err := snpVerifier(t, azureverify.Options{}).Verify(t.Context(), raw, c.want); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		got := refused(t, snpVerifier(t, azureverify.Options{}), raw, c.want)
		for _, check := range c.checks {
			if !slices.Contains(got, check) {
				t.Errorf("%s: expected %v, got %v", name, c.checks, got)
			}
		}
	}
	// Old evidence does not become new by another number.
	v1.Version = 2
	raw, err := v1.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if got := refused(t, snpVerifier(t, azureverify.Options{}), raw, tee.Expected{ReportData: []byte("challenge")}); !slices.Equal(got, []string{"az-snp-vtpm.user_data"}) {
		t.Errorf("version 1 called 2: %v", got)
	}
	if got := refused(t, tdxVerifier(t, azureverify.Options{}), file(t, "snp-v2.json"), tee.Expected{ReportData: data}); !slices.Equal(got, []string{"az-tdx-vtpm.format"}) {
		t.Errorf("SNP as TDX: %v", got)
	}
	early, err := snpverify.New(snpverify.Options{Now: func() time.Time { return now().AddDate(-20, 0, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, azureverify.NewSNP(early, azureverify.Options{}), file(t, "snp-v2.json"), tee.Expected{ReportData: data})
}

// change replaces text in an HCL report by text of the same length.
func change(report []byte, old, with string) []byte {
	return []byte(strings.Replace(string(report), old, with, 1))
}

// TestMixedTD takes a quote with the report of another machine.
func TestMixedTD(t *testing.T) {
	t.Parallel()
	e, err := azure.ParseEvidence(tee.AzureTDXVTPM, file(t, "tdx-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	good := e.HCLReport
	for name, at := range map[string]int{"RTMR": 32 + 512 + 300, "report data": 32 + 128 + 40} {
		e.HCLReport = slices.Clone(good)
		e.HCLReport[at] ^= 1
		raw, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if got := refused(t, tdxVerifier(t, azureverify.Options{}), raw, tee.Expected{ReportData: []byte("challenge")}); !slices.Equal(got, []string{"az-tdx-vtpm.hcl_report"}) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestEachBit flips every bit of what is signed, of signatures and certificates.
func TestEachBit(t *testing.T) {
	t.Parallel()
	for _, f := range []string{"snp-v2.json", "tdx-v1.json"} {
		x := vectors(t)[f]
		v := verifierFor(t, x, azureverify.Options{})
		good, err := azure.ParseEvidence(x.name, file(t, f))
		if err != nil {
			t.Fatal(err)
		}
		parts := map[string]func(*azure.Evidence) *[]byte{
			"signature": func(e *azure.Evidence) *[]byte { return &e.Quote.Signature },
			"message":   func(e *azure.Evidence) *[]byte { return &e.Quote.Message },
		}
		if x.name == tee.AzureSNPVTPM {
			parts["vcek"] = func(e *azure.Evidence) *[]byte { return &e.VCEK }
			parts["hcl_report"] = func(e *azure.Evidence) *[]byte { return &e.HCLReport }
		}
		genuine := func(part func(*azure.Evidence) *[]byte, m []byte) bool {
			e := *good
			*part(&e) = m
			raw, err := e.JSON()
			if err != nil {
				return false
			}
			_, err = v.Verify(context.Background(), raw, tee.Expected{ReportData: x.data})
			return err == nil
		}
		for name, part := range parts {
			teetest.EachBit(t, f+" "+name, *part(good), func(m []byte) bool { return genuine(part, m) })
		}
		if x.name == tee.AzureTDXVTPM {
			// All bits of quotes are tee/tdx/tdxverify's to flip: here one of each byte.
			for i := range good.TDQuote {
				m := slices.Clone(good.TDQuote)
				m[i] ^= 1 << (i % 8)
				if genuine(func(e *azure.Evidence) *[]byte { return &e.TDQuote }, m) {
					t.Errorf("%s td_quote: genuine with bit %d of byte %d flipped", f, i%8, i)
				}
			}
			// The report's MAC and the module's fields are only good inside of the
			// machine; what the guest is told by them is compared with the quote.
			teetest.EachBit(t, f+" runtime claims", good.HCLReport[32+1184:], func(m []byte) bool {
				return genuine(func(e *azure.Evidence) *[]byte { return &e.HCLReport }, append(slices.Clone(good.HCLReport[:32+1184]), m...))
			})
		}
	}
}

func FuzzVerify(f *testing.F) {
	for name := range vectors(f) {
		f.Add([]byte(file(f, name)))
	}
	s, d := snpVerifier(f, azureverify.Options{}), tdxVerifier(f, azureverify.Options{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, v := range []tee.Verifier{s, d} {
			if r, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: []byte("another nonce")}); err == nil || r != nil {
				t.Errorf("accepted: %+v", r)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, f := range []string{"snp-v2.json", "tdx-v1.json"} {
		x := vectors(b)[f]
		raw := file(b, f)
		b.Run(f+"/warm", func(b *testing.B) {
			v := verifierFor(b, x, azureverify.Options{})
			for b.Loop() {
				if _, err := v.Verify(b.Context(), raw, tee.Expected{ReportData: x.data}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(f+"/cold", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				v := verifierFor(b, x, azureverify.Options{})
				b.StartTimer()
				if _, err := v.Verify(b.Context(), raw, tee.Expected{ReportData: x.data}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
