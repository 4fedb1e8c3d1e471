package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/serve"
)

// guestImage is the directory of the built guest image.
func guestImage(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a virtual machine; not with -short")
	}
	dir := os.Getenv("COFFER_GUEST_IMAGE")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "build", "guest")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "manifest.json"))
	}
	if err == nil {
		_, err = exec.LookPath(vmm.DefaultBinary)
	}
	if err != nil && os.Getenv(hosttest.RequireVariable) != "" {
		t.Fatalf("%v, and %s is set (make guest-image builds the image)", err, hosttest.RequireVariable)
	}
	if err != nil {
		t.Skipf("not supported here: %v (make guest-image builds the image)", err)
	}
	return dir
}

// busybox serves an image of busybox on loopback and returns its reference as a
// guest on the user-mode network reaches it.
func busybox(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("not supported here: %v (Debian package busybox-static)", err)
	}
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil { //nolint:gosec // of an image
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil { //nolint:gosec // of an image
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	image, err := build.Build(t.Context(), l, build.Options{
		Layers: []build.Tree{{Dir: root}}, Config: oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/bin/busybox"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(serve.Handler(map[string]serve.Source{"test/busybox": l}))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s:%s/test/busybox@%s", sandbox.HostName, port, image.Digest)
}

// TestRealMachine: a bundle as `ctr run` makes it becomes a virtual machine with
// the software TEE, a scratch disk, and a container that runs in it. The guest gives
// free memory back.
func TestRealMachine(t *testing.T) {
	image := guestImage(t)
	dir := t.TempDir()
	c := runtimeconfig.Default()
	c.TEE, c.GuestImage, c.Accelerator, c.Scratch, c.ScratchDirectory = "soft", image, "tcg", 256<<20, dir
	c.SoftTEEState, c.StateDir, c.BlobCache = filepath.Join(dir, "tee"), filepath.Join(dir, "run"), filepath.Join(dir, "blobs")
	c.BootTimeout = runtimeconfig.Duration(4 * time.Minute)
	var traces []Trace
	p := New(Options{ID: "vm-1", Config: c, Logger: slog.New(slog.DiscardHandler), Note: func(tr Trace) error {
		traces = append(traces, tr)
		return nil
	}})
	b := bundle(t, "ctr", "vm-1", func(s *specs.Spec) {
		s.Annotations["coffer-project.io/image"] = busybox(t)
		s.Process.Args = []string{"/bin/busybox", "sh", "-c", `busybox id -u; busybox grep -c . /proc/partitions
			i=0; until busybox grep -q '^virtio_balloon ' /proc/modules; do i=$((i+1)); [ $i -lt 60 ] || exit 3; busybox sleep 1; done`}
		s.Process.User, s.Process.Cwd = specs.User{UID: 7}, "/"
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := p.Boot(ctx, b.Sandbox); err != nil {
		t.Fatal(err)
	}
	m := p.Machine()
	defer func() {
		if err := p.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		if end := m.End(); end == nil || end.Cause != vmm.PoweredOff {
			t.Errorf("the machine ended by %v", end)
		}
		emptyBut(t, dir, "tee", "run", "blobs")
	}()
	if len(traces) != 1 || traces[0].PID != m.PID() || m.Info().Hello.GetTee() == "" || m.Info().Hello.GetSealed() {
		t.Errorf("noted %v, info %+v", traces, m.Info().Hello)
	}
	if err := p.Create(ctx, b.Container); err != nil {
		t.Fatal(err)
	}
	out, err := m.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT, ContainerId: "vm-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := m.Agent().Start(ctx, &agentapi.StartRequest{ContainerId: "vm-1"}); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err != nil || !strings.HasPrefix(string(text), "7\n") {
		t.Errorf("the container said %q, %v", text, err)
	}
	if exit, err := m.Agent().Wait(ctx, &agentapi.WaitRequest{ContainerId: "vm-1"}); err != nil || exit.GetExitCode() != 0 {
		t.Errorf("it ended with %v, %v", exit, err)
	}
	if err := p.Delete(ctx, "vm-1", ""); err != nil {
		t.Error(err)
	}
}

// TestRealSealedMachine: the digest of a pod's initdata stands in what the guest
// attests, so that the guest takes the document, finds there what the bundle does
// not say, and refuses what its policy does not have.
func TestRealSealedMachine(t *testing.T) {
	image := guestImage(t)
	dir := t.TempDir()
	const policy = `{"apiVersion": "coffer/v1", "kind": "PodPolicy", "pod": {"name": "web", "namespace": "shop", "sharePID": true},
		"containers": [{"name": "web", "image": {"digest": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "from": ["registry.example/web"]}}],
		"network": {"dns": {"host": "dns"}, "hosts": {"host": "hosts"}}}`
	doc := initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{
		initdata.KeyPodPolicy: policy, initdata.KeyAA: "[token_configs.kbs]\nurl = \"https://trustee.example\"\n",
	}}
	raw, err := doc.Encode()
	if err != nil {
		t.Fatal(err)
	}
	annotation, err := initdata.EncodeAnnotation(raw)
	if err != nil {
		t.Fatal(err)
	}
	c := runtimeconfig.Default()
	c.TEE, c.GuestImage, c.Accelerator = "soft", image, "tcg"
	c.SoftTEEState, c.StateDir = filepath.Join(dir, "tee"), filepath.Join(dir, "run")
	c.BootTimeout = runtimeconfig.Duration(4 * time.Minute)
	p := New(Options{ID: "vm-2", Config: c, Logger: slog.New(slog.DiscardHandler)})
	b := bundle(t, "web-sandbox", "vm-2", func(s *specs.Spec) {
		s.Annotations[cri.AnnotationInitdata] = annotation
		s.Mounts = nil
	})
	b.Sandbox.NetNS = "" // the user-mode network
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := p.Boot(ctx, b.Sandbox); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	if info := p.Machine().Info(); !info.Hello.GetSealed() || info.Measurement == nil {
		t.Errorf("info %+v", info)
	}
	app := bundle(t, "web-app", "c-1", func(*specs.Spec) {}).Container
	app.Spec.Mounts = nil
	err = p.Create(ctx, app)
	if r, ok := errors.AsType[*Refused](err); !ok || r.Rule != "container.unknown" || !strings.Contains(err.Error(), `"app"`) {
		t.Errorf("got %v", err)
	}
}
