package snpverify

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/softtee"
)

var tempDirs []string // removed by TestMain

func mkTemp() (string, error) {
	dir, err := os.MkdirTemp("", "snpverify")
	tempDirs = append(tempDirs, dir)
	return dir, err
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range tempDirs {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// dial opens a guest's end of the port, with the software TEE at the other.
func dial(t testing.TB, g *softtee.Guest) func(context.Context) (io.ReadWriteCloser, error) {
	return func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() {
			defer func() { _ = host.Close() }()
			// The guest closes its end when it has what it asked for; a
			// failure shows there.
			_ = g.Serve(t.Context(), host)
		}()
		return guest, nil
	}
}

func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func at(s string) func() time.Time {
	when, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return func() time.Time { return when }
}

// evidenceOf is evidence as an attester would send it.
func evidenceOf(t testing.TB, report []byte, certs ...snp.Certificate) json.RawMessage {
	t.Helper()
	e, err := snp.NewEvidence(report, certs)
	if err != nil {
		t.Fatal(err)
	}
	data, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func newVerifier(t testing.TB, o Options) *Verifier {
	t.Helper()
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// failed are the identifiers of the failures in err.
func failed(t testing.TB, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	refusal, ok := errors.AsType[*tee.Error](err)
	if !ok {
		t.Fatalf("got error %v, want a *tee.Error", err)
	}
	return names(refusal.Failures)
}

func names(failures []tee.Failure) []string {
	var out []string
	for _, f := range failures {
		out = append(out, f.Check)
	}
	return out
}

// lacking are the identifiers of what err says is missing.
func lacking(t testing.TB, err error) []string {
	t.Helper()
	missing, ok := errors.AsType[*tee.UnavailableError](err)
	if !ok {
		t.Fatalf("got error %v, want a *tee.UnavailableError", err)
	}
	return names(missing.Failures)
}
