package shim_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// programsVariable is the directory that has containerd-2.2 and containerd-2.4,
// each with containerd and ctr. The distribution's containerd is on PATH.
const programsVariable = "COFFER_K8S_BIN"

// containerds are the daemons, by the directory of their programs.
func containerds() map[string]string {
	dir := os.Getenv(programsVariable)
	all := map[string]string{"distribution": "", "2.2": "", "2.4": ""}
	if path, err := exec.LookPath("containerd"); err == nil {
		all["distribution"] = filepath.Dir(path)
	}
	if dir != "" {
		all["2.2"], all["2.4"] = filepath.Join(dir, "containerd-2.2"), filepath.Join(dir, "containerd-2.4")
	}
	return all
}

// absent skips a test that needs a program, or fails it where it should be there.
func absent(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COFFER_REQUIRE_K8S") != "" {
		t.Fatalf("%s, and COFFER_REQUIRE_K8S is set", why)
	}
	t.Skip(why)
}

// world has namespaces of its own (mounts, processes, network) in which a
// containerd and its shims run. They all end with it.
type world struct {
	t        *testing.T
	programs string // of containerd
	dir      string
	init     *exec.Cmd
	daemon   *exec.Cmd
	log      *logBuffer
}

type logBuffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.String()
}

func newWorld(t *testing.T, programs string) *world {
	t.Helper()
	if os.Getuid() != 0 {
		absent(t, "containerd needs root")
	}
	if _, err := os.Stat(filepath.Join(programs, "ctr")); programs == "" || err != nil {
		absent(t, "this containerd is not installed (PATH, "+programsVariable+")")
	}
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, programs: programs, dir: dir, log: &logBuffer{}}
	t.Cleanup(w.close)
	installShim(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.startInit()
	w.run("mount", "--make-rprivate", "/")
	w.run("mount", "-t", "proc", "proc", "/proc")
	w.run("mount", "-t", "tmpfs", "tmpfs", "/run")
	w.writeConfig()
	w.startContainerd()
	return w
}

// startInit starts the first process of the namespaces, this program.
func (w *world) startInit() {
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	w.init = exec.Command(self)
	w.init.Env = append(os.Environ(), envInit+"=1")
	w.init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET}
	out, err := w.init.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.init.Start(); err != nil {
		w.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
		w.t.Fatalf("the first process: %q, %v", line, err)
	}
}

func (w *world) writeConfig() {
	version := 3
	if w.programs == containerds()["distribution"] {
		version = 2
	}
	config := fmt.Sprintf(`version = %d
root = %q
state = "/run/c"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/c.sock"
[ttrpc]
  address = "/run/c.sock.ttrpc"
[debug]
  level = "debug"
`, version, filepath.Join(w.dir, "root"))
	if err := os.WriteFile(filepath.Join(w.dir, "config.toml"), []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// command runs a program in the namespaces.
func (w *world) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", itoa(w.init.Process.Pid), "-m", "-p", "-n", name}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+w.dir+":/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_ADDRESS=/run/c.sock")
	cmd.Dir = w.dir
	return cmd
}

func (w *world) run(name string, args ...string) string {
	w.t.Helper()
	out, err := w.try(name, args...)
	if err != nil {
		w.t.Fatalf("%s %q: %v\n%s\ncontainerd:\n%s", name, args, err, out, tail(w.log.String()))
	}
	return out
}

func (w *world) try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	out, err := w.command(ctx, name, args...).CombinedOutput()
	return string(out), err
}

func (w *world) ctr(args ...string) string {
	w.t.Helper()
	return w.run(filepath.Join(w.programs, "ctr"), args...)
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}

func (w *world) startContainerd() {
	w.t.Helper()
	w.daemon = w.command(context.Background(), filepath.Join(w.programs, "containerd"), "--config", filepath.Join(w.dir, "config.toml"))
	w.daemon.Stdout, w.daemon.Stderr = w.log, w.log
	if err := w.daemon.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.until("containerd answers", func() bool {
		_, err := w.try(filepath.Join(w.programs, "ctr"), "version")
		return err == nil
	})
}

// stopContainerd ends the daemon; its shims go on.
func (w *world) stopContainerd(sig syscall.Signal) {
	w.t.Helper()
	// nsenter's child is the daemon.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", w.daemon.Process.Pid, w.daemon.Process.Pid))
	if err != nil || len(children) == 0 {
		w.t.Fatalf("containerd's process: %q, %v", children, err)
	}
	if err := syscall.Kill(atoi(string(children)), sig); err != nil {
		w.t.Fatal(err)
	}
	_ = w.daemon.Wait()
}

func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	const limit, pause = time.Minute, 50 * time.Millisecond
	for end := time.Now().Add(limit); !is(); {
		if time.Now().After(end) {
			w.t.Fatalf("not within %s: %s\ncontainerd:\n%s", limit, what, tail(w.log.String()))
		}
		<-time.After(pause)
	}
}

// close ends everything; nothing survives the first process.
func (w *world) close() {
	if w.init != nil && w.init.Process != nil {
		_ = w.init.Process.Kill()
		_ = w.init.Wait()
	}
	if w.daemon != nil {
		_ = w.daemon.Wait()
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Error(err)
	}
}

// left lists what shims have left on this node.
func (w *world) left() string {
	out, _ := w.try("sh", "-c", "find /run/coffer /run/containerd/s /run/c/io.containerd.runtime.v2.task -mindepth 1 2>/dev/null | grep -v '/test$' ; pgrep -a containerd-shim; pgrep -a -f 'sleep 100[0-9]'")
	return strings.TrimSpace(out)
}

func TestContainerd(t *testing.T) {
	for name, programs := range containerds() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, programs)
			t.Run("run", w.testRun)
			t.Run("restart", w.testRestart)
			t.Run("killed shim", w.testKilledShim)
			t.Run("killed both", w.testKilledBoth)
			t.Run("refused", w.testRefused)
		})
	}
}

const runtimeName = "io.containerd.coffertest.v2"

// inner returns a world whose failures are a subtest's.
func (w *world) inner(t *testing.T) *world {
	c := *w
	c.t = t
	t.Cleanup(func() { w.daemon, w.log = c.daemon, c.log })
	return &c
}

func (w *world) testRun(t *testing.T) {
	w = w.inner(t)
	events, stop := w.events()
	out := w.ctr("-n", "test", "run", "--rm", "--runtime", runtimeName, "--rootfs", filepath.Join(w.dir, "rootfs"), "one", "/bin/echo", "hello from the pod")
	if !strings.Contains(out, "hello from the pod") {
		t.Errorf("output: %q", out)
	}
	if out, err := w.try(filepath.Join(w.programs, "ctr"), "-n", "test", "run", "--rm", "--runtime", runtimeName, "--rootfs",
		filepath.Join(w.dir, "rootfs"), "two", "/bin/sh", "-c", "exit 42"); err == nil || !strings.Contains(err.Error(), "42") {
		t.Errorf("exit status: want 42, got %v (%s)", err, out)
	}
	w.until("nothing is left", func() bool { return w.left() == "" })
	want := []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}
	w.until("the events of the first container", func() bool { return len(topics(events.String(), "one")) >= len(want) })
	stop()
	if got := topics(events.String(), "one"); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("events: want %q, got %q", want, got)
	}
}

// events collects containerd's events.
func (w *world) events() (*logBuffer, func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &logBuffer{}
	cmd := w.command(ctx, filepath.Join(w.programs, "ctr"), "-n", "test", "events")
	cmd.Stdout = b
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		// nsenter's child is ctr, which outlives it.
		if children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)); err == nil && len(children) > 0 {
			_ = syscall.Kill(atoi(string(children)), syscall.SIGKILL)
		}
		cancel()
		_ = cmd.Wait()
	})
	w.t.Cleanup(stop)
	// It says nothing when it has subscribed: an event of its own shows it.
	w.until("events arrive", func() bool {
		_, _ = w.try(filepath.Join(w.programs, "ctr"), "namespaces", "label", "test", "seen="+itoa(int(time.Now().UnixNano()%1000)))
		return strings.Contains(b.String(), "/namespaces/")
	})
	return b, stop
}

// topics are those of a container's task, in order.
func topics(log, id string) []string {
	var found []string
	for line := range strings.Lines(log) {
		for _, field := range strings.Fields(line) {
			if strings.HasPrefix(field, "/tasks/") && strings.Contains(line, `"`+id+`"`) {
				found = append(found, field)
			}
		}
	}
	return found
}

func (w *world) runDetached(id, seconds string) {
	w.t.Helper()
	w.ctr("-n", "test", "run", "-d", "--runtime", runtimeName, "--runtime-config-path", "/etc/a.toml", "--rootfs", filepath.Join(w.dir, "rootfs"), id, "/bin/sleep", seconds)
}

func (w *world) shimPID() int {
	w.t.Helper()
	out := strings.Fields(w.run("pgrep", "-f", "^"+filepath.Join(w.dir, "containerd-shim-coffertest-v2")))
	if len(out) != 1 {
		w.t.Fatalf("shims: want one, got %q", out)
	}
	return atoi(out[0])
}

func (w *world) kill(pid int, sig string) {
	w.t.Helper()
	w.run("kill", "-"+sig, itoa(pid))
}

// testRestart: containerd dies under a running task. The task stays, its events
// come, in order, and exec works.
func (w *world) testRestart(t *testing.T) {
	w = w.inner(t)
	w.runDetached("three", "1003")
	shim := w.shimPID()
	w.stopContainerd(syscall.SIGKILL)
	// It ends while nobody listens.
	w.run("sh", "-c", "kill -9 $(pgrep -f '^/bin/sleep 1003')")
	w.startContainerd()
	if again := w.shimPID(); again != shim {
		t.Errorf("the shim: was %d, is %d", shim, again)
	}
	w.until("the task is known to have ended", func() bool { return strings.Contains(w.ctr("-n", "test", "task", "ls"), "STOPPED") })
	w.ctr("-n", "test", "task", "rm", "three")
	w.ctr("-n", "test", "container", "rm", "three")

	w.runDetached("four", "1004")
	w.stopContainerd(syscall.SIGTERM)
	w.startContainerd()
	if out := w.ctr("-n", "test", "task", "exec", "--exec-id", "e1", "four", "/bin/echo", "still here"); !strings.Contains(out, "still here") {
		t.Errorf("exec after a restart: %q", out)
	}
	events, stop := w.events()
	w.ctr("-n", "test", "task", "kill", "-s", "KILL", "four")
	w.until("the exit event", func() bool { return len(topics(events.String(), "four")) > 0 })
	stop()
	w.ctr("-n", "test", "task", "rm", "four")
	w.ctr("-n", "test", "container", "rm", "four")
	w.until("nothing is left", func() bool { return w.left() == "" })
	if !strings.Contains(w.log.String(), "the shim serves") {
		t.Error("the shim's log is not in containerd's")
	}
}

func (w *world) testKilledShim(t *testing.T) {
	w = w.inner(t)
	w.runDetached("five", "1005")
	w.kill(w.shimPID(), "KILL")
	w.until("nothing is left", func() bool { return w.left() == "" })
	w.ctr("-n", "test", "container", "rm", "five")
}

// testKilledBoth: nobody sees the shim die.
func (w *world) testKilledBoth(t *testing.T) {
	w = w.inner(t)
	w.runDetached("six", "1006")
	shim := w.shimPID()
	w.stopContainerd(syscall.SIGKILL)
	w.kill(shim, "KILL")
	w.startContainerd()
	w.until("nothing is left", func() bool { return w.left() == "" })
	w.ctr("-n", "test", "container", "rm", "six")
}

// testRefused: what `start` says is what a person reads.
func (w *world) testRefused(t *testing.T) {
	w = w.inner(t)
	out, err := w.try(filepath.Join(w.programs, "ctr"), "-n", "test", "run", "-d", "--runtime", runtimeName, "--runtime-config-path", "/broken.toml",
		"--rootfs", filepath.Join(w.dir, "rootfs"), "seven", "/bin/true")
	if err == nil || !strings.Contains(out, "the guest image is missing") {
		t.Errorf("want the reason, got %q, %v", out, err)
	}
	w.ctr("-n", "test", "container", "rm", "seven")
	w.until("nothing is left", func() bool { return w.left() == "" })
}
