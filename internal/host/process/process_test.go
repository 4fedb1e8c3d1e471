package process_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/podcgroup"
	"github.com/coffer-project/coffer/internal/host/process"
	"github.com/coffer-project/coffer/internal/host/process/hosttest"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// hostVariable has the test program be a host that is killed.
const hostVariable = "COFFER_TEST_PROCESS_HOST"

func TestMain(m *testing.M) {
	if agent := os.Getenv(hostVariable); agent != "" {
		os.Exit(beHost(agent))
	}
	os.Exit(m.Run())
}

// beHost launches a process and waits to be killed.
func beHost(agent string) int {
	m, err := process.Launch(context.Background(), process.Config{ID: "killed", Agent: agent, Development: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		_, _ = os.Stdout.WriteString(err.Error() + "\n")
		return 1
	}
	_, _ = os.Stdout.WriteString("ready\n")
	<-m.Done()
	return 1
}

func sandboxOf(t *testing.T, m *process.Machine, n *hosttest.Net, change ...func(*agentapi.CreateSandboxRequest)) {
	t.Helper()
	req := &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "pod", Hostname: "a-pod", Network: n.Network()}
	for _, c := range change {
		c(req)
	}
	if _, err := m.Agent().CreateSandbox(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

// run runs a script in a container and returns what it prints.
func run(t *testing.T, m *process.Machine, image, id, script string, change ...func(*agentapi.CreateContainerRequest)) string {
	t.Helper()
	req := &agentapi.CreateContainerRequest{
		ContainerId: id, Name: id, Image: image, Args: &agentapi.StringList{Values: []string{"/bin/sh", "-c", script}},
		Resources: &agentapi.Resources{MemoryBytes: 64 << 20, CpuMillis: 500, Pids: 50},
	}
	for _, c := range change {
		c(req)
	}
	if _, err := m.Agent().CreateContainer(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	out, err := m.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT, ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := m.Agent().Start(t.Context(), &agentapi.StartRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	exit, err := m.Agent().Wait(t.Context(), &agentapi.WaitRequest{ContainerId: id})
	if err != nil || exit.GetExitCode() != 0 {
		t.Errorf("%s ended with %v, %v", id, exit, err)
	}
	return string(text)
}

// footprint is what a process could leave on its host.
func footprint(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	hosts, _ := os.ReadFile("/etc/hosts")
	return strings.Join([]string{string(mounts), hostname, string(resolv), string(hosts)}, "\n--\n")
}

// groupsOf finds control groups of a process.
func groupsOf(t *testing.T, id string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"} {
		dirs, err := filepath.Glob(filepath.Join(pattern, "coffer-process-"+id))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, dirs...)
	}
	return found
}

func TestContainersRunAndNothingIsLeft(t *testing.T) {
	n := hosttest.NewNet(t)
	image := n.Image(t)
	before := footprint(t)
	m := hosttest.Launch(t, n.Config(t, "run"))
	if info := m.Info(); info.Kind != "none" || info.Hello.GetTee() != "" || info.Boot <= 0 {
		t.Errorf("info %+v", info)
	}
	sandboxOf(t, m, n)
	got := run(t, m, image, "web", "hostname; cat /etc/hostname; grep -c host.coffer.internal /etc/hosts; echo $$")
	if want := "a-pod\na-pod\n1\n1\n"; got != want {
		t.Errorf("the container said %q, want %q", got, want)
	}
	stats, err := m.Agent().Stats(t.Context(), &agentapi.StatsRequest{ContainerId: "web"})
	if err != nil {
		t.Errorf("stats: %v, %v", stats, err)
	}
	// One that still runs goes with the process.
	if _, err := m.Agent().CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "long", Name: "long", Image: image, Args: &agentapi.StringList{Values: []string{"/bin/sleep", "600"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Agent().Start(t.Context(), &agentapi.StartRequest{ContainerId: "long"}); err != nil {
		t.Fatal(err)
	}
	if len(groupsOf(t, "run")) == 0 {
		t.Error("no control group is found: the check below is void")
	}
	if err := m.AttachDisk(t.Context(), vmm.Disk{}); !errors.Is(err, process.ErrNoDisks) {
		t.Errorf("a disk was attached: %v", err)
	}
	pid := m.PID()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is there: %v", pid, err)
	}
	if end := m.End(); end == nil || end.Cause != vmm.Stopped {
		t.Errorf("end %v", end)
	}
	if left := groupsOf(t, "run"); len(left) > 0 {
		t.Errorf("control groups are left: %s", left)
	}
	if after := footprint(t); after != before {
		t.Errorf("the host has changed from\n%s\nto\n%s", before, after)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestNamedGroup: containers are in the group that the caller names, in which it
// removes them after a crash, too.
func TestNamedGroup(t *testing.T) {
	root := podcgroup.DefaultRoot
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		root += "/unified"
	}
	n := hosttest.NewNet(t)
	image := n.Image(t)
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		t.Skipf("control groups of version 2 are not mounted: %v", err)
	}
	pod := "/coffer-process-test-" + itoa(os.Getpid())
	made := []string{pod + "/box", pod}
	c := n.Config(t, "named")
	c.Cgroup = pod + "/box/containers"
	t.Cleanup(func() {
		if err := podcgroup.Remove(root, made); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(root + pod); err == nil {
			t.Error("the group is left")
		}
	})
	m := hosttest.Launch(t, c)
	sandboxOf(t, m, n)
	run(t, m, image, "web", "true")
	if _, err := os.Stat(root + pod + "/box/containers/web"); err != nil {
		t.Error(err)
	}
	if others := groupsOf(t, "named"); len(others) > 0 {
		t.Errorf("there are groups %s", others)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestShutdown(t *testing.T) {
	n := hosttest.NewNet(t)
	m := hosttest.Launch(t, n.Config(t, "shutdown"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := m.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if end := m.End(); end == nil || end.Error() != "agent process shutdown: it ended" && !strings.HasPrefix(end.Error(), "agent process shutdown: it ended;") {
		t.Errorf("end %v", end)
	}
	if _, err := m.Agent().Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{1}}); err == nil {
		t.Error("a process that has ended answers")
	} else if _, ok := errors.AsType[*vmm.End](err); !ok {
		t.Errorf("a call after the end: %v", err)
	}
}

// A network namespace of the pod's is joined, and left as it is; without one
// there is a new one.
func TestNetworkNamespace(t *testing.T) {
	n := hosttest.NewNet(t)
	image := n.Image(t)
	m := hosttest.Launch(t, n.Config(t, "net"))
	sandboxOf(t, m, n, func(r *agentapi.CreateSandboxRequest) {
		r.Network.Interfaces = []*agentapi.Interface{{Mac: "52:54:00:12:34:56", Name: "eth0", Addresses: []string{"192.0.2.7/24"}}}
		r.Network.Routes = []*agentapi.Route{{Gateway: "192.0.2.1", Interface: "eth0"}}
	})
	want, err := os.Readlink(n.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, image, "web", "readlink /proc/self/ns/net; grep 192.0.2.7 /etc/hosts"); got != want+"\n192.0.2.7\ta-pod\n" {
		t.Errorf("got %q, want namespace %s", got, want)
	}
	c := n.Config(t, "nonet")
	c.NetNS = ""
	other := hosttest.Launch(t, c)
	got, err := os.Readlink(filepath.Join("/proc", itoa(other.PID()), "ns/net"))
	if err != nil || got == want {
		t.Errorf("namespace %s, %v", got, err)
	}
}

// Scripts of a ConfigMap are run as they are, whole volumes and parts of them, and
// have the owners that the kubelet gave them.
func TestFilesAreRun(t *testing.T) {
	n := hosttest.NewNet(t)
	image := n.Image(t)
	m := hosttest.Launch(t, n.Config(t, "files"))
	sandboxOf(t, m, n)
	conn := make(chan error, 1)
	go func() {
		stream, err := m.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_FILES, Volume: "scripts", Version: 1})
		if err == nil {
			w := tar.NewWriter(stream)
			const script = "#!/bin/sh\necho ran as $(id -u)\n"
			err = errors.Join(w.WriteHeader(&tar.Header{Name: "run.sh", Mode: 0o750, Gid: 3000, Size: int64(len(script))}))
			if err == nil {
				_, err = io.WriteString(w, script)
			}
			err = errors.Join(err, w.Close(), stream.Close())
		}
		conn <- err
	}()
	if _, err := m.Agent().PutFiles(t.Context(), &agentapi.PutFilesRequest{Volume: "scripts", Version: 1}); err != nil {
		t.Fatal(err)
	}
	if err := <-conn; err != nil {
		t.Fatal(err)
	}
	got := run(t, m, image, "web", "/scripts/run.sh && /usr/bin/one && ls -ln /usr/bin/one | { read mode _ uid gid _; echo $mode $uid $gid; }", func(r *agentapi.CreateContainerRequest) {
		r.User = &agentapi.User{Uid: 1000, Gid: 1000, Groups: []uint32{3000}}
		r.Volumes = []*agentapi.Volume{{Name: "scripts", Kind: agentapi.Volume_FILES}}
		r.Mounts = []*agentapi.Mount{{Path: "/scripts", Volume: "scripts", ReadOnly: true}, {Path: "/usr/bin/one", Volume: "scripts", SubPath: "run.sh", ReadOnly: true}}
	})
	if got != "ran as 1000\nran as 1000\n-rwxr-x--- 0 3000\n" {
		t.Errorf("the container said %q", got)
	}
}

// The disks that an agent sees in a process are its host's: it touches none.
func TestNoDisks(t *testing.T) {
	n := hosttest.NewNet(t)
	m := hosttest.Launch(t, n.Config(t, "nodisks"))
	_, err := m.Agent().CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", ScratchDisk: "vda"})
	if err == nil || !strings.Contains(err.Error(), "no disks") {
		t.Errorf("a scratch disk: %v", err)
	}
	sandboxOf(t, m, n)
	_, err = m.Agent().AttachVolume(t.Context(), &agentapi.AttachVolumeRequest{Volume: "data", Disk: "vda"})
	if err == nil || !strings.Contains(err.Error(), "left alone") {
		t.Errorf("a volume: %v", err)
	}
	if err := m.DetachDisk(t.Context(), "vda"); !errors.Is(err, process.ErrNoDisks) {
		t.Errorf("detach: %v", err)
	}
}

// The kernel ends the process with its host, with all that it has started.
func TestTheHostIsKilled(t *testing.T) {
	agent := hosttest.Agent(t)
	before := footprint(t)
	host := exec.Command("/proc/self/exe")
	host.Env = append(os.Environ(), hostVariable+"="+agent)
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, err := out.Read(line)
	if string(line[:n]) != "ready\n" || err != nil {
		_ = host.Process.Kill()
		t.Fatalf("host: %q, %v", line[:n], err)
	}
	pid := childOf(t, host.Process.Pid)
	watch, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = host.Wait()
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}, 10_000); err != nil {
		t.Fatal(err)
	}
	// Where there is no init, nobody collects it.
	if s := state(pid); s != "" && s != "Z" {
		t.Errorf("agent %d outlives its host, in state %s", pid, s)
	}
	if err := process.Remove("killed"); err != nil {
		t.Error(err)
	}
	if left := groupsOf(t, "killed"); len(left) > 0 {
		t.Errorf("control groups are left: %s", left)
	}
	if after := footprint(t); after != before {
		t.Errorf("the host has changed from\n%s\nto\n%s", before, after)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for want, c := range map[string]process.Config{
		"development":        {ID: "a", Agent: "/a", Logger: log},
		"id: expected":       {ID: "../a", Agent: "/a", Logger: log, Development: true},
		"path of":            {ID: "a", Logger: log, Development: true},
		"logger":             {ID: "a", Agent: "/a", Development: true},
		"no such file":       {ID: "a", Agent: "/nonexistent/agent", Logger: log, Development: true},
		"network namespace:": {ID: "a", Agent: "/bin/true", Logger: log, Development: true, NetNS: "/nonexistent/ns"},
		"enter network":      {ID: "a", Agent: "/bin/true", Logger: log, Development: true, NetNS: "/dev/null"},
		"it ended":           {ID: "a", Agent: "/bin/true", Logger: log, Development: true},
		"exit status 1":      {ID: "a", Agent: "/bin/false", Logger: log, Development: true},
	} {
		if os.Geteuid() != 0 && want != "development" {
			continue
		}
		m, err := process.Launch(t.Context(), c)
		if err == nil {
			_ = m.Close()
			t.Errorf("%s: launched", want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want %q in it", err, want)
		}
	}
	if process.Remove("../x") == nil {
		t.Error("a name with a path was taken")
	}
}

// What a pod asks of its machine, it has in a process, too: a shared process
// namespace, kernel parameters of its own namespaces, limits that this machine
// may have no controller for.
func TestPodSettings(t *testing.T) {
	n := hosttest.NewNet(t)
	image := n.Image(t)
	before, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	m := hosttest.Launch(t, n.Config(t, "settings"))
	sandboxOf(t, m, n, func(r *agentapi.CreateSandboxRequest) {
		r.SharePid = true
		r.Sysctls = map[string]string{"net.core.somaxconn": "777", "kernel.shm_rmid_forced": "1"}
	})
	if _, err := m.Agent().CreateContainer(t.Context(), &agentapi.CreateContainerRequest{
		ContainerId: "long", Name: "long", Image: image, Args: &agentapi.StringList{Values: []string{"/bin/sleep", "987"}},
		Security: &agentapi.Security{Capabilities: []string{"CHOWN"}}, TerminationMessagePath: "/dev/termination-log",
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Agent().Start(t.Context(), &agentapi.StartRequest{ContainerId: "long"}); err != nil {
		t.Fatal(err)
	}
	got := run(t, m, image, "other", "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced; ps | grep -c '[s]leep 987'; echo last >/dev/termination-log",
		func(r *agentapi.CreateContainerRequest) { r.TerminationMessagePath = "/dev/termination-log" })
	if got != "777\n1\n1\n" {
		t.Errorf("the container said %q", got)
	}
	if last, err := m.Agent().TerminationMessage(t.Context(), &agentapi.TerminationMessageRequest{ContainerId: "other"}); err != nil || string(last.GetMessage()) != "last\n" {
		t.Errorf("last words %v, %v", last, err)
	}
	if after, err := os.ReadFile("/proc/sys/net/core/somaxconn"); err != nil || string(after) != string(before) {
		t.Errorf("the host's parameter is %q, %v, was %q", after, err, before)
	}
}
