package sgxverify_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/sgx/sgxverify"
)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func newVerifier(t testing.TB, o sgxverify.Options) *sgxverify.Verifier {
	t.Helper()
	v, err := sgxverify.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func evidence(t testing.TB, quote []byte) json.RawMessage {
	t.Helper()
	data, err := json.Marshal(map[string][]byte{"quote": quote})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func failedChecks(t testing.TB, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*tee.Error](err); ok {
		return names(e.Failures)
	}
	if e, ok := errors.AsType[*tee.UnavailableError](err); ok {
		return names(e.Failures)
	}
	t.Fatalf("expected *tee.Error or *tee.UnavailableError, got %T: %v", err, err)
	return nil
}

func names(failures []tee.Failure) []string {
	var out []string
	for _, f := range failures {
		out = append(out, f.Check+" "+f.Field)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// at2024 is a time at which the published quote's chain is valid. Nobody
// published Intel's collateral for it.
func at2024() time.Time { return time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC) }

const missing = "sgx.collateral pck_crl,sgx.collateral qe_identity,sgx.collateral root_ca_crl,sgx.collateral tcb_info"

// The published quote of a debug enclave, with the claims that another
// implementation derives (confidential-containers/trustee@78962cd4,
// deps/verifier/src/sgx/claims.rs).
func TestPublishedQuote(t *testing.T) {
	t.Parallel()
	o := sgxverify.Options{Now: at(at2024()), AllowDebug: true, AllowMissingCollateral: true}
	r, err := newVerifier(t, o).Verify(t.Context(), evidence(t, dcaptest.File(t, "sgx_quote_v3_debug.bin")), tee.Expected{ReportData: []byte("test"), InitData: make([]byte, 64)})
	if err != nil {
		t.Fatal(err)
	}
	zero := func(n int) string { return strings.Repeat("00", n) }
	reportData := "74657374" + zero(60)
	want := map[string]any{
		"header": map[string]any{
			"version": "0300", "att_key_type": "0200", "att_key_data_0": "00000000", "qe_svn": "0800", "pce_svn": "0d00",
			"vendor_id": "939a7233f79c4ca9940a0db3957f0607", "user_data": "dccde9b31ce8860548173bb4a2a57a1600000000",
		},
		"body": map[string]any{
			"cpu_svn": "06060c0cffff00000000000000000000", "misc_select": "01000000", "reserved1": zero(12), "isv_ext_prod_id": zero(16),
			"attributes.flags": "0700000000000000", "attributes.xfrm": "e700000000000000", "mr_enclave": "8f173e4613ff05c52aaf04162d234edae8c9977eae47eb2299ae16a553011c68",
			"reserved2": zero(32), "mr_signer": "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e", "reserved3": zero(32), "config_id": zero(64),
			"isv_prod_id": "0000", "isv_svn": "0000", "config_svn": "0000", "reserved4": zero(42), "isv_family_id": zero(16), "report_data": reportData,
		},
		"report_data": reportData, "init_data": zero(64), "platform_instance_id": "7a3a6941065cd5060bd93d3db2cfc0c8",
		"sgx_type": "Scalable", "is_dynamic_platform": true, "is_cached_keys": true, "is_smt_enabled": true,
		"platform_provider_id": "b9c92eb5053cb158956f4e68b6d82f52", "fmspc": "00606a000000", "pce_id": "0000", "pck_ca": "platform", "simulated": false,
		"root_key_id": "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993",
	}
	if diff := cmp.Diff(want, r.Claims); diff != "" {
		t.Error(diff)
	}
	if got := strings.Join(names(r.Warnings), ","); got != missing+",sgx.debug attributes.flags" {
		t.Errorf("warnings: %s", got)
	}
	if r.TEE != tee.SGX || r.Class != tee.CPU || r.Simulated || len(r.InitData) != 64 {
		t.Errorf("got %+v", r)
	}
	o.AllowDebug = false
	_, err = newVerifier(t, o).Verify(t.Context(), evidence(t, dcaptest.File(t, "sgx_quote_v3_debug.bin")), tee.Expected{ReportData: []byte("test")})
	if diff := cmp.Diff([]string{"sgx.debug attributes.flags"}, failedChecks(t, err)); diff != "" {
		t.Error(diff)
	}
}

// The evidence as it travels in a request to an attestation service.
func TestPublishedRequest(t *testing.T) {
	t.Parallel()
	var request struct {
		Requests []struct {
			TEE      string `json:"tee"`
			Evidence string `json:"evidence"`
		} `json:"verification_requests"`
	}
	if err := json.Unmarshal(dcaptest.File(t, "sgx_as_request.json"), &request); err != nil || len(request.Requests) != 1 {
		t.Fatal(err)
	}
	data, err := base64.RawURLEncoding.DecodeString(request.Requests[0].Evidence)
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, sgxverify.Options{Now: at(at2024()), AllowDebug: true, AllowMissingCollateral: true})
	if _, err := v.Verify(t.Context(), data, tee.Expected{AnyReportData: true}); err != nil {
		t.Error(err)
	}
}

func genuine(t testing.TB, v *sgxverify.Verifier, data json.RawMessage) bool {
	_, err := v.Verify(t.Context(), data, tee.Expected{AnyReportData: true})
	if _, ok := errors.AsType[*tee.Error](err); err != nil && !ok {
		t.Errorf("expected *tee.Error, got %T: %v", err, err)
	}
	return err == nil
}

// No bit can be flipped, nothing cut off or added. The certificates are as in TDX
// quotes, whose tests flip each bit of them.
func TestMutations(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, sgxverify.Options{Now: at(at2024()), AllowDebug: true, AllowMissingCollateral: true})
	quote := dcaptest.File(t, "sgx_quote_v3_debug.bin")
	chain := bytes.Index(quote, []byte("-----BEGIN"))
	teetest.EachBit(t, "quote", quote[:chain], func(head []byte) bool {
		return genuine(t, v, evidence(t, append(head[:len(head):len(head)], quote[chain:]...)))
	})
	teetest.EachPrefix(quote, func(cut []byte) {
		if genuine(t, v, evidence(t, cut)) {
			t.Errorf("genuine with %d bytes", len(cut))
		}
	})
	for name, other := range map[string][]byte{
		"padded": append(bytes.Clone(quote), 0), "doubled": append(bytes.Clone(quote), quote...), "huge": append(bytes.Clone(quote), make([]byte, sgx.MaxQuote)...),
		"a TDX quote": dcaptest.File(t, "tdx_quote_v4_debug.bin"), "nothing": {},
	} {
		if genuine(t, v, evidence(t, other)) {
			t.Errorf("genuine: %s", name)
		}
	}
	text := string(evidence(t, quote))
	for name, doc := range map[string]string{
		"twice": text + text, "unknown": strings.Replace(text, "{", `{"x":1,`, 1), "duplicate": strings.TrimSuffix(text, "}") + "," + text[1:], "null": `{"quote":null}`, "none": `{}`,
		"line break": text[:100] + `\n` + text[100:], "an array": `[]`, "an array of numbers": `{"quote":[3,0]}`, "letter case": strings.Replace(text, "quote", "Quote", 1),
	} {
		if genuine(t, v, json.RawMessage(doc)) {
			t.Errorf("genuine: %s", name)
		}
	}
}

func TestWorld(t *testing.T) {
	t.Parallel()
	type world = dcaptest.World
	for _, tc := range []struct {
		name   string
		world  func(*world)
		quote  func(*sgx.Quote)
		status any
		want   []string
	}{
		{"up to date", nil, nil, "UpToDate", nil},
		{"behind", func(w *world) { w.PCK.PCESVN = 11 }, nil, "OutOfDate", nil},
		{"hardening", func(w *world) { w.PCK.Components[0] = 4 }, nil, "SWHardeningNeeded", nil},
		{"QE behind", func(w *world) { w.QEReport.ISVSVN = 6 }, nil, "OutOfDate", nil},
		{"revoked", func(w *world) { w.PCK.Components = [16]byte{2} }, nil, nil, []string{"sgx.tcb tcb_status"}},
		{"below every level", func(w *world) { w.PCK.Components = [16]byte{} }, nil, nil, []string{"sgx.tcb tcb_status"}},
		{"TDX collateral", func(w *world) {
			w.TCBInfo[dcap.SGX].ID, w.Identity[dcap.SGX].ID = "TDX", "TD_QE"
			w.TCBInfo[dcap.SGX].Module = &dcap.ModuleIdentity{}
		}, nil, nil, []string{"sgx.collateral qe_identity.id", "sgx.collateral tcb_info.id"}},
		{"TDX quoting enclave", func(w *world) { w.QEReport.ISVProdID = 2 }, nil, nil, []string{"sgx.qe_identity qe_report.isv_prod_id"}},
		{"revoked intermediate", func(w *world) { w.RootCRL.Serials = []*big.Int{w.Authority.Platform.Certificate.SerialNumber} }, nil, nil, []string{"sgx.revocation certification_data.intermediate", "sgx.revocation pck_crl.issuer_chain"}},
		{"expired", func(w *world) { w.TCBInfo[dcap.SGX].NextUpdate = w.Now.Add(-1) }, nil, nil, []string{"sgx.collateral tcb_info"}},
		{"debug", nil, func(q *sgx.Quote) { q.Report.Flags |= dcapquote.AttributeDebug }, nil, []string{"sgx.debug attributes.flags"}},
		{"not initialised", nil, func(q *sgx.Quote) { q.Report.Flags &^= dcapquote.AttributeInit }, nil, []string{"sgx.attributes attributes.flags, reserved"}},
		{"reserved bytes", nil, func(q *sgx.Quote) { q.Report.Reserved4[3] = 1 }, nil, []string{"sgx.attributes attributes.flags, reserved"}},
		{"report data", nil, func(q *sgx.Quote) { q.Report.ReportData[1] = 1 }, nil, []string{"sgx.report_data report_data"}},
		{"initdata", nil, func(q *sgx.Quote) { q.Report.ConfigID[63] = 1 }, nil, []string{"sgx.config_id config_id"}},
		{"version 4", nil, func(q *sgx.Quote) { q.Header.Version = 4 }, nil, []string{"sgx.format quote"}},
		{"TEE type of TDX", nil, func(q *sgx.Quote) { q.Header.TEEType = dcapquote.TEETypeTDX }, nil, []string{"sgx.format quote"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := dcaptest.New(t, dcap.SGX)
			if tc.world != nil {
				tc.world(w)
			}
			v := newVerifier(t, sgxverify.Options{Now: at(w.Now), DevelopmentRoots: []dcap.DevelopmentRoot{w.Root(t)}})
			quote := dcaptest.EnclaveQuote(t, w.Quoter(t), tc.quote)
			r, err := v.Verify(t.Context(), evidence(t, quote), tee.Expected{ReportData: []byte("x"), InitData: []byte{0xc0}})
			if diff := cmp.Diff(tc.want, failedChecks(t, err)); diff != "" {
				t.Fatalf("%s%v", diff, err)
			}
			if r != nil && (r.Claims["tcb_status"] != tc.status || !r.Simulated || r.Claims["tcb_status_current"] != nil) {
				t.Errorf("status %v, simulated %v", r.Claims["tcb_status"], r.Simulated)
			}
		})
	}
}

func TestMissingCollateral(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, sgxverify.Options{Now: at(at2024()), AllowDebug: true})
	_, err := v.Verify(t.Context(), evidence(t, dcaptest.File(t, "sgx_quote_v3_debug.bin")), tee.Expected{ReportData: []byte("test")})
	if _, ok := errors.AsType[*tee.UnavailableError](err); !ok || strings.Join(failedChecks(t, err), ",") != missing {
		t.Errorf("got %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	quote := dcaptest.File(f, "sgx_quote_v3_debug.bin")
	f.Add([]byte(evidence(f, quote)))
	f.Add([]byte(evidence(f, quote[:1000])))
	v := newVerifier(f, sgxverify.Options{Now: at(at2024()), AllowDebug: true, AllowMissingCollateral: true})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := v.Verify(t.Context(), data, tee.Expected{AnyReportData: true})
		if err == nil && !bytes.HasPrefix(r.ReportData, []byte("test")) {
			t.Error("evidence of somebody else is genuine")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	w := dcaptest.New(b, dcap.SGX)
	data := evidence(b, dcaptest.EnclaveQuote(b, w.Quoter(b), nil))
	v := newVerifier(b, sgxverify.Options{Now: at(w.Now), DevelopmentRoots: []dcap.DevelopmentRoot{w.Root(b)}})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), data, tee.Expected{ReportData: []byte("x")}); err != nil {
			b.Fatal(err)
		}
	}
}
