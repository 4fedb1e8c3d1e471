package trustee

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A flood of questions is one for the database, and no one of those who ask
// decides the answer that others get.
func TestReadiness(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var down atomic.Bool
	now := time.Now()
	ping := func(ctx context.Context) error {
		asked.Add(1)
		if down.Load() {
			return errors.New("down")
		}
		return ctx.Err()
	}
	clock := func() time.Time { return now }
	var x readiness
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if err, _ := x.check(gone, ping, clock); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the database was asked %d times for 100 requests at one time, want once", n)
	}
	down.Store(true)
	for _, step := range []time.Duration{readyFor, -time.Hour} { // later, and after the clock was set back
		now = now.Add(step)
		before := asked.Load()
		if err, ok := x.check(t.Context(), ping, clock); err == nil || !ok || asked.Load() != before+1 {
			t.Errorf("%s: got %v, %v", step, err, ok)
		}
		if err, ok := x.check(t.Context(), ping, clock); err == nil || ok {
			t.Errorf("%s, again: got %v, %v", step, err, ok)
		}
	}
}
