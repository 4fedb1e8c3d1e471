package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"

	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/process"
)

var errProtocol = errors.New("expected a BootstrapResult whose protocol is ttrpc")

// patience bounds what should take a moment, on a machine that does other things.
const patience = 60 * time.Second

// node is a node with a containerd that is this test, and one pod.
type node struct {
	t *testing.T
	// dir has everything: its name marks all that belongs to this node.
	dir   string
	net   *hosttest.Namespace
	image string // reference of the image in the pod's registry
	reg   *registry
	peer  *hosttest.Namespace // the other end of the pod's interface

	settings map[string]string // of the handler's configuration, in TOML
	env      []string          // more for the shim
	execEnv  []string          // of an exec
	stdin    bool              // tasks have standard input

	own         []string // file systems of the test's
	api         api
	annotations map[string]string // of a pod made by the Sandbox API
	described   bool              // by CreateSandbox

	pod    string // id of the sandbox
	client *ttrpc.Client
	task   taskapi.TTRPCTaskService
	box    sandboxapi.TTRPCSandboxService
	shim   int                 // pid of the daemon
	spaces map[string]*os.File // PID namespaces of the pod, held open

	mu     sync.Mutex
	log    bytes.Buffer
	topics []string
	ids    []string // containers whose bundles there are, in order
	names  []string // of all that there have been
	cuts   []func()
}

// newNode makes a node whose pods are processes.
func newNode(t *testing.T) *node {
	t.Helper()
	need(t)
	dir, err := os.MkdirTemp("", "cf")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, api: apis[0], net: hosttest.NewNamespace(t), spaces: map[string]*os.File{}, execEnv: []string{"PATH=/bin"}}
	t.Cleanup(n.end)
	for _, d := range []string{"state", "s", "tmp", "scratch", "kubelet", "b", "io"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.net.Address("lo", registryAddress+"/32")
	n.reg = newRegistry(t, n.net, registryAddress)
	n.image = n.reg.reference("test/busybox")
	n.settings = map[string]string{
		"driver": `"process"`, "development": "true", "tee": `"none"`, "agent": quoted(shared.agent),
		"state_dir": quoted(n.path("state")), "scratch_directory": quoted(n.path("scratch")), "kubelet_root": quoted(n.path("kubelet")),
		"softtee_state": quoted(n.path("softtee")), "shutdown_timeout": `"3s"`, "debug": "true",
	}
	n.pod = newID(t)
	n.serveEvents()
	return n
}

func quoted(s string) string { return fmt.Sprintf("%q", s) }

func newID(t testing.TB) string {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

func (n *node) path(elem ...string) string {
	return filepath.Join(append([]string{n.dir}, elem...)...)
}

func (n *node) bundle(id string) string { return n.path("b", id) }

// writeConfig writes the handler's configuration.
func (n *node) writeConfig() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(n.settings)) {
		fmt.Fprintf(&b, "%s = %s\n", key, n.settings[key])
	}
	n.write("runtime.toml", b.String())
	return n.path("runtime.toml")
}

func (n *node) write(name, content string) {
	n.t.Helper()
	if err := os.WriteFile(n.path(name), []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// serveEvents is the part of containerd that shims send events to.
func (n *node) serveEvents() {
	server, err := ttrpc.NewServer()
	if err != nil {
		n.t.Fatal(err)
	}
	events.RegisterTTRPCEventsService(server, (*eventSink)(n))
	l, err := net.Listen("unix", n.path("events"))
	if err != nil {
		n.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(context.Background(), l) }()
	n.cuts = append(n.cuts, func() { _ = server.Close(); <-done })
}

type eventSink node

func (e *eventSink) Forward(_ context.Context, r *events.ForwardRequest) (*emptypb.Empty, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.topics = append(e.topics, r.GetEnvelope().GetTopic())
	return &emptypb.Empty{}, nil
}

// command is a call of the shim's program by containerd.
func (n *node) command(ctx context.Context, id string, args ...string) *exec.Cmd {
	all := append([]string{"-namespace", "k8s.io", "-id", id, "-address", n.path("containerd.sock")}, args...)
	cmd := exec.CommandContext(ctx, shared.shim, all...)
	cmd.Dir = n.bundle(id)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "TTRPC_ADDRESS=" + n.path("events"), "TMPDIR=" + n.path("tmp"), "GOMAXPROCS=2", "NAMESPACE=k8s.io",
	}, n.env...)
	// What a daemon inherits must not hold up who reads the answer.
	cmd.WaitDelay = time.Second
	return cmd
}

// start has a container's shim started and connects with it. The bundle exists.
func (n *node) start(id string) error {
	n.t.Helper()
	options, err := anypb.New(&runtimeoptions.Options{TypeUrl: "io.containerd.runtimeoptions.v1.Options", ConfigPath: n.writeConfig()})
	if err != nil {
		n.t.Fatal(err)
	}
	params, err := proto.Marshal(&bootstrap.BootstrapParams{
		InstanceID: id, Namespace: "k8s.io", LogLevel: bootstrap.LogLevel_LOG_LEVEL_DEBUG,
		ContainerdTtrpcAddress: n.path("events"), ContainerdGrpcAddress: n.path("containerd.sock"),
		SocketDir: proto.String(n.path("s")), Extensions: []*bootstrap.Extension{{Value: options}},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.readLog(id)
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	cmd := n.command(ctx, id, "start")
	cmd.Stdin = bytes.NewReader(params)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()+string(out)))
	}
	var result bootstrap.BootstrapResult
	if err := proto.Unmarshal(out, &result); err != nil || result.GetProtocol() != "ttrpc" {
		return fmt.Errorf("answer %q: %w", out, errors.Join(err, errProtocol))
	}
	if n.client != nil {
		return nil
	}
	return n.connect(strings.TrimPrefix(result.GetAddress(), "unix://"))
}

func (n *node) connect(address string) error {
	conn, err := net.Dial("unix", address)
	if err != nil {
		return err
	}
	n.dial(conn)
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	r, err := n.task.Connect(ctx, &taskapi.ConnectRequest{ID: n.pod})
	if err != nil {
		return err
	}
	n.shim = int(r.GetShimPid())
	return nil
}

// readLog makes the pipe for a shim's log and reads it, as containerd does.
func (n *node) readLog(id string) {
	path := filepath.Join(n.bundle(id), "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return // another call has
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			k, err := f.Read(buf)
			n.mu.Lock()
			n.log.Write(buf[:k])
			n.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	n.mu.Lock()
	n.cuts = append(n.cuts, func() { _ = f.Close(); <-done })
	n.mu.Unlock()
}

func (n *node) logged() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.String()
}

// disconnect is containerd's end, or its belief that the shim has ended.
func (n *node) disconnect() {
	if n.client != nil {
		_ = n.client.Close()
		n.client, n.task, n.box = nil, nil, nil
	}
}

// delete has containerd clean up after a container whose shim it lost, and
// removes the bundle, as containerd does.
func (n *node) delete(id string) error {
	_, err := n.deleted(id)
	return err
}

// deleted is what containerd is told then of the container's end.
func (n *node) deleted(id string) (uint32, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	started := time.Now()
	cmd := n.command(ctx, id, "-bundle", n.bundle(id), "delete")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("delete: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var resp taskapi.DeleteResponse
	if err := proto.Unmarshal(out, &resp); err != nil {
		return 0, fmt.Errorf("delete: answer %q: %w", out, err)
	}
	// containerd gives it five seconds; a busy machine some more.
	if d := time.Since(started); d > 5*time.Second {
		n.t.Logf("delete took %s", d)
	}
	return resp.GetExitStatus(), nil
}

// end takes everything away after a test that failed, and checks that there was
// no need to after one that passed.
func (n *node) end() {
	n.disconnect()
	for _, id := range n.ids {
		_ = n.delete(id)
	}
	if n.t.Failed() {
		n.t.Logf("the shim's log:\n%s", tail(n.logged()))
	}
	for end := time.Now().Add(5 * time.Second); len(n.processes()) > 0 && time.Now().Before(end); {
		wait(50 * time.Millisecond)
	}
	for _, pid := range n.processes() {
		n.t.Errorf("killed a process that was left: %d %s", pid, commandLine(pid))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := process.Remove(n.pod); err != nil {
		n.t.Error(err)
	}
	for _, cut := range n.cuts {
		cut()
	}
	for _, f := range n.spaces {
		_ = f.Close()
	}
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Error(err)
	}
}

func tail(s string) string {
	const most = 5000
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}
