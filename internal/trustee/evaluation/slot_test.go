package evaluation

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/coffer-project/coffer/tee"
)

// One who waits for collateral keeps nobody from being verified, and goes on
// only when it has a place again.
func TestWaitingGivesUpThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slots := make(chan struct{}, 1)
		first, ok := take(t.Context(), t.Context(), slots)
		if !ok {
			t.Fatal("no place")
		}
		ctx := tee.WithWaiting(t.Context(), first.begin)
		one, two := tee.Waiting(ctx), tee.Waiting(ctx)
		second, ok := take(t.Context(), t.Context(), slots)
		if !ok {
			t.Fatal("the place is still taken")
		}
		if err := one(); err != nil {
			t.Fatal(err)
		}
		resumed := make(chan error, 1)
		go func() { resumed <- two() }()
		synctest.Wait()
		select {
		case <-resumed:
			t.Error("two go on at once")
		default:
		}
		second.leave()
		if err := <-resumed; err != nil {
			t.Error(err)
		}
		if len(slots) != 1 {
			t.Errorf("%d places are taken", len(slots))
		}
		first.leave()
		first.leave()
		if len(slots) != 0 {
			t.Error("a place was not given back")
		}
	})
}

func TestWaitingEndsWithTheRequest(t *testing.T) {
	t.Parallel()
	slots := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	s, _ := take(ctx, ctx, slots)
	end := tee.Waiting(tee.WithWaiting(ctx, s.begin))
	other, _ := take(t.Context(), t.Context(), slots)
	cancel()
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.leave()
	if len(slots) != 1 {
		t.Error("another's place was given up")
	}
	other.leave()
	if err := tee.Waiting(t.Context())(); err != nil {
		t.Errorf("without a place: %v", err)
	}
}
