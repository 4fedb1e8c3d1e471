package trustee_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// soft is the guest's side of a launch: the production attester over a pipe
// in the place of the virtio-serial port.
func soft(t *testing.T, g *softtee.Guest) tee.Attester {
	t.Helper()
	return softport.New(func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() { _ = g.Serve(t.Context(), host) }()
		return guest, nil
	})
}

// TestSoftwareTEE runs the production verifier against the software TEE: the
// whole way from a launch to a resource, and the host's attacks on it.
func TestSoftwareTEE(t *testing.T) {
	t.Parallel()
	processor, err := softtee.LoadOrCreate(filepath.Join(t.TempDir(), "soft"), rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "development.pem")
	if err := os.WriteFile(root, processor.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	launch := measure.Launch{Firmware: make([]byte, 4096), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "console=ttyS0", VCPUs: 2, VCPUModel: "EPYC-v4"}
	// The measurement that will be launched is known beforehand.
	predicted, err := measure.SNP(launch)
	if err != nil {
		t.Fatal(err)
	}
	guestOf := func(l measure.Launch, doc string) *softtee.Guest {
		t.Helper()
		var p softtee.Policy
		if doc != "" {
			p.HostData = [32]byte(fieldOf(t, doc))
		}
		g, err := processor.Launch(l, p)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	attester := func(l measure.Launch, doc string) tee.Attester { return soft(t, guestOf(l, doc)) }
	setup := func(change func(*trustee.Options)) *env {
		e := start(t, "", func(o *trustee.Options) {
			o.Verifiers = nil // those of the configuration
			o.Config.TEE.SNP.DevelopmentRoots = []string{root}
			change(o)
		})
		a := e.admin()
		for _, err := range []error{
			a.SetResource(t.Context(), uri(t, "demo/key/1"), secret.New([]byte("the secret"))),
			a.SetReferenceValue(t.Context(), admin.ReferenceValue{Name: "snp_launch_measurement", Values: []any{hex.EncodeToString(predicted[:])}, Description: "2 vCPUs"}),
			a.Bind(t.Context(), admin.Binding{Resource: "demo/key", InitData: digestOf(t, document)}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return e
	}
	e := setup(func(o *trustee.Options) { o.Config.Policy.AllowSimulated = true })
	get := func(e *env, a tee.Attester, doc string) error {
		v, err := e.guest(a, doc).Resource(t.Context(), uri(t, "demo/key/1"))
		if err == nil && string(v.Expose()) != "the secret" {
			t.Errorf("got %q", v.Expose())
		}
		return err
	}
	if err := get(e, attester(launch, document), document); err != nil {
		t.Fatal(err)
	}
	v, err := e.admin().Verdicts(t.Context(), admin.VerdictQuery{})
	if err != nil || len(v) != 2 || !v[0].Simulated || !v[1].Simulated || !strings.Contains(string(v[1].Claims), "development.pem") {
		t.Errorf("verdicts %+v, %v", v, err)
	}

	// Another command line: both measurements are in the reason.
	tampered := launch
	tampered.Cmdline += " init=/bin/sh"
	guest := guestOf(tampered, document)
	got := guest.Measurement()
	r := refusal(t, get(e, soft(t, guest), document), 403, "snp.launch-measurement")
	if !strings.Contains(r.Expected, hex.EncodeToString(predicted[:])+" (2 vCPUs)") || r.Got != hex.EncodeToString(got[:]) {
		t.Errorf("reason %+v", r)
	}
	// Another initdata, with HOST_DATA changed to match.
	other := strings.Replace(document, "x = 1", "x = 2", 1)
	if r := refusal(t, get(e, attester(launch, other), other), 403, "initdata.registered"); !strings.Contains(r.Expected, digestOf(t, document)[:64]) {
		t.Errorf("reason %+v", r)
	}
	// Initdata that is not what was launched.
	r = refusal(t, get(e, attester(launch, document), other), 403, "snp.host_data")
	if r.Expected == "" || r.Got == "" {
		t.Errorf("reason %+v", r)
	}
	// No initdata at all.
	refusal(t, get(e, attester(launch, ""), ""), 403, "initdata.sealed")
	// A trustee that does not allow simulation, and one that does not know the root.
	refusal(t, get(setup(func(*trustee.Options) {}), attester(launch, document), document), 403, "evidence.simulated")
	r = refusal(t, get(setup(func(o *trustee.Options) { o.Config.TEE.SNP.DevelopmentRoots = nil }), attester(launch, document), document), 403, "snp.chain")
	if !strings.Contains(r.Help, "development_roots") {
		t.Errorf("reason %+v", r)
	}
	// Evidence of another VM under a new key.
	c := e.raw()
	h := e.begin(c, "0.4.0")
	stolen, err := attester(launch, document).Evidence(t.Context(), []byte("another handshake's digest"))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := json.Marshal(h.key.Public())
	body := fmt.Appendf(nil, `{"runtime-data":{"nonce":%q,"tee-pubkey":%s},"tee-evidence":{"primary_evidence":%s,"additional_evidence":""}}`, h.nonce, key, stolen)
	if x := e.do(c, "POST", "/kbs/v0/attest", body, h.header()); x.status != 403 || x.info.Reason == nil || x.info.Reason.Rule != "snp.report_data" {
		t.Errorf("%d %s", x.status, x.body)
	}
}

// TestSoftwareTDX is TestSoftwareTEE for TDX quotes: the built-in policy judges
// them by the predicted registers.
func TestSoftwareTDX(t *testing.T) {
	t.Parallel()
	processor, err := softtee.LoadOrCreate(filepath.Join(t.TempDir(), "soft"), rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "development.pem")
	if err := os.WriteFile(root, processor.TDXRootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	launch := measure.TDXLaunch{Firmware: make([]byte, 4096), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "console=ttyS0", VCPUs: 2, Memory: 512 << 20}
	predicted, err := measure.TDX(launch)
	if err != nil {
		t.Fatal(err)
	}
	attester := func(l measure.TDXLaunch, doc string) tee.Attester {
		t.Helper()
		_, digest, err := initdata.Digest([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		g, err := processor.LaunchTDX(l, softtee.TDXPolicy{MRConfigID: [48]byte(tee.Fit(digest, 48))})
		if err != nil {
			t.Fatal(err)
		}
		return softport.NewTDX(func(context.Context) (io.ReadWriteCloser, error) {
			guest, host := net.Pipe()
			go func() { _ = g.Serve(t.Context(), host) }()
			return guest, nil
		})
	}
	setup := func(change func(*trustee.Options)) *env {
		e := start(t, "", func(o *trustee.Options) {
			o.Verifiers = nil // those of the configuration
			o.Config.TEE.TDX.DevelopmentRoots = []string{root}
			o.Config.Policy.AllowSimulated = true
			o.Config.Collateral.Offline = true
			change(o)
		})
		a := e.admin()
		problems := []error{
			a.SetResource(t.Context(), uri(t, "demo/key/1"), secret.New([]byte("the secret"))),
			a.Bind(t.Context(), admin.Binding{Resource: "demo/key", InitData: digestOf(t, document)}),
		}
		for name, value := range map[string][48]byte{"mr_td": predicted.MRTD, "rtmr_1": predicted.RTMR[1], "rtmr_2": predicted.RTMR[2]} {
			problems = append(problems, a.SetReferenceValue(t.Context(), admin.ReferenceValue{Name: name, Values: []any{hex.EncodeToString(value[:])}}))
		}
		if err := errors.Join(problems...); err != nil {
			t.Fatal(err)
		}
		return e
	}
	get := func(e *env, a tee.Attester, doc string) error {
		v, err := e.guest(a, doc).Resource(t.Context(), uri(t, "demo/key/1"))
		if err == nil && string(v.Expose()) != "the secret" {
			t.Errorf("got %q", v.Expose())
		}
		return err
	}
	e := setup(func(*trustee.Options) {})
	if err := get(e, attester(launch, document), document); err != nil {
		t.Fatal(err)
	}
	v, err := e.admin().Verdicts(t.Context(), admin.VerdictQuery{})
	if err != nil || len(v) != 2 || !v[0].Simulated || !v[1].Simulated || !strings.Contains(string(v[1].Claims), "development.pem") {
		t.Errorf("verdicts %+v, %v", v, err)
	}

	// Each register that is registered counts.
	for rule, change := range map[string]func(*measure.TDXLaunch){
		"tdx.mr_td":  func(l *measure.TDXLaunch) { l.Firmware = make([]byte, 8192) },
		"tdx.rtmr_1": func(l *measure.TDXLaunch) { l.Kernel = []byte("another") },
		"tdx.rtmr_2": func(l *measure.TDXLaunch) { l.Cmdline += " init=/bin/sh" },
	} {
		tampered := launch
		change(&tampered)
		refusal(t, get(e, attester(tampered, document), document), 403, rule)
	}
	// Initdata that nobody registered, and initdata that was not launched.
	other := strings.Replace(document, "x = 1", "x = 2", 1)
	refusal(t, get(e, attester(launch, other), other), 403, "initdata.registered")
	refusal(t, get(e, attester(launch, document), other), 403, "tdx.mr_config_id")
	// A trustee that does not allow simulation, and one that does not know the root.
	refusal(t, get(setup(func(o *trustee.Options) { o.Config.Policy.AllowSimulated = false }), attester(launch, document), document), 403, "evidence.simulated")
	refusal(t, get(setup(func(o *trustee.Options) { o.Config.TEE.TDX.DevelopmentRoots = nil }), attester(launch, document), document), 403, "tdx.chain")
}

// TestKnownSecretsAreNotLogged runs everything at debug level and looks for
// secrets in the log and in the state directory.
func TestKnownSecretsAreNotLogged(t *testing.T) {
	t.Parallel()
	const marker = "TOP-SECRET-RESOURCE-CONTENT"
	e := start(t, "", nil)
	a := e.populate(marker)
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	g := e.guest(good, document)
	if _, err := g.Resource(t.Context(), uri(t, "demo/key/1")); err != nil {
		t.Fatal(err)
	}
	c := e.raw()
	h := e.begin(c, "0.4.0")
	x := e.do(c, "POST", "/kbs/v0/attest", e.attestation(h, good, document), h.header())
	tok, err := kbs.ParseTokenResponse(x.body)
	if err != nil {
		t.Fatal(err)
	}
	adminHeader := adminToken(t, e.AdminKey(), e.clock.now(), nil)
	e.do(c, "GET", "/kbs/v0/resource/demo/key/1?token="+marker, nil, h.header())
	e.do(c, "GET", "/kbs/v0/resource/demo/key/none", nil, map[string]string{"Authorization": "Bearer " + tok.Token + "x"})
	e.do(c, "POST", "/kbs/v0/resource/demo/key/2", []byte(marker), adminHeader)
	e.do(c, "POST", "/kbs/v0/resource/demo/key/.2", []byte(marker), adminHeader)
	e.do(c, "POST", "/kbs/v0/auth", []byte(marker), nil)
	if err := a.SetResource(t.Context(), uri(t, "demo/key/3"), secret.New([]byte(marker))); err != nil {
		t.Fatal(err)
	}
	kek, err := os.ReadFile(filepath.Join(e.dir, "kek.hex"))
	if err != nil {
		t.Fatal(err)
	}
	verdicts := e.do(c, "GET", "/admin/v1/verdicts", nil, adminHeader)
	e.stop()
	log := e.log.String()
	if !strings.Contains(log, "resource released") || !strings.Contains(log, "level=DEBUG") {
		t.Fatalf("the log is not at debug level:\n%s", log)
	}
	secrets := map[string]string{
		"resource": marker, "resource in base64": base64.RawStdEncoding.EncodeToString([]byte(marker))[:30], "resource in hex": hex.EncodeToString([]byte(marker)),
		"cookie": h.cookie, "token": tok.Token[len(tok.Token)-40:], "KEK": strings.TrimSpace(string(kek)),
		"administrator's token": adminHeader["Authorization"][len(adminHeader["Authorization"])-40:],
		"administrator's key":   hex.EncodeToString(e.AdminKey().Seed()),
	}
	for name, s := range secrets {
		if strings.Contains(log, s) {
			t.Errorf("the log holds the %s", name)
		}
		if strings.Contains(string(verdicts.body), s) {
			t.Errorf("the verdicts hold the %s", name)
		}
	}
	files, err := os.ReadDir(e.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(e.dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"resource", "cookie"} {
			if strings.Contains(string(data), secrets[name]) {
				t.Errorf("%s holds the %s", f.Name(), name)
			}
		}
	}
}

// TestRuntimeEvents: an SEV-SNP guest has no register for the run time; its log
// comes with the additional evidence, which the report vouches for.
func TestRuntimeEvents(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	e.populate("the secret")
	event, err := eventlog.NewRuntimeEvent("coffer", "StartContainer", `{"container":"web"}`)
	if err != nil {
		t.Fatal(err)
	}
	entry, _, err := event.Entry(4, eventlog.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	guest := func(log []byte) error {
		o := kbs.ClientOptions{
			URL: e.URL(), RootPEM: e.RootPEM(), Attester: fakeAttester{measurement: measurement, field: fieldOf(t, document)},
			Devices: []tee.Attester{logAttester(log)}, InitData: []byte(document), Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader, Now: e.clock.now,
		}
		c, err := kbs.NewClient(o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Resource(t.Context(), uri(t, "demo/key/1"))
		return err
	}
	if err := guest(entry); err != nil {
		t.Fatal(err)
	}
	v, err := e.admin().Verdicts(t.Context(), admin.VerdictQuery{})
	if err != nil || len(v) != 2 || !strings.Contains(string(v[1].Claims), `"operation":"StartContainer"`) {
		t.Errorf("verdicts %+v, %v", v, err)
	}
	refusal(t, guest(entry[:len(entry)-1]), 403, "aael.log")
}

// logAttester is a log of run-time events.
type logAttester []byte

func (logAttester) TEE() tee.Name { return tee.RuntimeLog }

func (l logAttester) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return eventlog.RuntimeEvidence{Log: l}.JSON()
}

func (logAttester) InitData(context.Context) ([]byte, error) { return nil, errors.New("not used") }
