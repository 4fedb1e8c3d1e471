// Package measurement records what happens in the guest after its launch: images
// that are pulled, containers and commands that are started, and what workloads
// report themselves.
//
// Each event is an entry of an attestation agent's log (AAEL, see tee/eventlog).
// Where the environment has a register for the run time (RTMR 3 of TDX, PCR 15 of
// a TPM), the entry's digest extends it first, so that nobody can take an event
// back. Where it has none (SEV-SNP), the log goes into the evidence, which is
// bound to it: then the guest's word counts, which the launch measurement vouches
// for.
//
// Upstream keeps the log and a write-ahead file on disk, since its agent may be
// started again under a running guest. This agent is PID 1: with it the machine
// ends. What remains of that design is what an extension that failed half-way
// leaves behind: the register itself tells whether it took place.
package measurement

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
)

// PCR is what the guest components extend by default (guest-components,
// attestation-agent, eventlog_config.init_pcr).
const PCR = 17

// Limits of the log, and of the part of it that workloads may fill: what the
// guest itself has to record must not fail because of them.
const (
	MaxContent  = 16 << 10
	MaxLog      = 1 << 20
	MaxWorkload = MaxLog / 2
)

// Domains of events that the guest records itself. Workloads cannot use them.
const (
	// DomainUpstream is that of PullImage, as the guest components have it.
	DomainUpstream = "github.com/confidential-containers"
	DomainCoffer   = "coffer"
)

// ErrFull says that the log holds no more.
var ErrFull = errors.New("measurement: the log is full")

// ErrReserved says that a workload asked for an event that only the guest records.
var ErrReserved = errors.New("measurement: this domain is the guest's own")

// Register is a register of the environment that only ever is extended: its new
// value is the hash of the old one followed by the digest.
type Register interface {
	// Alg is the hash function, SHA-256 or SHA-384.
	Alg() eventlog.Alg
	// Number is what log entries call it (PCR, or CCMR of a confidential guest).
	Number() int
	Read(ctx context.Context) ([]byte, error)
	Extend(ctx context.Context, digest []byte) error
}

// Recorder keeps the log. It is safe for concurrent use.
type Recorder struct {
	register Register

	// turn holds one token: the right to extend the register, or to quote it.
	turn chan struct{}

	mu       sync.Mutex
	log      []byte
	workload int
	broken   error
	once     map[[sha256.Size]byte]bool // events of Once
}

// New returns a recorder that extends a register, or (nil) only keeps the log.
func New(register Register) *Recorder {
	r := &Recorder{register: register, turn: make(chan struct{}, 1), once: map[[sha256.Size]byte]bool{}}
	r.turn <- struct{}{}
	return r
}

// HasRegister tells whether a register stands behind the log.
func (r *Recorder) HasRegister() bool { return r.register != nil }

// Log is the log so far; it is nil while it is empty. It is not changed later.
func (r *Recorder) Log() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.log)
}

// Record records an event of the guest's own. Domain and operation have no
// spaces, and no part has a line break (see [eventlog.NewRuntimeEvent]).
func (r *Recorder) Record(ctx context.Context, domain, operation, content string) error {
	return r.record(ctx, domain, operation, content, false)
}

// Once records an event of the guest's own, unless it has recorded the same
// before: what is started again and again is measured once.
func (r *Recorder) Once(ctx context.Context, domain, operation, content string) error {
	id := sha256.Sum256([]byte(domain + "\n" + operation + "\n" + content))
	r.mu.Lock()
	known := r.once[id]
	r.mu.Unlock()
	if known {
		return nil
	}
	if err := r.record(ctx, domain, operation, content, false); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.once[id] = true
	return nil
}

// RecordForWorkload records an event that a workload reports. Whoever reads the
// log must not take it for one of the guest's own: domain and operation are
// printable ASCII, and the guest's domains are reserved in any letter case.
func (r *Recorder) RecordForWorkload(ctx context.Context, domain, operation, content string) error {
	for _, part := range []struct{ name, value string }{{"domain", domain}, {"operation", operation}} {
		if i := strings.IndexFunc(part.value, func(c rune) bool { return c <= ' ' || c >= 0x7f }); i >= 0 {
			return fmt.Errorf("measurement: %s: expected printable ASCII without spaces, got %.64q", part.name, part.value)
		}
	}
	if strings.EqualFold(domain, DomainUpstream) || strings.EqualFold(domain, DomainCoffer) {
		return fmt.Errorf("%w: %.64q; choose another", ErrReserved, domain)
	}
	return r.record(ctx, domain, operation, content, true)
}

func (r *Recorder) record(ctx context.Context, domain, operation, content string, workload bool) error {
	if n := len(domain) + len(operation) + len(content); n > MaxContent {
		return fmt.Errorf("measurement: event: expected at most %d bytes, got %d", MaxContent, n)
	}
	event, err := eventlog.NewRuntimeEvent(domain, operation, content)
	if err != nil {
		return err
	}
	alg, number := eventlog.SHA384, eventlog.CCMR(PCR, false)
	if r.register != nil {
		alg, number = r.register.Alg(), r.register.Number()
	}
	entry, digest, err := event.Entry(number, alg)
	if err != nil {
		return err
	}
	return r.alone(ctx, func() error {
		if err := r.room(len(entry), workload); err != nil {
			return err
		}
		if err := r.extend(ctx, alg, digest); err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.log = append(r.log, entry...)
		if workload {
			r.workload += len(entry)
		}
		return nil
	})
}

// alone runs f while nothing else extends or quotes.
func (r *Recorder) alone(ctx context.Context, f func() error) error {
	select {
	case <-r.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { r.turn <- struct{}{} }()
	return f()
}

func (r *Recorder) room(entry int, workload bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.broken != nil:
		return r.broken
	case workload && r.workload+entry > MaxWorkload:
		return fmt.Errorf("%w: workloads have recorded %d bytes, and may record %d", ErrFull, r.workload, MaxWorkload)
	case len(r.log)+entry > MaxLog:
		return fmt.Errorf("%w: %d bytes of %d", ErrFull, len(r.log), MaxLog)
	}
	return nil
}

// extend extends the register. When that fails, the register is read: either it
// holds the new value, and the event counts, or the old one. Any other value means
// that somebody else extends it, and no later log could amount to it.
func (r *Recorder) extend(ctx context.Context, alg eventlog.Alg, digest []byte) error {
	if r.register == nil {
		return nil
	}
	before, err := r.register.Read(ctx)
	if err != nil {
		return fmt.Errorf("measurement: reading the register: %w", err)
	}
	// Once begun it is brought to its end, whatever becomes of the call.
	ctx = context.WithoutCancel(ctx)
	failed := r.register.Extend(ctx, digest)
	if failed == nil {
		return nil
	}
	after, err := r.register.Read(ctx)
	switch {
	case err == nil && bytes.Equal(after, before):
		return fmt.Errorf("measurement: extending the register: %w", failed)
	case err == nil && bytes.Equal(after, extended(alg, before, digest)):
		return nil
	}
	broken := fmt.Errorf("measurement: the register holds neither the value before nor the one after the event: no log amounts to it any more: %w", errors.Join(failed, err))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
	return broken
}

func extended(alg eventlog.Alg, before, digest []byte) []byte {
	var h hash.Hash
	switch alg {
	case eventlog.SHA256:
		h = sha256.New()
	case eventlog.SHA384:
		h = sha512.New384()
	default:
		return nil
	}
	h.Write(before)
	h.Write(digest)
	return h.Sum(nil)
}

// Attester makes evidence with a, never beside an extension: the registers in a
// quote and the log beside it are of one moment.
func (r *Recorder) Attester(a tee.Attester) tee.Attester { return &attester{a, r} }

type attester struct {
	tee.Attester
	r *Recorder
}

// Evidence implements [tee.Attester].
func (a *attester) Evidence(ctx context.Context, reportData []byte) (evidence json.RawMessage, err error) {
	err = a.r.alone(ctx, func() error {
		evidence, err = a.Attester.Evidence(ctx, reportData)
		return err
	})
	return evidence, err
}

// Device gives the log as additional evidence, for an environment whose evidence
// has no place for it. pcr is the register of its TPM that the recorder extends,
// nil for none.
func (r *Recorder) Device(pcr *int) tee.Attester { return &device{r, pcr} }

type device struct {
	r   *Recorder
	pcr *int
}

// TEE implements [tee.Attester].
func (*device) TEE() tee.Name { return tee.RuntimeLog }

// Evidence implements [tee.Attester]. The log needs no report data: that of the
// primary evidence covers it.
func (d *device) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return eventlog.RuntimeEvidence{Log: d.r.Log(), PCR: d.pcr}.JSON()
}

// InitData implements [tee.Attester].
func (*device) InitData(context.Context) ([]byte, error) {
	return nil, errors.New("measurement: a log has no initdata")
}
