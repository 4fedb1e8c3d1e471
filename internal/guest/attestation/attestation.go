// Package attestation finds the guest's trusted execution environment and
// reads from it, once, what the guest was launched with.
//
// Which environment is acceptable is said by the measured kernel command
// line: hardware unless it says otherwise, a TPM alone, the software TEE's port
// or nothing at all where it does. What is missing is never replaced by something
// less.
//
// Most environments name the initdata at launch. Those of a TPM (Azure's, and a
// TPM alone) cannot: there the guest measures the digest of what the host hands
// over into register 8, once, before it looks at any of it. That a register was
// zeros before shows that nothing else was handed over; that the initdata is its
// owner's shows at the trustee, which gives resources only to digests that were
// registered. For a pod without initdata the register is closed: see
// [Source.BindNothing].
package attestation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/platform"
	"github.com/coffer-project/coffer/tee/tpm"
)

// ErrNone says that the guest runs without a TEE.
var ErrNone = errors.New("this guest has no TEE (coffer.tee=none): it cannot attest, and no trustee gives it a resource")

// Facts are what the environment says about the launch.
type Facts struct {
	// TEE is empty when there is none.
	TEE tee.Name
	// Simulated is true for the software TEE and for none.
	Simulated bool
	// InitData is the field that names the initdata; nil when there is no
	// TEE. It is set at launch, or is Measured.
	InitData []byte
	// Measured: the field is a register of a TPM, which is zeros until the
	// guest has measured into it the initdata that the host handed over.
	Measured bool
}

// Sealed reports whether the evidence names an initdata digest. A field of
// zeros is what a launch without one leaves, and what a register holds that
// nothing has been measured into yet.
func (f Facts) Sealed() bool { return len(bytes.Trim(f.InitData, "\x00")) != 0 }

// Names reports whether the evidence names initdata of that digest.
func (f Facts) Names(digest []byte) bool {
	if !f.Measured {
		return initdata.MatchesField(digest, f.InitData)
	}
	if len(digest) != sha256.Size {
		return false
	}
	want := tpm.Extended([sha256.Size]byte(digest))
	return subtle.ConstantTimeCompare(want[:], f.InitData) == 1
}

// Binder is the attester of an environment in which initdata is measured by the
// guest: its InitData is a register of a TPM ([tpm.InitDataPCR]).
type Binder interface {
	tee.Attester
	// BindInitData extends the register that is zeros, leaves one alone that
	// is so extended already, and refuses any other.
	BindInitData(ctx context.Context, digest []byte) error
}

// Options say where environments are looked for.
type Options struct {
	Cmdline boot.Cmdline
	// Hardware returns the attester of a hardware TEE, and TPM that of a TPM
	// alone. Where the machine has none the error is [platform.ErrNone].
	// Nil: never.
	Hardware, TPM func(ctx context.Context) (tee.Attester, error)
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
	facts, err := read(ctx, attester, simulated)
	if err != nil {
		return Facts{}, err
	}
	s.attester, s.facts = attester, &facts
	return facts, nil
}

// read reads the facts of an environment; nil is none.
func read(ctx context.Context, attester tee.Attester, simulated bool) (Facts, error) {
	facts := Facts{Simulated: simulated}
	if attester == nil {
		return facts, nil
	}
	_, facts.Measured = attester.(Binder)
	facts.TEE = attester.TEE()
	var err error
	if facts.InitData, err = attester.InitData(ctx); err != nil {
		return Facts{}, fmt.Errorf("initdata field of the %s evidence: %w", facts.TEE, err)
	}
	// A missing field must not look like a launch without initdata.
	if len(facts.InitData) == 0 {
		return Facts{}, fmt.Errorf("initdata field of the %s evidence: the environment has none, so nothing binds a pod to it", facts.TEE)
	}
	return facts, nil
}

// Bind has the evidence name initdata of that digest from now on, and returns
// the facts as they are then. Where the launch names the initdata it changes
// nothing. It may be called again with the same digest. It must be called after
// Facts has succeeded.
func (s *Source) Bind(ctx context.Context, digest []byte) (Facts, error) {
	return s.bind(ctx, func(b Binder, facts Facts) (Facts, error) {
		if err := b.BindInitData(ctx, digest); err != nil {
			return Facts{}, fmt.Errorf("binding initdata to the %s evidence: %w", facts.TEE, err)
		}
		return read(ctx, b, facts.Simulated)
	})
}

// nothing is measured in the place of initdata.
const nothing = "coffer: this guest runs a pod without initdata"

// BindNothing is for a pod without initdata: nobody can bind any later, not even
// a workload that has broken out of its container. The facts stay as they are.
// Where the launch names the initdata it changes nothing. It must be called after
// Facts has succeeded.
func (s *Source) BindNothing(ctx context.Context) error {
	_, err := s.bind(ctx, func(b Binder, facts Facts) (Facts, error) {
		digest := sha256.Sum256([]byte(nothing))
		if err := b.BindInitData(ctx, digest[:]); err != nil {
			return Facts{}, fmt.Errorf("closing the %s evidence to initdata: %w", facts.TEE, err)
		}
		return facts, nil
	})
	return err
}

// bind works on the environment in turn, if it takes initdata from the guest.
func (s *Source) bind(ctx context.Context, work func(Binder, Facts) (Facts, error)) (Facts, error) {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return Facts{}, context.Cause(ctx)
	}
	defer func() { s.turn <- struct{}{} }()
	if s.facts == nil {
		return Facts{}, errors.New("attestation: initdata cannot be bound before the environment is known")
	}
	b, ok := s.attester.(Binder)
	if !ok {
		return *s.facts, nil
	}
	facts, err := work(b, *s.facts)
	if err != nil {
		return Facts{}, err
	}
	s.facts = &facts
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
		// The software TEE's port, or a TPM, may be there: a host can always
		// offer them. They count only where the measured command line asks
		// for them.
		attester, err := look(ctx, s.o.Hardware)
		if errors.Is(err, platform.ErrNone) {
			err = fmt.Errorf("no hardware TEE: %w; a guest of the software TEE needs coffer.tee=soft or coffer.tee=soft-tdx on its kernel command line, "+
				"one with a TPM only coffer.tee=tpm, one without any coffer.tee=none coffer.development", err)
		}
		return attester, false, err
	case boot.TEETPM:
		attester, err := look(ctx, s.o.TPM)
		if errors.Is(err, platform.ErrNone) {
			err = fmt.Errorf("coffer.tee=tpm: no TPM: %w; start the machine with one, or with another kernel command line", err)
		}
		return attester, false, err
	}
	return nil, false, fmt.Errorf("unknown TEE choice %q", s.o.Cmdline.TEE)
}

// look looks where there is something to look for.
func look(ctx context.Context, find func(context.Context) (tee.Attester, error)) (tee.Attester, error) {
	if find == nil {
		return nil, platform.ErrNone
	}
	return find(ctx)
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
