package sandboxapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/pod"
	"github.com/coffer-project/coffer/internal/host/sandbox"
)

// fakePod is a pod whose machine is this test's process.
type fakePod struct {
	boot    error
	mu      sync.Mutex
	got     *cri.Sandbox
	created time.Time
	done    chan struct{}
	once    sync.Once
	err     error
	closes  int
}

func (p *fakePod) Boot(_ context.Context, s *cri.Sandbox) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = s
	if p.boot != nil {
		p.end(p.boot)
		return p.boot
	}
	p.created = time.Unix(1000, 0)
	return nil
}

func (p *fakePod) end(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.done)
	})
}

func (p *fakePod) Machine() pod.Machine {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.created.IsZero() {
		return nil
	}
	return fakeMachine{}
}

func (p *fakePod) Created() time.Time    { p.mu.Lock(); defer p.mu.Unlock(); return p.created }
func (p *fakePod) Done() <-chan struct{} { return p.done }

func (p *fakePod) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

func (p *fakePod) Close(context.Context) error {
	p.mu.Lock()
	p.closes++
	p.mu.Unlock()
	p.end(nil)
	return nil
}

type fakeMachine struct{ pod.Machine }

func (fakeMachine) PID() int { return os.Getpid() }
func (fakeMachine) Info() sandbox.Info {
	return sandbox.Info{Kind: sandbox.Soft, KindReason: "asked for", Measurement: []byte{0xab}, Hello: &agentapi.HelloResponse{Sealed: true}}
}

// world is a service behind a real ttrpc connection.
type world struct {
	client   api.TTRPCSandboxService
	service  *Service
	pod      *fakePod
	booted   error
	adopted  []Pod
	released chan Pod
	shutdown chan struct{}
}

func start(t *testing.T) *world {
	t.Helper()
	w := &world{pod: &fakePod{done: make(chan struct{})}, released: make(chan Pod, 1), shutdown: make(chan struct{}, 1)}
	w.service = New(Options{
		NewPod: func(*cri.Sandbox) (Pod, error) { return w.pod, nil },
		Booted: func(p Pod) error {
			w.adopted = append(w.adopted, p)
			return w.booted
		},
		Closed:   func(p Pod) { w.released <- p },
		Shutdown: func() { w.shutdown <- struct{}{} },
		Now:      func() time.Time { return time.Unix(2000, 0) },
	})
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterTTRPCSandboxService(server, w.service)
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	serving := make(chan struct{})
	go func() {
		defer close(serving)
		_ = server.Serve(t.Context(), listener)
	}()
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	w.client = api.NewTTRPCSandboxClient(client)
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
		<-serving
		if err := w.service.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func create(t *testing.T, w *world) {
	t.Helper()
	message, err := os.ReadFile("../cri/testdata/web.pb")
	if err != nil {
		t.Fatal(err)
	}
	r := &api.CreateSandboxRequest{SandboxID: "s-1", NetnsPath: "/run/netns/x", Options: &anypb.Any{TypeUrl: "types.containerd.io/" + cri.ConfigType, Value: message}}
	if _, err := w.client.CreateSandbox(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.CreateSandbox(t.Context(), r); !errdefs.IsAlreadyExists(errgrpc.ToNative(err)) {
		t.Errorf("created twice: %v", err)
	}
}

func TestLife(t *testing.T) {
	t.Parallel()
	w, ctx := start(t), t.Context()
	if _, err := w.client.SandboxStatus(ctx, &api.SandboxStatusRequest{SandboxID: "s-1"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("status before create: %v", err)
	}
	create(t, w)
	if s, err := w.client.SandboxStatus(ctx, &api.SandboxStatusRequest{SandboxID: "s-1"}); err != nil || s.GetState() != notReady || s.GetPid() != 0 {
		t.Errorf("status before start: %v, %v", s, err)
	}
	if _, err := w.client.SandboxMetrics(ctx, &api.SandboxMetricsRequest{SandboxID: "s-1"}); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
		t.Errorf("metrics before start: %v", err)
	}
	r, err := w.client.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "s-1"})
	if err != nil || int(r.GetPid()) != os.Getpid() || r.GetCreatedAt().GetSeconds() != 1000 {
		t.Fatalf("start: %v, %v", r, err)
	}
	got := w.pod.got
	if got.Name != "web" || got.NetNS != "/run/netns/x" || got.Initdata == nil || len(got.DNS.GetServers()) != 1 || len(got.DNS.GetSearches()) != 3 || got.SharePID || !got.SharePIDKnown {
		t.Errorf("booted with %+v", got)
	}
	if len(w.adopted) != 1 {
		t.Errorf("adopted %v", w.adopted)
	}
	if _, err := w.client.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "s-1"}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("started twice: %v", err)
	}
	if p, err := w.client.Platform(ctx, &api.PlatformRequest{SandboxID: "s-1"}); err != nil || p.GetPlatform().GetOS() != "linux" || p.GetPlatform().GetArchitecture() == "" {
		t.Errorf("platform %v, %v", p, err)
	}
	if _, err := w.client.PingSandbox(ctx, &api.PingRequest{SandboxID: "s-1"}); err != nil {
		t.Error(err)
	}
	s, err := w.client.SandboxStatus(ctx, &api.SandboxStatusRequest{SandboxID: "s-1", Verbose: true})
	if err != nil || s.GetState() != ready || s.GetInfo()["tee"] != "soft" || s.GetInfo()["measurement"] != "ab" || s.GetInfo()["sealed"] != "true" || s.GetExitedAt() != nil {
		t.Errorf("status %v, %v", s, err)
	}
	metrics(t, w)
	waited := make(chan *api.WaitSandboxResponse, 1)
	go func() {
		r, err := w.client.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "s-1"})
		if err != nil {
			t.Error(err)
		}
		waited <- r
	}()
	for range 2 {
		if _, err := w.client.StopSandbox(ctx, &api.StopSandboxRequest{SandboxID: "s-1", TimeoutSecs: 10}); err != nil {
			t.Error(err)
		}
	}
	if r := <-waited; r.GetExitStatus() != 0 || r.GetExitedAt().GetSeconds() != 2000 {
		t.Errorf("waited for %v", r)
	}
	if p := <-w.released; p != Pod(w.pod) {
		t.Errorf("released %v", p)
	}
	if s, err := w.client.SandboxStatus(ctx, &api.SandboxStatusRequest{SandboxID: "s-1"}); err != nil || s.GetState() != notReady || s.GetExitedAt().GetSeconds() != 2000 {
		t.Errorf("status after stop: %v, %v", s, err)
	}
	if _, err := w.client.PingSandbox(ctx, &api.PingRequest{SandboxID: "s-1"}); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
		t.Errorf("ping after stop: %v", err)
	}
	if _, err := w.client.ShutdownSandbox(ctx, &api.ShutdownSandboxRequest{SandboxID: "s-1"}); err != nil {
		t.Error(err)
	}
	<-w.shutdown
}

func metrics(t *testing.T, w *world) {
	t.Helper()
	m, err := w.client.SandboxMetrics(t.Context(), &api.SandboxMetricsRequest{SandboxID: "s-1"})
	if err != nil {
		t.Fatal(err)
	}
	v, err := typeurl.UnmarshalAny(m.GetMetrics().GetData())
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := v.(*stats.Metrics); !ok || s.GetMemory().GetUsage() == 0 || s.GetPids().GetCurrent() == 0 || m.GetMetrics().GetID() != "s-1" {
		t.Errorf("metrics %v", v)
	}
}

// TestDeath: a machine that ends by itself is told with its status, and what is
// left of it is removed.
func TestDeath(t *testing.T) {
	t.Parallel()
	w, ctx := start(t), t.Context()
	create(t, w)
	if _, err := w.client.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "s-1"}); err != nil {
		t.Fatal(err)
	}
	w.pod.end(errors.New("the guest panicked"))
	r, err := w.client.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "s-1"})
	if err != nil || r.GetExitStatus() != killed {
		t.Errorf("wait: %v, %v", r, err)
	}
	<-w.released
	if w.pod.closes != 1 {
		t.Errorf("closed %d times", w.pod.closes)
	}
	if _, err := w.client.PingSandbox(ctx, &api.PingRequest{SandboxID: "s-1"}); err == nil || !strings.Contains(err.Error(), "the guest panicked") {
		t.Errorf("ping: %v", err)
	}
	if s, err := w.client.SandboxStatus(ctx, &api.SandboxStatusRequest{SandboxID: "s-1", Verbose: true}); err != nil || s.GetInfo()["error"] != "the guest panicked" {
		t.Errorf("status: %v, %v", s, err)
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := start(t)
	for want, r := range map[string]*api.CreateSandboxRequest{
		"expected runtime.v1.PodSandboxConfig": {SandboxID: "s-1", NetnsPath: "/x"},
		"unexpected EOF":                       {SandboxID: "s-1", NetnsPath: "/x", Options: &anypb.Any{TypeUrl: cri.ConfigType, Value: []byte{0xff}}},
		"no network namespace":                 {SandboxID: "s-1", Options: &anypb.Any{TypeUrl: cri.ConfigType, Value: []byte{0x42, 6, 0x12, 4, 0x0a, 2, 2 << 3, 1}}},
	} {
		// containerd shows the text as it makes an error of its own of it.
		if _, err := w.client.CreateSandbox(ctx, r); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) || strings.Count(errgrpc.ToNative(err).Error(), want) != 1 {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
	create(t, w)
	w.pod.boot = errors.New("the guest image is missing")
	if _, err := w.client.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "s-1"}); err == nil || !strings.Contains(err.Error(), "the guest image is missing") {
		t.Errorf("start: %v", err)
	}
	if r, err := w.client.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "s-1"}); err != nil || r.GetExitStatus() != killed {
		t.Errorf("wait: %v, %v", r, err)
	}
	// containerd does this after a start that failed.
	if _, err := w.client.ShutdownSandbox(ctx, &api.ShutdownSandboxRequest{SandboxID: "s-1"}); err != nil {
		t.Error(err)
	}
	<-w.shutdown

	w = start(t)
	create(t, w)
	w.booted = errors.New("there is a pod already")
	if _, err := w.client.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "s-1"}); err == nil || !strings.Contains(err.Error(), "there is a pod already") {
		t.Errorf("start: %v", err)
	}
	if w.pod.closes != 1 {
		t.Errorf("closed %d times", w.pod.closes)
	}

	// What the guest refuses has a code that containerd knows.
	for code, boot := range map[codes.Code]error{
		codes.PermissionDenied:   fmt.Errorf("the guest did not take the pod: %w", &pod.Refused{Rule: "pod.name"}),
		codes.FailedPrecondition: fmt.Errorf("the guest: %w", status.Error(codes.FailedPrecondition, "no")),
		codes.Unknown:            fmt.Errorf("the guest: %w", status.Error(codes.Unimplemented, "no")),
	} {
		w = start(t)
		create(t, w)
		w.pod.boot = boot
		if _, err := w.client.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "s-1"}); status.Code(err) != code {
			t.Errorf("want %v, got %v", code, err)
		}
	}

	// Neither created nor started.
	w = start(t)
	if _, err := w.client.ShutdownSandbox(ctx, &api.ShutdownSandboxRequest{SandboxID: "s-1"}); err != nil {
		t.Error(err)
	}
	<-w.shutdown
	w = start(t)
	create(t, w)
	if _, err := w.client.StopSandbox(ctx, &api.StopSandboxRequest{SandboxID: "s-1"}); err != nil {
		t.Error(err)
	}
	if _, err := w.client.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "s-1"}); err != nil {
		t.Error(err)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	const line = "1 (a b) c) S 0 1 1 0 -1 4194560 100 0 5 0 200 300 0 0 20 0 7 0 9 1000 50 18446744073709551615 0"
	u, err := parseStat(line, 4096)
	if err != nil || u != (usage{userUsec: 2_000_000, systemUsec: 3_000_000, threads: 7, rssBytes: 50 * 4096, minorFaults: 100, majorFaults: 5}) {
		t.Errorf("got %+v, %v", u, err)
	}
	for _, bad := range []string{"", "1 (a) S 1", strings.Replace(line, " 200 ", " x ", 1)} {
		if _, err := parseStat(bad, 4096); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
