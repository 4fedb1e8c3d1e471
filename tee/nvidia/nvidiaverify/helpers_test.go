package nvidiaverify

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia"
)

func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func at(year int, month time.Month) func() time.Time {
	return func() time.Time { return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC) }
}

// vector is published evidence of one device.
func vector(t testing.TB, arch nvidia.Arch, report, chain string) nvidia.Device {
	t.Helper()
	return nvidia.Device{Arch: arch, UUID: "1111-2222-33333-444444-555555", Report: unhex(t, string(file(t, report))), Chain: file(t, chain)}
}

func hopper(t testing.TB) nvidia.Device {
	return vector(t, nvidia.Hopper, "hopperAttestationReport.txt", "hopper_cert_chain_case1.txt")
}

func raw(t testing.TB, devices ...nvidia.Device) json.RawMessage {
	t.Helper()
	out, err := (&nvidia.Evidence{Devices: devices}).JSON()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bound expects the nonce that a device's report holds.
func bound(d nvidia.Device) tee.Expected { return tee.Expected{ReportData: d.Report[4:36]} }

func verifier1(t testing.TB, o Options) tee.MultiVerifier {
	t.Helper()
	if o.Now == nil {
		o.Now = Now
	}
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	m, ok := v.(tee.MultiVerifier)
	if !ok || v.TEE() != tee.NVIDIA {
		t.Fatalf("got %T of %s", v, v.TEE())
	}
	return m
}

// refused expects that evidence is not genuine, and that a check is among why.
func refused(t testing.TB, name string, err error, check, text string) {
	t.Helper()
	e, ok := errors.AsType[*tee.Error](err)
	if !ok {
		t.Errorf("%s: got %v, expected *tee.Error with %s", name, err, check)
		return
	}
	for _, f := range e.Failures {
		if f.Field == "" {
			t.Errorf("%s: a failure without a field: %v", name, f)
		}
		if f.Check == check && strings.Contains(f.String(), text) {
			return
		}
	}
	t.Errorf("%s: got %v, expected %s with %q", name, err, check, text)
}

// store is collateral out of maps; what is not there is missing.
type store struct {
	rims  map[string][]byte
	ocsp  func(cert, issuer *x509.Certificate) ([]byte, error)
	calls int
}

func (s *store) RIM(_ context.Context, id string) ([]byte, error) {
	s.calls++
	if b, ok := s.rims[id]; ok {
		return b, nil
	}
	return nil, &tee.CollateralError{Item: "NVIDIA's reference manifest " + id, Reason: tee.CollateralMissing}
}

func (s *store) OCSP(_ context.Context, cert, issuer *x509.Certificate) ([]byte, error) {
	s.calls++
	if s.ocsp == nil {
		return nil, &tee.CollateralError{Item: "OCSP response about " + cert.Subject.CommonName, Reason: tee.CollateralUnreachable}
	}
	return s.ocsp(cert, issuer)
}

// world is a root with what tests need of it.
type world struct {
	*Authority
}

func (w *world) root() DevelopmentRoot {
	return DevelopmentRoot{Name: "test", PEM: PEM(w.Cert)}
}

func (w *world) options() Options {
	return Options{Now: Now, DevelopmentRoots: []DevelopmentRoot{w.root()}}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{Authority: NewAuthority(t)}
}

// nonce is report data of 64 bytes, of which a report holds the first 32.
func nonce() []byte { return []byte(strings.Repeat("0123456789abcdef", 4)) }

func fresh() tee.Expected { return tee.Expected{ReportData: nonce()} }
