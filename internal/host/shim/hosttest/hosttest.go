// Package hosttest runs containerds for tests of a shim, each in namespaces of
// its own, with which everything ends. Only tests import it.
package hosttest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ProgramsVariable is the directory that has containerd-2.2 and containerd-2.4,
// each with containerd and ctr. The distribution's containerd is on PATH.
const ProgramsVariable = "COFFER_K8S_PROGRAMS"

// Containerds are the daemons, by the directory of their programs.
func Containerds() map[string]string {
	dir := os.Getenv(ProgramsVariable)
	all := map[string]string{"distribution": "", "2.2": "", "2.4": ""}
	if path, err := exec.LookPath("containerd"); err == nil {
		all["distribution"] = filepath.Dir(path)
	}
	if dir != "" {
		all["2.2"], all["2.4"] = filepath.Join(dir, "containerd-2.2"), filepath.Join(dir, "containerd-2.4")
	}
	return all
}

// Absent skips a test that needs a program, or fails it where it should be there.
func Absent(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COFFER_REQUIRE_K8S") != "" {
		t.Fatalf("%s, and COFFER_REQUIRE_K8S is set", why)
	}
	t.Skip(why)
}

// World has namespaces of its own (mounts, processes, network) in which a
// containerd and its shims run. They all end with it.
type World struct {
	// Programs is the directory of containerd and ctr, Dir one of the test's, in
	// which shims are found.
	Programs, Dir string
	// Log is what containerd and its shims log.
	Log *LogBuffer

	t      *testing.T
	init   *exec.Cmd
	daemon *exec.Cmd
}

// LogBuffer collects what is written to it.
type LogBuffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

// Write implements io.Writer.
func (l *LogBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.Write(p)
}

// String is all of it.
func (l *LogBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.String()
}

// NewWorld starts a containerd whose programs are in a directory, and puts this
// test's program on its PATH under the name of a shim. The test's main function
// must call Init first.
func NewWorld(t *testing.T, programs, shim string) *World {
	t.Helper()
	if os.Getuid() != 0 {
		Absent(t, "containerd needs root")
	}
	if _, err := os.Stat(filepath.Join(programs, "ctr")); programs == "" || err != nil {
		Absent(t, "this containerd is not installed (PATH, "+ProgramsVariable+")")
	}
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	w := &World{t: t, Programs: programs, Dir: dir, Log: &LogBuffer{}}
	t.Cleanup(w.close)
	InstallShim(t, dir, shim)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.startInit()
	w.Run("mount", "--make-rprivate", "/")
	w.Run("mount", "-t", "proc", "proc", "/proc")
	w.Run("mount", "-t", "tmpfs", "tmpfs", "/run")
	w.writeConfig()
	w.StartContainerd()
	return w
}

// envInit makes this program the first process of a PID namespace.
const envInit = "COFFER_SHIM_TEST_INIT"

// Init makes this program the first process of a world's namespaces, if it was
// started as that: it waits for the children that are left to it, until it is
// killed.
func Init() {
	if os.Getenv(envInit) == "" {
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	fmt.Println("up")
	for range signals {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// InstallShim copies this program to where containerd finds it as a shim, and
// returns the copy's path.
func InstallShim(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, name)
	if err := os.WriteFile(binary, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return binary
}

// startInit starts the first process of the namespaces, this program.
func (w *World) startInit() {
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

func (w *World) writeConfig() {
	version := 3
	if w.Programs == Containerds()["distribution"] {
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
`, version, filepath.Join(w.Dir, "root"))
	if err := os.WriteFile(filepath.Join(w.Dir, "config.toml"), []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Command is a program in the namespaces, which is not started yet.
func (w *World) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(w.init.Process.Pid), "-m", "-p", "-n", name}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+w.Dir+":/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_ADDRESS=/run/c.sock")
	cmd.Dir = w.Dir
	return cmd
}

// Run runs a program in the namespaces and returns its output; a failure is the
// test's.
func (w *World) Run(name string, args ...string) string {
	w.t.Helper()
	out, err := w.Try(name, args...)
	if err != nil {
		w.t.Fatalf("%s %q: %v\n%s\ncontainerd:\n%s", name, args, err, out, tail(w.Log.String()))
	}
	return out
}

// Try runs a program in the namespaces, for a minute at most.
func (w *World) Try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	out, err := w.Command(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// Ctr runs containerd's client.
func (w *World) Ctr(args ...string) string {
	w.t.Helper()
	return w.Run(filepath.Join(w.Programs, "ctr"), args...)
}

func number(s []byte) int {
	n, _ := strconv.Atoi(strings.TrimSpace(string(s)))
	return n
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}

// StartContainerd starts the daemon and waits until it answers.
func (w *World) StartContainerd() {
	w.t.Helper()
	w.daemon = w.Command(context.Background(), filepath.Join(w.Programs, "containerd"), "--config", filepath.Join(w.Dir, "config.toml"))
	w.daemon.Stdout, w.daemon.Stderr = w.Log, w.Log
	if err := w.daemon.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.Until("containerd answers", func() bool {
		_, err := w.Try(filepath.Join(w.Programs, "ctr"), "version")
		return err == nil
	})
}

// StopContainerd ends the daemon; its shims go on.
func (w *World) StopContainerd(sig syscall.Signal) {
	w.t.Helper()
	// nsenter's child is the daemon.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", w.daemon.Process.Pid, w.daemon.Process.Pid))
	if err != nil || len(children) == 0 {
		w.t.Fatalf("containerd's process: %q, %v", children, err)
	}
	if err := syscall.Kill(number(children), sig); err != nil {
		w.t.Fatal(err)
	}
	_ = w.daemon.Wait()
}

// Until waits until something is so.
func (w *World) Until(what string, is func() bool) {
	w.t.Helper()
	const limit, pause = time.Minute, 50 * time.Millisecond
	for end := time.Now().Add(limit); !is(); {
		if time.Now().After(end) {
			w.t.Fatalf("not within %s: %s\ncontainerd:\n%s", limit, what, tail(w.Log.String()))
		}
		<-time.After(pause)
	}
}

// close ends everything; nothing survives the first process.
func (w *World) close() {
	if w.init != nil && w.init.Process != nil {
		_ = w.init.Process.Kill()
		_ = w.init.Wait()
	}
	if w.daemon != nil {
		_ = w.daemon.Wait()
	}
	if err := os.RemoveAll(w.Dir); err != nil {
		w.t.Error(err)
	}
}

// T is the test whose failures the world's are.
func (w *World) T() *testing.T { return w.t }

// Inner returns a world whose failures are a subtest's.
func (w *World) Inner(t *testing.T) *World {
	c := *w
	c.t = t
	t.Cleanup(func() { w.daemon, w.Log = c.daemon, c.Log })
	return &c
}

// Events collects containerd's events.
func (w *World) Events() (*LogBuffer, func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &LogBuffer{}
	cmd := w.Command(ctx, filepath.Join(w.Programs, "ctr"), "-n", "test", "events")
	cmd.Stdout = b
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		// nsenter's child is ctr, which outlives it.
		if children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)); err == nil && len(children) > 0 {
			_ = syscall.Kill(number(children), syscall.SIGKILL)
		}
		cancel()
		_ = cmd.Wait()
	})
	w.t.Cleanup(stop)
	// It says nothing when it has subscribed: an event of its own shows it.
	w.Until("events arrive", func() bool {
		_, _ = w.Try(filepath.Join(w.Programs, "ctr"), "namespaces", "label", "test", "seen="+strconv.Itoa(int(time.Now().UnixNano()%1000)))
		return strings.Contains(b.String(), "/namespaces/")
	})
	return b, stop
}

// Topics are those of a container's task, in order.
func Topics(log, id string) []string {
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
