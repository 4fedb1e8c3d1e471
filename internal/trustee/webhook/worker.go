package webhook

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// maxBatch is how many entries are read, and at most delivered, at once.
const maxBatch = 50

// worker serves one endpoint: its tenants one after the other, each in order.
type worker struct {
	o       *Options
	e       Endpoint
	client  *http.Client
	log     *slog.Logger
	wake    chan struct{}
	started time.Time
	// batch is how many entries are delivered at once: less than [maxBatch]
	// after the receiver refused a delivery for what it holds.
	batch int
}

func newWorker(o *Options, e Endpoint) *worker {
	return &worker{
		o: o, e: e, client: client(o, e), log: o.Logger.With("webhook", e.Name), wake: make(chan struct{}, 1), batch: maxBatch,
	}
}

func (w *worker) run(ctx context.Context) {
	w.started = w.o.Now()
	failures := 0
	for ctx.Err() == nil {
		pause := w.o.Poll
		switch err := w.round(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = w.delay(failures, 0)
			failures++
			w.log.WarnContext(ctx, "events could not be read; trying again", "error", err, "in", pause)
		default:
			failures = 0
		}
		w.wait(ctx, pause, w.wake)
	}
}

// wait returns when d has passed, wake is sent to, or ctx ends.
func (w *worker) wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
	}
}

// round delivers what is there for every tenant. One that fails does not hold
// up the others.
func (w *worker) round(ctx context.Context) error {
	if ok, err := w.leased(ctx); err != nil || !ok {
		return err
	}
	tenants := []tenant.Name{w.e.Tenant}
	if w.e.Tenant == tenant.All {
		var err error
		if tenants, err = w.o.Tenants(ctx); err != nil {
			return fmt.Errorf("tenants: %w", err)
		}
	}
	var first error
	for _, t := range tenants {
		if err := w.drain(ctx, t); err != nil && first == nil {
			first = fmt.Errorf("tenant %s: %w", t, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return first
}

// leaseFor outlasts one attempt and the pause before the next, which renews it.
func (w *worker) leaseFor() time.Duration { return 2*w.o.Timeout + w.o.MaxDelay + 2*w.o.Poll }

func (w *worker) leased(ctx context.Context) (bool, error) {
	if w.o.Lease == nil {
		return true, nil
	}
	ok, err := w.o.Lease(ctx, "webhook/"+w.e.Name, w.leaseFor())
	if err != nil {
		return false, fmt.Errorf("lease: %w", err)
	}
	return ok, nil
}

// drain delivers a tenant's entries until none is left.
func (w *worker) drain(ctx context.Context, t tenant.Name) error {
	for ctx.Err() == nil {
		cursor, err := w.cursor(ctx, t)
		if err != nil {
			return err
		}
		entries, next, err := w.read(ctx, t, cursor)
		if err != nil {
			return err
		}
		if next == cursor {
			return nil
		}
		if done, err := w.deliver(ctx, t, w.events(ctx, entries)); err != nil || !done {
			return err
		}
		if err := w.o.Cursors.SetCursor(ctx, t, w.e.Name, next); err != nil {
			return fmt.Errorf("cursor: %w", err)
		}
	}
	return ctx.Err()
}

// cursor is where to go on. A webhook without one begins with what happened
// since it was started: nobody wants years of history at once.
func (w *worker) cursor(ctx context.Context, t tenant.Name) (int64, error) {
	seq, found, err := w.o.Cursors.Cursor(ctx, t, w.e.Name)
	if err != nil {
		return 0, fmt.Errorf("cursor: %w", err)
	}
	if found {
		return seq, nil
	}
	seq = 0
	q := audit.Query{Limit: maxBatch}
	for {
		page, err := w.o.Source.Entries(ctx, t, q)
		if err != nil {
			return 0, fmt.Errorf("audit log: %w", err)
		}
		old := slices.IndexFunc(page, func(e audit.Entry) bool { return w.older(e) })
		if old >= 0 {
			seq = page[old].Seq
			break
		}
		if len(page) < maxBatch || page[len(page)-1].Seq <= 1 {
			if len(page) > 0 {
				seq = page[len(page)-1].Seq - 1
			}
			break
		}
		q.Before = page[len(page)-1].Seq
	}
	if err := w.o.Cursors.SetCursor(ctx, t, w.e.Name, seq); err != nil {
		return 0, fmt.Errorf("cursor: %w", err)
	}
	return seq, nil
}

func (w *worker) older(e audit.Entry) bool {
	ev, err := parse(e)
	return err == nil && ev.At.Before(w.started)
}

// read returns the entries after a cursor, oldest first, and the cursor behind
// them.
func (w *worker) read(ctx context.Context, t tenant.Name, cursor int64) ([]audit.Entry, int64, error) {
	q := audit.Query{After: cursor, Limit: w.batch}
	if cursor == 0 {
		// A query cannot say "after 0"; the first entries are those before the
		// one that follows them.
		q = audit.Query{Before: int64(w.batch) + 1, Limit: w.batch}
	}
	entries, err := w.o.Source.Entries(ctx, t, q)
	if err != nil {
		return nil, 0, fmt.Errorf("audit log: %w", err)
	}
	if cursor == 0 {
		slices.Reverse(entries)
		if len(entries) == 0 {
			return w.skipDropped(ctx, t)
		}
	}
	next := cursor
	for _, e := range entries {
		if e.Seq <= next {
			return nil, 0, fmt.Errorf("audit log: expected entries after %d in order, got %d", next, e.Seq)
		}
		next = e.Seq
	}
	if len(entries) > 0 && entries[0].Seq > cursor+1 {
		w.log.WarnContext(ctx, "audit records were dropped before they were delivered: audit retention is shorter than the outage",
			"tenant", string(t), "first", cursor+1, "last", entries[0].Seq-1)
	}
	return entries, next, nil
}

// skipDropped moves past the beginning of a log whose first entries are gone.
func (w *worker) skipDropped(ctx context.Context, t tenant.Name) ([]audit.Entry, int64, error) {
	head, err := w.o.Source.Entries(ctx, t, audit.Query{Limit: 1})
	if err != nil {
		return nil, 0, fmt.Errorf("audit log: %w", err)
	}
	if len(head) == 0 || head[0].Seq <= int64(w.batch) {
		return nil, 0, nil
	}
	return nil, int64(w.batch), nil
}

// events picks what the endpoint wants to know.
func (w *worker) events(ctx context.Context, entries []audit.Entry) []Event {
	var out []Event
	for _, e := range entries {
		ev, err := parse(e)
		if err != nil {
			w.log.ErrorContext(ctx, "an audit entry cannot be read; no event is sent for it", "error", err)
			continue
		}
		if slices.Contains(w.e.Events, ev.Type) {
			out = append(out, ev)
		}
	}
	return out
}
