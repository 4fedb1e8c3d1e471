package attestation_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

type fake struct {
	initData []byte
	err      error
	calls    int
}

func (f *fake) TEE() tee.Name { return tee.SNP }

// fakeTDX is a fake of another TEE.
type fakeTDX struct{ *fake }

func (fakeTDX) TEE() tee.Name { return tee.TDX }

func (f *fake) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, nil }

func (f *fake) InitData(context.Context) ([]byte, error) {
	f.calls++
	return f.initData, f.err
}

func TestChoice(t *testing.T) {
	t.Parallel()
	zero, digest := make([]byte, 32), []byte(strings.Repeat("d", 32))
	for _, tt := range []struct {
		name          string
		cmdline       boot.Cmdline
		hard, soft    *fake
		tpm           *fake
		sealed, simul bool
		tee           tee.Name
		err           string
	}{
		{name: "hardware first", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, hard: &fake{initData: digest}, soft: &fake{initData: zero}, sealed: true, tee: tee.SNP},
		{name: "the host offers the port unasked", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, soft: &fake{initData: zero}, err: "no hardware TEE: "},
		{name: "the host offers a TPM unasked", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, tpm: &fake{initData: zero}, err: "coffer.tee=tpm"},
		{name: "a TPM alone", cmdline: boot.Cmdline{TEE: boot.TEETPM}, hard: &fake{initData: zero}, tpm: &fake{initData: digest}, sealed: true, tee: tee.SNP},
		{name: "no TPM", cmdline: boot.Cmdline{TEE: boot.TEETPM}, hard: &fake{initData: zero}, soft: &fake{initData: zero}, err: "coffer.tee=tpm: no TPM: no trusted execution environment"},
		{name: "soft", cmdline: boot.Cmdline{TEE: boot.TEESoft}, hard: &fake{initData: zero}, soft: &fake{initData: digest}, sealed: true, simul: true, tee: tee.SNP},
		{name: "soft without port", cmdline: boot.Cmdline{TEE: boot.TEESoft}, hard: &fake{initData: zero}, err: "port is not there"},
		{name: "nothing", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, err: "no hardware TEE: no trusted execution environment found; a guest of the software TEE needs coffer.tee=soft"},
		{name: "soft TDX", cmdline: boot.Cmdline{TEE: boot.TEESoftTDX}, hard: &fake{initData: zero}, soft: &fake{initData: digest}, sealed: true, simul: true, tee: tee.TDX},
		{name: "soft TDX without port", cmdline: boot.Cmdline{TEE: boot.TEESoftTDX}, hard: &fake{initData: zero}, err: "coffer.tee=soft-tdx: the software TEE's port is not there"},
		{name: "none in development", cmdline: boot.Cmdline{TEE: boot.TEENone, Development: true}, simul: true},
		{name: "none", cmdline: boot.Cmdline{TEE: boot.TEENone}, err: "needs coffer.development"},
		{name: "zero value", err: "unknown TEE choice"},
		{name: "no field", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, hard: &fake{}, err: "has none"},
		{name: "report fails", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, hard: &fake{err: errors.New("busy")}, soft: &fake{initData: zero}, err: "busy"},
	} {
		o := attestation.Options{Cmdline: tt.cmdline, HasSoft: func() bool { return tt.soft != nil }, Soft: func() tee.Attester { return tt.soft }, SoftTDX: func() tee.Attester { return fakeTDX{tt.soft} }}
		if tt.hard != nil {
			o.Hardware = func(context.Context) (tee.Attester, error) { return tt.hard, nil }
		}
		if tt.tpm != nil {
			o.TPM = func(context.Context) (tee.Attester, error) { return tt.tpm, nil }
		}
		got, err := attestation.New(o).Facts(t.Context())
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %q", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil || got.Sealed() != tt.sealed || got.Simulated != tt.simul || got.TEE != tt.tee {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
}

func TestFactsAreReadOnce(t *testing.T) {
	t.Parallel()
	f := &fake{err: errors.New("not yet")}
	s := attestation.New(attestation.Options{Cmdline: boot.Cmdline{TEE: boot.TEESoft}, HasSoft: func() bool { return true }, Soft: func() tee.Attester { return f }})
	if _, err := s.Facts(t.Context()); err == nil {
		t.Fatal("no error")
	}
	f.initData, f.err = make([]byte, 32), nil
	for range 3 {
		if _, err := s.Facts(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if f.calls != 2 {
		t.Errorf("the environment was asked %d times, want 2", f.calls)
	}
}

func TestNoAttesterFails(t *testing.T) {
	t.Parallel()
	s := attestation.New(attestation.Options{Cmdline: boot.Cmdline{TEE: boot.TEENone, Development: true}})
	if _, err := s.Facts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Attester().Evidence(t.Context(), nil); !errors.Is(err, attestation.ErrNone) {
		t.Errorf("error = %v", err)
	}
}

// register is a TPM with register 8.
type register struct {
	fake
	extended int
	err      error
}

func (r *register) TEE() tee.Name { return tee.TPM }

func (r *register) BindInitData(_ context.Context, digest []byte) error {
	if r.err != nil {
		return r.err
	}
	want := tpm.Extended([32]byte(digest))
	switch {
	case bytes.Equal(r.initData, want[:]):
		return nil
	case bytes.Count(r.initData, []byte{0}) != len(r.initData):
		return errors.New("register 8: expected zeros")
	}
	r.initData = want[:]
	r.extended++
	return nil
}

func tpmSource(t *testing.T, r tee.Attester) (*attestation.Source, attestation.Facts) {
	t.Helper()
	s := attestation.New(attestation.Options{Cmdline: boot.Cmdline{TEE: boot.TEETPM}, TPM: func(context.Context) (tee.Attester, error) { return r, nil }})
	if _, err := s.Bind(t.Context(), make([]byte, 32)); err == nil {
		t.Error("initdata was bound before the environment was known")
	}
	facts, err := s.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, facts
}

func TestBind(t *testing.T) {
	t.Parallel()
	ours, other := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	r := &register{fake: fake{initData: make([]byte, 32)}}
	s, facts := tpmSource(t, r)
	if !facts.Measured || facts.Sealed() || facts.Simulated || facts.Names(ours) {
		t.Errorf("before: %+v", facts)
	}
	for range 2 {
		facts, err := s.Bind(t.Context(), ours)
		if err != nil || !facts.Sealed() || !facts.Names(ours) || facts.Names(other) || facts.Names(ours[:31]) || facts.Names(append(ours, 0)) || facts.Names(facts.InitData) {
			t.Errorf("bound: %+v, %v", facts, err)
		}
	}
	if _, err := s.Bind(t.Context(), other); err == nil {
		t.Error("other initdata was bound as well")
	}
	if err := s.BindNothing(t.Context()); err == nil {
		t.Error("a pod with initdata became one without")
	}
	if facts, err := s.Facts(t.Context()); err != nil || !facts.Names(ours) || r.extended != 1 {
		t.Errorf("after: %+v, %v, extended %d times", facts, err, r.extended)
	}
}

// TestBindNothing: no digest can be bound to the evidence of a pod without
// initdata.
func TestBindNothing(t *testing.T) {
	t.Parallel()
	r := &register{fake: fake{initData: make([]byte, 32)}}
	s, _ := tpmSource(t, r)
	for range 2 {
		if err := s.BindNothing(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	facts, err := s.Facts(t.Context())
	if err != nil || facts.Sealed() || r.extended != 1 || bytes.Equal(r.initData, make([]byte, 32)) {
		t.Errorf("%+v, %v, register %x", facts, err, r.initData)
	}
	if _, err := s.Bind(t.Context(), bytes.Repeat([]byte{7}, 32)); err == nil {
		t.Error("initdata was bound to a pod without")
	}
}

// TestLaunchNames: where the launch names the initdata, there is nothing to bind.
func TestLaunchNames(t *testing.T) {
	t.Parallel()
	digest := bytes.Repeat([]byte{7}, 48)
	f := &fake{initData: digest[:32]}
	s, facts := tpmSource(t, f)
	got, err := s.Bind(t.Context(), bytes.Repeat([]byte{8}, 32))
	if err != nil || facts.Measured || !got.Names(digest) || got.Names(bytes.Repeat([]byte{8}, 32)) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.BindNothing(t.Context()); err != nil || f.calls != 1 {
		t.Errorf("%v, asked %d times", err, f.calls)
	}
	broken := &register{fake: fake{initData: make([]byte, 32)}, err: errors.New("busy")}
	s, _ = tpmSource(t, broken)
	if _, err := s.Bind(t.Context(), digest[:32]); err == nil || !strings.Contains(err.Error(), "tpm evidence: busy") {
		t.Errorf("a broken TPM: %v", err)
	}
}
