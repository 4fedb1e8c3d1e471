// Package attestation finds the guest's trusted execution environment and
// reads from it, once, what the guest was launched with.
//
// Which environment is acceptable is said by the measured kernel command
// line: hardware unless it says otherwise, the software TEE's port or nothing
// at all where it does. What is missing is never replaced by something less.
package attestation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/tee"
)

// ErrNone says that the guest runs without a TEE.
var ErrNone = errors.New("this guest has no TEE (coffer.tee=none): it cannot attest, and no trustee gives it a resource")

// Facts are what the environment says about the launch.
type Facts struct {
	// TEE is empty when there is none.
	TEE tee.Name
	// Simulated is true for the software TEE and for none.
	Simulated bool
	// InitData is the launch-time initdata field; nil when there is no TEE.
	InitData []byte
}

// Sealed reports whether the launch named an initdata digest. A field of
// zeros is what a launch without one leaves.
func (f Facts) Sealed() bool { return len(bytes.Trim(f.InitData, "\x00")) != 0 }

// Options say where environments are looked for.
type Options struct {
	Cmdline boot.Cmdline
	// Hardware returns the attester of a hardware TEE, or nil when the
	// machine has none. Nil: never.
	Hardware func(ctx context.Context) (tee.Attester, error)
	// HasSoft tells whether the software TEE's port is there. Soft and SoftTDX
	// return its attesters: for SEV-SNP reports, and for TDX quotes.
	HasSoft       func() bool
	Soft, SoftTDX func() tee.Attester
}

// Source is the guest's environment. It is found when first asked for; it is
// safe for concurrent use.
type Source struct {
	o    Options
	turn chan struct{} // holds one token: the right to look

	attester tee.Attester
	facts    *Facts
}

// New returns a source; nothing is looked for yet.
func New(o Options) *Source {
	s := &Source{o: o, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// Facts finds the environment and reads its launch facts. A failure is not
// remembered: the next call tries again.
func (s *Source) Facts(ctx context.Context) (Facts, error) {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return Facts{}, context.Cause(ctx)
	}
	defer func() { s.turn <- struct{}{} }()
	if s.facts != nil {
		return *s.facts, nil
	}
	attester, simulated, err := s.find(ctx)
	if err != nil {
		return Facts{}, err
	}
	facts := Facts{Simulated: simulated}
	if attester != nil {
		facts.TEE = attester.TEE()
		if facts.InitData, err = attester.InitData(ctx); err != nil {
			return Facts{}, fmt.Errorf("initdata field of the %s evidence: %w", facts.TEE, err)
		}
		// A missing field must not look like a launch without initdata.
		if len(facts.InitData) == 0 {
			return Facts{}, fmt.Errorf("initdata field of the %s evidence: the environment has none, so nothing binds a pod to it", facts.TEE)
		}
	}
	s.attester, s.facts = attester, &facts
	return facts, nil
}

func (s *Source) find(ctx context.Context) (_ tee.Attester, simulated bool, err error) {
	switch s.o.Cmdline.TEE {
	case boot.TEENone:
		if !s.o.Cmdline.Development {
			return nil, false, errors.New("coffer.tee=none needs coffer.development on the kernel command line")
		}
		return nil, true, nil
	case boot.TEESoft:
		attester, err := s.soft(s.o.Soft)
		return attester, true, err
	case boot.TEESoftTDX:
		attester, err := s.soft(s.o.SoftTDX)
		return attester, true, err
	case boot.TEEAuto:
		if s.o.Hardware != nil {
			attester, err := s.o.Hardware(ctx)
			if attester != nil || err != nil {
				return attester, false, err
			}
		}
		// The port may be there: a host can always offer it. It counts only
		// where the measured command line asks for it.
		return nil, false, errors.New("no hardware TEE found (configfs-tsm offers no report); a guest of the software TEE needs coffer.tee=soft " +
			"or coffer.tee=soft-tdx on its kernel command line, one without any coffer.tee=none coffer.development")
	}
	return nil, false, fmt.Errorf("unknown TEE choice %q", s.o.Cmdline.TEE)
}

// soft returns an attester of the software TEE.
func (s *Source) soft(attester func() tee.Attester) (tee.Attester, error) {
	if attester == nil || s.o.HasSoft == nil || !s.o.HasSoft() {
		return nil, fmt.Errorf("coffer.tee=%s: the software TEE's port is not there; start the machine with it, or with another kernel command line", s.o.Cmdline.TEE)
	}
	return attester(), nil
}

// Attester returns the attester, or an attester that fails with [ErrNone].
// It must be called after Facts has succeeded.
func (s *Source) Attester() tee.Attester {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	if s.attester == nil {
		return noAttester{}
	}
	return s.attester
}

// noAttester stands in for a TEE that is not there.
type noAttester struct{}

func (noAttester) TEE() tee.Name { return "" }

func (noAttester) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, ErrNone }

func (noAttester) InitData(context.Context) ([]byte, error) { return nil, ErrNone }
