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

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
)

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
