package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/measurement"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee/eventlog"
)

// A container's first process may be killed, by a neighbour or for want of
// memory, just as the host starts it. Whichever comes first, the policy's state
// must not keep a container that runs for ever: it could never be deleted.
func TestAProcessThatDiesWhileItIsStarted(t *testing.T) {
	t.Parallel()
	guard := podpolicy.NewUnsealedGuard()
	if _, err := guard.Sandbox(podpolicy.SandboxProposal{ID: "pod"}); err != nil {
		t.Fatal(err)
	}
	a := &Agent{log: slog.New(slog.DiscardHandler), events: newEventLog(time.Now)}
	sb := &sandbox{guard: guard}
	for range 200 {
		admission, err := guard.Admit(podpolicy.ContainerProposal{ID: "c", Name: "c", Image: "registry.example/a:b"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admission.Configure(podpolicy.ImageConfig{Cmd: []string{"/bin/true"}}); err != nil {
			t.Fatal(err)
		}
		p := newProc("c", "")
		var wg sync.WaitGroup
		wg.Go(func() { _ = p.begin(func() error { return guard.Started("c", "") }) })
		wg.Go(func() { a.end(sb, p, reaper.Status{Code: 137}, "signalled") })
		wg.Wait()
		if err := guard.Deleted("c", ""); err != nil {
			t.Fatal(err)
		}
	}
}

// A call that waited while its container was deleted must not reach another
// one that has the id since.
func TestACallThatWaitedForADeletedContainer(t *testing.T) {
	t.Parallel()
	a := &Agent{containers: map[string]*ctr{}}
	c, mine := a.reserve("c", [32]byte{})
	if !mine {
		t.Fatal("not a new container")
	}
	waited := make(chan error, 1)
	go func() { waited <- c.lock(t.Context()) }()
	a.forget(c)
	c.unlock()
	if err := <-waited; codeOf(t.Context(), err) != codes.NotFound {
		t.Errorf("error = %v, want NOT_FOUND", err)
	}
	if err := c.lock(t.Context()); err == nil {
		t.Error("a second one got its turn")
	}

	old, now := newProc("c", "e"), newProc("c", "e")
	c, _ = a.reserve("c", [32]byte{})
	c.execs["e"] = now
	c.unlock()
	if err := a.start(t.Context(), old, c, nil); codeOf(t.Context(), err) != codes.NotFound {
		t.Errorf("start of a command that was deleted: %v", err)
	}
	if err := a.delete(t.Context(), old, c, nil); codeOf(t.Context(), err) != codes.NotFound {
		t.Errorf("delete of a command that was deleted: %v", err)
	}
}

// The end of a command that was running when its container was deleted is
// recorded before the container's id is free.
func TestDeleteWaitsForTheEndOfCommands(t *testing.T) {
	t.Parallel()
	c := &ctr{execs: map[string]*proc{}, init: newProc("c", "")}
	running, prepared := newProc("c", "running"), newProc("c", "prepared")
	running.starting = true
	c.execs["running"], c.execs["prepared"] = running, prepared
	close(c.init.done)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.settle(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a command has not ended: %v", err)
	}
	close(running.done)
	if err := c.settle(t.Context()); err != nil {
		t.Error(err)
	}
}

// brokenRegister cannot be extended.
type brokenRegister struct{}

func (brokenRegister) Alg() eventlog.Alg                    { return eventlog.SHA384 }
func (brokenRegister) Number() int                          { return 4 }
func (brokenRegister) Read(context.Context) ([]byte, error) { return nil, errors.New("broken") }
func (brokenRegister) Extend(context.Context, []byte) error { return errors.New("broken") }

// A start that failed stays failed: a host that repeats the call, because it lost
// the answer, must not be told that the container runs.
func TestAStartThatFailedIsNotRepeatedWithSuccess(t *testing.T) {
	t.Parallel()
	guard := podpolicy.NewUnsealedGuard()
	if _, err := guard.Sandbox(podpolicy.SandboxProposal{ID: "pod"}); err != nil {
		t.Fatal(err)
	}
	admission, err := guard.Admit(podpolicy.ContainerProposal{ID: "c", Name: "c", Image: "registry.example/a:b"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admission.Configure(podpolicy.ImageConfig{Cmd: []string{"/bin/true"}}); err != nil {
		t.Fatal(err)
	}
	a := &Agent{log: slog.New(slog.DiscardHandler), events: newEventLog(time.Now), containers: map[string]*ctr{}}
	sb := &sandbox{guard: guard, recorder: measurement.New(brokenRegister{})}
	c, _ := a.reserve("c", [32]byte{})
	c.c, c.init = &container.Container{ID: "c"}, newProc("c", "")
	c.init.process = &container.Process{Process: &reaper.Process{PID: 1 << 30}}
	c.unlock()
	for i := range 3 {
		if err := a.start(t.Context(), c.init, c, sb); err == nil || codeOf(t.Context(), err) != codes.FailedPrecondition {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
