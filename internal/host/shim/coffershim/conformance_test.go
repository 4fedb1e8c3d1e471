package coffershim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	processtest "github.com/coffer-project/coffer/internal/host/process/hosttest"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
	"github.com/coffer-project/coffer/internal/host/task/tasktest"
)

// daemon is containerd as far as a shim needs one: it takes events.
type daemon struct {
	mu   sync.Mutex
	told []any
	bad  error
}

// Forward implements the service.
func (d *daemon) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	event, err := r.GetEnvelope().GetEvent().UnmarshalNew()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && r.GetEnvelope().GetNamespace() != "test" {
		err = fmt.Errorf("event %T of namespace %q", event, r.GetEnvelope().GetNamespace())
	}
	if err != nil {
		d.bad = err
		return nil, err
	}
	d.told = append(d.told, event)
	return &emptypb.Empty{}, nil
}

func (d *daemon) events() []any {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told[:len(d.told):len(d.told)]
}

// listen serves events at a path.
func (d *daemon) listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(context.Background(), l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
}

// pod is a pod for the suite: what containerd and the kubelet write.
type pod struct {
	dir, id, image, netns string
	hosts                 string // the kubelet's file
}

func newPod(t *testing.T) (p *pod, config string) {
	t.Helper()
	agent := processtest.Agent(t)
	n := processtest.NewNet(t)
	dir, err := os.MkdirTemp("", "con")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p = &pod{
		dir: dir, id: "pod-" + filepath.Base(dir), image: n.Image(t), hosts: filepath.Join(dir, "kubelet/pods", podUID, "etc-hosts"),
		netns: fmt.Sprintf("/proc/%d/fd/%s", os.Getpid(), filepath.Base(n.Path)),
	}
	hosts := "# Entries added by HostAliases.\n"
	for _, h := range n.Network().Hosts {
		hosts += h.Address + "\t" + strings.Join(h.Names, "\t") + "\n"
	}
	config = filepath.Join(dir, "runtime.toml")
	settings := fmt.Sprintf("driver = \"process\"\ndevelopment = true\nagent = %q\ntee = \"none\"\nkubelet_root = %q\nstate_dir = %q\n",
		agent, filepath.Join(dir, "kubelet"), filepath.Join(dir, "state"))
	for path, content := range map[string]string{p.hosts: hosts, config: settings} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p, config
}

// bundle is one as containerd's CRI plugin makes it.
func (p *pod) bundle(id string, args []string, terminal bool) (string, error) {
	kind, dir := "container", filepath.Join(p.dir, "bundles", id)
	if args == nil {
		kind, dir, args = "sandbox", filepath.Join(p.dir, "pod"), []string{"/pause"}
	}
	spec := specs.Spec{
		Version: "1.1.0", Hostname: "test",
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: terminal},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts:  []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: p.hosts, Options: []string{"rbind", "ro"}}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.NetworkNamespace, Path: p.netns}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace},
		}},
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": p.id, "io.kubernetes.cri.sandbox-uid": podUID,
			"io.kubernetes.cri.sandbox-name": "test", "io.kubernetes.cri.sandbox-namespace": "default",
			"io.kubernetes.cri.container-name": id, "io.kubernetes.cri.image-name": p.image,
		},
	}
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

// TestConformance runs the suite of the Task service over the socket of a shim
// that was started as containerd starts it, with the agent as a process: by both
// versions of the service, and with the events as containerd gets them.
func TestConformance(t *testing.T) {
	processtest.Need(t)
	for _, version := range []string{"v2", "v3"} {
		t.Run(version, func(t *testing.T) { conform(t, version) })
	}
}

func conform(t *testing.T, version string) {
	p, config := newPod(t)
	d := &daemon{}
	address := filepath.Join(p.dir, "events")
	d.listen(t, address)
	if _, err := p.bundle(p.id, nil, false); err != nil {
		t.Fatal(err)
	}
	socket := startShim(t, p.dir, p.id, config, "TTRPC_ADDRESS="+address)
	state, err := podstate.Read(filepath.Join(p.dir, "state/test", p.id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = state.Shim.Signal(9) })
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	task := taskv3.NewTTRPCTaskClient(client)
	if version == "v2" {
		task = tasktest.V2(taskv2.NewTTRPCTaskClient(client))
	}
	e := &tasktest.Environment{
		Task: task, Sandbox: p.id, Dir: p.dir, Bundle: p.bundle, Events: d.events, Patience: 30 * time.Second,
	}
	for i, c := range tasktest.Cases() {
		t.Run(strings.ReplaceAll(c.Name, " ", "-"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := c.Run(ctx, e); err != nil {
				t.Error(err)
			}
		})
		if i > 0 {
			continue
		}
		if state, err = podstate.Read(filepath.Join(p.dir, "state/test", p.id)); err != nil || len(state.Machines) != 1 {
			t.Fatalf("state of a running pod: %+v, %v", state, err)
		}
	}
	p.ends(t, task, client, state)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bad != nil {
		t.Error(d.bad)
	}
}

// ends shuts the shim down and looks at what it leaves.
func (p *pod) ends(t *testing.T, task taskv3.TTRPCTaskService, client *ttrpc.Client, state podstate.State) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := task.Shutdown(ctx, &taskv3.ShutdownRequest{ID: p.id}); err != nil {
		t.Error(err)
	}
	_ = client.Close()
	if err := state.Shim.Wait(ctx); err != nil {
		t.Error(err)
	}
	for _, m := range state.Machines {
		if m.Alive() {
			t.Errorf("left: process %v", m)
		}
	}
	for _, dir := range []string{"state/test", "sockets"} {
		if left, err := os.ReadDir(filepath.Join(p.dir, dir)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}
