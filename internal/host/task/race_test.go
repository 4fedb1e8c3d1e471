package task

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
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

// A pull of ten minutes holds up nothing else.
func TestSlowCreate(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		let := w.slow("Create")
		created := w.createAsync(t.Context(), "big")
		time.Sleep(10 * time.Minute) //nolint:forbidigo // the bubble's clock does not wait
		begin := time.Now()
		if s := w.state("big", ""); s != "created" {
			t.Errorf("state: got %s", s)
		}
		if s := w.state("web", ""); s != "running" {
			t.Errorf("state: got %s", s)
		}
		if _, err := w.v3.Stats(t.Context(), &api.StatsRequest{ID: "web"}); err != nil {
			t.Error(err)
		}
		if _, err := w.v3.Pids(t.Context(), &api.PidsRequest{ID: "web"}); err != nil {
			t.Error(err)
		}
		if err := w.kill("web", "", 9); err != nil {
			t.Error(err)
		}
		w.wait("web", "")
		w.delete("web", "")
		if _, err := w.v3.Start(t.Context(), &api.StartRequest{ID: "big"}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("start of what is being created: got %v", err)
		}
		if _, err := w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "big"}); status.Code(err) != codes.AlreadyExists {
			t.Errorf("a second Create: got %v", err)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("the others waited %s", d)
		}
		let()
		if err := <-created; err != nil {
			t.Error(err)
		}
		w.expect(w.about("big"), "create big")
	})
}

func TestCreateIsGivenUp(t *testing.T) {
	for _, test := range []struct {
		name string
		// up gives the creation up and returns what must hold.
		up   func(t *testing.T, w *world, cancel context.CancelFunc)
		want string
	}{
		{"caller", func(_ *testing.T, _ *world, cancel context.CancelFunc) { cancel() }, "the caller gave up"},
		{"kill", func(t *testing.T, w *world, _ context.CancelFunc) {
			if err := w.kill("big", "", 9); err != nil {
				t.Error(err)
			}
		}, "killed before it was created"},
		{"delete", func(t *testing.T, w *world, _ context.CancelFunc) {
			if _, err := w.v3.Delete(t.Context(), &api.DeleteRequest{ID: "big"}); status.Code(err) != codes.NotFound {
				t.Errorf("Delete: got %v", err)
			}
			if s := w.state("big", ""); s != "none" {
				t.Errorf("it is still there after Delete: %s", s)
			}
		}, "deleted before it was created"},
		{"machine", func(_ *testing.T, w *world, _ context.CancelFunc) { w.pod.die(errors.New("it burns")) }, "it burns"},
		{"deadline", func(*testing.T, *world, context.CancelFunc) { time.Sleep(time.Hour) }, "runtimeRequestTimeout"}, //nolint:forbidigo // the bubble's clock does not wait
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.sandbox()
				w.slow("Create")
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				created := w.createAsync(ctx, "big")
				synctest.Wait()
				waiting := async(func() error { return second(w.v3.Wait(t.Context(), &api.WaitRequest{ID: "big"})) })
				synctest.Wait()
				test.up(t, w, cancel)
				err := <-created
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("expected %q, got %v", test.want, err)
				}
				if err := <-waiting; status.Code(err) != codes.NotFound {
					t.Errorf("Wait: expected NotFound, got %v", err)
				}
				synctest.Wait()
				if s := w.state("big", ""); s != "none" {
					t.Errorf("it is still there: %s", s)
				}
				w.expect(w.about("big"))
				if test.name == "machine" {
					return
				}
				// The id is free again.
				w.pod.setHook(func(context.Context, string, string) error { return nil })
				w.create("big")
				w.expect(w.about("big"), "create big")
			})
		})
	}
}

// A retry under the same id waits until the first attempt is undone.
func TestCreateAgainWhileUndone(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		undoing := make(chan struct{})
		w.pod.setHook(func(ctx context.Context, name, _ string) error {
			if name == "Create" {
				<-ctx.Done()
				<-undoing // the guest takes its time
				return context.Cause(ctx)
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		first := w.createAsync(ctx, "big")
		synctest.Wait()
		cancel()
		if err := <-first; err == nil {
			t.Error("no error for a caller that gave up")
		}
		again := w.createAsync(t.Context(), "big")
		synctest.Wait()
		select {
		case err := <-again:
			t.Fatalf("the retry did not wait: %v", err)
		default:
		}
		w.pod.setHook(func(context.Context, string, string) error { return nil })
		close(undoing)
		if err := <-again; err != nil {
			t.Error(err)
		}
		w.start("big", "")
		w.expect(w.about("big"), "create big", "start big")
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

// The guest finishes a creation that nobody wants any more.
func TestCreateCompletesTooLate(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		let := w.gate("Create")
		created := w.createAsync(t.Context(), "big")
		synctest.Wait()
		if err := w.kill("big", "", 9); err != nil {
			t.Error(err)
		}
		let()
		if err := <-created; err == nil || !strings.Contains(err.Error(), "killed before it was created") {
			t.Errorf("got %v", err)
		}
		if w.pod.called("Delete big") != 1 {
			t.Errorf("the guest still has it: %q", w.pod.calls)
		}
		w.expect(w.about("big"))
	})
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

// An exit code is what fits into one.
func TestExitCodeIsBounded(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sh", "-c", "exit 1000000")
		if r := w.wait("web", ""); r.GetExitStatus() != 255 {
			t.Errorf("got %v", r)
		}
	})
}

func TestBootFails(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.bundle(cri.KindSandbox, "pod")
		w.pod.setHook(func(_ context.Context, call, _ string) error {
			if call == "Boot" {
				return errors.New("QEMU did not start; console:\n    no such firmware")
			}
			return nil
		})
		_, err := w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "pod"})
		if err == nil || !strings.Contains(err.Error(), "no such firmware") {
			t.Errorf("got %v", err)
		}
		if w.pod.closed != 1 {
			t.Errorf("the pod was closed %d times", w.pod.closed)
		}
		if _, err := w.v3.Delete(t.Context(), &api.DeleteRequest{ID: "pod"}); status.Code(err) != codes.NotFound {
			t.Errorf("Delete: got %v", err)
		}
		_, _ = w.v3.Shutdown(t.Context(), &api.ShutdownRequest{})
		synctest.Wait()
		if w.shutdowns != 1 {
			t.Error("the shim of a pod that did not boot does not end")
		}
		w.expect(w.told())
		// Another attempt, in the same shim.
		w.pod = newFakePod()
		w.create("pod")
	})
}

func TestBootIsGivenUp(t *testing.T) {
	for _, kind := range []cri.Kind{cri.KindSandbox, cri.KindSingle} {
		for _, call := range []string{"Boot", "Create"} {
			if kind == cri.KindSandbox && call == "Create" {
				continue
			}
			t.Run(fmt.Sprint(kind, call), func(t *testing.T) {
				in(t, func(t *testing.T, w *world) {
					w.slow(call)
					w.bundle(kind, "pod", "sleep")
					created := async(func() error { return second(w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "pod"})) })
					synctest.Wait()
					if err := w.kill("pod", "", 15); err != nil {
						t.Error(err)
					}
					if err := <-created; err == nil || !strings.Contains(err.Error(), "killed before it was created") {
						t.Errorf("got %v", err)
					}
					if w.pod.closed != 1 {
						t.Errorf("the pod was closed %d times", w.pod.closed)
					}
					w.expect(w.told())
				})
			})
		}
	}
}

// The machine dies while a call of each kind is under way: everything ends with
// 137, whatever the call says, and everything can be deleted.
func TestMachineDiesDuring(t *testing.T) {
	for _, call := range []string{"Create", "Open", "Start", "Exec", "Signal", "Wait", "Stats", "Exited", "Delete", "Resize", "Update"} {
		t.Run(call, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.sandbox()
				w.run("old", "sleep")
				stuck := make(chan struct{}, 16)
				w.pod.setHook(func(ctx context.Context, name, _ string) error {
					if name != call {
						return nil
					}
					stuck <- struct{}{}
					select {
					case <-w.pod.dead:
						return errors.New("connection lost")
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				})
				life := async(func() error {
					w.bundle(cri.KindContainer, "web", "sleep")
					if err := second(w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "web", Terminal: true})); err != nil {
						return err
					}
					if err := second(w.v3.Start(t.Context(), &api.StartRequest{ID: "web"})); err != nil {
						return err
					}
					_ = second(w.v3.ResizePty(t.Context(), &api.ResizePtyRequest{ID: "web", Width: 1, Height: 1}))
					_ = second(w.v3.Stats(t.Context(), &api.StatsRequest{ID: "web"}))
					_ = second(w.v3.Update(t.Context(), &api.UpdateTaskRequest{ID: "web", Resources: anyOf(t, "LinuxResources", map[string]any{"pids": map[string]any{"limit": 5}})}))
					if err := w.exec("web", "e1", "true"); err == nil {
						_ = second(w.v3.Start(t.Context(), &api.StartRequest{ID: "web", ExecID: "e1"}))
						_ = second(w.v3.Wait(t.Context(), &api.WaitRequest{ID: "web", ExecID: "e1"}))
					}
					_ = w.kill("web", "", 9)
					_ = second(w.v3.Wait(t.Context(), &api.WaitRequest{ID: "web"}))
					return second(w.v3.Delete(t.Context(), &api.DeleteRequest{ID: "web"}))
				})
				<-stuck
				begin := time.Now()
				w.pod.die(errors.New("it burns"))
				if r := w.wait("old", ""); r.GetExitStatus() != 137 {
					t.Errorf("old: got %v", r)
				}
				if r := w.wait("pod", ""); r.GetExitStatus() != 137 {
					t.Errorf("pod: got %v", r)
				}
				err := <-life
				if d := time.Since(begin); d > 2*time.Second {
					t.Errorf("it took %s", d)
				}
				got := w.about("web")
				if len(got) > 0 && (got[0] != "create web" || !strings.HasPrefix(got[len(got)-1], "delete web") && !strings.HasPrefix(got[len(got)-1], "exit web ")) {
					t.Errorf("events: %q (%v)", got, err)
				}
				if w.state("web", "") != "none" {
					w.delete("web", "")
				}
				w.delete("old", "")
				w.delete("pod", "")
			})
		})
	}
}

// A guest that does not answer keeps nobody from removing its pod.
func TestGuestHangs(t *testing.T) {
	for _, call := range []string{"Signal", "Exited", "Delete", "Stats", "Wait"} {
		t.Run(call, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.sandbox()
				w.slow(call)
				w.run("web", "sleep")
				_ = w.kill("web", "", 9)
				if r := w.wait("web", ""); r.GetExitStatus() != 137 {
					t.Errorf("got %v", r)
				}
				w.delete("web", "")
				if err := w.kill("pod", "", 9); err != nil {
					t.Error(err)
				}
				w.delete("pod", "")
				w.expect(w.told(), "create pod", "start pod", "create web", "start web", "exit web 137", "delete web 137", "exit pod 137", "delete pod 137")
			})
		})
	}
}

// A guest that lies about how a process ends.
func TestGuestLies(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.pod.setHook(func(_ context.Context, call, _ string) error {
			if call == "Wait" {
				return status.Error(codes.NotFound, "what process?")
			}
			return nil
		})
		w.run("web", "sleep")
		if r := w.wait("web", ""); r.GetExitStatus() != 255 {
			t.Errorf("got %v", r)
		}
		synctest.Wait()
		if w.pod.called("Signal web 9") != 1 {
			t.Errorf("it was not killed: %q", w.pod.calls)
		}
		w.delete("web", "")
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

// Out of memory is told before the exit, and not more often than once a second.
func TestOOM(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		for i := range 100 {
			w.pod.events <- &agentapi.Event{Sequence: uint64(i + 1), Body: &agentapi.Event_Oom{Oom: &agentapi.OOM{ContainerId: "web"}}}
		}
		w.pod.events <- &agentapi.Event{Sequence: 101, Body: &agentapi.Event_Oom{Oom: &agentapi.OOM{ContainerId: "nobody"}}}
		synctest.Wait()
		w.expect(w.about("web"), "create web", "start web", "oom web")
		w.run("side", "sh", "-c", "exit 9")
		w.wait("side", "")
		w.run("hungry", "sleep")
		p, _ := w.pod.find("hungry", "")
		w.pod.mu.Lock()
		p.reason = "oom"
		w.pod.mu.Unlock()
		w.pod.end(p, 137)
		w.wait("hungry", "")
		w.expect(w.about("hungry"), "create hungry", "start hungry", "oom hungry", "exit hungry 137")
	})
}

func TestAdopt(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.pod.booted = true
		if err := w.s.Adopt(w.pod); err != nil {
			t.Fatal(err)
		}
		if err := w.s.Adopt(w.pod); err == nil {
			t.Error("two pods in one shim")
		}
		w.run("web", "sleep")
		_ = w.kill("web", "", 9)
		w.wait("web", "")
		w.delete("web", "")
		_, _ = w.v3.Shutdown(t.Context(), &api.ShutdownRequest{ID: "web"})
		synctest.Wait()
		if w.shutdowns != 0 {
			t.Error("the shim ends under the Sandbox API's pod")
		}
		w.run("side", "sleep")
		w.pod.die(nil) // StopSandbox
		if r := w.wait("side", ""); r.GetExitStatus() != 137 {
			t.Errorf("got %v", r)
		}
		w.delete("side", "")
		if w.pod.closed != 0 {
			t.Error("the pod was closed by somebody else than its maker")
		}
		w.s.Release(w.pod)
		_, _ = w.v3.Shutdown(t.Context(), &api.ShutdownRequest{})
		synctest.Wait()
		if w.shutdowns != 1 {
			t.Error("the shim does not end")
		}
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

// A guest that reads nothing any more: calls to it do not come back even when
// their context ends.
func TestGuestIsDeaf(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		begin := time.Now()
		w.pod.setHook(func(_ context.Context, call, _ string) error {
			if call != "Close" {
				<-w.pod.dead
			}
			return errDead
		})
		for range 3 {
			if _, err := w.v3.Stats(t.Context(), &api.StatsRequest{ID: "web"}); err == nil {
				t.Error("figures out of nothing")
			}
		}
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("Stats took %s", d)
		}
		_ = w.kill("web", "", 9)
		if r := w.wait("web", ""); r.GetExitStatus() != 137 {
			t.Errorf("got %v", r)
		}
		w.delete("web", "")
		if err := w.kill("pod", "", 9); err != nil {
			t.Error(err)
		}
		w.delete("pod", "")
		if d := time.Since(begin); d > 3*time.Minute {
			t.Errorf("it took %s", d)
		}
		w.expect(w.about("web"), "create web", "start web", "exit web 137", "delete web 137")
	})
}
