package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/internal/guest/storage"
	"github.com/coffer-project/coffer/internal/guest/volume"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

var env guesttest.Env

func TestMain(m *testing.M) { guesttest.Main(m, &env) }

const repository = "registry.example/shop/busybox"

// world is an agent as a plain process with everything around it.
type world struct {
	t        *testing.T
	attester *fakeAttester
	broker   *fakeBroker
	machine  *fakeMachine
	layout   *layout.Layout
	image    oci.Descriptor
	fetches  *gate
	disks    *fakeDisks
	dial     func() net.Conn
	opened   atomic.Int32 // how often stores were opened
}

// gate holds up fetches while it is shut, and counts them.
type gate struct {
	oci.Fetcher
	mu    sync.Mutex
	count int
	shut  bool
	tried chan struct{}
}

func (g *gate) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	g.mu.Lock()
	g.count++
	shut := g.shut
	g.mu.Unlock()
	if shut {
		g.tried <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return g.Fetcher.Fetch(ctx, d)
}

type fakeAttester struct{ initData []byte }

func (*fakeAttester) TEE() tee.Name { return tee.SNP }

func (*fakeAttester) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return nil, errors.New("not used")
}

func (f *fakeAttester) InitData(context.Context) ([]byte, error) { return f.initData, nil }

type fakeBroker struct {
	mu        sync.Mutex
	attested  int
	denial    error
	resources map[string]string
}

func (b *fakeBroker) Attest(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attested++
	return b.denial
}

func (b *fakeBroker) Resource(_ context.Context, uri kbs.ResourceURI) (secret.Bytes, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if v, ok := b.resources[uri.String()]; ok {
		return secret.New([]byte(v)), nil
	}
	return secret.Bytes{}, &kbs.StatusError{Status: 403, Info: kbs.ErrorInfo{Detail: "denied", Reason: &kbs.Reason{Rule: "resource.unknown", Claim: "resource", Expected: "one", Got: "none"}}}
}

type fakeMachine struct {
	mu       sync.Mutex
	hostname string
	sysctls  map[string]string
	shutdown int
}

func (*fakeMachine) Ready(context.Context) error { return nil }

func (m *fakeMachine) SetHostname(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hostname = name
	return nil
}

func (m *fakeMachine) SetSysctl(name, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sysctls[name] = value
	return nil
}

func (*fakeMachine) ApplyNetwork(context.Context, network.Config) error { return nil }

func (*fakeMachine) WriteNetworkFiles(dir string, f network.Files) error { return f.Write(dir) }

func (*fakeMachine) SharedPIDs() (string, error) { return "", errors.New("not used") }

func (m *fakeMachine) Shutdown() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shutdown++
}

// places are the same whatever the host offers.
type places struct {
	images  *image.Store
	volumes *volume.Manager
	opened  *atomic.Int32
}

// noDisk is a serial number that no disk has.
const noDisk = "no-disk"

func (p places) Open(_ context.Context, disk string) (*image.Store, *volume.Manager, error) {
	if disk == noDisk {
		return nil, nil, errors.New("no disk with that serial number")
	}
	p.opened.Add(1)
	return p.images, p.volumes, nil
}

// fakeDisks are volumes on disks that hold a key, or are blank.
type fakeDisks struct {
	dir  string
	keys map[string]string // by serial number
	raw  string            // the device of every disk in the clear
}

func (d *fakeDisks) OpenVolume(_ context.Context, v storage.Volume) (storage.Opened, error) {
	if key, ok := d.keys[v.Serial]; ok && key != string(v.Key.Expose()) {
		return storage.Opened{}, fmt.Errorf("volume %s: %w: another key", v.Name, storage.ErrRefused)
	}
	if v.Filesystem == "" {
		return storage.Opened{Device: "/dev/no-such-device"}, nil
	}
	dir := filepath.Join(d.dir, v.Serial)
	return storage.Opened{Dir: dir}, os.MkdirAll(dir, 0o777)
}

func (d *fakeDisks) OpenRaw(_ context.Context, _, serial string) (storage.Opened, error) {
	if d.raw == "" {
		return storage.Opened{}, errors.New("no disk " + serial)
	}
	return storage.Opened{Device: d.raw}, nil
}

type transport chan io.ReadWriteCloser

func (t transport) Next(ctx context.Context) (io.ReadWriteCloser, error) {
	select {
	case c := <-t:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// newWorld starts an agent; hostData is what its evidence says about initdata,
// nil for a guest without a TEE.
func newWorld(t *testing.T, hostData []byte, change ...func(*agent.Options)) *world {
	t.Helper()
	env.Need(t)
	w := &world{
		t: t, attester: &fakeAttester{hostData}, broker: &fakeBroker{resources: map[string]string{}},
		machine: &fakeMachine{sysctls: map[string]string{}}, disks: &fakeDisks{dir: t.TempDir()},
	}
	var err error
	if w.layout, err = layout.Create(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	w.image = w.build(guesttest.Rootfs(t), oci.ContainerConfig{})
	w.fetches = &gate{Fetcher: w.layout, tried: make(chan struct{}, 16)}
	cmdline := boot.Cmdline{TEE: boot.TEESoft}
	if hostData == nil {
		cmdline = boot.Cmdline{TEE: boot.TEENone, Development: true}
	}
	dir := guesttest.Tmpfs(t)
	log := slog.New(slog.NewTextHandler(&testLog{t: t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	crun, err := container.NewCrun(container.Options{
		Path: guesttest.Crun, StateDir: filepath.Join(dir, "s"), BundleDir: filepath.Join(dir, "b"),
		CgroupRoot: "/sys/fs/cgroup", CgroupParent: guesttest.Cgroup(t), Reaper: env.Reaper, WithoutMissing: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	images, err := image.NewStore(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	volumes, err := volume.NewManager(filepath.Join(dir, "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	pod := filepath.Join(dir, "pod")
	if err := os.Mkdir(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	o := agent.Options{
		Logger: log, Now: time.Now, Build: "test", BootID: [16]byte{7},
		Attestation: attestation.New(attestation.Options{
			Cmdline: cmdline, HasSoft: func() bool { return true }, Soft: func() tee.Attester { return w.attester },
		}),
		Machine: w.machine, Runtime: crun, Places: places{images, volumes, &w.opened}, Disks: w.disks, PodDir: pod,
		NewBroker: func(agent.BrokerConfig) (datahub.Broker, error) { return w.broker, nil },
		NewFetcher: func(agent.RegistryConfig, oci.Reference) (oci.Fetcher, func(), error) {
			return w.fetches, func() {}, nil
		},
		WithoutDeviceRules: true,
	}
	for _, c := range change {
		c(&o)
	}
	a, err := agent.New(o)
	if err != nil {
		t.Fatal(err)
	}
	conns := make(transport)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = a.Serve(ctx, conns) }()
	t.Cleanup(func() { cancel(); <-ended })
	socket := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	w.dial = func() net.Conn {
		t.Helper()
		client, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conns <- server
		return client
	}
	return w
}

// build makes an image of a directory.
func (w *world) build(dir string, config oci.ContainerConfig) oci.Descriptor {
	w.t.Helper()
	config.Entrypoint, config.Env = []string{"/bin/sh"}, []string{"PATH=/bin", "FROM=image"}
	d, err := build.Build(w.t.Context(), w.layout, build.Options{Layers: []build.Tree{{Dir: dir}}, Config: oci.ImageConfig{Config: config}})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// testLog writes to the test's log until the test has ended.
type testLog struct{ t *testing.T }

func (l *testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(string(bytes.TrimSpace(b)))
	}
	return len(b), nil
}

// host is one connection of a host.
type host struct {
	agentapi.AgentService
	t       *testing.T
	session *channel.Session
	conn    net.Conn
}

func (w *world) connect() *host {
	w.t.Helper()
	conn := w.dial()
	s, err := channel.Dial(w.t.Context(), conn)
	if err != nil {
		w.t.Fatal(err)
	}
	h := &host{t: w.t, session: s, conn: conn}
	client := ttrpc.NewClient(h.open(&agentapi.StreamHeader{Kind: agentapi.StreamHeader_CONTROL}))
	h.AgentService = agentapi.NewAgentClient(client)
	w.t.Cleanup(func() { _ = client.Close(); h.vanish() })
	return h
}

// vanish is the sudden death of a host.
func (h *host) vanish() { _ = h.conn.Close(); _ = h.session.Close() }

func (h *host) open(header *agentapi.StreamHeader) net.Conn {
	h.t.Helper()
	conn, err := h.session.Open(h.t.Context(), header)
	if err != nil {
		h.t.Fatal(err)
	}
	return conn
}

func (h *host) stream(kind agentapi.StreamHeader_Kind, id, exec string) net.Conn {
	h.t.Helper()
	return h.open(&agentapi.StreamHeader{Kind: kind, ContainerId: id, ExecId: exec})
}

// must fails the test on an error.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// refused checks that a call was refused by a rule, and returns the refusal.
func refused(t *testing.T, err error, rule string) *agentapi.Refusal {
	t.Helper()
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.PermissionDenied {
		t.Fatalf("error = %v, want PERMISSION_DENIED by %s", err, rule)
	}
	for _, d := range st.Details() {
		if r, ok := d.(*agentapi.Refusal); ok {
			if r.GetRule() != rule {
				t.Fatalf("refused by %s, want %s: %v", r.GetRule(), rule, err)
			}
			return r
		}
	}
	t.Fatalf("no refusal in %v", err)
	return nil
}

// sealed makes initdata of a policy that one container of the image has.
func (w *world) initdata(change func(*podpolicy.Policy)) (gz, hostData []byte) {
	w.t.Helper()
	policy := &podpolicy.Policy{
		APIVersion: podpolicy.APIVersion, Kind: podpolicy.Kind, Pod: podpolicy.Pod{Name: podpolicy.Name{Value: "web"}},
		Containers: []podpolicy.Container{{
			Name: "web", Image: podpolicy.Image{Digest: string(w.image.Digest), From: []string{repository}},
			Args: []string{"/bin/sh", "-c", "echo visible"},
		}},
	}
	change(policy)
	text, err := policy.Canonical()
	if err != nil {
		w.t.Fatal(err)
	}
	aa, cdh, err := guestconfig.Config{URL: "https://trustee.example:8080"}.TOML()
	if err != nil {
		w.t.Fatal(err)
	}
	doc := &initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{
		initdata.KeyAA: aa, initdata.KeyCDH: cdh, initdata.KeyPodPolicy: string(text),
	}}
	raw, err := doc.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	gz, err = initdata.Compress(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	_, digest, err := initdata.Digest(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	return gz, digest
}

// seal launches the world with a policy and creates its sandbox.
func (w *world) seal(change func(*podpolicy.Policy)) *host {
	w.t.Helper()
	gz, digest := w.initdata(change)
	w.attester.initData = digest
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](w.t)(h.CreateSandbox(w.t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "web", Initdata: gz}))
	return h
}

func (w *world) ref() string { return fmt.Sprintf("%s@%s", repository, w.image.Digest) }

// shell proposes a container that runs a script.
func (w *world) shell(id, script string) *agentapi.CreateContainerRequest {
	return &agentapi.CreateContainerRequest{
		ContainerId: id, Name: id, Image: w.ref(), Args: &agentapi.StringList{Values: []string{"/bin/sh", "-c", script}},
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
