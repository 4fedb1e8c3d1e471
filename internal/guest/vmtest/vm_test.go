// Package vmtest boots the agent as PID 1 of a real virtual machine. Its tests
// run only when they are told what to boot:
//
//	go test ./internal/guest/vmtest -args -kernel FILE -initrd FILE
package vmtest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/serve"
)

// guestImage is the directory of the guest image: COFFER_GUEST_IMAGE, or where
// make guest-image puts it. A test without one is skipped, and fails where
// COFFER_REQUIRE_VM says that there should be one.
func guestImage(t *testing.T) (kernel, initrd string) {
	t.Helper()
	dir := os.Getenv("COFFER_GUEST_IMAGE")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "build", "guest")
	}
	kernel, initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
	missing := ""
	for _, file := range []string{kernel, initrd} {
		if _, err := os.Stat(file); err != nil {
			missing = err.Error()
		}
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		missing = err.Error()
	}
	switch {
	case missing == "":
	case os.Getenv("COFFER_REQUIRE_VM") != "":
		t.Fatalf("%s, and COFFER_REQUIRE_VM is set (make guest-image builds the image)", missing)
	default:
		t.Skipf("not supported here: %s (make guest-image builds the image)", missing)
	}
	return kernel, initrd
}

// The command line of the guest image, for development and without a TEE.
const cmdline = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests random.trust_cpu=on tsc=reliable no_timer_check net.ifnames=0 " +
	"coffer.tee=none coffer.development coffer.debug"

// bootLimit is for an emulated machine on a busy host.
const bootLimit = 2 * time.Minute

type vm struct {
	t       *testing.T
	socket  string
	console *console
	ended   chan struct{}
	err     error
}

// console keeps what the guest prints.
type console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

func start(t *testing.T, extra ...string) *vm {
	t.Helper()
	kernel, initrd := guestImage(t)
	v := &vm{t: t, socket: filepath.Join(guesttest.ShortDir(t), "agent"), console: &console{}, ended: make(chan struct{})}
	args := append([]string{
		"-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-m", "1024", "-smp", "2", "-nodefaults", "-nographic", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", cmdline, "-serial", "stdio",
		"-device", "virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:12:34:56", "-netdev", "user,id=n0",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=a0,path=" + v.socket + ",server=on,wait=off",
		"-device", "virtserialport,chardev=a0,name=" + channel.SerialPort,
	}, extra...)
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = v.console, v.console
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(v.ended); v.err = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-v.ended
		if t.Failed() {
			t.Logf("console:\n%s", v.console)
		}
	})
	return v
}

type host struct {
	agentapi.AgentService
	t       *testing.T
	session *channel.Session
	conn    net.Conn
}

func (v *vm) connect() *host {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), bootLimit)
	defer cancel()
	var conn net.Conn
	for { // QEMU makes its socket in its own time
		var err error
		if conn, err = net.Dial("unix", v.socket); err == nil {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-v.ended:
			v.t.Fatalf("QEMU has ended: %v", v.err)
		}
	}
	s, err := channel.Dial(ctx, conn)
	if err != nil {
		v.t.Fatal(err)
	}
	h := &host{t: v.t, session: s, conn: conn}
	h.AgentService = agentapi.NewAgentClient(ttrpc.NewClient(h.open(agentapi.StreamHeader_CONTROL, "")))
	return h
}

func (h *host) vanish() { _ = h.conn.Close(); _ = h.session.Close() }

func (h *host) open(kind agentapi.StreamHeader_Kind, id string) net.Conn {
	h.t.Helper()
	conn, err := h.session.Open(h.t.Context(), &agentapi.StreamHeader{Kind: kind, ContainerId: id})
	if err != nil {
		h.t.Fatal(err)
	}
	return conn
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// registry serves an image of busybox to the guest, on the host's loopback.
func registry(t *testing.T) (ref string) {
	t.Helper()
	l := must[*layout.Layout](t)(layout.Create(t.TempDir()))
	image := must[oci.Descriptor](t)(build.Build(t.Context(), l, build.Options{
		Layers: []build.Tree{{Dir: guesttest.Rootfs(t)}},
		Config: oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}},
	}))
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	server := &http.Server{Handler: serve.Handler(map[string]serve.Source{"test/busybox": l}), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return "host.coffer.internal:" + port + "/test/busybox@" + string(image.Digest)
}

func network() *agentapi.Network {
	return &agentapi.Network{
		Interfaces: []*agentapi.Interface{{Mac: "52:54:00:12:34:56", Name: "eth0", Addresses: []string{"10.0.2.15/24"}}},
		Routes:     []*agentapi.Route{{Gateway: "10.0.2.2", Interface: "eth0"}},
		Hosts:      []*agentapi.HostEntry{{Address: "10.0.2.2", Names: []string{"host.coffer.internal"}}},
	}
}

func shell(id, ref, script string) *agentapi.CreateContainerRequest {
	return &agentapi.CreateContainerRequest{
		ContainerId: id, Name: id, Image: ref, Args: &agentapi.StringList{Values: []string{"/bin/sh", "-c", script}},
	}
}

func TestPodVM(t *testing.T) {
	v := start(t)
	ref := registry(t)
	h := v.connect()
	ctx := t.Context()
	hello := must[*agentapi.HelloResponse](t)(h.Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{1}}))
	for _, p := range hello.GetBootPhases() {
		t.Logf("%-10s %v  tsc %d", p.GetName(), time.Duration(p.GetAtNs()), p.GetAtTsc())
	}
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(ctx, &agentapi.CreateSandboxRequest{
		SandboxId: "pod", PodName: "web", Hostname: "web-0", Network: network(), SharePid: true,
	}))

	began := time.Now()
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(ctx, shell("hello", ref, "hostname; id -u; mkdir /tmp/x && touch /tmp/x/y && ls /tmp/x; exit 5")))
	out, errs := h.open(agentapi.StreamHeader_STDOUT, "hello"), h.open(agentapi.StreamHeader_STDERR, "hello")
	must[*agentapi.StartResponse](t)(h.Start(ctx, &agentapi.StartRequest{ContainerId: "hello"}))
	if got := string(must[[]byte](t)(io.ReadAll(out))); got != "web-0\n0\ny\n" {
		t.Errorf("output %q, errors %q", got, must[[]byte](t)(io.ReadAll(errs)))
	}
	exit := must[*agentapi.WaitResponse](t)(h.Wait(ctx, &agentapi.WaitRequest{ContainerId: "hello"}))
	if exit.GetExitCode() != 5 || exit.GetReason() != "exited" {
		t.Errorf("exit %v", exit)
	}
	t.Logf("pull, create, run, exit: %v", time.Since(began))

	// The same image again needs no pull; it uses more memory than it may.
	hungry := shell("hungry", ref, "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done")
	hungry.Resources = &agentapi.Resources{MemoryBytes: 16 << 20}
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(ctx, hungry))
	must[*agentapi.StartResponse](t)(h.Start(ctx, &agentapi.StartRequest{ContainerId: "hungry"}))
	exit = must[*agentapi.WaitResponse](t)(h.Wait(ctx, &agentapi.WaitRequest{ContainerId: "hungry"}))
	if exit.GetExitCode() != 137 || exit.GetReason() != "oom" {
		t.Errorf("exit of a container without memory: %v", exit)
	}

	// The host is restarted, twice; the container does not notice.
	req := shell("patient", ref, "read line; echo got $line")
	req.Stdin = true
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(ctx, req))
	must[*agentapi.StartResponse](t)(h.Start(ctx, &agentapi.StartRequest{ContainerId: "patient"}))
	for range 2 {
		h.vanish()
		h = v.connect()
		if again := must[*agentapi.HelloResponse](t)(h.Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{1}})); !bytes.Equal(again.GetBootId(), hello.GetBootId()) {
			t.Errorf("boot id %x, want %x", again.GetBootId(), hello.GetBootId())
		}
	}
	stats := must[*agentapi.StatsResponse](t)(h.Stats(ctx, &agentapi.StatsRequest{ContainerId: "patient"}))
	if stats.GetMemoryBytes() == 0 || stats.GetPids() == 0 || stats.GetCpuUsageNs() == 0 {
		t.Errorf("stats %v", stats)
	}
	in, out := h.open(agentapi.StreamHeader_STDIN, "patient"), h.open(agentapi.StreamHeader_STDOUT, "patient")
	if _, err := in.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if got := string(must[[]byte](t)(io.ReadAll(out))); got != "got hello\n" {
		t.Errorf("output %q", got)
	}
	for _, id := range []string{"hello", "hungry", "patient"} {
		must[*agentapi.DeleteResponse](t)(h.Delete(ctx, &agentapi.DeleteRequest{ContainerId: id}))
	}

	must[*agentapi.ShutdownResponse](t)(h.Shutdown(ctx, &agentapi.ShutdownRequest{}))
	h.vanish()
	select {
	case <-v.ended:
		if v.err != nil {
			t.Errorf("QEMU: %v", v.err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the machine did not power off")
	}
	for line := range strings.Lines(v.console.String()) {
		if strings.Contains(line, "resident memory") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// A guest that must have a TEE and has none says so and does not serve a pod.
func TestNoTEE(t *testing.T) {
	v := start(t, "-append", strings.ReplaceAll(cmdline, "coffer.tee=none coffer.development", ""))
	h := v.connect()
	_, err := h.Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{1}})
	if err == nil || !strings.Contains(err.Error(), "no hardware TEE: no trusted execution environment found: looked for tdx") {
		t.Errorf("hello: %v", err)
	}
	_, err = h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"})
	if err == nil || !strings.Contains(err.Error(), "no hardware TEE: no trusted execution environment found: looked for tdx") {
		t.Errorf("sandbox: %v", err)
	}
}

// A guest whose command line makes no sense ends, and says why.
func TestBadCommandLine(t *testing.T) {
	v := start(t, "-append", strings.ReplaceAll(cmdline, "coffer.development", ""))
	select {
	case <-v.ended:
	case <-time.After(bootLimit):
		t.Fatal("the machine still runs")
	}
	if !strings.Contains(v.console.String(), "needs coffer.development") {
		t.Errorf("the console does not say why")
	}
}
