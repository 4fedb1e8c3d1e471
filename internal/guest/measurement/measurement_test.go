package measurement_test

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/measurement"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
)

// rtmr is a register whose extensions may fail before or after they take place.
type rtmr struct {
	mu            sync.Mutex
	value         [48]byte
	before, after error
	meddle        bool
}

func (*rtmr) Alg() eventlog.Alg { return eventlog.SHA384 }
func (*rtmr) Number() int       { return 4 }

func (r *rtmr) Read(context.Context) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	value := r.value
	return value[:], nil
}

func (r *rtmr) Extend(_ context.Context, digest []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.meddle {
		r.value[0]++
		return errors.New("busy")
	}
	if r.before != nil {
		return r.before
	}
	r.value = sha512.Sum384(append(append([]byte(nil), r.value[:]...), digest...))
	return r.after
}

// check replays the log against the register, as a verifier does.
func check(t *testing.T, raw []byte, r *rtmr, events int) {
	t.Helper()
	evidence, err := eventlog.Evidence(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(evidence, eventlog.CCEL)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Compare(eventlog.SHA384, map[int][]byte{4: r.value[:]}); err != nil {
		t.Errorf("the log does not amount to the register: %v", err)
	}
	if got := len(log.Events); got != events {
		t.Errorf("%d events, want %d", got, events)
	}
}

func TestTheLogAmountsToTheRegister(t *testing.T) {
	t.Parallel()
	reg := &rtmr{}
	r := measurement.New(reg)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := r.Record(t.Context(), measurement.DomainCoffer, "Start", fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, r.Log(), reg, 20)
}

func TestExtensionsThatFail(t *testing.T) {
	t.Parallel()
	reg := &rtmr{}
	r := measurement.New(reg)
	record := func() error { return r.Record(t.Context(), "d", "o", "c") }
	reg.before = errors.New("no")
	if err := record(); !errors.Is(err, reg.before) || len(r.Log()) != 0 {
		t.Errorf("an extension that did not happen: %v, log of %d bytes", err, len(r.Log()))
	}
	reg.before, reg.after = nil, errors.New("late")
	if err := record(); err != nil {
		t.Errorf("an extension that did happen: %v", err)
	}
	reg.after = nil
	if err := record(); err != nil {
		t.Fatal(err)
	}
	check(t, r.Log(), reg, 2)
	reg.meddle = true
	if err := record(); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a register that others extend: %v", err)
	}
	reg.meddle = false
	if err := record(); err == nil {
		t.Error("events are recorded although no log can amount to the register")
	}
}

func TestWorkloads(t *testing.T) {
	t.Parallel()
	r := measurement.New(nil)
	for _, domain := range []string{measurement.DomainCoffer, measurement.DomainUpstream} {
		if err := r.RecordForWorkload(t.Context(), domain, "PullImage", "{}"); !errors.Is(err, measurement.ErrReserved) {
			t.Errorf("domain %s: %v", domain, err)
		}
	}
	for _, bad := range [][3]string{{"", "o", "c"}, {"d d", "o", "c"}, {"d", "o\n", "c"}, {"d", "o", "c\nd"}, {"d", "o", strings.Repeat("x", measurement.MaxContent)}} {
		if err := r.RecordForWorkload(t.Context(), bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%.20q was accepted", bad)
		}
	}
	big := strings.Repeat("x", measurement.MaxContent-64)
	var err error
	for range 2 * measurement.MaxLog / len(big) {
		if err = r.RecordForWorkload(t.Context(), "app", "fills", big); err != nil {
			break
		}
	}
	if !errors.Is(err, measurement.ErrFull) || len(r.Log()) > measurement.MaxWorkload {
		t.Errorf("a workload that fills the log: %v, %d bytes", err, len(r.Log()))
	}
	if err := r.Record(t.Context(), measurement.DomainCoffer, "Start", "web"); err != nil {
		t.Errorf("the guest's own event: %v", err)
	}
}

// quoting is an attester that looks at the log while it quotes.
type quoting struct {
	tee.Attester
	look func()
}

func (q quoting) Evidence(context.Context, []byte) (json.RawMessage, error) {
	q.look()
	return json.RawMessage(`{}`), nil
}

func TestNothingIsExtendedWhileItIsQuoted(t *testing.T) {
	t.Parallel()
	r := measurement.New(&rtmr{})
	a := r.Attester(quoting{look: func() {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Record(ctx, "d", "o", "c"); !errors.Is(err, context.Canceled) {
			t.Errorf("an event beside a quote: %v", err)
		}
	}})
	if _, err := a.Evidence(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Record(t.Context(), "d", "o", "c"); err != nil {
		t.Error(err)
	}
}

func TestWorkloadsDoNotLookLikeTheGuest(t *testing.T) {
	t.Parallel()
	r := measurement.New(nil)
	for _, domain := range []string{
		"coffer", "Coffer", "COFFER", "GitHub.com/Confidential-Containers",
		"coffer ", " coffer", "coffer\t", "coffer\u00a0", "coffer\u200b", "\ufeffcoffer", "\u202ecoffer", "c\u043effer", "coffer\x7f", "",
	} {
		if err := r.RecordForWorkload(t.Context(), domain, "StartContainer", "{}"); err == nil {
			t.Errorf("a workload recorded an event of domain %q", domain)
		}
	}
	if err := r.RecordForWorkload(t.Context(), "app.example", "Start\u200bContainer", "{}"); err == nil {
		t.Error("an operation with an invisible character was recorded")
	}
	if len(r.Log()) != 0 {
		t.Errorf("the log holds %q", r.Log())
	}
	if err := r.RecordForWorkload(t.Context(), "app.example", "StartContainer", "{\"caf\u00e9\":1}"); err != nil {
		t.Error(err)
	}
}
