package tdxverify_test

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func newVerifier(t testing.TB, o tdxverify.Options) *tdxverify.Verifier {
	t.Helper()
	v, err := tdxverify.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// evidence wraps a quote, parsable or not.
func evidence(t testing.TB, quote, log []byte) json.RawMessage {
	t.Helper()
	data, err := json.Marshal(map[string][]byte{"quote": quote, "cc_eventlog": log})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// failedChecks are the checks that an error names; nil for no error.
func failedChecks(t testing.TB, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	var failures []tee.Failure
	if e, ok := errors.AsType[*tee.Error](err); ok {
		failures = e.Failures
	} else if e, ok := errors.AsType[*tee.UnavailableError](err); ok {
		failures = e.Failures
	} else {
		t.Fatalf("expected *tee.Error or *tee.UnavailableError, got %T: %v", err, err)
	}
	return names(failures)
}

func names(failures []tee.Failure) []string {
	var out []string
	for _, f := range failures {
		out = append(out, f.Check+" "+f.Field)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func anyReportData() tee.Expected { return tee.Expected{AnyReportData: true} }

func noText(quote []byte) []byte {
	return quote[:bytes.Index(quote, []byte("\nextra bytes"))]
}

// The published quotes verify at their time; with Intel's collateral where there
// is some.
func TestPublishedQuotes(t *testing.T) {
	t.Parallel()
	at2024 := time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		file     string
		edit     func([]byte) []byte
		options  tdxverify.Options
		status   any
		warnings []string
	}{
		{
			"tdx_quote_v4_debug.bin", nil, tdxverify.Options{Now: at(dcaptest.At2023()), Collateral: dcaptest.Intel2023(t), AllowDebug: true},
			"UpToDate", []string{"tdx.debug td_attributes", "tdx.report_data report_data"},
		},
		{
			"tdx_quote_v4_spr_with_text_behind.bin", noText, tdxverify.Options{Now: at(dcaptest.At2023()), AllowMissingCollateral: true},
			nil, []string{"tdx.attributes td_attributes", "tdx.collateral pck_crl", "tdx.collateral qe_identity", "tdx.collateral root_ca_crl", "tdx.collateral tcb_info", "tdx.report_data report_data"},
		},
		{
			"tdx_quote_v4_azure_padded.bin", tdx.Trim, tdxverify.Options{Now: at(at2024), AllowMissingCollateral: true},
			nil, []string{"tdx.attributes td_attributes", "tdx.collateral pck_crl", "tdx.collateral qe_identity", "tdx.collateral root_ca_crl", "tdx.collateral tcb_info", "tdx.report_data report_data"},
		},
		{
			"tdx_quote_v5.bin", nil, tdxverify.Options{Now: at(dcaptest.At2026()), Collateral: dcaptest.Intel2026(t), AllowMissingCollateral: true},
			"UpToDate", []string{"tdx.collateral pck_crl", "tdx.collateral qe_identity", "tdx.collateral root_ca_crl", "tdx.report_data report_data"},
		},
	} {
		t.Run(tc.file, func(t *testing.T) {
			t.Parallel()
			quote := dcaptest.File(t, tc.file)
			if tc.edit != nil {
				quote = tc.edit(quote)
			}
			r, err := newVerifier(t, tc.options).Verify(t.Context(), evidence(t, quote, nil), anyReportData())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.warnings, names(r.Warnings)); diff != "" {
				t.Errorf("%s%v", diff, r.Warnings)
			}
			if r.Claims["tcb_status"] != tc.status || r.Simulated || r.Claims["simulated"] != false {
				t.Errorf("got status %v, simulated %v", r.Claims["tcb_status"], r.Claims["simulated"])
			}
			if _, err := json.Marshal(r.Claims); err != nil {
				t.Error(err)
			}
		})
	}
}

// What Intel listed in June 2023 begins above the patch level that this platform
// had in 2022.
func TestPlatformBelowEveryLevel(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2023()), Collateral: dcaptest.Intel2023(t)})
	_, err := v.Verify(t.Context(), evidence(t, noText(dcaptest.File(t, "tdx_quote_v4_spr_with_text_behind.bin")), nil), anyReportData())
	if diff := cmp.Diff([]string{"tdx.tcb tcb_status"}, failedChecks(t, err)); diff != "" {
		t.Errorf("%s%v", diff, err)
	}
}

// The claims are those that another implementation derives.
func TestGoldenClaims(t *testing.T) {
	t.Parallel()
	var want map[string]any
	if err := json.Unmarshal(dcaptest.File(t, "tdx_quote_v4_debug_claims.json"), &want); err != nil {
		t.Fatal(err)
	}
	delete(want, "uefi_event_logs") // package eventlog has that; see TestEventLogs
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2023()), Collateral: dcaptest.Intel2023(t), AllowDebug: true})
	digest, err := hex.DecodeString("7c71fe2c86eff65a7cf8dbc22b3275689fd0464a267baced1bf94fc1324656aeb755da3d44d098c0c87382f3a5f85b45c8a28fee1d3bdb38342bf96671501429")
	if err != nil {
		t.Fatal(err)
	}
	r, err := v.Verify(t.Context(), evidence(t, dcaptest.File(t, "tdx_quote_v4_debug.bin"), nil), tee.Expected{ReportData: digest, InitData: make([]byte, 48)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(r.Claims)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for name, value := range want {
		if diff := cmp.Diff(value, only(got[name], value)); diff != "" {
			t.Errorf("claim %s: %s", name, diff)
		}
	}
	// What Intel's library would add, as far as it follows from the documents.
	for name, value := range map[string]any{
		"tcb_status": "UpToDate", "tcb_date": "2023-02-15T00:00:00Z", "tcb_eval_num": 15.0, "pck_crl_num": 1.0, "root_ca_crl_num": 1.0,
		"sgx_type": "Scalable", "is_dynamic_platform": true, "is_cached_keys": true, "is_smt_enabled": true,
		"platform_provider_id": "df4c32a9d8d86009aaf380ec43cfcefb",
		"root_key_id":          "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993",
		"earliest_issue_date":  "2018-05-21T10:45:10Z", "latest_issue_date": "2023-06-18T08:42:58Z", "earliest_expiration_date": "2023-07-08T07:24:59Z",
		"collateral_expiration_status": "0", "advisory_ids": []any{}, "fmspc": "50806f000000", "pce_id": "0000", "pck_ca": "platform",
	} {
		if diff := cmp.Diff(value, got[name]); diff != "" {
			t.Errorf("claim %s: %s", name, diff)
		}
	}
}

// only drops the members of got that want lacks.
func only(got, want any) any {
	g, ok := got.(map[string]any)
	w, ok2 := want.(map[string]any)
	if !ok || !ok2 {
		return got
	}
	out := map[string]any{}
	for name := range w {
		if value, ok := g[name]; ok {
			out[name] = only(value, w[name])
		}
	}
	return out
}

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// eventLog is a file of package eventlog.
func eventLog(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../../eventlog/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The log of a guest in Google's cloud is that of its quote; a log that is not
// names the register, and no change goes unnoticed.
func TestEventLogs(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 9, 1, 0, 0, 0, 0, time.UTC)
	v := newVerifier(t, tdxverify.Options{Now: at(now), AllowMissingCollateral: true})
	quote, log := tdx.Trim(eventLog(t, "cos113_quote.dat")), eventLog(t, "cos113_ccel.bin")
	r, err := v.Verify(t.Context(), evidence(t, quote, log), anyReportData())
	if err != nil {
		t.Fatal(err)
	}
	logs, ok := r.Claims["uefi_event_logs"].([]any)
	if !ok || len(logs) < 40 {
		t.Fatalf("got %v", r.Claims["uefi_event_logs"])
	}
	if boot, ok := r.Claims["boot"].(map[string]any); !ok || boot["kernel"] == nil {
		t.Errorf("got %v", r.Claims["boot"])
	}
	place := func(event int) int {
		e, ok := logs[event].(map[string]any)
		digests, ok2 := e["digests"].([]any)
		if !ok || !ok2 {
			t.Fatal("no digests")
		}
		d, ok := digests[0].(map[string]any)
		text, ok2 := d["digest"].(string)
		raw, err := hex.DecodeString(text)
		if !ok || !ok2 || err != nil || bytes.Count(log, raw) == 0 {
			t.Fatalf("no digest %s", text)
		}
		return bytes.Index(log, raw)
	}
	flip := func(at int) []byte {
		out := bytes.Clone(log)
		out[at] ^= 1
		return out
	}
	for name, tc := range map[string]struct {
		log  []byte
		want string
	}{
		"another TD's": {eventLog(t, "CCEL_data_ovmf"), "rtmr_0"}, "a digest of register 1": {flip(place(0)), "rtmr_0"}, "a digest of register 2": {flip(place(41)), "rtmr_1"},
		"cut in an event": {log[:place(41)], "cc_eventlog"}, "cut behind an event": {log[:place(41)-14], ""}, "no log": {[]byte("hello"), "cc_eventlog"}, "empty": {[]byte{}, "cc_eventlog"},
	} {
		_, err := v.Verify(t.Context(), evidence(t, quote, tc.log), anyReportData())
		got := failedChecks(t, err)
		if len(got) != 1 || !strings.HasPrefix(got[0], "tdx.event_log "+tc.want) {
			t.Errorf("%s: expected tdx.event_log %s, got %v: %v", name, tc.want, got, err)
		}
	}
}

// The log that is published beside the debug TD's quote is that of another boot.
func TestEventLogOfAnotherBoot(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2023()), Collateral: dcaptest.Intel2023(t), AllowDebug: true})
	_, err := v.Verify(t.Context(), evidence(t, dcaptest.File(t, "tdx_quote_v4_debug.bin"), eventLog(t, "ccel_for_quote_v4.bin")), anyReportData())
	if diff := cmp.Diff([]string{"tdx.event_log rtmr_0"}, failedChecks(t, err)); diff != "" {
		t.Errorf("%s%v", diff, err)
	}
}
