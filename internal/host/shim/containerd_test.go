package shim_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/internal/host/shim/hosttest"
)

// world is a containerd with this program as its shim.
type world struct{ *hosttest.World }

// left lists what shims have left on this node.
func (w *world) left() string {
	out, _ := w.Try("sh", "-c", "find /run/coffer /run/containerd/s /run/c/io.containerd.runtime.v2.task -mindepth 1 2>/dev/null | grep -v '/test$' ; pgrep -a containerd-shim; pgrep -a -f 'sleep 100[0-9]'")
	return strings.TrimSpace(out)
}

func TestContainerd(t *testing.T) {
	for name, programs := range hosttest.Containerds() {
		t.Run(name, func(t *testing.T) {
			w := &world{hosttest.NewWorld(t, programs, shimName)}
			t.Run("run", w.testRun)
			t.Run("restart", w.testRestart)
			t.Run("killed shim", w.testKilledShim)
			t.Run("killed both", w.testKilledBoth)
			t.Run("refused", w.testRefused)
		})
	}
}

const runtimeName = "io.containerd.coffertest.v2"

func (w *world) testRun(t *testing.T) {
	w = &world{w.Inner(t)}
	events, stop := w.Events()
	out := w.Ctr("-n", "test", "run", "--rm", "--runtime", runtimeName, "--rootfs", filepath.Join(w.Dir, "rootfs"), "one", "/bin/echo", "hello from the pod")
	if !strings.Contains(out, "hello from the pod") {
		t.Errorf("output: %q", out)
	}
	if out, err := w.Try(filepath.Join(w.Programs, "ctr"), "-n", "test", "run", "--rm", "--runtime", runtimeName, "--rootfs",
		filepath.Join(w.Dir, "rootfs"), "two", "/bin/sh", "-c", "exit 42"); err == nil || !strings.Contains(err.Error(), "42") {
		t.Errorf("exit status: want 42, got %v (%s)", err, out)
	}
	w.Until("nothing is left", func() bool { return w.left() == "" })
	want := []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}
	w.Until("the events of the first container", func() bool { return len(hosttest.Topics(events.String(), "one")) >= len(want) })
	stop()
	if got := hosttest.Topics(events.String(), "one"); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("events: want %q, got %q", want, got)
	}
}

func (w *world) runDetached(id, seconds string) {
	w.T().Helper()
	w.Ctr("-n", "test", "run", "-d", "--runtime", runtimeName, "--runtime-config-path", "/etc/a.toml", "--rootfs", filepath.Join(w.Dir, "rootfs"), id, "/bin/sleep", seconds)
}

func (w *world) shimPID() int {
	w.T().Helper()
	out := strings.Fields(w.Run("pgrep", "-f", "^"+filepath.Join(w.Dir, "containerd-shim-coffertest-v2")))
	if len(out) != 1 {
		w.T().Fatalf("shims: want one, got %q", out)
	}
	return atoi(out[0])
}

func (w *world) kill(pid int, sig string) {
	w.T().Helper()
	w.Run("kill", "-"+sig, itoa(pid))
}

// testRestart: containerd dies under a running task. The task stays, its events
// come, in order, and exec works.
func (w *world) testRestart(t *testing.T) {
	w = &world{w.Inner(t)}
	w.runDetached("three", "1003")
	shim := w.shimPID()
	w.StopContainerd(syscall.SIGKILL)
	// It ends while nobody listens.
	w.Run("sh", "-c", "kill -9 $(pgrep -f '^/bin/sleep 1003')")
	w.StartContainerd()
	if again := w.shimPID(); again != shim {
		t.Errorf("the shim: was %d, is %d", shim, again)
	}
	w.Until("the task is known to have ended", func() bool { return strings.Contains(w.Ctr("-n", "test", "task", "ls"), "STOPPED") })
	w.Ctr("-n", "test", "task", "rm", "three")
	w.Ctr("-n", "test", "container", "rm", "three")

	w.runDetached("four", "1004")
	w.StopContainerd(syscall.SIGTERM)
	w.StartContainerd()
	if out := w.Ctr("-n", "test", "task", "exec", "--exec-id", "e1", "four", "/bin/echo", "still here"); !strings.Contains(out, "still here") {
		t.Errorf("exec after a restart: %q", out)
	}
	events, stop := w.Events()
	w.Ctr("-n", "test", "task", "kill", "-s", "KILL", "four")
	w.Until("the exit event", func() bool { return len(hosttest.Topics(events.String(), "four")) > 0 })
	stop()
	w.Ctr("-n", "test", "task", "rm", "four")
	w.Ctr("-n", "test", "container", "rm", "four")
	w.Until("nothing is left", func() bool { return w.left() == "" })
	if !strings.Contains(w.Log.String(), "the shim serves") {
		t.Error("the shim's log is not in containerd's")
	}
}

func (w *world) testKilledShim(t *testing.T) {
	w = &world{w.Inner(t)}
	w.runDetached("five", "1005")
	w.kill(w.shimPID(), "KILL")
	w.Until("nothing is left", func() bool { return w.left() == "" })
	w.Ctr("-n", "test", "container", "rm", "five")
}

// testKilledBoth: nobody sees the shim die.
func (w *world) testKilledBoth(t *testing.T) {
	w = &world{w.Inner(t)}
	w.runDetached("six", "1006")
	shim := w.shimPID()
	w.StopContainerd(syscall.SIGKILL)
	w.kill(shim, "KILL")
	w.StartContainerd()
	w.Until("nothing is left", func() bool { return w.left() == "" })
	w.Ctr("-n", "test", "container", "rm", "six")
}

// testRefused: what `start` says is what a person reads.
func (w *world) testRefused(t *testing.T) {
	w = &world{w.Inner(t)}
	out, err := w.Try(filepath.Join(w.Programs, "ctr"), "-n", "test", "run", "-d", "--runtime", runtimeName, "--runtime-config-path", "/broken.toml",
		"--rootfs", filepath.Join(w.Dir, "rootfs"), "seven", "/bin/true")
	if err == nil || !strings.Contains(out, "the guest image is missing") {
		t.Errorf("want the reason, got %q, %v", out, err)
	}
	w.Ctr("-n", "test", "container", "rm", "seven")
	w.Until("nothing is left", func() bool { return w.left() == "" })
}

// TestForgotten: shims that a containerd does not know any more end by themselves,
// and one that comes back copes with a shim that has gone.
func TestForgotten(t *testing.T) {
	for name, programs := range hosttest.Containerds() {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COFFER_SHIM_TEST_LINGER", "3s")
			w := &world{hosttest.NewWorld(t, programs, shimName)}
			// It is killed, and its directories go: a process runs that nobody can reach.
			w.runDetached("five", "1005")
			w.StopContainerd(syscall.SIGKILL)
			w.Run("rm", "-rf", "/run/c")
			w.Until("nothing is left", func() bool { return w.left() == "" })

			// It is away for long, and the process ends meanwhile.
			w.StartContainerd()
			w.Ctr("-n", "test", "container", "rm", "five")
			w.runDetached("six", "1006")
			w.StopContainerd(syscall.SIGTERM)
			w.Run("sh", "-c", "kill -9 $(pgrep -f '^/bin/sleep 1006')")
			w.Until("the shim has ended", func() bool { return !strings.Contains(w.left(), "containerd-shim") })
			w.StartContainerd()
			w.Until("the task is known to have gone", func() bool { return !strings.Contains(w.Ctr("-n", "test", "task", "ls"), "six") })
			w.Ctr("-n", "test", "container", "rm", "six")
			w.Until("nothing is left", func() bool { return w.left() == "" })
			// The same name is free.
			w.runDetached("six", "1006")
			w.Ctr("-n", "test", "task", "rm", "-f", "six")
			w.Ctr("-n", "test", "container", "rm", "six")
			w.Until("nothing is left", func() bool { return w.left() == "" })
		})
	}
}
