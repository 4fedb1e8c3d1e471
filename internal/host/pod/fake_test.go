package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/portforward"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/internal/host/volumes"
)

// world is a host on which everything that a pod makes is counted.
type world struct {
	mu   sync.Mutex
	live map[string]int
	// fail makes the step of that name fail; hang makes it wait for its context.
	fail, hang string
	// reached is closed when the step that hangs is reached.
	reached chan struct{}

	machine  *fakeMachine
	warnings []string
	traces   []Trace
	plan     *Plan
	volumes  volumes.Options
	forward  portforward.Options
	lost     string // the last words of a container that went with its machine
	scores   []int  // of the machine's process, as they were set
	// scoreErr is why they cannot be.
	scoreErr error
}

// closer closes by a function.
type closer func() error

func (c closer) Close() error { return c() }

var errStep = errors.New("this step fails")

func newWorld() *world { return &world{live: map[string]int{}, reached: make(chan struct{})} }

func (w *world) count(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.live[what] += n
}

// left names what is there.
func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for name, n := range w.live {
		if n != 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// step fails or hangs where the test says so.
func (w *world) step(ctx context.Context, name string) error {
	switch name {
	case w.fail:
		return errStep
	case w.hang:
		close(w.reached)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}

// config is one whose directories are the test's.
func config(t *testing.T) *runtimeconfig.Config {
	t.Helper()
	c := runtimeconfig.Default()
	dir := t.TempDir()
	// The software TEE's keys take seconds to make: TestLife has them.
	c.TEE, c.SoftTEEState, c.StateDir = "none", filepath.Join(dir, "tee"), filepath.Join(dir, "run")
	c.BlobCache, c.Scratch, c.ScratchDirectory = filepath.Join(dir, "blobs"), 64<<20, dir
	c.ShutdownTimeout = runtimeconfig.Duration(time.Second)
	return c
}

func (w *world) options(c *runtimeconfig.Config) Options {
	return Options{
		ID: "pod-1", Namespace: "k8s.io", Config: c, Logger: slog.New(slog.DiscardHandler),
		Warn: func(r notice.Reason, m string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.warnings = append(w.warnings, string(r)+": "+m)
		},
		Launch: w.launch,
		Network: func(ctx context.Context, netns string) (Network, error) {
			if err := w.step(ctx, "network"); err != nil {
				return nil, err
			}
			w.count("network", 1)
			return &fakeNetwork{w: w}, nil
		},
		Forward: func(_ string, o portforward.Options) (io.Closer, error) {
			if err := w.step(context.Background(), "forward"); err != nil {
				return nil, err
			}
			w.count("forward", 1)
			w.forward = o
			return closer(func() error { w.count("forward", -1); return nil }), nil
		},
		Volumes: func(o volumes.Options) Volumes {
			w.volumes = o
			w.count("volumes", 1)
			return &fakeVolumes{w: w, held: map[string]bool{}}
		},
		OOMScore: func(pid, score int) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if pid != 4711 {
				return fmt.Errorf("another process, %d", pid)
			}
			if w.scoreErr == nil {
				w.scores = append(w.scores, score)
			}
			return w.scoreErr
		},
		Note: func(tr Trace) error {
			if w.fail == "note" && tr.PID == 0 || w.fail == "note machine" && tr.PID != 0 {
				return errStep
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.traces = append(w.traces, tr)
			return nil
		},
	}
}

func (w *world) launch(ctx context.Context, plan *Plan) (Machine, error) {
	w.mu.Lock()
	w.plan = plan
	w.mu.Unlock()
	if err := w.step(ctx, "launch"); err != nil {
		return nil, err
	}
	m := &fakeMachine{w: w, agent: &fakeAgent{w: w}, done: make(chan struct{})}
	w.count("machine", 1)
	context.AfterFunc(ctx, func() { m.die(&vmm.End{Name: "pod-1", Cause: vmm.Stopped}) })
	w.mu.Lock()
	w.machine = m
	w.mu.Unlock()
	return m, nil
}

type fakeNetwork struct {
	w    *world
	once sync.Once
}

func (n *fakeNetwork) Machine() *sandbox.Network {
	return &sandbox.Network{Guest: &agentapi.Network{Interfaces: []*agentapi.Interface{{Name: "eth0"}}}}
}

func (n *fakeNetwork) Close() error {
	n.once.Do(func() { n.w.count("network", -1) })
	return nil
}

type fakeMachine struct {
	// open, when not nil, opens streams.
	open func(h *agentapi.StreamHeader) (net.Conn, error)

	w     *world
	agent *fakeAgent
	once  sync.Once
	mu    sync.Mutex
	end   *vmm.End
	done  chan struct{}
	// stubborn does not shut down.
	stubborn bool
}

func (m *fakeMachine) die(end *vmm.End) {
	m.once.Do(func() {
		m.mu.Lock()
		m.end = end
		m.mu.Unlock()
		m.w.count("machine", -1)
		close(m.done)
	})
}

func (m *fakeMachine) ID() string                   { return "pod-1" }
func (m *fakeMachine) Agent() agentapi.AgentService { return m.agent }
func (m *fakeMachine) PID() int                     { return 4711 }
func (m *fakeMachine) Done() <-chan struct{}        { return m.done }
func (m *fakeMachine) Console() []string            { return []string{"the last line"} }
func (m *fakeMachine) Info() sandbox.Info           { return sandbox.Info{} }
func (m *fakeMachine) Network() *agentapi.Network {
	return &agentapi.Network{Interfaces: []*agentapi.Interface{{Name: "eth0", Addresses: []string{"10.0.0.2/24"}}}}
}
func (m *fakeMachine) Open(_ context.Context, h *agentapi.StreamHeader) (net.Conn, error) {
	if m.open != nil {
		return m.open(h)
	}
	return nil, fmt.Errorf("no %s stream to port %d", h.GetKind(), h.GetPort())
}
func (m *fakeMachine) Events(context.Context) iter.Seq2[*agentapi.Event, error] {
	return func(func(*agentapi.Event, error) bool) {}
}
func (m *fakeMachine) AttachDisk(context.Context, vmm.Disk) error { return nil }
func (m *fakeMachine) DetachDisk(context.Context, string) error   { return nil }

func (m *fakeMachine) End() *vmm.End {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.end
}

func (m *fakeMachine) Shutdown(ctx context.Context) error {
	if m.stubborn {
		<-ctx.Done()
		return ctx.Err()
	}
	m.die(&vmm.End{Name: "pod-1", Cause: vmm.PoweredOff})
	return nil
}

func (m *fakeMachine) Close() error {
	m.die(&vmm.End{Name: "pod-1", Cause: vmm.Stopped})
	return nil
}

// fakeAgent answers as the guest's agent does.
type fakeAgent struct {
	agentapi.AgentService
	w *world

	mu         sync.Mutex
	sandboxes  []*agentapi.CreateSandboxRequest
	networks   []*agentapi.UpdateNetworkRequest
	containers []*agentapi.CreateContainerRequest
	deleted    []string
	// sharePID, when not nil, is what the policy says.
	sharePID *bool
	err      error
}

func refused(rule, path string) error {
	st, err := status.New(codes.PermissionDenied, "refused: "+rule).WithDetails(protoadapt.MessageV1Of(&agentapi.Refusal{Rule: rule, Path: path}))
	if err != nil {
		return err
	}
	return st.Err()
}

func (a *fakeAgent) CreateSandbox(ctx context.Context, r *agentapi.CreateSandboxRequest) (*agentapi.CreateSandboxResponse, error) {
	if err := a.w.step(ctx, "sandbox"); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sharePID != nil && r.GetSharePid() != *a.sharePID {
		return nil, refused("pod.sharePID", "sharePID")
	}
	a.sandboxes = append(a.sandboxes, r)
	return &agentapi.CreateSandboxResponse{}, a.err
}

func (a *fakeAgent) UpdateNetwork(_ context.Context, r *agentapi.UpdateNetworkRequest) (*agentapi.UpdateNetworkResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.networks = append(a.networks, r)
	return &agentapi.UpdateNetworkResponse{}, nil
}

func (a *fakeAgent) CreateContainer(ctx context.Context, r *agentapi.CreateContainerRequest) (*agentapi.CreateContainerResponse, error) {
	if err := a.w.step(ctx, "container"); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	a.containers = append(a.containers, r)
	return &agentapi.CreateContainerResponse{}, nil
}

func (a *fakeAgent) Delete(_ context.Context, r *agentapi.DeleteRequest) (*agentapi.DeleteResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.deleted, r.GetContainerId()) {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	a.deleted = append(a.deleted, r.GetContainerId())
	return &agentapi.DeleteResponse{}, a.err
}

type fakeVolumes struct {
	w    *world
	once sync.Once
	mu   sync.Mutex
	held map[string]bool
}

func (v *fakeVolumes) Prepare(ctx context.Context, _ volumes.Host, c volumes.Container) (*volumes.Proposal, error) {
	if err := v.w.step(ctx, "prepare"); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held[c.ID] = true
	v.w.count("volumes of "+c.ID, 1)
	return &volumes.Proposal{
		Mounts: []*agentapi.Mount{{Path: "/data", Volume: "data"}}, TerminationPath: "/dev/termination-log",
		Hosts: []*agentapi.HostEntry{{Address: "10.0.0.9", Names: []string{"db"}}},
	}, nil
}

func (v *fakeVolumes) Exited(ctx context.Context, _ volumes.Host, _ string) error {
	return v.w.step(ctx, "exited")
}

func (v *fakeVolumes) Lost(id, reason string) error {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	v.w.lost = id + ": " + reason
	return nil
}

func (v *fakeVolumes) Release(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held[id] {
		delete(v.held, id)
		v.w.count("volumes of "+id, -1)
	}
}

func (v *fakeVolumes) Close() error {
	v.once.Do(func() { v.w.count("volumes", -1) })
	v.mu.Lock()
	ids := make([]string, 0, len(v.held))
	for id := range v.held {
		ids = append(ids, id)
	}
	v.mu.Unlock()
	for _, id := range ids {
		v.Release(id)
	}
	return nil
}

// aSandbox is an unsealed pod whose bundle does not tell of PIDs.
func aSandbox() *cri.Sandbox {
	return &cri.Sandbox{
		ID: "pod-1", Name: "web", Namespace: "shop", UID: "u-1", Hostname: "web", NetNS: "/var/run/netns/x",
		Annotations: map[string]string{}, DNS: &agentapi.DNS{Servers: []string{"10.96.0.10"}}, Sysctls: map[string]string{"net.ipv4.tcp_syncookies": "1"},
		Warnings: []string{"a warning of the bundle"},
	}
}

func aContainer(id string) *cri.Container {
	return &cri.Container{ID: id, Name: "app", Image: "local.test/app:1", Spec: &specs.Spec{
		Process: &specs.Process{Args: []string{"/app"}, Cwd: "/"}, Linux: &specs.Linux{},
	}}
}

// emptyBut checks that a directory holds nothing but what may stay.
func emptyBut(t *testing.T, dir string, may ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(may, e.Name()) {
			t.Errorf("%s is left behind", e.Name())
		}
	}
}
