package task

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/host/cri"
)

// slow has calls of a name wait until they are let go or given up.
func (w *world) slow(call string) (let func()) {
	gate := make(chan struct{})
	w.pod.setHook(func(ctx context.Context, name, _ string) error {
		if name != call {
			return nil
		}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return func() { close(gate) }
}

// async runs a call in the background.
func async(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func (w *world) createAsync(ctx context.Context, id string) <-chan error {
	w.bundle(cri.KindContainer, id, "sleep")
	return async(func() error {
		_, err := w.v3.Create(ctx, &api.CreateTaskRequest{ID: id, Bundle: "/b/" + id})
		return err
	})
}

// gate has calls of a name wait, whatever becomes of their caller, and then
// succeed.
func (w *world) gate(call string) (let func()) {
	gate := make(chan struct{})
	w.pod.mu.Lock()
	w.pod.stubborn = true
	w.pod.mu.Unlock()
	w.pod.setHook(func(_ context.Context, name, _ string) error {
		if name == call {
			<-gate
		}
		return nil
	})
	return func() {
		w.pod.setHook(func(context.Context, string, string) error { return nil })
		close(gate)
	}
}

// The guest finishes a start after the end of its machine was recorded.
func TestStartCompletesTooLate(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.bundle(cri.KindContainer, "web", "true")
		w.create("web")
		let := w.gate("Start")
		started := async(func() error { return second(w.v3.Start(t.Context(), &api.StartRequest{ID: "web"})) })
		synctest.Wait()
		w.pod.die(errors.New("it burns"))
		if r := w.wait("web", ""); r.GetExitStatus() != 137 {
			t.Errorf("got %v", r)
		}
		let()
		<-started
		synctest.Wait()
		if s := w.state("web", ""); s != "stopped" {
			t.Errorf("it has come back: %s", s)
		}
		w.expect(w.about("web"), "create web", "exit web 137")
	})
}

// The container ends while an exec is admitted.
func TestContainerEndsDuringExec(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		let := w.gate("Exec")
		exec := async(func() error { return w.exec("web", "e", "true") })
		synctest.Wait()
		_ = w.kill("web", "", 9)
		w.wait("web", "")
		let()
		<-exec
		if w.state("web", "e") != "none" {
			if r := w.wait("web", "e"); r.GetExitStatus() != 137 {
				t.Errorf("got %v", r)
			}
		}
		if _, err := w.v3.Start(t.Context(), &api.StartRequest{ID: "web", ExecID: "e"}); err == nil {
			t.Error("started in a container that has ended")
		}
		w.delete("web", "")
	})
}

// An end that is being recorded is recorded once, whatever else ends it.
func TestEndsOnce(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		let := w.slow("Exited") // between the end and its recording
		w.run("web", "sh", "-c", "exit 4")
		synctest.Wait()
		if s := w.state("web", ""); s != "running" {
			t.Errorf("got %s", s)
		}
		if err := w.kill("web", "", 9); err != nil {
			t.Error(err)
		}
		p, _ := w.s.container("web")
		w.s.finish(p, p.init, killedStatus)
		let()
		if r := w.wait("web", ""); r.GetExitStatus() != 4 {
			t.Errorf("got %v", r)
		}
		w.pod.die(errors.New("it burns"))
		w.wait("pod", "")
		w.expect(w.about("web"), "create web", "start web", "exit web 4")
	})
}

func TestKillDuringStart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.bundle(cri.KindContainer, "web", "sleep")
		w.create("web")
		let := w.slow("Start")
		started := async(func() error { return second(w.v3.Start(t.Context(), &api.StartRequest{ID: "web"})) })
		synctest.Wait()
		if _, err := w.v3.Start(t.Context(), &api.StartRequest{ID: "web"}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a second Start: got %v", err)
		}
		killed := async(func() error { return w.kill("web", "", 9) })
		synctest.Wait()
		let()
		if err := errors.Join(<-started, <-killed); err != nil {
			t.Error(err)
		}
		w.wait("web", "")
		w.delete("web", "")
		w.expect(w.about("web"), "create web", "start web", "exit web 137", "delete web 137")
	})
}

// A caller that gives up a start does not decide how it ends.
func TestStartIsGivenUp(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.bundle(cri.KindContainer, "web", "sleep")
		w.create("web")
		let := w.slow("Start")
		ctx, cancel := context.WithCancel(t.Context())
		started := async(func() error { return second(w.v3.Start(ctx, &api.StartRequest{ID: "web"})) })
		synctest.Wait()
		cancel()
		if err := <-started; status.Code(err) != codes.Canceled {
			t.Errorf("got %v", err)
		}
		let()
		synctest.Wait()
		if s := w.state("web", ""); s != "running" {
			t.Errorf("got %s", s)
		}
		w.expect(w.about("web"), "create web", "start web")
	})
}

func TestExecIsGivenUp(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		w.slow("Exec")
		ctx, cancel := context.WithCancel(t.Context())
		exec := async(func() error {
			return second(w.v3.Exec(ctx, &api.ExecProcessRequest{ID: "web", ExecID: "e", Spec: anyOf(t, "Process", map[string]any{"args": []string{"true"}, "cwd": "/"})}))
		})
		synctest.Wait()
		cancel()
		if err := <-exec; status.Code(err) != codes.Canceled {
			t.Errorf("got %v", err)
		}
		if w.pod.called("Delete web/e") != 1 {
			t.Errorf("the guest may still have it: %q", w.pod.calls)
		}
		w.pod.setHook(func(context.Context, string, string) error { return nil })
		if err := w.exec("web", "e", "true"); err != nil {
			t.Errorf("the id is not free: %v", err)
		}
		w.expect(w.about("web"), "create web", "start web", "exec-added web/e")
	})
}

// The sandbox is killed under running containers.
func TestSandboxGoesFirst(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		if err := w.kill("pod", "", 9); err != nil {
			t.Error(err)
		}
		w.delete("pod", "")
		if r := w.wait("web", ""); r.GetExitStatus() != 137 {
			t.Errorf("got %v", r)
		}
		w.delete("web", "")
		if strings.Contains(w.log.String(), "level=ERROR") {
			t.Errorf("an end that was asked for is logged as a fault:\n%s", w.log)
		}
	})
}

// TaskExit of the sandbox is told before the machine is taken down, and Delete
// waits for that, again if it has to.
func TestSlowTeardown(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		let := w.slow("Close")
		if err := w.kill("pod", "", 9); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		w.expect(w.told(), "create pod", "start pod", "exit pod 137")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.v3.Delete(ctx, &api.DeleteRequest{ID: "pod"}); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
		let()
		w.delete("pod", "")
		w.expect(w.told(), "create pod", "start pod", "exit pod 137", "delete pod 137")
	})
}

func TestConcurrentDeletes(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "true")
		w.wait("web", "")
		let := w.slow("Delete")
		deleted := make(chan error, 3)
		for range 3 {
			go func() { deleted <- second(w.v3.Delete(t.Context(), &api.DeleteRequest{ID: "web"})) }()
		}
		synctest.Wait()
		let()
		var ok int
		for range 3 {
			if err := <-deleted; err == nil {
				ok++
			} else if status.Code(err) != codes.NotFound {
				t.Errorf("got %v", err)
			}
		}
		if ok != 1 {
			t.Errorf("%d of 3 deleted it", ok)
		}
		w.expect(w.about("web"), "create web", "start web", "exit web 0", "delete web 0")
	})
}

// Close with everything under way leaves no goroutine: the bubble would tell.
func TestCloseUnderWay(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		w.slow("Create")
		created := w.createAsync(t.Context(), "big")
		synctest.Wait()
		w.close()
		if err := <-created; err == nil {
			t.Error("a creation outlived its shim")
		}
		w.expect(w.about("web"), "create web", "start web", "exit web 137")
		if _, err := w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "new"}); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		if _, err := w.v3.Start(t.Context(), &api.StartRequest{ID: "web"}); err == nil {
			t.Error("started in a shim that has ended")
		}
	})
}
