package coffershim_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/podcgroup"
	"github.com/coffer-project/coffer/internal/host/process"
	processtest "github.com/coffer-project/coffer/internal/host/process/hosttest"
	"github.com/coffer-project/coffer/internal/host/shim"
	"github.com/coffer-project/coffer/internal/host/shim/coffershim"
	"github.com/coffer-project/coffer/internal/host/shim/hosttest"
)

const (
	shimName  = "containerd-shim-coffer-v2"
	podUID    = "3f0e2d1c-0000-4000-8000-000000000001"
	hostsFile = "kubelet/pods/" + podUID + "/etc-hosts"
)

// TestMain makes this program the shim when it is called like it.
func TestMain(m *testing.M) {
	hosttest.Init()
	if filepath.Base(os.Args[0]) != shimName {
		os.Exit(m.Run())
	}
	self, err := shim.Self()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	self.SocketDir = os.Getenv("COFFER_SHIM_TEST_SOCKETS")
	os.Exit(coffershim.Program("test").Main(context.Background(), self))
}

// world is a containerd with the shim, whose pods are agents as processes.
type world struct {
	*hosttest.World
	image string
}

func newWorld(t *testing.T, programs string) *world {
	t.Helper()
	agent := processtest.Agent(t)
	w := &world{}
	t.Cleanup(func() { // after a failure; the world has ended by then
		for _, name := range []string{"one", "two", "three", "four", "five", "six", "pod"} {
			if w.World == nil {
				continue
			}
			if err := errors.Join(process.Remove(w.id(name)), podcgroup.Remove(podcgroup.DefaultRoot, []string{w.cgroup(name), "/test"})); err != nil {
				t.Error(err)
			}
		}
	})
	w.World = hosttest.NewWorld(t, programs, shimName)
	n := processtest.NewNet(t)
	w.image = n.Image(t)
	w.write("runtime.toml", fmt.Sprintf("driver = \"process\"\ndevelopment = true\nagent = %q\ntee = \"none\"\nkubelet_root = %q\n", agent, filepath.Join(w.Dir, "kubelet")))
	// Names that the guest knows come with the pod, where the kubelet writes them.
	hosts := "# Entries added by HostAliases.\n"
	for _, h := range n.Network().Hosts {
		hosts += h.Address + "\t" + strings.Join(h.Names, "\t") + "\n"
	}
	if err := os.MkdirAll(filepath.Join(w.Dir, "kubelet/pods", podUID), 0o755); err != nil {
		t.Fatal(err)
	}
	w.write(hostsFile, hosts)
	w.mountNet(n.Path)
	return w
}

func (w *world) write(name, content string) {
	w.T().Helper()
	if err := os.WriteFile(filepath.Join(w.Dir, name), []byte(content), 0o644); err != nil {
		w.T().Fatal(err)
	}
}

// mountNet gives the namespace a path in the world.
func (w *world) mountNet(path string) {
	w.T().Helper()
	file, err := os.Open(path)
	if err != nil {
		w.T().Fatal(err)
	}
	defer file.Close()
	w.write("netns", "")
	cmd := w.Command(w.T().Context(), "mount", "--bind", "/proc/self/fd/3", filepath.Join(w.Dir, "netns"))
	cmd.ExtraFiles = []*os.File{file}
	if out, err := cmd.CombinedOutput(); err != nil {
		w.T().Fatalf("mount: %v\n%s", err, out)
	}
}

// id is one of a container that no other test has.
func (w *world) id(name string) string { return name + "-" + filepath.Base(w.Dir) }

// cgroup is the one that ctr names for a container.
func (w *world) cgroup(name string) string { return "/test/" + w.id(name) }

// inCgroup checks that a process is in the group of a container, in each
// hierarchy with a controller of memory, processor time or processes.
func (w *world) inCgroup(name, pattern string) {
	w.T().Helper()
	if _, err := os.Stat(podcgroup.DefaultRoot + "/cgroup.controllers"); err == nil {
		if got := w.Run("cat", "/proc/"+w.pid(pattern)+"/cgroup"); !strings.Contains(got, "0::"+w.cgroup(name)+"/") {
			w.T().Errorf("%s is in %q", pattern, got)
		}
		return
	}
	got := w.Run("cat", "/proc/"+w.pid(pattern)+"/cgroup")
	for _, controller := range []string{"memory", "cpu", "pids"} {
		if !regexp.MustCompile(`(?m)^\d+:([a-z,]+,)?` + controller + `(,[a-z,]+)?:` + w.cgroup(name) + `$`).MatchString(got) {
			w.T().Errorf("%s: for %s it is in %q", pattern, controller, got)
		}
	}
}

// args are those of `ctr run` for a container that is of no pod.
func (w *world) args(id string, options []string, command ...string) []string {
	return w.member(id, append([]string{"--annotation", "coffer-project.io/image=" + w.image}, options...), command...)
}

func (w *world) member(id string, options []string, command ...string) []string {
	args := []string{
		"-n", "test", "run", "--runtime", coffershim.Name, "--runtime-config-path", filepath.Join(w.Dir, "runtime.toml"),
		"--with-ns", "network:" + filepath.Join(w.Dir, "netns"),
		"--annotation", "io.kubernetes.cri.sandbox-uid=" + podUID,
		"--mount", "type=bind,src=" + filepath.Join(w.Dir, hostsFile) + ",dst=/etc/hosts,options=rbind:ro",
	}
	args = append(args, options...)
	args = append(args, "--rootfs", filepath.Join(w.Dir, "rootfs"), id)
	return append(args, command...)
}

// left lists what shims have left on this node.
func (w *world) left() string {
	out, _ := w.Try("sh", "-c", "find /run/coffer /run/containerd/s /run/c/io.containerd.runtime.v2.task -mindepth 1 2>/dev/null | grep -v '/test$\\|/accel' ; "+
		"pgrep -a -f 'containerd-shim|coffer-agent|crun' | grep -v 'sh -c'; find /sys/fs/cgroup -type d -name '*-"+filepath.Base(w.Dir)+"' 2>/dev/null; grep -c coffer /proc/self/mountinfo | grep -v '^[01]$'")
	return strings.TrimSpace(out)
}

func TestContainerd(t *testing.T) {
	processtest.Need(t)
	for name, programs := range hosttest.Containerds() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, programs)
			t.Run("run", w.testRun)
			t.Run("logs", w.testLogs)
			t.Run("exec and restart", w.testRestart)
			t.Run("killed shim", w.testKilledShim)
			t.Run("killed agent", w.testKilledAgent)
			t.Run("pod", w.testPod)
			t.Run("refused", w.testRefused)
		})
	}
}

func (w *world) inner(t *testing.T) *world { return &world{World: w.Inner(t), image: w.image} }

func (w *world) gone() {
	w.T().Helper()
	left := "?"
	defer func() {
		if left != "" {
			w.T().Logf("left: %s", left)
		}
	}()
	w.Until("nothing is left", func() bool { left = w.left(); return left == "" })
}

func (w *world) testRun(t *testing.T) {
	w = w.inner(t)
	events, stop := w.Events()
	out := w.Ctr(w.args(w.id("one"), []string{"--rm"}, "echo", "hello from the pod")...)
	if !strings.Contains(out, "hello from the pod") {
		t.Errorf("output: %q", out)
	}
	out, err := w.Try(filepath.Join(w.Programs, "ctr"), w.args(w.id("two"), []string{"--rm"}, "sh", "-c", "cat /bin/no; exit 42")...)
	if err == nil || !strings.Contains(err.Error(), "42") || !strings.Contains(out, "/bin/no") {
		t.Errorf("exit status: want 42, got %v (%s)", err, out)
	}
	w.gone()
	want := "/tasks/create /tasks/start /tasks/exit /tasks/delete"
	w.Until("the events of the first container", func() bool { return len(hosttest.Topics(events.String(), w.id("one"))) >= 4 })
	stop()
	if got := strings.Join(hosttest.Topics(events.String(), w.id("one")), " "); got != want {
		t.Errorf("events: want %q, got %q", want, got)
	}
}

// testLogs has output go to a file and to a program (ctr run --log-uri).
func (w *world) testLogs(t *testing.T) {
	w = w.inner(t)
	program := filepath.Join(w.Dir, "logger")
	if err := os.WriteFile(program, []byte("#!/bin/sh\ncat <&3 >$2.out 5>&- & cat <&4 >$2.err 5>&- & echo $CONTAINER_NAMESPACE $CONTAINER_ID >$2.of; exec 3<&- 4<&- 5>&-; wait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(w.Dir, name))
		return string(b)
	}
	for uri, want := range map[string]map[string]string{
		"file://" + filepath.Join(w.Dir, "file.log"):                {"file.log": "out\nerr\n"},
		"binary://" + program + "?to=" + filepath.Join(w.Dir, "to"): {"to.out": "out\n", "to.err": "err\n", "to.of": "test " + w.id("two") + "\n"},
	} {
		w.Ctr(w.args(w.id("two"), []string{"-d", "--log-uri", uri}, "sh", "-c", "echo out; sleep 0.2; echo err >&2")...)
		w.Until("the task is known to have ended", func() bool { return strings.Contains(w.Ctr("-n", "test", "task", "ls"), "STOPPED") })
		for name, text := range want {
			if got := read(name); got != text {
				t.Errorf("%s: %s: want %q, got %q", uri, name, text, got)
			}
		}
		w.remove(w.id("two"))
	}
}

func (w *world) remove(id string) {
	w.T().Helper()
	_, _ = w.Try(filepath.Join(w.Programs, "ctr"), "-n", "test", "task", "rm", "-f", id)
	w.Ctr("-n", "test", "container", "rm", id)
	w.gone()
}

func (w *world) testRestart(t *testing.T) {
	w = w.inner(t)
	w.Ctr(w.args(w.id("three"), []string{"-d"}, "sleep", "1000")...)
	for _, pattern := range []string{"^" + filepath.Join(w.Dir, shimName), "coffer-agent", "^sleep 1000"} {
		w.inCgroup("three", pattern)
	}
	w.StopContainerd(syscall.SIGKILL)
	w.StartContainerd()
	if out := w.Ctr("-n", "test", "task", "exec", "--exec-id", "e1", w.id("three"), "sh", "-c", "echo still here"); !strings.Contains(out, "still here") {
		t.Errorf("exec after a restart: %q", out)
	}
	w.StopContainerd(syscall.SIGTERM)
	// It ends while nobody listens.
	w.Run("sh", "-c", "kill -9 $(pgrep -f '^sleep 1000')")
	w.StartContainerd()
	w.Until("the task is known to have ended", func() bool { return strings.Contains(w.Ctr("-n", "test", "task", "ls"), "STOPPED") })
	w.remove(w.id("three"))
}

func (w *world) pid(pattern string) string {
	w.T().Helper()
	pids := strings.Fields(w.Run("pgrep", "-o", "-f", pattern))
	if len(pids) != 1 {
		w.T().Fatalf("%s: want one, got %q", pattern, pids)
	}
	return pids[0]
}

func (w *world) testKilledShim(t *testing.T) {
	w = w.inner(t)
	w.Ctr(w.args(w.id("four"), []string{"-d"}, "sleep", "1000")...)
	w.Run("kill", "-9", w.pid("^"+filepath.Join(w.Dir, shimName)))
	w.gone()
	w.remove(w.id("four"))
}

func (w *world) testKilledAgent(t *testing.T) {
	w = w.inner(t)
	w.Ctr(w.args(w.id("five"), []string{"-d"}, "sleep", "1000")...)
	w.Run("kill", "-9", w.pid("coffer-agent"))
	w.Until("the task is known to have ended", func() bool { return strings.Contains(w.Ctr("-n", "test", "task", "ls"), "STOPPED") })
	w.remove(w.id("five"))
}

// testPod: the containers of a pod have one shim and one machine, whose end is
// the pause container's.
func (w *world) testPod(t *testing.T) {
	w = w.inner(t)
	annotated := func(kind, name string) []string {
		return []string{
			"-d", "--annotation", "io.kubernetes.cri.container-type=" + kind, "--annotation", "io.kubernetes.cri.sandbox-id=" + w.id("pod"),
			"--annotation", "io.kubernetes.cri.container-name=" + name, "--annotation", "io.kubernetes.cri.image-name=" + w.image,
		}
	}
	w.Ctr(w.member(w.id("pod"), annotated("sandbox", "pause"), "/pause")...)
	w.Ctr(w.member(w.id("c1"), annotated("container", "one"), "sleep", "1000")...)
	w.Ctr(w.member(w.id("c2"), annotated("container", "two"), "sh", "-c", "exit 7")...)
	if shims := strings.Fields(w.Run("pgrep", "-f", "^"+filepath.Join(w.Dir, shimName))); len(shims) != 1 {
		t.Errorf("shims: want one, got %q", shims)
	}
	notices := notice.Parse([]byte(w.Run("cat", "/run/coffer/test/"+w.id("pod")+"/"+notice.FileName)))
	if len(notices) != 1 || notices[0].Reason != notice.Unsealed || notices[0].Pod != (notice.Pod{ID: w.id("pod"), UID: podUID}) {
		t.Errorf("notices: %v", notices)
	}
	w.Until("the second container has ended", func() bool { return strings.Count(w.Ctr("-n", "test", "task", "ls"), "STOPPED") == 1 })
	w.Ctr("-n", "test", "task", "rm", w.id("c2"))
	if out := w.Ctr("-n", "test", "task", "exec", "--exec-id", "e1", w.id("c1"), "echo", "still here"); !strings.Contains(out, "still here") {
		t.Errorf("exec after another container was deleted: %q", out)
	}
	w.Ctr("-n", "test", "task", "kill", "-s", "KILL", w.id("pod"))
	w.Until("all tasks have ended", func() bool { return strings.Count(w.Ctr("-n", "test", "task", "ls"), "STOPPED") == 2 })
	w.Ctr("-n", "test", "task", "rm", w.id("pod"))
	w.Ctr("-n", "test", "task", "rm", w.id("c1"))
	w.Ctr("-n", "test", "container", "rm", w.id("pod"), w.id("c1"), w.id("c2"))
	w.gone()
}

func (w *world) testRefused(t *testing.T) {
	w = w.inner(t)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"image":         {w.args(w.id("six"), []string{"--annotation", "coffer-project.io/image=host.coffer.internal:1/none:1"}, "true"), "host.coffer.internal:1"},
		"configuration": {w.args(w.id("seven"), []string{"--runtime-config-path", "/none.toml"}, "true"), "/none.toml"},
		"annotation":    {w.args(w.id("eight"), []string{"--annotation", "coffer-project.io/colour=red"}, "true"), "coffer-project.io/colour"},
	} {
		out, err := w.Try(filepath.Join(w.Programs, "ctr"), tt.args...)
		if err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%s: want an error with %q, got %q, %v", name, tt.want, out, err)
		}
	}
	w.gone()
}
