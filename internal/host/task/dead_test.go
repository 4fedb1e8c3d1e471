package task

import (
	"context"
	"fmt"
	"strings"
	"testing"

	api "github.com/containerd/containerd/api/runtime/task/v3"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// TestMachineDiesSaidOnce: a machine that dies during a call is its reason, told
// once, and no obstacle to a kill.
func TestMachineDiesSaidOnce(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("old", "sleep")
		end := &vmm.End{Name: "pod", Cause: vmm.Reset, Console: []string{"Out of memory"}}
		stuck := make(chan string, 4)
		w.pod.setHook(func(_ context.Context, name, _ string) error {
			if name != "Create" && name != "Signal" {
				return nil
			}
			stuck <- name
			<-w.pod.dead
			return fmt.Errorf("/coffer.agent.v1.Agent/%s: %w", name, end)
		})
		w.bundle(cri.KindContainer, "web", "sleep")
		creation := async(func() error { return second(w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "web"})) })
		kill := async(func() error { return w.kill("old", "", 9) })
		<-stuck
		<-stuck
		w.pod.die(end)
		if err := <-creation; err == nil || strings.Count(err.Error(), "Out of memory") != 1 || !strings.Contains(err.Error(), "the pod's machine has ended") {
			t.Errorf("create: want the machine's end once, got %v", err)
		}
		if err := <-kill; err != nil {
			t.Errorf("kill: %v", err)
		}
		for _, id := range []string{"old", "pod"} {
			w.wait(id, "")
			w.delete(id, "")
		}
	})
}
