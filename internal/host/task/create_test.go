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

	"github.com/coffer-project/coffer/internal/host/cri"
)

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
