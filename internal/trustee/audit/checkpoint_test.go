package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// fakeLog is a store's part.
type fakeLog struct {
	mu    sync.Mutex
	heads map[tenant.Name]Entry
	saved []string
	err   error
	// entries are those that are kept, all with the tenant's own.
	entries []Entry
}

func (f *fakeLog) Head(_ context.Context, t tenant.Name) (int64, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.heads[t]
	if e.Seq == 0 {
		e.Hash = Genesis
	}
	return e.Seq, e.Hash, f.err
}

func (f *fakeLog) Entries(_ context.Context, _ tenant.Name, q Query) ([]Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.entries {
		if q.After != 0 && e.Seq > q.After || q.Before != 0 && e.Seq < q.Before {
			return []Entry{e}, f.err
		}
	}
	return nil, f.err
}

func (f *fakeLog) SaveCheckpoint(_ context.Context, _ tenant.Name, _ int64, jws string, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saved = append(f.saved, jws)
	return f.err
}

func (f *fakeLog) set(t tenant.Name, e Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heads[t] = e
}

func (f *fakeLog) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.saved)
}

func TestCheckpointer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		entries := chain(t, 5)
		log := &fakeLog{heads: map[tenant.Name]Entry{tenant.Default: entries[0]}, entries: entries}
		s := signer(t, 1)
		c := NewCheckpointer(CheckpointerOptions{Log: log, Signer: s, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Interval: time.Minute,
			Tenants: func(context.Context) ([]tenant.Name, error) { return []tenant.Name{"empty", tenant.Default}, nil }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		step := func(d time.Duration, want int) {
			t.Helper()
			if d > 0 {
				<-time.After(d) // of the bubble's clock
			}
			synctest.Wait()
			if got := log.count(); got != want {
				t.Fatalf("%d checkpoints, want %d", got, want)
			}
		}
		step(30*time.Second, 0)
		step(time.Minute, 1)
		step(10*time.Minute, 1) // the head has not moved
		log.set(tenant.Default, entries[2])
		step(time.Minute, 2)
		if _, _, err := c.Checkpoint(ctx, "empty"); !errors.Is(err, ErrEmpty) {
			t.Errorf("empty: %v", err)
		}
		log.set(tenant.Default, entries[1])
		if _, _, err := c.Checkpoint(ctx, tenant.Default); !errors.Is(err, ErrRolledBack) {
			t.Errorf("rolled back: %v", err)
		}
		step(10*time.Minute, 2)
		log.set(tenant.Default, entries[4])
		cancel() // the last one is made while it stops
		if err := <-done; err != nil {
			t.Error(err)
		}
		step(0, 3)
		p, err := s.Keys().Checkpoint(log.saved[2])
		if err != nil || p.Seq != 5 || p.Hash != entries[4].Hash {
			t.Errorf("%+v, %v", p, err)
		}
		if again, jws, err := c.Checkpoint(t.Context(), tenant.Default); err != nil || !cmp.Equal(again, p) || jws != log.saved[2] {
			t.Errorf("again: %+v, %v", again, err)
		}
		log.err = errors.New("store is down")
		if _, _, err := c.Checkpoint(t.Context(), tenant.Default); err == nil {
			t.Error("store failure: want an error")
		}
	})
}

// A chain that was rewritten is not signed because it has grown since.
func TestCheckpointerRewritten(t *testing.T) {
	t.Parallel()
	entries, other := chain(t, 5), chain(t, 5)
	other[2].Hash = Hash(tenant.Default, 3, other[1].Hash, []byte(`{"kind":"x"}`))
	for name, tc := range map[string]struct {
		kept []Entry
		want error
	}{
		"as it was":       {entries, nil},
		"rewritten":       {other, ErrRolledBack},
		"removed":         {[]Entry{entries[0], entries[1], entries[3], entries[4]}, ErrRolledBack},
		"kept from there": {entries[2:], nil},
		"retention":       {entries[3:], nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &fakeLog{heads: map[tenant.Name]Entry{tenant.Default: entries[2]}, entries: entries}
			c := NewCheckpointer(CheckpointerOptions{Log: log, Signer: signer(t, 1), Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
			if _, _, err := c.Checkpoint(t.Context(), tenant.Default); err != nil {
				t.Fatal(err)
			}
			log.entries = tc.kept
			log.set(tenant.Default, entries[4])
			if _, _, err := c.Checkpoint(t.Context(), tenant.Default); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}
