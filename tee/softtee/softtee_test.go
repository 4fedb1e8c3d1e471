package softtee

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// shared is one chip for the tests that need no state of their own.
var shared = sync.OnceValues(func() (*Processor, error) { return newProcessor(rand.Reader, now) })

func chip(t testing.TB) *Processor {
	t.Helper()
	p, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testLaunch() measure.Launch {
	return measure.Launch{
		Firmware: make([]byte, 8192), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "quiet",
		VCPUs: 2, VCPUModel: "EPYC-v4",
	}
}

func TestState(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	first, err := LoadOrCreate(dir, rand.Reader, now)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreate(dir, rand.Reader, now.AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if first.Fingerprint() != second.Fingerprint() || !bytes.Equal(first.RootPEM(), second.RootPEM()) || first.chipID != second.chipID || !first.key.Equal(second.key) {
		t.Error("the chip changed on the way through its state")
	}
	if len(first.Fingerprint()) != 64 || !strings.Contains(first.ark.Subject.CommonName, Warning) {
		t.Errorf("root: fingerprint %q, subject %q", first.Fingerprint(), first.ark.Subject)
	}
	for _, c := range first.certificates() {
		if !bytes.Contains(c.Data, []byte(Warning)) {
			t.Errorf("the %s certificate does not say what it is", c.Type)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %s", e.Name(), info.Mode())
		}
	}
	if len(entries) != 4 {
		t.Errorf("got %d files, want chip, platform, root and lock", len(entries))
	}
	path := filepath.Join(dir, stateFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := newProcessor(rand.Reader, now)
	if err != nil {
		t.Fatal(err)
	}
	const end = "-----END CERTIFICATE-----\n"
	_, otherRoot, _ := strings.Cut(string(other.RootPEM()), end)
	_, rest, _ := strings.Cut(string(good), end)
	for _, tc := range []struct {
		name, content, want string
		mode                os.FileMode
		when                time.Time
	}{
		{"readable by others", string(good), "mode 0600", 0o644, now},
		{"expired", string(good), "expired", 0o600, now.AddDate(8, 0, 0)},
		{"not yet valid", string(good), "clock", 0o600, now.AddDate(-1, 0, 0)},
		{"empty", "", "CERTIFICATE", 0o600, now},
		{"cut", string(good[:len(good)/2]), "remove the file", 0o600, now},
		{"too large", string(good) + strings.Repeat("\n", maxState), "at most", 0o600, now},
		{"another root", otherRoot + rest, "chain", 0o600, now},
	} {
		if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreate(dir, rand.Reader, tc.when); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v; want an error with %q and the path", tc.name, err, tc.want)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != tc.content {
			t.Errorf("%s: the state was overwritten (%v)", tc.name, err)
		}
	}
}

func TestCreatedOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	prints := make([]string, 3)
	var all sync.WaitGroup
	for i := range prints {
		all.Go(func() {
			p, err := LoadOrCreate(dir, rand.Reader, now)
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = p.Fingerprint()
		})
	}
	all.Wait()
	if prints[0] != prints[1] || prints[1] != prints[2] {
		t.Errorf("concurrent creation made several chips: %v", prints)
	}
}

func TestNoRandomness(t *testing.T) {
	t.Parallel()
	if _, err := LoadOrCreate(t.TempDir(), bytes.NewReader(nil), now); err == nil {
		t.Error("a chip was made without randomness")
	}
}

func TestLaunch(t *testing.T) {
	t.Parallel()
	p := chip(t)
	hostData := sha256.Sum256([]byte("initdata"))
	first, err := p.Launch(testLaunch(), Policy{HostData: hostData})
	if err != nil {
		t.Fatal(err)
	}
	want, err := measure.SNP(testLaunch())
	if err != nil {
		t.Fatal(err)
	}
	if first.Measurement() != want || first.Layout() != measure.LayoutSoftware {
		t.Errorf("measurement: got %x (%s), want %x", first.Measurement(), first.Layout(), want)
	}
	second, err := p.Launch(testLaunch(), Policy{HostData: hostData})
	if err != nil {
		t.Fatal(err)
	}
	decode := func(g *Guest, data [64]byte) *snp.Report {
		raw, err := g.Report(data)
		if err != nil {
			t.Fatal(err)
		}
		r, err := snp.DecodeReport(raw)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a, b := decode(first, [64]byte{1}), decode(first, [64]byte{2})
	other := decode(second, [64]byte{1})
	switch {
	case a.Version != 3 || a.Measurement != want || a.HostData != hostData || a.ReportData != [64]byte{1} || a.ChipID != p.chipID:
		t.Errorf("report: %+v", a)
	case a.Policy != DefaultGuestPolicy || a.VMPL != 0 || a.Signer() != snp.SignerVCEK || a.Generation() != snp.Milan:
		t.Errorf("report: %+v", a)
	case a.ReportID != b.ReportID || a.ReportID == [32]byte{} || a.ReportID == other.ReportID:
		t.Error("report_id is not one per guest")
	}

	bad := testLaunch()
	bad.VCPUModel = "Pentium"
	if _, err := p.Launch(bad, Policy{}); err == nil {
		t.Error("an unknown CPU model was launched")
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	g, err := chip(t).Launch(testLaunch(), Policy{HostData: [32]byte{5}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 8)
	serve := func(ctx context.Context) net.Conn {
		guest, host := net.Pipe()
		go func() { served <- g.Serve(ctx, host) }()
		return guest
	}
	a := softport.New(func(context.Context) (io.ReadWriteCloser, error) { return serve(t.Context()), nil })
	raw, err := a.Evidence(t.Context(), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Errorf("the guest closed its port: got %v", err)
	}
	e, err := snp.ParseEvidence(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []snp.CertType{snp.CertVCEK, snp.CertASK, snp.CertARK} {
		if _, ok := e.Certificate(kind); !ok {
			t.Errorf("the evidence has no %s", kind)
		}
	}
	if initData, err := a.InitData(t.Context()); err != nil || initData[0] != 5 || len(initData) != 32 {
		t.Errorf("initdata: got %x, %v", initData, err)
	}
	if err := <-served; err != nil {
		t.Errorf("the guest closed its port: got %v", err)
	}

	// A guest that talks nonsense loses its port; nothing else happens.
	guest := serve(t.Context())
	if _, err := guest.Write(bytes.Repeat([]byte{0xAA}, 20)); err != nil {
		t.Fatal(err)
	}
	if err := <-served; !errors.Is(err, softport.ErrFrame) {
		t.Errorf("nonsense: got %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	_ = serve(ctx)
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}
