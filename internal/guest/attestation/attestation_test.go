package attestation_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/tee"
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
		sealed, simul bool
		tee           tee.Name
		err           string
	}{
		{name: "hardware first", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, hard: &fake{initData: digest}, soft: &fake{initData: zero}, sealed: true, tee: tee.SNP},
		{name: "the host offers the port unasked", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, soft: &fake{initData: zero}, err: "no hardware TEE found"},
		{name: "soft", cmdline: boot.Cmdline{TEE: boot.TEESoft}, hard: &fake{initData: zero}, soft: &fake{initData: digest}, sealed: true, simul: true, tee: tee.SNP},
		{name: "soft without port", cmdline: boot.Cmdline{TEE: boot.TEESoft}, hard: &fake{initData: zero}, err: "port is not there"},
		{name: "soft TDX", cmdline: boot.Cmdline{TEE: boot.TEESoftTDX}, hard: &fake{initData: zero}, soft: &fake{initData: digest}, sealed: true, simul: true, tee: tee.TDX},
		{name: "soft TDX without port", cmdline: boot.Cmdline{TEE: boot.TEESoftTDX}, hard: &fake{initData: zero}, err: "coffer.tee=soft-tdx: the software TEE's port is not there"},
		{name: "nothing", cmdline: boot.Cmdline{TEE: boot.TEEAuto}, err: "no hardware TEE found"},
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
