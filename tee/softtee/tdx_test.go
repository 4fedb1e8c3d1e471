package softtee

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee/softport"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

func tdxLaunch() measure.TDXLaunch {
	return measure.TDXLaunch{
		Firmware: make([]byte, 8192), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "quiet", VCPUs: 2, Memory: 512 << 20,
	}
}

// tdxVerifier accepts what p signs.
func tdxVerifier(t testing.TB, p *Processor, o tdxverify.Options) *tdxverify.Verifier {
	t.Helper()
	root, err := dcap.ParseDevelopmentRoot("soft", p.TDXRootPEM())
	if err != nil {
		t.Fatal(err)
	}
	if o.Now == nil {
		o.Now = func() time.Time { return now }
	}
	o.DevelopmentRoots = []dcap.DevelopmentRoot{root}
	v, err := tdxverify.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// tdxEvidence is what a guest of g sends.
func tdxEvidence(t testing.TB, g *TDXGuest, reportData []byte) json.RawMessage {
	t.Helper()
	a := softport.NewTDX(func(ctx context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() { _ = g.Serve(t.Context(), host) }()
		return guest, nil
	})
	raw, err := a.Evidence(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	initData, err := a.InitData(t.Context())
	if err != nil || !bytes.Equal(initData, g.quote.MRConfigID[:]) {
		t.Fatalf("initdata: got %x, %v", initData, err)
	}
	return raw
}

func claimAt(t testing.TB, claims map[string]any, path string) any {
	t.Helper()
	var at any = claims
	for name := range strings.SplitSeq(path, "/") {
		m, ok := at.(map[string]any)
		if !ok {
			t.Fatalf("claim %s: no object", path)
		}
		at = m[name]
	}
	return at
}

func TestTDXLaunch(t *testing.T) {
	t.Parallel()
	p := chip(t)
	want, err := measure.TDX(tdxLaunch())
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint16{0, 4, 5} {
		g, err := p.LaunchTDX(tdxLaunch(), TDXPolicy{MRConfigID: [48]byte{5, 6}, QuoteVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		if g.MRTD() != want.MRTD || g.RTMR() != want.RTMR || g.Layout() != measure.LayoutSoftware {
			t.Errorf("measurements: got %x %x (%s)", g.MRTD(), g.RTMR(), g.Layout())
		}
		result, err := tdxVerifier(t, p, tdxverify.Options{}).Verify(t.Context(), tdxEvidence(t, g, []byte("data")), tee.Expected{ReportData: []byte("data"), InitData: []byte{5, 6}})
		if err != nil {
			t.Fatalf("version %d: %v", version, err)
		}
		if !result.Simulated || result.TEE != tee.TDX || len(result.Warnings) != 0 {
			t.Errorf("version %d: simulated %v, warnings %v", version, result.Simulated, result.Warnings)
		}
		if version == 0 {
			version = 4
		}
		for path, expected := range map[string]any{
			"tcb_status": "UpToDate", "collateral_expiration_status": "0", "simulated": true,
			"quote/header/version": []string{4: "0400", 5: "0500"}[version], "quote/header/vendor_id": "939a7233f79c4ca9940a0db3957f0607",
			"td_attributes/debug": false, "td_attributes/septve_disable": true, "init_data": "0506" + strings.Repeat("00", 46),
		} {
			if got := claimAt(t, result.Claims, path); got != expected {
				t.Errorf("version %d: %s: got %v, want %v", version, path, got, expected)
			}
		}
		if boot, _ := claimAt(t, result.Claims, "boot").(map[string]any); len(boot) == 0 {
			t.Error("the event log says nothing of the boot")
		}
		if n := len(claimAt(t, result.Claims, "uefi_event_logs").([]any)); n != len(want.Events) {
			t.Errorf("got %d events, want %d", n, len(want.Events))
		}
	}
}

func TestTDXEventLog(t *testing.T) {
	t.Parallel()
	g, err := chip(t).LaunchTDX(tdxLaunch(), TDXPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(g.EventLog(), eventlog.CCEL)
	if err != nil {
		t.Fatal(err)
	}
	registers, err := log.Replay(eventlog.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range g.RTMR() {
		if got := registers[i+1]; got != nil && !bytes.Equal(got, want[:]) || got == nil && want != [48]byte{} {
			t.Errorf("rtmr_%d: the log amounts to %x, the quote has %x", i, got, want)
		}
	}
}

// failed returns the failures of a refusal.
func failed(t testing.TB, err error) []tee.Failure {
	t.Helper()
	e, ok := errors.AsType[*tee.Error](err)
	if !ok {
		t.Fatalf("expected a refusal, got %v", err)
	}
	return e.Failures
}

func TestTDXRefused(t *testing.T) {
	t.Parallel()
	p := chip(t)
	launch := func(change func(*measure.TDXLaunch, *TDXPolicy)) *tdx.Evidence {
		l, policy := tdxLaunch(), TDXPolicy{MRConfigID: [48]byte{5}}
		if change != nil {
			change(&l, &policy)
		}
		g, err := p.LaunchTDX(l, policy)
		if err != nil {
			t.Fatal(err)
		}
		e, err := tdx.ParseEvidence(tdxEvidence(t, g, []byte("data")))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	other := launch(func(l *measure.TDXLaunch, _ *TDXPolicy) { l.Cmdline += " init=/bin/sh" })
	body := func(offset int) func(*tdx.Evidence) {
		return func(e *tdx.Evidence) { e.Quote[48+offset] ^= 1 }
	}
	for _, tc := range []struct {
		name         string
		change       func(*tdx.Evidence)
		check, field string
	}{
		{"MRTD", body(136), "tdx.signature", "signature"},
		{"RTMR2", body(328 + 2*48), "tdx.signature", "signature"},
		{"report data", body(520), "tdx.report_data", "report_data"},
		{"initdata", body(184), "tdx.mr_config_id", "mr_config_id"},
		{"log of another boot", func(e *tdx.Evidence) { e.EventLog = other.EventLog }, "tdx.event_log", "rtmr_2"},
		{"log cut", func(e *tdx.Evidence) { e.EventLog = e.EventLog[:len(e.EventLog)/2] }, "tdx.event_log", "cc_eventlog"},
		{"debug", func(e *tdx.Evidence) {
			*e = *launch(func(_ *measure.TDXLaunch, p *TDXPolicy) { p.Attributes = DefaultAttributes | tdx.AttributeDebug })
		}, "tdx.debug", "td_attributes"},
	} {
		e := launch(nil)
		e.Quote, e.EventLog = bytes.Clone(e.Quote), bytes.Clone(e.EventLog)
		tc.change(e)
		raw, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		_, err = tdxVerifier(t, p, tdxverify.Options{}).Verify(t.Context(), raw, tee.Expected{ReportData: []byte("data"), InitData: []byte{5}})
		found := false
		var all []string
		for _, f := range failed(t, err) {
			found = found || f.Check == tc.check && f.Field == tc.field
			all = append(all, f.Check+" "+f.Field)
		}
		if !found {
			t.Errorf("%s: got %q, want %s %s", tc.name, all, tc.check, tc.field)
		}
	}

	good, err := launch(nil).JSON()
	if err != nil {
		t.Fatal(err)
	}
	want := tee.Expected{ReportData: []byte("data")}
	plain, err := tdxverify.New(tdxverify.Options{Now: func() time.Time { return now }, AllowMissingCollateral: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Verify(t.Context(), good, want); failed(t, err)[0].Check != "tdx.chain" {
		t.Errorf("without the development root: %v", err)
	}
	late := tdxVerifier(t, p, tdxverify.Options{Now: func() time.Time { return now.AddDate(2, 0, 0) }})
	if _, err := late.Verify(t.Context(), good, want); failed(t, err)[0].Check != "tdx.collateral" {
		t.Errorf("with old collateral: %v", err)
	}
}

func TestTDXLaunchRefused(t *testing.T) {
	t.Parallel()
	p := chip(t)
	bad := tdxLaunch()
	bad.Memory = 5
	if _, err := p.LaunchTDX(bad, TDXPolicy{}); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("memory: got %v", err)
	}
	if _, err := p.LaunchTDX(tdxLaunch(), TDXPolicy{QuoteVersion: 3}); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("version 3: got %v", err)
	}
	noKernel := tdxLaunch()
	noKernel.Kernel, noKernel.Initrd, noKernel.Cmdline = nil, nil, ""
	if g, err := p.LaunchTDX(noKernel, TDXPolicy{}); err != nil || g.RTMR()[1] != [48]byte{} {
		t.Errorf("without a kernel: %v", err)
	}
}

// A guest gets the format that it was launched with.
func TestWrongFormat(t *testing.T) {
	t.Parallel()
	td, err := chip(t).LaunchTDX(tdxLaunch(), TDXPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	guest, err := chip(t).Launch(testLaunch(), Policy{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		attester func(func(context.Context) (io.ReadWriteCloser, error)) tee.Attester
		serve    func(context.Context, io.ReadWriter) error
		want     string
	}{
		{softport.New, td.Serve, "launched as a TD"},
		{func(open func(context.Context) (io.ReadWriteCloser, error)) tee.Attester {
			return softport.NewTDX(open)
		}, guest.Serve, "launched as an SEV-SNP guest"},
	} {
		a := tc.attester(func(context.Context) (io.ReadWriteCloser, error) {
			guest, host := net.Pipe()
			go func() { _ = tc.serve(t.Context(), host) }()
			return guest, nil
		})
		if _, err := a.Evidence(t.Context(), nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

func TestPlatformState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := chip(t).save(dir); err != nil { // what versions without TDX left
		t.Fatal(err)
	}
	load := func(when time.Time) *Processor {
		t.Helper()
		p, err := LoadOrCreate(dir, rand.Reader, when)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second := load(now), load(now.AddDate(0, 5, 0))
	if first.TDXFingerprint() != second.TDXFingerprint() || !bytes.Equal(first.TDXRootPEM(), second.TDXRootPEM()) {
		t.Error("the platform changed on the way through its state")
	}
	for _, h := range first.intel.holders() {
		if !bytes.Contains(h.Certificate.Raw, []byte(Warning)) {
			t.Errorf("the certificate %q does not say what it is", h.Certificate.Subject)
		}
	}
	later := now.AddDate(0, 7, 0)
	third := load(later)
	if third.TDXFingerprint() != first.TDXFingerprint() || bytes.Equal(third.TDXRootPEM(), first.TDXRootPEM()) {
		t.Error("the collateral was not signed anew under the same root")
	}
	if written, err := os.ReadFile(filepath.Join(dir, TDXRootFile)); err != nil || !bytes.Equal(written, third.TDXRootPEM()) {
		t.Errorf("the root's file is not the one in use (%v)", err)
	}
	// What the first platform's keys sign, the third's collateral vouches for.
	g, err := first.LaunchTDX(tdxLaunch(), TDXPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	v := tdxVerifier(t, third, tdxverify.Options{Now: func() time.Time { return later.AddDate(0, 11, 0) }})
	if _, err := v.Verify(t.Context(), tdxEvidence(t, g, nil), tee.Expected{AnyReportData: true}); err != nil {
		t.Error(err)
	}
	// A damaged root's file is made again, a damaged platform is not.
	if err := os.WriteFile(filepath.Join(dir, TDXRootFile), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dcap.ParseDevelopmentRoot("soft", load(later).TDXRootPEM()); err != nil {
		t.Error(err)
	}

	path := filepath.Join(dir, platformFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const end = "-----END PRIVATE KEY-----\n"
	_, rest, _ := strings.Cut(string(good), end)
	foreign := t.TempDir()
	if err := chip(t).intel.save(foreign); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(filepath.Join(foreign, platformFile))
	if err != nil {
		t.Fatal(err)
	}
	otherRoot, _, _ := strings.Cut(string(other), end)
	for _, tc := range []struct {
		name, content, want string
		mode                os.FileMode
		when                time.Time
	}{
		{"readable by others", string(good), "mode 0600", 0o644, later},
		{"expired", string(good), "expired", 0o600, now.AddDate(26, 0, 0)},
		{"not yet valid", string(good), "clock", 0o600, now.AddDate(0, 0, -1)},
		{"empty", "", "CERTIFICATE", 0o600, later},
		{"cut", string(good[:len(good)/2]), "remove the file", 0o600, later},
		{"another root", otherRoot + end + rest, "not those of one platform", 0o600, later},
	} {
		if err := errors.Join(os.WriteFile(path, []byte(tc.content), tc.mode), os.Chmod(path, tc.mode)); err != nil {
			t.Fatal(err)
		}
		if tc.name == "expired" || tc.name == "not yet valid" {
			if _, err := loadOrCreatePlatform(dir, rand.Reader, tc.when); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: got %v", tc.name, err)
			}
			continue
		}
		if _, err := LoadOrCreate(dir, rand.Reader, tc.when); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v; want an error with %q and the path", tc.name, err, tc.want)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != tc.content {
			t.Errorf("%s: the state was overwritten (%v)", tc.name, err)
		}
	}
}
