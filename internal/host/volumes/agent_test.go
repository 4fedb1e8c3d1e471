package volumes

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/process"
	"github.com/coffer-project/coffer/internal/host/process/hosttest"
)

// realGuest is the guest agent as a process.
type realGuest struct {
	*process.Machine
	t     *testing.T
	execs int
}

// run runs a command in a container, and returns its output.
func (g *realGuest) run(container string, args ...string) string {
	t := g.t
	t.Helper()
	g.execs++
	id := "e" + strings.Repeat("x", g.execs)
	if len(id) > 60 {
		t.Fatal("too many commands")
	}
	if _, err := g.Agent().Exec(t.Context(), &agentapi.ExecRequest{ContainerId: container, ExecId: id, Args: append([]string{"/bin/busybox"}, args...)}); err != nil {
		t.Fatal(err)
	}
	out, err := g.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT, ContainerId: container, ExecId: id})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := g.Agent().Start(t.Context(), &agentapi.StartRequest{ContainerId: container, ExecId: id}); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Agent().Wait(t.Context(), &agentapi.WaitRequest{ContainerId: container, ExecId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Agent().Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: container, ExecId: id}); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What the kubelet writes arrives in a running container, what it deletes goes,
// and what is mounted by a subPath stays as it was.
func TestAgent(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds and runs the guest agent; not with -short")
	}
	needMounts(t)
	n := hosttest.NewNet(t)
	g := &realGuest{Machine: hosttest.Launch(t, n.Config(t, fmt.Sprintf("volumes-test-%d", os.Getpid()))), t: t}
	image := n.Image(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := g.Agent().CreateSandbox(ctx, &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "pod", PodNamespace: "test", PodUid: podUID, Hostname: "pod", Network: n.Network()}); err != nil {
		t.Fatal(err)
	}
	k := newKubelet(t)
	config := k.volume(pluginConfigMap, "config", map[string]string{"a": "first", "gone": "g", "sub/b": "b"})
	token := k.volume(pluginProjected, "kube-api-access-x2b9q", map[string]string{"token": "t"})
	k.check(os.Chmod(filepath.Join(token.dir, "..data/token"), 0o600))
	k.check(os.Chown(filepath.Join(token.dir, "..data/token"), 1000, 0))
	scratch, memory := k.mkdir("volumes/"+pluginEmptyDir+"/scratch"), k.mkdir("volumes/"+pluginEmptyDir+"/memory")
	k.tmpfs(memory, "size=1m")
	last := k.write("containers/app/0a1b", "")
	m, _ := k.manager()
	create := func(id, name string, mounts ...specs.Mount) {
		t.Helper()
		p, err := m.Prepare(ctx, g, Container{ID: id, Name: name, Mounts: mounts})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Agent().CreateContainer(ctx, &agentapi.CreateContainerRequest{
			ContainerId: id, Name: name, Image: image, Args: &agentapi.StringList{Values: []string{"sh", "-c", "trap 'echo enough >/dev/termination-log; exit 3' TERM; while :; do sleep 0.1; done"}},
			Mounts: p.Mounts, Volumes: p.Volumes, TerminationMessagePath: p.TerminationPath,
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Agent().Start(ctx, &agentapi.StartRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
	}
	create("c1", "app",
		bind(config.dir, "/config", "ro"), bind(k.subPath("config", "app", 1, filepath.Join(config.dir, "a")), "/part/a", "ro"), bind(scratch, "/tmp", "rw"),
		bind(token.dir, "/token", "ro"), bind(memory, "/dev/shm", "rw"), bind(last, "/dev/termination-log"))
	part := filepath.Join(scratch, "part")
	k.check(os.Mkdir(part, 0o755))
	create("c2", "sidecar", bind(k.subPath("scratch", "sidecar", 0, part), "/shared", "rw"), bind(memory, "/memory", "ro"))
	if got := g.run("c1", "cat", "/config/a", "/config/gone", "/config/sub/b", "/part/a"); got != "firstgbfirst" {
		t.Errorf("at first: %q", got)
	}
	config.swap(map[string]string{"a": "second", "new": "n"})
	await(t, "the new files", func() bool { return g.run("c1", "cat", "/config/a") == "second" })
	if got := g.run("c1", "ls", "/config"); got != "a\nnew\n" {
		t.Errorf("names after the update: %q", got)
	}
	if got := g.run("c1", "cat", "/part/a"); got != "first" {
		t.Errorf("the subPath after the update: %q", got)
	}
	if got := g.run("c1", "sh", "-c", "echo x > /config/a || echo read-only; echo y > /tmp/y && /bin/busybox cat /tmp/y"); got != "read-only\ny\n" {
		t.Errorf("writing: %q", got)
	}
	config.swap(nil)
	await(t, "no files", func() bool { return g.run("c1", "ls", "/config") == "" })
	if got := g.run("c1", "stat", "-c", "%a %u", "/token/..data/token"); got != "600 1000\n" {
		t.Errorf("the token: %q", got)
	}
	// The emptyDirs are the guest's: shared, by a part too, bounded, and not on the node.
	if got := g.run("c1", "sh", "-c", "echo hello >/tmp/part/f; echo m >/dev/shm/m; df -k /dev/shm | tail -1 | awk '{print $2}'"); got != "1024\n" {
		t.Errorf("size of the memory: %q", got)
	}
	if got := g.run("c2", "cat", "/shared/f", "/memory/m"); got != "hello\nm\n" {
		t.Errorf("shared: %q", got)
	}
	if entries, err := os.ReadDir(part); err != nil || len(entries) > 0 {
		t.Errorf("on the node: %v, %v", entries, err)
	}
	// What a container has made is mounted alone: a file, and where a link leads. The
	// kubelet, which sees neither, makes a directory for each.
	if got := g.run("c1", "sh", "-c", "mkdir -p /tmp/releases/2; echo '#!/bin/sh\necho I am two' >/tmp/releases/2/tool; chmod +x /tmp/releases/2/tool; ln -s releases/2 /tmp/current; ln -s /etc /tmp/out"); got != "" {
		t.Error(got)
	}
	made := func(name string) string {
		t.Helper()
		k.check(os.MkdirAll(filepath.Join(scratch, name), 0o755))
		return filepath.Join(scratch, name)
	}
	create("c3", "user", bind(k.subPath("scratch", "user", 0, made("current/tool")), "/bin/tool", "ro"), bind(k.subPath("scratch", "user", 1, made("current")), "/release", "rw"))
	if got := g.run("c3", "sh", "-c", "/bin/tool; echo x >/release/x; echo x 2>/dev/null >/bin/tool || echo read-only"); got != "I am two\nread-only\n" {
		t.Errorf("a file of the emptyDir: %q", got)
	}
	if got := g.run("c1", "cat", "/tmp/releases/2/x"); got != "x\n" {
		t.Errorf("written behind the link: %q", got)
	}
	p, err := m.Prepare(ctx, g, Container{ID: "c4", Name: "out", Mounts: []specs.Mount{bind(k.subPath("scratch", "out", 0, made("out")), "/secrets", "rw")}})
	k.check(err)
	if _, err := g.Agent().CreateContainer(ctx, &agentapi.CreateContainerRequest{ContainerId: "c4", Name: "out", Image: image, Mounts: p.Mounts, Volumes: p.Volumes}); err == nil || !strings.Contains(err.Error(), "volume scratch: out: it leads out of the volume") {
		t.Errorf("a link out of the volume: %v", err)
	}
	m.Release("c4")
	k.check(os.Chmod(last, 0o666))
	if _, err := g.Agent().Signal(ctx, &agentapi.SignalRequest{ContainerId: "c1", Signal: uint32(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Agent().Wait(ctx, &agentapi.WaitRequest{ContainerId: "c1"}); err != nil {
		t.Fatal(err)
	}
	k.check(m.Exited(ctx, g, "c1"))
	if b, err := os.ReadFile(last); err != nil || string(b) != "enough\n" {
		t.Errorf("last words: %q, %v", b, err)
	}
	for _, id := range []string{"c1", "c2", "c3"} {
		_, _ = g.Agent().Signal(ctx, &agentapi.SignalRequest{ContainerId: id, Signal: uint32(unix.SIGKILL), All: true})
		if _, err := g.Agent().Wait(ctx, &agentapi.WaitRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		if _, err := g.Agent().Delete(ctx, &agentapi.DeleteRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		m.Release(id)
	}
}
