package volumes

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

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
	g := &realGuest{Machine: hosttest.Launch(t, n.Config(t, "volumes-test")), t: t}
	image := n.Image(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := g.Agent().CreateSandbox(ctx, &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "pod", PodNamespace: "test", PodUid: podUID, Hostname: "pod", Network: n.Network()}); err != nil {
		t.Fatal(err)
	}
	k := newKubelet(t)
	config := k.volume(pluginConfigMap, "config", map[string]string{"a": "first", "gone": "g", "sub/b": "b"})
	scratch := k.mkdir("volumes/" + pluginEmptyDir + "/scratch")
	m, _ := k.manager()
	p, err := m.Prepare(ctx, g, Container{ID: "c1", Name: "app", Mounts: []specs.Mount{
		bind(config.dir, "/config", "ro"), bind(k.subPath("config", "app", 1, filepath.Join(config.dir, "a")), "/part/a", "ro"), bind(scratch, "/tmp", "rw"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Agent().CreateContainer(ctx, &agentapi.CreateContainerRequest{
		ContainerId: "c1", Name: "app", Image: image, Args: &agentapi.StringList{Values: []string{"/bin/busybox", "sleep", "1000"}},
		Mounts: p.Mounts, Volumes: p.Volumes, TerminationMessagePath: p.TerminationPath,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Agent().Start(ctx, &agentapi.StartRequest{ContainerId: "c1"}); err != nil {
		t.Fatal(err)
	}
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
	for _, req := range []func() error{
		func() error {
			_, err := g.Agent().Signal(ctx, &agentapi.SignalRequest{ContainerId: "c1", Signal: 9, All: true})
			return err
		},
		func() error { _, err := g.Agent().Wait(ctx, &agentapi.WaitRequest{ContainerId: "c1"}); return err },
		func() error { _, err := g.Agent().Delete(ctx, &agentapi.DeleteRequest{ContainerId: "c1"}); return err },
	} {
		if err := req(); err != nil {
			t.Error(err)
		}
	}
	m.Release("c1")
}
