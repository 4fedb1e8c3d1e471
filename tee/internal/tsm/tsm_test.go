package tsm_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/tee/internal/teetest/tsmtest"
	"github.com/coffer-project/coffer/tee/internal/tsm"
)

func echo(in []byte) ([]byte, error) { return in, nil }

func TestGet(t *testing.T) {
	t.Parallel()
	data := make([]byte, 64)
	data[0] = 7
	request := &report.Request{InBlob: data, Privilege: &report.Privilege{Level: 2}, GetAuxBlob: true}
	k := tsmtest.Kernel{Provider: "this\n", OutBlob: echo, AuxBlob: []byte("aux"), Privilege: "2"}
	r, err := tsm.Get(k.Client(), "this", request)
	if err != nil || string(r.OutBlob) != string(data) || string(r.AuxBlob) != "aux" {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := tsm.Get(k.Client(), "that", request); err == nil || r != nil || !strings.Contains(err.Error(), `expected "that", got "this"`) {
		t.Errorf("another provider: got %+v, %v", r, err)
	}
	k.OutBlob = func([]byte) ([]byte, error) { return nil, errors.New("throttled") }
	if _, err := tsm.Get(k.Client(), "this", request); err == nil || !strings.Contains(err.Error(), "throttled") {
		t.Errorf("a failure of the firmware: got %v", err)
	}
}

// Another process that writes to the same entry makes the kernel's answer
// somebody else's: the request is made again, but not for ever.
func TestRaces(t *testing.T) {
	t.Parallel()
	for races, ok := range map[int32]bool{0: true, tsm.MaxRaces - 1: true, tsm.MaxRaces: false} {
		var left atomic.Int32
		left.Store(races)
		k := tsmtest.Kernel{Provider: "this\n", OutBlob: echo, Races: &left}
		_, err := tsm.Get(k.Client(), "this", &report.Request{InBlob: make([]byte, 64)})
		if (err == nil) != ok || left.Load() > 0 {
			t.Errorf("%d races: got %v, %d left", races, err, left.Load())
		}
		if _, raced := errors.AsType[*report.GenerationErr](err); !ok && !raced {
			t.Errorf("%d races: got %v", races, err)
		}
	}
}

func TestTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turn, release := tsm.NewTurn(), make(chan struct{})
		var running, most atomic.Int32
		call := func() (int, error) {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			<-release
			return 7, errors.New("its own error")
		}
		ctx, cancel := context.WithCancel(t.Context())
		failures := make(chan error, 2)
		for range 2 {
			go func() { _, err := tsm.Do(ctx, turn, call); failures <- err }()
		}
		synctest.Wait()
		if running.Load() != 1 {
			t.Fatalf("%d calls run", running.Load())
		}
		cancel()
		for range 2 {
			if err := <-failures; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
		}
		// The first call goes on; the next one waits for it.
		type result struct {
			n   int
			err error
		}
		last := make(chan result, 1)
		go func() { n, err := tsm.Do(t.Context(), turn, call); last <- result{n, err} }()
		synctest.Wait()
		if running.Load() != 1 {
			t.Errorf("%d calls run", running.Load())
		}
		close(release)
		if r := <-last; r.n != 7 || r.err == nil || r.err.Error() != "its own error" || most.Load() != 1 {
			t.Errorf("got %d, %v; up to %d calls at once", r.n, r.err, most.Load())
		}
	})
}
