package csvverify

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func newVerifier(t testing.TB, o Options) tee.Verifier {
	t.Helper()
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// inner is a verifier that can be asked without the detour over JSON.
func inner(t testing.TB, o Options) *verifier {
	t.Helper()
	v, ok := newVerifier(t, o).(*verifier)
	if !ok {
		t.Fatal("another verifier")
	}
	return v
}

// source is collateral of one chip.
type source struct {
	serial string
	pair   []byte
	err    error
}

func (s source) HSKCEK(_ context.Context, serial string) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	if serial != s.serial {
		return nil, &tee.CollateralError{Item: serial, Reason: tee.CollateralUnknown}
	}
	return s.pair, nil
}

func golden(t testing.TB, name string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal(read(t, name), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func asJSON(t testing.TB, v any) map[string]any {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func expected(t testing.TB, golden map[string]any) tee.Expected {
	t.Helper()
	text, _ := golden["report_data"].(string)
	data, err := hex.DecodeString(text)
	if err != nil || len(data) != 64 {
		t.Fatalf("report data %q: %v", text, err)
	}
	return tee.Expected{ReportData: data}
}

// TestRealChain is of the one machine whose whole chain is public.
func TestRealChain(t *testing.T) {
	t.Parallel()
	evidence, err := csv.FromRaw(read(t, "report.bin"))
	if err != nil {
		t.Fatal(err)
	}
	want := golden(t, "report.claims.json")
	pair := read(t, "hsk_cek.cert")
	if err := CheckHSKCEK(pair); err != nil {
		t.Error(err)
	}
	v := newVerifier(t, Options{Collateral: source{serial: "NZA9T14052605", pair: pair}, AllowDebug: true})
	for range 2 { // the second time from memory
		r, err := v.Verify(t.Context(), evidence, expected(t, want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, asJSON(t, r.Claims)); diff != "" {
			t.Error(diff)
		}
		if r.Simulated || r.TEE != tee.CSV || r.Class != tee.CPU || r.InitData != nil {
			t.Errorf("got %+v", r)
		}
	}
}

// TestRealEvidence is of a machine whose HSK and CEK are not public: everything
// but the chain is checked.
func TestRealEvidence(t *testing.T) {
	t.Parallel()
	evidence := json.RawMessage(read(t, "evidence.json"))
	want := golden(t, "evidence.claims.json")
	r, err := newVerifier(t, Options{AllowMissingCollateral: true}).Verify(t.Context(), evidence, expected(t, want))
	if err != nil {
		t.Fatal(err)
	}
	delete(want, "simulated") // nobody knows
	if diff := cmp.Diff(want, asJSON(t, r.Claims)); diff != "" {
		t.Error(diff)
	}
	if len(r.Warnings) != 1 || r.Warnings[0].Check != "csv.chain" || !strings.Contains(r.Warnings[0].Expected, "KPA64911240507") || !strings.Contains(r.Warnings[0].Help, "anybody can have made it") {
		t.Errorf("got %+v", r.Warnings)
	}
	_, err = newVerifier(t, Options{}).Verify(t.Context(), evidence, expected(t, want))
	u, ok := errors.AsType[*tee.UnavailableError](err)
	if !ok || len(u.Failures) != 1 {
		t.Fatalf("got %v", err)
	}
	if c, ok := errors.AsType[*tee.CollateralError](err); !ok || c.Reason != tee.CollateralMissing {
		t.Errorf("got %v", err)
	}
	// Another machine's certificates speak against it.
	other := Options{Collateral: source{serial: "KPA64911240507", pair: read(t, "hsk_cek.cert")}, AllowMissingCollateral: true}
	_, err = newVerifier(t, other).Verify(t.Context(), evidence, expected(t, want))
	if diff := cmp.Diff([]string{"csv.pek_signature"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
}

// TestEachBit flips every bit that a signature protects, and the signatures.
func TestEachBit(t *testing.T) {
	t.Parallel()
	raw := read(t, "report.bin")
	data, err := csv.FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	e, err := csv.ParseEvidence(data)
	if err != nil {
		t.Fatal(err)
	}
	pair := read(t, "hsk_cek.cert")
	e.HSK, e.CEK = pair[:csv.CACertificateSize], pair[csv.CACertificateSize:]
	v := inner(t, Options{AllowDebug: true})
	want := expected(t, golden(t, "report.claims.json"))
	genuine := func(change func(e *csv.Evidence)) bool {
		mutated := *e
		change(&mutated)
		_, err := v.verify(t.Context(), &mutated, want)
		if _, refused := errors.AsType[*tee.Error](err); err != nil && !refused {
			t.Errorf("got an error of type %T: %v", err, err)
		}
		return err == nil
	}
	// The firmware's masked signer has a MAC, so that the whole page counts.
	teetest.EachBit(t, "report", e.Page[:len(raw)], func(b []byte) bool {
		return genuine(func(e *csv.Evidence) { e.Page = append(b, make([]byte, csv.PageSize-len(b))...) })
	})
	teetest.EachBit(t, "HSK", e.HSK, func(b []byte) bool { return genuine(func(e *csv.Evidence) { e.HSK = b }) })
	const firstSlot = 1044 + 8 + 144
	teetest.EachBit(t, "CEK", e.CEK[:firstSlot], func(b []byte) bool {
		return genuine(func(e *csv.Evidence) { e.CEK = append(b, e.CEK[firstSlot:]...) })
	})
	teetest.EachBit(t, "PEK", e.PEK, func(b []byte) bool { return genuine(func(e *csv.Evidence) { e.PEK = b }) })
	teetest.EachBit(t, "serial number", e.Serial, func(b []byte) bool { return genuine(func(e *csv.Evidence) { e.Serial = b }) })
}

func TestVersions(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	v := newVerifier(t, Options{DevelopmentRoots: []DevelopmentRoot{m.root()}})
	for version := 1; version <= 3; version++ {
		for _, raw := range []bool{false, true} {
			g := newGuest(version)
			g.raw = raw
			want := tee.Expected{ReportData: filled(64, 'A')}
			if version == 3 {
				want.InitData = filled(64, 'H')
			}
			r, err := v.Verify(t.Context(), m.report(t, g), want)
			if err != nil || !r.Simulated || r.Claims["simulated"] != true || len(r.Warnings) != 0 {
				t.Fatalf("version %d: got %+v, %v", version, r, err)
			}
			claims := asJSON(t, r.Claims)
			for name, value := range map[string]any{
				"version": string(rune('0' + version)), "vm_id": hex.EncodeToString(tee.Fit([]byte("vm-id"), 16)), "measure": strings.Repeat("5a", 32),
				"sig_usage": "02100000", "sig_algo": "04000000", "serial_number": "TEST0001", "mnonce": hex.EncodeToString([]byte("nonce-of-guest-x")),
			} {
				if claims[name] != value {
					t.Errorf("version %d: %s: got %v, want %v", version, name, claims[name], value)
				}
			}
			_, hasAnonce := claims["anonce"]
			if hasAnonce != (version == 1) || (claims["build"] == 2222.0) != (version > 1) || (claims["host_data"] == strings.Repeat("48", 64)) != (version == 3) {
				t.Errorf("version %d: got %v", version, claims)
			}
		}
	}
}

// TestEachBitOfVersion3 is the same for the layout of versions 2 and 3.
func TestEachBitOfVersion3(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	v := inner(t, Options{DevelopmentRoots: []DevelopmentRoot{m.root()}})
	g := newGuest(3)
	g.raw = true
	e, err := csv.ParseEvidence(m.report(t, g))
	if err != nil {
		t.Fatal(err)
	}
	teetest.EachBit(t, "report", e.Page[:0x490], func(b []byte) bool {
		mutated := *e
		mutated.Page = append(b, e.Page[0x490:]...)
		_, err := v.verify(t.Context(), &mutated, tee.Expected{ReportData: filled(64, 'A')})
		return err == nil
	})
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	m, other := newMachine(t), newMachine(t)
	for name, tc := range map[string]struct {
		change func(g *guest)
		want   []string
	}{
		"debug":                  {func(g *guest) { g.policy = 0x46 }, []string{"csv.debug"}},
		"another's report data":  {func(g *guest) { g.reportData = filled(64, 'B') }, []string{"csv.report_data"}},
		"signed for another use": {func(g *guest) { g.usage = 0x1001 }, []string{"csv.signature_algorithm"}},
		"another algorithm":      {func(g *guest) { g.algorithm = 1 }, []string{"csv.signature_algorithm"}},
		"MAC":                    {func(g *guest) { g.raw, g.after = true, func(p []byte) { p[0x490+2185] ^= 1 } }, []string{"csv.mac"}},
		"zero signature":         {func(g *guest) { g.after = func(p []byte) { clear(p[1024:0x490]) } }, []string{"csv.report_signature"}},
		"great r":                {func(g *guest) { g.after = func(p []byte) { copy(p[1024:], filled(32, 0xFF)) } }, []string{"csv.report_signature"}},
		"greater s":              {func(g *guest) { g.after = func(p []byte) { p[1024+72+50] = 1 } }, []string{"csv.format"}},
		"another serial number":  {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.Serial = tee.Fit([]byte("OTHER"), 64) } }, []string{"csv.signer"}},
		"a path":                 {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.Serial = tee.Fit([]byte("../OTHER"), 64) } }, []string{"csv.format"}},
		"another PEK":            {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.PEK = other.pek } }, []string{"csv.pek_signature", "csv.report_signature", "csv.signer"}},
		"CEK for PEK":            {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.PEK = m.cek } }, []string{"csv.chain", "csv.pek_signature", "csv.report_signature", "csv.signer"}},
		"PEK for CEK":            {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.CEK = m.pek } }, []string{"csv.chain"}},
		"HRK for HSK":            {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.HSK = m.hrk } }, []string{"csv.chain"}},
		"another chain":          {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.HSK = other.hsk } }, []string{"csv.hsk_signature"}},
		"another CEK":            {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.CEK = other.cek } }, []string{"csv.cek_signature"}},
		"CEK of another HSK": {func(g *guest) {
			g.evidence = func(e *csv.Evidence) {
				e.CEK = certificate(t, m.cekKey, 0x1004, "another-another-", m.hskKey, 0x13)
			}
		}, []string{"csv.chain"}},
		"unknown root": {func(g *guest) {
			g.evidence = func(e *csv.Evidence) {
				e.HSK = caCertificate(t, m.hskKey, 0x13, "hsk-hsk-hsk-hsk-", "mallory-mallory-", m.hrkKey)
			}
		}, []string{"csv.chain"}},
		"self-signed HSK": {func(g *guest) {
			g.evidence = func(e *csv.Evidence) {
				e.HSK = caCertificate(t, m.hskKey, 0x13, "hsk-hsk-hsk-hsk-", "hsk-hsk-hsk-hsk-", m.hskKey)
			}
		}, []string{"csv.chain"}},
		"PEK signed by its owner only": {func(g *guest) {
			g.evidence = func(e *csv.Evidence) { e.PEK = certificate(t, m.pekKey, 0x1002, "", m.cekKey, 0x1001) }
		}, []string{"csv.pek_signature", "csv.signer"}},
		"PEK off the curve": {func(g *guest) {
			g.evidence = func(e *csv.Evidence) {
				e.PEK = bytes.Clone(e.PEK)
				e.PEK[20] ^= 1
			}
		}, []string{"csv.pek_signature", "csv.report_signature", "csv.signer"}},
		"as version 1": {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.Flags = 0 } }, []string{"csv.format"}},
		"no event log": {func(g *guest) { g.evidence = func(e *csv.Evidence) { e.EventLog = []byte{} } }, []string{"csv.event_log"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(2)
			tc.change(g)
			r, err := newVerifier(t, Options{DevelopmentRoots: []DevelopmentRoot{m.root()}}).Verify(t.Context(), m.report(t, g), tee.Expected{ReportData: filled(64, 'A')})
			if diff := cmp.Diff(tc.want, teetest.Refused(t, err)); r != nil || diff != "" {
				t.Errorf("got %v: %s", err, diff)
			}
		})
	}
	// Without the development root none of it is Hygon's.
	_, err := newVerifier(t, Options{}).Verify(t.Context(), m.report(t, newGuest(2)), tee.Expected{ReportData: filled(64, 'A')})
	if diff := cmp.Diff([]string{"csv.chain"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
}

func TestBinding(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	o := Options{DevelopmentRoots: []DevelopmentRoot{m.root()}, AllowDebug: true}
	for name, tc := range map[string]struct {
		version int
		want    tee.Expected
		checks  []string
		warn    int
	}{
		"short digest":        {2, tee.Expected{ReportData: filled(48, 'A')}, []string{"csv.report_data"}, 0},
		"none given":          {2, tee.Expected{}, []string{"csv.report_data"}, 0},
		"any":                 {2, tee.Expected{AnyReportData: true}, nil, 1},
		"initdata, version 1": {1, tee.Expected{AnyReportData: true, InitData: filled(48, 'H')}, []string{"csv.init_data"}, 0},
		"initdata, version 2": {2, tee.Expected{AnyReportData: true, InitData: filled(48, 'H')}, []string{"csv.init_data"}, 0},
		"initdata, version 3": {3, tee.Expected{AnyReportData: true, InitData: filled(48, 'H')}, []string{"csv.host_data"}, 0},
		"right initdata":      {3, tee.Expected{AnyReportData: true, InitData: filled(64, 'H')}, nil, 1},
	} {
		r, err := newVerifier(t, o).Verify(t.Context(), m.report(t, newGuest(tc.version)), tc.want)
		if tc.checks == nil {
			if err != nil || len(r.Warnings) != tc.warn {
				t.Errorf("%s: got %+v, %v", name, r, err)
			}
			continue
		}
		if diff := cmp.Diff(tc.checks, teetest.Refused(t, err)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	g := newGuest(2)
	g.policy = 0
	if r, err := newVerifier(t, o).Verify(t.Context(), m.report(t, g), tee.Expected{ReportData: filled(64, 'A')}); err != nil || len(r.Warnings) != 1 || r.Warnings[0].Check != "csv.debug" {
		t.Errorf("debug allowed: got %+v, %v", r, err)
	}
}

// TestEventLog replays the published log of a CSV guest with SM3.
func TestEventLog(t *testing.T) {
	t.Parallel()
	raw := read(t, "ccel.bin")
	log, err := eventlog.Parse(raw, eventlog.CCEL, eventlog.WithHash(eventlog.SM3, sm3.New))
	if err != nil {
		t.Fatal(err)
	}
	values, err := log.Replay(eventlog.SM3)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t)
	verify := func(version int, change func(g *guest)) (*tee.Result, error) {
		g := newGuest(version)
		for i := 1; i <= 4; i++ {
			g.rtmr[i] = bytes.Clone(values[i])
		}
		g.evidence = func(e *csv.Evidence) { e.EventLog = raw }
		change(g)
		return newVerifier(t, Options{DevelopmentRoots: []DevelopmentRoot{m.root()}}).Verify(t.Context(), m.report(t, g), tee.Expected{ReportData: filled(64, 'A')})
	}
	r, err := verify(2, func(*guest) {})
	if err != nil {
		t.Fatal(err)
	}
	events, ok := r.Claims["uefi_event_logs"].([]any)
	if !ok || len(events) < len(log.Events) || len(events) == 0 {
		t.Errorf("got %d events of %d", len(events), len(log.Events))
	}
	for i := 1; i <= 4; i++ {
		_, err := verify(3, func(g *guest) { g.rtmr[i][0] ^= 1 })
		if got := teetest.Refused(t, err); !slices.Equal(got, []string{"csv.event_log"}) || !strings.Contains(err.Error(), "rtmr") {
			t.Errorf("RTMR %d: got %v", i, err)
		}
	}
	if r, err = verify(1, func(*guest) {}); err != nil || len(r.Warnings) != 1 || r.Claims["uefi_event_logs"] != nil {
		t.Errorf("version 1: got %+v, %v", r, err)
	}
}

func TestCollateral(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	g := newGuest(2)
	g.withPair = false
	evidence := m.report(t, g)
	pair := append(bytes.Clone(m.hsk), m.cek...)
	want := tee.Expected{ReportData: filled(64, 'A')}
	o := Options{DevelopmentRoots: []DevelopmentRoot{m.root()}, Collateral: source{serial: "TEST0001", pair: pair}}
	if r, err := newVerifier(t, o).Verify(t.Context(), evidence, want); err != nil || r.Claims["cek_digest"] == nil {
		t.Errorf("got %+v, %v", r, err)
	}
	for name, s := range map[string]source{
		"short":       {serial: "TEST0001", pair: pair[1:]},
		"unknown":     {serial: "OTHER"},
		"unreachable": {err: errors.New("no route to host")},
	} {
		o.Collateral, o.AllowMissingCollateral = s, false
		_, err := newVerifier(t, o).Verify(t.Context(), evidence, want)
		if _, ok := errors.AsType[*tee.UnavailableError](err); !ok {
			t.Errorf("%s: got %v", name, err)
		}
		o.AllowMissingCollateral = true
		if r, err := newVerifier(t, o).Verify(t.Context(), evidence, want); err != nil || len(r.Warnings) != 1 || r.Claims["cek_digest"] != nil {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
	o.Collateral = source{serial: "TEST0001", pair: make([]byte, HSKCEKSize)}
	_, err := newVerifier(t, o).Verify(t.Context(), evidence, want)
	if diff := cmp.Diff([]string{"csv.format"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
	if err := CheckHSKCEK(pair); err == nil {
		t.Error("took a test's certificates for Hygon's")
	}
	if err := CheckHSKCEK(pair[1:]); err == nil {
		t.Error("took a short file")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newVerifier(t, o).Verify(ctx, evidence, want); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRoots(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	broken := bytes.Clone(m.hrk)
	broken[100] ^= 1
	for name, roots := range map[string][]DevelopmentRoot{
		"HSK": {{"x", m.hsk}}, "broken": {{"x", broken}}, "twice": {m.root(), m.root()}, "Hygon's": {{"x", read(t, "hrk.cert")}}, "short": {{"x", m.hrk[1:]}},
	} {
		if _, err := New(Options{DevelopmentRoots: roots}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(read(f, "evidence.json"))
	evidence, err := csv.FromRaw(read(f, "report.bin"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(evidence))
	v := newVerifier(f, Options{AllowMissingCollateral: true})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("none has this")})
		if _, ok := errors.AsType[*tee.Error](err); !ok || r != nil {
			t.Errorf("got %v, %v", r, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	evidence, err := csv.FromRaw(read(b, "report.bin"))
	if err != nil {
		b.Fatal(err)
	}
	o := Options{AllowDebug: true, Collateral: source{serial: "NZA9T14052605", pair: read(b, "hsk_cek.cert")}}
	verify := func(b *testing.B, v tee.Verifier) {
		if _, err := v.Verify(b.Context(), evidence, tee.Expected{AnyReportData: true}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("warm", func(b *testing.B) {
		v := newVerifier(b, o)
		for b.Loop() {
			verify(b, v)
		}
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			verify(b, newVerifier(b, o))
		}
	})
}
