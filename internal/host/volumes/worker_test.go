package volumes

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var errFinal = errors.New("final")

// clockwork is a worker whose results are given, and which notes when it worked.
type clockwork struct {
	*worker
	results []error
	told    []string
}

func newClockwork(t *testing.T) *clockwork {
	c := &clockwork{}
	begin := time.Now()
	note := func(what string, args ...any) {
		c.told = append(c.told, fmt.Sprintf("%v ", time.Since(begin))+fmt.Sprintf(what, args...))
	}
	c.worker = &worker{
		pace: pace{settle: time.Second, retry: 10 * time.Second, most: 35 * time.Second, attempt: time.Hour},
		work: func(ctx context.Context) error {
			note("work")
			if len(c.results) == 0 {
				return nil
			}
			err := c.results[0]
			c.results = c.results[1:]
			if err == context.Canceled { // as if it took until it is given up
				<-ctx.Done()
				return ctx.Err()
			}
			return err
		},
		final:  func(err error) bool { return errors.Is(err, errFinal) },
		failed: func(err error, next time.Duration) { note("told %v, next in %v", err, next) },
	}
	c.start(t.Context(), nil)
	return c
}

func (c *clockwork) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, c.told); diff != "" {
		t.Error(diff)
	}
}

func TestWorkerSettles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClockwork(t)
		for range 3 {
			c.changed()
			<-time.After(300 * time.Millisecond)
		}
		<-time.After(time.Hour)
		c.expect(t, "1s work")
		if err := c.do(t.Context()); err != nil {
			t.Error(err)
		}
		c.stop()
		<-c.done
		if err := c.do(t.Context()); err != errStopped {
			t.Errorf("%v", err)
		}
	})
}

func TestWorkerRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClockwork(t)
		bad := errors.New("bad")
		c.results = []error{bad, bad, bad, bad, nil, errFinal, nil}
		c.changed()
		<-time.After(time.Hour)
		c.expect(t, "1s work", "1s told bad, next in 10s", "11s work", "11s told bad, next in 20s", "31s work", "31s told bad, next in 35s",
			"1m6s work", "1m6s told bad, next in 35s", "1m41s work", "1m41s told <nil>, next in 0s")
		c.told = nil
		c.changed()
		<-time.After(time.Hour)
		c.changed()
		<-time.After(time.Hour)
		c.expect(t, "1h0m1s work", "1h0m1s told final, next in 0s", "2h0m1s work", "2h0m1s told <nil>, next in 0s")
		c.stop()
	})
}

// A change does not wait until a failure has been waited out.
func TestWorkerNews(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClockwork(t)
		c.results = []error{errors.New("bad"), errors.New("worse")}
		c.changed()
		<-time.After(5 * time.Second)
		c.changed()
		<-time.After(time.Hour)
		c.expect(t, "1s work", "1s told bad, next in 10s", "6s work", "6s told worse, next in 10s", "16s work", "16s told <nil>, next in 0s")
		c.stop()
	})
}

func TestWorkerStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClockwork(t)
		c.results = []error{context.Canceled, context.Canceled}
		answer := make(chan error)
		go func() { answer <- c.do(context.Background()) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.do(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		// The next of the same volume waits for the end of the one before.
		next := newClockwork(t)
		next.stop()
		after := &worker{pace: c.pace, work: func(context.Context) error { return nil }, final: c.final, failed: c.failed}
		after.start(t.Context(), c.worker)
		c.stop()
		if err := <-answer; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if err := after.do(t.Context()); err != nil {
			t.Error(err)
		}
		after.stop()
	})
}
