package network

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/serve"
)

// image is the directory of the built guest image.
func image(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a virtual machine; not with -short")
	}
	dir := os.Getenv("COFFER_GUEST_IMAGE")
	if dir == "" {
		dir = filepath.Join("..", "..", "build", "guest")
	}
	_, err := os.Stat(filepath.Join(dir, "manifest.json"))
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

// registry serves an image of busybox in the node's namespace.
func (w *world) registry() string {
	t := w.t
	t.Helper()
	root := guesttest.Rootfs(t)
	if err := os.Symlink("busybox", filepath.Join(root, "bin", "nc")); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	made, err := build.Build(t.Context(), l, build.Options{
		Layers: []build.Tree{{Dir: root}},
		Config: oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	if err := w.node.Do(func() (err error) { listener, err = net.Listen("tcp", nodeIP+":0"); return err }); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: serve.Handler(map[string]serve.Source{"test/busybox": l}), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return sandbox.HostName + ":" + port + "/test/busybox@" + string(made.Digest)
}

// TestMachine boots the guest image with two cards of a pod's network: it pulls
// an image over the one, answers on both, and finds a disk that was plugged in
// while it ran.
func TestMachine(t *testing.T) {
	dir := image(t)
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s, err := sandbox.Launch(ctx, sandbox.Config{
		ID: "network-test", Image: dir, TEE: sandbox.None, Accelerator: accel.TCG, VCPUs: 1, MemoryMiB: 512,
		Network:   &sandbox.Network{Cards: w.attached.Cards, Guest: w.attached.Guest},
		DiskSlots: vmm.MaxDiskSlots, Logger: slog.New(slog.DiscardHandler), AccelCache: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("console:\n%s", strings.Join(s.Console(), "\n"))
		}
		_ = s.Close()
	}()
	t.Logf("boot: %v", s.Info().Boot)

	disk := filepath.Join(t.TempDir(), "disk")
	for _, serial := range []string{"scratch", "spare"} {
		if err := os.WriteFile(disk, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(disk, 64<<20); err != nil {
			t.Fatal(err)
		}
		if err := s.AttachDisk(ctx, vmm.Disk{Serial: serial, Image: vmm.Input{Path: disk}}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(disk); err != nil { // the machine has it open
			t.Fatal(err)
		}
	}
	told := s.Network()
	told.Hosts = []*agentapi.HostEntry{{Address: nodeIP, Names: []string{sandbox.HostName}}}
	// The guest uses the disk it is told of, which it must find.
	if _, err := s.Agent().CreateSandbox(ctx, &agentapi.CreateSandboxRequest{
		SandboxId: "pod", PodName: "web", Hostname: "web-0", Network: told, ScratchDisk: "scratch",
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	const script = "cat /sys/block/vd*/serial | tr -d '\\000'; echo; for i in 1 2; do nc -l -p 8080 -e /bin/cat; done; nc " + neighbourIP + " 8081 </dev/null"
	if _, err := s.Agent().CreateContainer(ctx, &agentapi.CreateContainerRequest{
		ContainerId: "web", Name: "web", Image: w.registry(), Args: &agentapi.StringList{Values: []string{"/bin/sh", "-c", script}},
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("pulled over the pod's network in %v", time.Since(began))
	out, err := s.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT, ContainerId: "web"})
	if err != nil {
		t.Fatal(err)
	}
	var greeted net.Listener
	if err := w.neighbour.Do(func() (err error) { greeted, err = net.Listen("tcp", neighbourIP+":8081"); return err }); err != nil {
		t.Fatal(err)
	}
	defer greeted.Close()
	go func() {
		if conn, err := greeted.Accept(); err == nil {
			_, _ = io.WriteString(conn, "hello from another pod\n")
			_ = conn.Close()
		}
	}()
	if _, err := s.Agent().Start(ctx, &agentapi.StartRequest{ContainerId: "web"}); err != nil {
		t.Fatal(err)
	}
	for _, from := range []struct {
		ns      string
		address string
	}{{"neighbour", podIP}, {"node", ptpIP}} {
		ns := w.neighbour
		if from.ns == "node" {
			ns = w.node
		}
		conn, err := w.dial(ns, from.address, "8080", limit)
		for tick := time.NewTicker(50 * time.Millisecond); errors.Is(err, unix.ECONNREFUSED); <-tick.C { // it does not listen yet
			conn, err = w.dial(ns, from.address, "8080", limit)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "through the tap"); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != "through the tap" {
			t.Errorf("from the %s: %q, %v", from.ns, got, err)
		}
	}
	said, err := io.ReadAll(out)
	if err != nil || !strings.Contains(string(said), "hello from another pod\n") {
		t.Errorf("the container said %q, %v", said, err)
	}
	t.Logf("the container said %q", said)
	// One disk is free, the other is in use: the guest's kernel lets go of both.
	began = time.Now()
	if err := s.DetachDisk(ctx, "spare"); err != nil {
		t.Error(err)
	}
	t.Logf("detached in %v", time.Since(began))
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}
