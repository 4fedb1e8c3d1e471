package task_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/pod"
	"github.com/coffer-project/coffer/internal/host/process/hosttest"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/stdio"
	"github.com/coffer-project/coffer/internal/host/task"
	"github.com/coffer-project/coffer/internal/host/task/tasktest"
)

// bundles makes bundles as containerd's CRI plugin does, of an image that a
// test's registry serves.
type bundles struct {
	dir, image, netns, hosts string
	name                     string // of containers; empty: the id
}

// podUID names the pod's directory of the kubelet.
const podUID = "5f2f1d1e-0000-4000-8000-000000000000"

// newBundles makes what the kubelet has for the pod: the names that its owner
// added are how the guest finds the registry.
func newBundles(t *testing.T, n *hosttest.Net, kubelet string) *bundles {
	dir := filepath.Join(kubelet, "pods", podUID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &bundles{dir: t.TempDir(), image: n.Image(t), netns: n.Path, hosts: filepath.Join(dir, "etc-hosts")}
	text := "127.0.0.1\tlocalhost\n\n# Entries added by HostAliases.\n198.51.100.1\thost.coffer.internal\n"
	if err := os.WriteFile(b.hosts, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bundles) write(id string, args []string, terminal bool) (string, error) {
	dir := filepath.Join(b.dir, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	name := b.name
	if name == "" {
		name = id
	}
	spec := specs.Spec{
		Version: "1.0.2", Hostname: "test",
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod", "io.kubernetes.cri.container-name": name,
			"io.kubernetes.cri.image-name": b.image, "io.kubernetes.cri.sandbox-name": "test", "io.kubernetes.cri.sandbox-namespace": "default",
			"io.kubernetes.cri.sandbox-uid": podUID,
		},
		Process: &specs.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", Terminal: terminal},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts:  []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: b.hosts, Options: []string{"rbind", "rw"}}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.NetworkNamespace, Path: b.netns}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	}
	if args == nil {
		spec.Annotations["io.kubernetes.cri.container-type"] = "sandbox"
		spec.Process.Args = []string{"/pause"}
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// world is a service with a real agent, as a process, with real containers.
type world struct {
	*bundles
	s      *task.Service
	mu     sync.Mutex
	events []any
}

func newWorld(t *testing.T) *world {
	n := hosttest.NewNet(t)
	config := runtimeconfig.Default()
	config.Driver, config.Agent, config.Development, config.StateDir = runtimeconfig.DriverProcess, hosttest.Agent(t), true, t.TempDir()
	config.KubeletRoot = t.TempDir()
	log := new(buffer)
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w := &world{bundles: newBundles(t, n, config.KubeletRoot)}
	w.s = task.New(task.Options{
		NewPod: func(_ context.Context, b *cri.Bundle) (task.Pod, error) {
			return task.Of(pod.New(pod.Options{ID: b.SandboxID, Namespace: "test", Config: config, Logger: logger})), nil
		},
		Publish: func(_ context.Context, _ string, event any) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, event)
			return nil
		},
		Shutdown: func() {}, Logger: logger,
		Times: task.Times{Drain: stdio.Bound{Idle: time.Second, Total: time.Minute}},
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.s.Close(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", log.b.String())
		}
	})
	return w
}

// TestAgent runs the suite against a real agent.
func TestAgent(t *testing.T) {
	w := newWorld(t)
	e := &tasktest.Environment{
		Task: w.s.V3(), Sandbox: "pod", Dir: t.TempDir(), Bundle: w.write,
		Events: func() []any {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.events[:len(w.events):len(w.events)]
		},
	}
	for _, c := range tasktest.Cases() {
		t.Run(strings.ReplaceAll(c.Name, " ", "-"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := c.Run(ctx, e); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestChildKeepsOutput: a command that leaves a child behind with its output
// ends all the same, and so does its container.
func TestChildKeepsOutput(t *testing.T) {
	w := newWorld(t)
	v3, ctx := w.s.V3(), t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"pod", "web"} {
		var args []string
		if id == "web" {
			args = []string{"sleep", "1000"}
		}
		dir, err := w.write(id, args, false)
		check(err)
		_, err = v3.Create(ctx, &api.CreateTaskRequest{ID: id, Bundle: dir})
		check(err)
		_, err = v3.Start(ctx, &api.StartRequest{ID: id})
		check(err)
	}
	spec, err := json.Marshal(specs.Process{Args: []string{"sh", "-c", "sleep 1000 & exit 6"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	check(err)
	_, err = v3.Exec(ctx, &api.ExecProcessRequest{ID: "web", ExecID: "e", Spec: &anypb.Any{
		TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec,
	}})
	check(err)
	_, err = v3.Start(ctx, &api.StartRequest{ID: "web", ExecID: "e"})
	check(err)
	begin := time.Now()
	r, err := v3.Wait(ctx, &api.WaitRequest{ID: "web", ExecID: "e"})
	check(err)
	if r.GetExitStatus() != 6 || time.Since(begin) > 20*time.Second {
		t.Errorf("status %d after %s", r.GetExitStatus(), time.Since(begin))
	}
	_, err = v3.Delete(ctx, &api.DeleteRequest{ID: "web", ExecID: "e"})
	check(err)
	_, err = v3.Kill(ctx, &api.KillRequest{ID: "web", Signal: 9})
	check(err)
	if r, err = v3.Wait(ctx, &api.WaitRequest{ID: "web"}); err != nil || r.GetExitStatus() != 137 {
		t.Errorf("got %v, %v", r, err)
	}
}

// TestPullIsCancelled: a pull that is given up ends in the guest too, whose
// container can be made under another id then.
func TestPullIsCancelled(t *testing.T) {
	w := newWorld(t)
	v3 := w.s.V3()
	create := func(id string, args []string) error {
		dir, err := w.write(id, args, false)
		if err != nil {
			return err
		}
		_, err = v3.Create(t.Context(), &api.CreateTaskRequest{ID: id, Bundle: dir})
		return err
	}
	if err := create("pod", nil); err != nil {
		t.Fatal(err)
	}
	good := w.image
	// Nobody listens there, and the guest tries again for some seconds.
	w.image, w.name = "host.coffer.internal:1/test/slow@sha256:"+strings.Repeat("0", 64), "web"
	slow := make(chan error, 1)
	go func() { slow <- create("first", []string{"true"}) }()
	for {
		// It is known once it is being created.
		if _, err := v3.State(t.Context(), &api.StateRequest{ID: "first"}); err == nil {
			break
		}
	}
	select {
	case err := <-slow:
		t.Fatalf("the pull was not slow: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	begin := time.Now()
	if _, err := v3.Kill(t.Context(), &api.KillRequest{ID: "first", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if err := <-slow; err == nil || !strings.Contains(err.Error(), "killed before it was created") {
		t.Errorf("got %v", err)
	}
	w.image = good
	var err error
	for range 100 {
		if err = create("second", []string{"true"}); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the guest undoes the first meanwhile
	}
	if err != nil || time.Since(begin) > 2*time.Second {
		t.Errorf("after %s: %v", time.Since(begin), err)
	}
}
