package ha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// ledger is what clients were told. The site must have kept all of it.
type ledger struct {
	mu sync.Mutex
	// attested are sessions whose token was handed out.
	attested map[string]bool
	// released are answers with a resource, with the number of times that the
	// client may have asked for it beyond the one that was answered.
	released map[release]int64
	// stored are resources by path, and order their paths.
	stored map[string]stored
	order  []string

	operations, disturbed int64
	// seconds counts second tries by who had them, and causes by why.
	seconds, causes map[string]int64
	// done is closed and replaced with every operation that ends well.
	done chan struct{}
}

type release struct{ session, path string }

type stored struct {
	content string
	version int64
}

func newLedger() *ledger {
	return &ledger{
		attested: map[string]bool{}, released: map[release]int64{}, stored: map[string]stored{}, seconds: map[string]int64{}, causes: map[string]int64{}, done: make(chan struct{}),
	}
}

func (l *ledger) attest(token string) (string, error) {
	session, err := sessionOf(token)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attested[session] = true
	return session, nil
}

func (l *ledger) release(session, path string, disturbed int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.released[release{session, path}] = disturbed
	l.disturbed += disturbed
}

func (l *ledger) store(path string, s stored) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stored[path] = s
	l.order = append(l.order, path)
}

// newest is what was stored last.
func (l *ledger) newest() (string, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.order) == 0 {
		return seed, seedContent
	}
	path := l.order[len(l.order)-1]
	return path, l.stored[path].content
}

// second is how often somebody's operation had to be done again.
func (l *ledger) second(who string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seconds[who]
}

// pause is what clients wait before they try again, where the trustee does
// not say: a process that was killed holds its port for a moment.
const pause = 500 * time.Millisecond

// try has an operation done, and once more where it fails: the client that
// retries once.
func (l *ledger) try(t *testing.T, who string, operation func() error) bool {
	first := operation()
	if first == nil {
		l.finish()
		return true
	}
	if t.Context().Err() != nil {
		return false // the test is over
	}
	l.mu.Lock()
	l.seconds[who]++
	l.causes[who+": "+cause(first)]++
	l.mu.Unlock()
	wait := pause
	if e, ok := errors.AsType[*kbs.StatusError](first); ok {
		wait = max(wait, e.RetryAfter)
	}
	select {
	case <-time.After(wait):
	case <-t.Context().Done():
		return false
	}
	if err := operation(); err != nil && t.Context().Err() == nil {
		t.Errorf("%s failed twice: %v; and again: %v", who, first, err)
		return false
	}
	l.finish()
	return true
}

func (l *ledger) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations++
	close(l.done)
	l.done = make(chan struct{})
}

// cause sorts an error for the summary: a status, or the innermost error.
func cause(err error) string {
	if s := status(err); s != 0 {
		return fmt.Sprint(s)
	}
	for {
		x, ok := err.(interface{ Unwrap() error })
		if !ok || x.Unwrap() == nil {
			return err.Error()
		}
		err = x.Unwrap()
	}
}

// await waits until n more operations have ended well.
func (l *ledger) await(t *testing.T, n int64) {
	t.Helper()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	l.mu.Lock()
	want := l.operations + n
	l.mu.Unlock()
	for {
		l.mu.Lock()
		have, done := l.operations, l.done
		l.mu.Unlock()
		if have >= want {
			return
		}
		select {
		case <-done:
		case <-timeout.C:
			t.Fatalf("the load stands still: %d operations, expected %d", have, want)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

func (l *ledger) summary() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := fmt.Sprintf("%d operations, %d of them on the second try, %d requests repeated by the client itself; %d handshakes, %d releases, %d resources stored",
		l.operations, l.seconds[guest]+l.seconds[writer], l.disturbed, len(l.attested), len(l.released), len(l.stored))
	for _, k := range slices.Sorted(maps.Keys(l.causes)) {
		s += fmt.Sprintf("\n\t%4d × %s", l.causes[k], k)
	}
	return s
}

// check compares what clients were told with what the site has kept.
func (l *ledger) check(t *testing.T, c *cluster) {
	t.Helper()
	l.checkResources(t, c)
	// A checkpoint by each replica, kept where the site could not change it.
	var pinned []string
	for _, r := range c.replicas {
		p, err := c.admin(t, r.url()).MakeCheckpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		pinned = append(pinned, p.JWS)
	}
	var chains [replicas][]audit.Entry
	for i, r := range c.replicas {
		chains[i] = verifiedChain(t, c.admin(t, r.url()), r.name, pinned)
		if n := len(chains[i]); n == 0 || n < len(chains[0]) || !slices.EqualFunc(chains[i][:len(chains[0])], chains[0], sameEntry) {
			t.Errorf("%s shows another chain of %d entries", r.name, n)
		}
	}
	l.checkRecords(t, chains[0])
}

func sameEntry(a, b audit.Entry) bool { return a.Hash == b.Hash && a.Seq == b.Seq }

// verifiedChain reads a whole chain through one replica and verifies it.
func verifiedChain(t *testing.T, a *admin.Client, name string, pinned []string) []audit.Entry {
	t.Helper()
	ctx := t.Context()
	doc, err := a.AuditKeys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := audit.ParseKeys(doc)
	if err != nil {
		t.Fatal(err)
	}
	o := audit.VerifyOptions{Tenant: tenant.Default, Keys: keys, Pinned: pinned, Complete: true}
	checkpoints, err := a.Checkpoints(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range checkpoints {
		o.Checkpoints = append(o.Checkpoints, p.JWS)
	}
	var out []audit.Entry
	list := func(ctx context.Context, _ tenant.Name, q audit.Query) ([]audit.Entry, error) {
		page, err := a.AuditFrom(ctx, max(0, q.After), q.Limit)
		entries := make([]audit.Entry, len(page))
		for i, e := range page {
			entries[i] = audit.Entry{Seq: e.Seq, Previous: e.Previous, Hash: e.Hash, Body: json.RawMessage(e.Body)}
		}
		out = append(out, entries...)
		return entries, err
	}
	report, err := audit.Verify(ctx, audit.Pages(ctx, list, tenant.Default), o)
	if err != nil || !report.OK || report.Pinned != len(pinned) || report.Unsigned > 0 && report.LastCheckpoint == nil {
		t.Fatalf("%s: the audit log does not verify: %+v, %v, %v", name, report, report.Problem, err)
	}
	t.Logf("%s: audit log of %d entries verified, %d signed checkpoints", name, report.Entries, report.Checkpoints)
	return out
}

// checkResources gets every resource that was stored, as a guest.
func (l *ledger) checkResources(t *testing.T, c *cluster) {
	t.Helper()
	const workers = 4
	together(workers, func(n int) {
		g, _, err := c.guest(c.tee.attester(t), c.url())
		if err != nil {
			t.Error(err)
			return
		}
		defer g.Close()
		for i := n; i < len(l.order); i += workers {
			path := l.order[i]
			v, err := g.Resource(t.Context(), mustURI(path))
			if err != nil || string(v.Expose()) != l.stored[path].content {
				t.Errorf("%s was stored as version %d and is not there: got %q, %v", path, l.stored[path].version, v.Expose(), err)
			}
		}
	})
}

// checkRecords finds one record for everything that clients were told, and no
// release without the attestation that it rests on.
func (l *ledger) checkRecords(t *testing.T, chain []audit.Entry) {
	t.Helper()
	attested, released, writes := map[string]int{}, map[release]int64{}, map[string]int{}
	ids := map[string]int64{}
	for _, e := range chain {
		r, err := audit.DecodeRecord(e.Body)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := ids[r.ID]; ok {
			t.Errorf("entries %d and %d are one record", other, e.Seq)
		}
		ids[r.ID] = e.Seq
		if !r.Granted {
			continue
		}
		switch path := r.Resource[min(len(r.Resource), len("kbs:///")):]; r.Kind {
		case audit.KindAttestation:
			attested[r.Session]++
		case audit.KindResource:
			if attested[r.Session] == 0 {
				t.Errorf("entry %d: a release to session %s, which is not on record before", e.Seq, r.Session)
			}
			released[release{r.Session, path}]++
		case audit.KindAdmin:
			if r.Action == "resource.set" {
				writes[fmt.Sprintf("%s@%d", path, r.Version)]++
			}
		}
	}
	for session, n := range attested {
		if n != 1 {
			t.Errorf("session %s was attested %d times", session, n)
		}
	}
	for session := range l.attested {
		if attested[session] != 1 {
			t.Errorf("session %s: %d records of its attestation", session, attested[session])
		}
	}
	exact := 0
	for r, more := range l.released {
		if n := released[r]; n < 1 || n > 1+more {
			t.Errorf("session %s got %s once and asked %d times more: %d records", r.session, r.path, more, n)
		}
		if more == 0 {
			exact++
		}
	}
	for path, s := range l.stored {
		if n := writes[fmt.Sprintf("%s@%d", path, s.version)]; n != 1 {
			t.Errorf("%s was stored as version %d: %d records", path, s.version, n)
		}
	}
	t.Logf("%d attestations, %d releases (%d of them asked for exactly once) and %d writes have their one record", len(l.attested), len(l.released), exact, len(l.stored))
}

// get fetches a resource with the production client and takes note of it.
func (l *ledger) get(ctx context.Context, g *kbs.Client, w *witness, path, want string) error {
	before := w.disturbed()
	v, err := g.Resource(ctx, mustURI(path))
	if token := g.HeldToken(); token != "" {
		session, err := l.attest(token)
		if err != nil {
			return err
		}
		defer func() {
			if v.Len() > 0 {
				l.release(session, path, w.disturbed()-before)
			}
		}()
	}
	if err == nil && string(v.Expose()) != want {
		return fmt.Errorf("%s: expected %q, got %q", path, want, v.Expose())
	}
	return err
}

// put stores a resource and takes note of it.
func (l *ledger) put(ctx context.Context, a *admin.Client, path, content string) error {
	version, err := a.PutResource(ctx, mustURI(path), secret.New([]byte(content)))
	if err == nil {
		l.store(path, stored{content, version})
	}
	return err
}

// mustURI panics where a test's own path is none.
func mustURI(path string) kbs.ResourceURI {
	u, err := kbs.ParseResourceURI("kbs:///" + path)
	if err != nil {
		panic(err)
	}
	return u
}
