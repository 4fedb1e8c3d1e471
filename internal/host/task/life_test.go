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

func TestLifeOfAPod(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sh", "-c", "exit 3")
		before := time.Now()
		r := w.wait("web", "")
		if r.GetExitStatus() != 3 {
			t.Errorf("status: expected 3, got %d", r.GetExitStatus())
		}
		if at := r.GetExitedAt().AsTime(); at.After(time.Now()) || at.Before(before) {
			t.Errorf("the guest's lie about time went through: %s", at)
		}
		if again := w.wait("web", ""); again.GetExitStatus() != 3 || !again.GetExitedAt().AsTime().Equal(r.GetExitedAt().AsTime()) {
			t.Errorf("a second Wait: got %v", again)
		}
		if d := w.delete("web", ""); d.GetExitStatus() != 3 || d.GetPid() != 4242 || !d.GetExitedAt().AsTime().Equal(r.GetExitedAt().AsTime()) {
			t.Errorf("Delete: got %v", d)
		}
		if s := w.state("web", ""); s != "none" {
			t.Errorf("state after Delete: got %s", s)
		}
		if _, err := w.v3.Shutdown(t.Context(), &api.ShutdownRequest{ID: "web"}); err != nil {
			t.Error(err)
		}
		if err := w.kill("pod", "", 9); err != nil {
			t.Error(err)
		}
		if d := w.delete("pod", ""); d.GetExitStatus() != 137 {
			t.Errorf("the sandbox: got %v", d)
		}
		if w.pod.closed != 1 {
			t.Errorf("the pod was closed %d times", w.pod.closed)
		}
		w.expect(w.told(), "create pod", "start pod", "create web", "start web", "exit web 3", "delete web 3", "exit pod 137", "delete pod 137")
		synctest.Wait()
		if w.shutdowns != 0 {
			t.Error("Shutdown was not ignored while the sandbox was there")
		}
		_, _ = w.v3.Shutdown(t.Context(), &api.ShutdownRequest{ID: "pod"})
		synctest.Wait()
		if w.shutdowns != 1 {
			t.Error("Shutdown was ignored when nothing was left")
		}
	})
}

func TestSingleContainer(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.bundle(cri.KindSingle, "one", "false")
		w.create("one")
		w.start("one", "")
		w.wait("one", "")
		if d := w.delete("one", ""); d.GetExitStatus() != 1 {
			t.Errorf("got %v", d)
		}
		w.expect(w.told(), "create one", "start one", "exit one 1", "delete one 1")
		if w.pod.closed != 1 || w.pod.called("Boot one") != 1 {
			t.Errorf("calls: %q", w.pod.calls)
		}
	})
}

func TestExec(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		if err := w.exec("web", "e1", "sh", "-c", "exit 5"); err != nil {
			t.Fatal(err)
		}
		if err := w.exec("web", "e1", "true"); status.Code(err) != codes.AlreadyExists {
			t.Errorf("the same id: got %v", err)
		}
		w.start("web", "e1")
		if r := w.wait("web", "e1"); r.GetExitStatus() != 5 {
			t.Errorf("got %v", r)
		}
		if d := w.delete("web", "e1"); d.GetExitStatus() != 5 {
			t.Errorf("got %v", d)
		}
		w.expect(w.about("web"), "create web", "start web", "exec-added web/e1", "exec-started web/e1", "exit web/e1 5")
		if err := w.exec("pod", "e2", "true"); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "sandbox") {
			t.Errorf("exec in the sandbox: got %v", err)
		}
	})
}

// The exit of a container is the last of its exits.
func TestExecEndsBeforeItsContainer(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		for _, e := range []string{"e1", "e2"} {
			if err := w.exec("web", e, "sleep"); err != nil {
				t.Fatal(err)
			}
		}
		w.start("web", "e1")
		if err := w.kill("web", "", 15); err != nil {
			t.Fatal(err)
		}
		w.wait("web", "")
		w.expect(w.about("web"), "create web", "start web", "exec-added web/e1", "exec-added web/e2", "exec-started web/e1", "exit web/e1 137", "exit web 143")
		// The one that was never started has an end all the same.
		if r := w.wait("web", "e2"); r.GetExitStatus() != 137 {
			t.Errorf("got %v", r)
		}
		if _, err := w.v3.Start(t.Context(), &api.StartRequest{ID: "web", ExecID: "e2"}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("start in a container that has ended: got %v", err)
		}
		if err := w.exec("web", "e3", "true"); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("exec in a container that has ended: got %v", err)
		}
		w.delete("web", "e1")
		w.delete("web", "")
	})
}

func TestKill(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.bundle(cri.KindContainer, "web", "sleep")
		w.create("web")
		if err := w.kill("web", "", 1); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("SIGHUP before the start: got %v", err)
		}
		if err := w.kill("web", "", 65); status.Code(err) != codes.InvalidArgument {
			t.Errorf("no signal: got %v", err)
		}
		// Killed before the start.
		if err := w.kill("web", "", 9); err != nil {
			t.Error(err)
		}
		if r := w.wait("web", ""); r.GetExitStatus() != 137 {
			t.Errorf("got %v", r)
		}
		if _, err := w.v3.Start(t.Context(), &api.StartRequest{ID: "web"}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("start of what was killed: got %v", err)
		}
		for _, signal := range []uint32{9, 15} {
			if err := w.kill("web", "", signal); err != nil {
				t.Errorf("signal %d to what has ended: got %v", signal, err)
			}
		}
		if err := w.kill("web", "", 1); status.Code(err) != codes.NotFound {
			t.Errorf("SIGHUP to what has ended: got %v", err)
		}
		w.delete("web", "")
		w.expect(w.about("web"), "create web", "exit web 137", "delete web 137")
		if err := w.kill("web", "", 9); status.Code(err) != codes.NotFound {
			t.Errorf("SIGKILL to what was deleted: got %v", err)
		}
		// What a pause container ignores.
		if err := w.kill("pod", "", 10); err != nil || w.state("pod", "") != "running" {
			t.Errorf("SIGUSR1 to the sandbox: got %v, %s", err, w.state("pod", ""))
		}
	})
}

func TestDeleteOfWhatRuns(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		_, err := w.v3.Delete(t.Context(), &api.DeleteRequest{ID: "web"})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "kill it first") {
			t.Errorf("got %v", err)
		}
	})
}

// A container that was created but not started can be deleted.
func TestDeleteBeforeStart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.bundle(cri.KindContainer, "web", "sleep")
		w.create("web")
		w.delete("web", "")
		w.expect(w.about("web"), "create web", "exit web 137", "delete web 137")
		if w.pod.called("Delete web") != 1 {
			t.Errorf("calls: %q", w.pod.calls)
		}
	})
}

func TestStartFails(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.bundle(cri.KindContainer, "web", "sleep")
		w.create("web")
		refused, err := status.New(codes.PermissionDenied, "refused").WithDetails(&agentapi.Refusal{
			Rule: "container.args", Path: "args[1]", Expected: `"a"`, Got: "\"b\x1b[31m\"", Help: "run\ncoffer prepare again",
		})
		if err != nil {
			t.Fatal(err)
		}
		w.pod.setHook(func(_ context.Context, call, _ string) error {
			if call == "Start" {
				return refused.Err()
			}
			return nil
		})
		_, err = w.v3.Start(t.Context(), &api.StartRequest{ID: "web"})
		want := `start container "web": the guest refused it (rule container.args): args[1]: expected "a", got "b` + "\uFFFD" + `[31m"; run coffer prepare again`
		if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != want {
			t.Errorf("expected %q\ngot      %v", want, err)
		}
		w.pod.setHook(func(context.Context, string, string) error { return nil })
		if _, err := w.v3.Start(t.Context(), &api.StartRequest{ID: "web"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "could not be started before") {
			t.Errorf("a second Start: got %v", err)
		}
		// Nobody waits forever for what could not be started.
		if r := w.wait("web", ""); r.GetExitStatus() != 126 {
			t.Errorf("got %v", r)
		}
		w.delete("web", "")
		w.expect(w.about("web"), "create web", "exit web 126", "delete web 126")
	})
}

func TestUnknown(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		for name, err := range map[string]error{
			"state":  second(w.v3.State(ctx, &api.StateRequest{ID: "x"})),
			"start":  second(w.v3.Start(ctx, &api.StartRequest{ID: "x"})),
			"wait":   second(w.v3.Wait(ctx, &api.WaitRequest{ID: "x"})),
			"delete": second(w.v3.Delete(ctx, &api.DeleteRequest{ID: "x"})),
			"stats":  second(w.v3.Stats(ctx, &api.StatsRequest{ID: "x"})),
		} {
			if status.Code(err) != codes.NotFound {
				t.Errorf("%s: expected NotFound, got %v", name, err)
			}
		}
		if r, err := w.v3.Connect(ctx, &api.ConnectRequest{ID: "x"}); err != nil || r.GetShimPid() == 0 {
			t.Errorf("Connect: got %v, %v", r, err)
		}
		w.bundle(cri.KindContainer, "web", "true")
		if _, err := w.v3.Create(ctx, &api.CreateTaskRequest{ID: "web"}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a container without its pod: got %v", err)
		}
		if _, err := w.v3.Create(ctx, &api.CreateTaskRequest{ID: "broken"}); err == nil || !strings.Contains(err.Error(), "it is broken") {
			t.Errorf("a broken bundle: got %v", err)
		}
		if _, err := w.v3.Create(ctx, &api.CreateTaskRequest{ID: "../x"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a broken id: got %v", err)
		}
		for name, err := range map[string]error{
			"pause":      second(w.v3.Pause(ctx, &api.PauseRequest{ID: "x"})),
			"resume":     second(w.v3.Resume(ctx, &api.ResumeRequest{ID: "x"})),
			"checkpoint": second(w.v3.Checkpoint(ctx, &api.CheckpointTaskRequest{ID: "x"})),
		} {
			if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "confidential") {
				t.Errorf("%s: expected Unimplemented with a reason, got %v", name, err)
			}
		}
		w.expect(w.told())
	})
}

func second[T any](_ T, err error) error { return err }

func TestMachineDiesWithEverything(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		w.run("side", "sleep")
		if err := w.exec("web", "e1", "sleep"); err != nil {
			t.Fatal(err)
		}
		w.start("web", "e1")
		w.bundle(cri.KindContainer, "idle", "sleep")
		w.create("idle")
		begin := time.Now()
		w.pod.die(errors.New("QEMU was killed; console: panic"))
		for _, id := range []string{"pod", "web", "side", "idle"} {
			if r := w.wait(id, ""); r.GetExitStatus() != 137 {
				t.Errorf("%s: got %v", id, r)
			}
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("the ends came after %s", d)
		}
		w.expect(w.about("web"), "create web", "start web", "exec-added web/e1", "exec-started web/e1", "exit web/e1 137", "exit web 137")
		if !strings.Contains(w.log.String(), "QEMU was killed") {
			t.Errorf("the log does not say why:\n%s", w.log)
		}
		if w.pod.called("Exited web") != 1 || w.pod.called("Exited idle") != 0 {
			t.Errorf("calls: %q", w.pod.calls)
		}
		if all := w.told(); all[len(all)-1] != "exit pod 137" {
			t.Errorf("the sandbox's end is not the last: %q", all)
		}
		w.bundle(cri.KindContainer, "late", "sleep")
		if _, err := w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "late"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "QEMU was killed") {
			t.Errorf("a container for a dead pod: got %v", err)
		}
		for _, id := range []string{"web", "side", "idle", "pod"} {
			if d := w.delete(id, ""); d.GetExitStatus() != 137 {
				t.Errorf("%s: got %v", id, d)
			}
		}
		if w.pod.closed != 1 {
			t.Errorf("the pod was closed %d times", w.pod.closed)
		}
	})
}
