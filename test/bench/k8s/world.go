package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/serve"
)

// Places, all on the tmpfs that only this program and its children see.
const (
	workDir     = "/run/bench"
	kubeletRoot = "/run/kubelet"
	eventSocket = "/run/containerd/containerd.sock.ttrpc"
	grpcSocket  = "/run/containerd/containerd.sock"
)

// world is a node: an image in a registry, the same unpacked, and whoever takes
// the shims' events.
type world struct {
	agent string
	// image is its reference with the digest, rootfs the unpacked image.
	image, rootfs string
	// registries is a registries.conf for it.
	registries string
	pods       int // that were made
}

func newWorld(ctx context.Context, agent string) (*world, error) {
	for _, dir := range []string{workDir, kubeletRoot, filepath.Dir(eventSocket)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := linkUp("lo", nodeAddress+"/32"); err != nil {
		return nil, err
	}
	w := &world{agent: agent, rootfs: filepath.Join(workDir, "image")}
	if err := makeTree(ctx, w.rootfs); err != nil {
		return nil, err
	}
	if err := w.serveImage(ctx); err != nil {
		return nil, err
	}
	return w, takeEvents(ctx)
}

// makeTree makes a root file system of Debian's static busybox.
func makeTree(ctx context.Context, root string) error {
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (needs Debian's busybox-static)", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sh", "sleep", "true"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// serveImage makes an image of the tree and serves it by plain HTTP.
func (w *world) serveImage(ctx context.Context) error {
	l, err := layout.Create(filepath.Join(workDir, "layout"))
	if err != nil {
		return err
	}
	d, err := build.Build(ctx, l, build.Options{Layers: []build.Tree{{Dir: w.rootfs}}, Config: oci.ImageConfig{Config: oci.ContainerConfig{Env: []string{"PATH=/bin"}}}})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", nodeAddress+":0")
	if err != nil {
		return err
	}
	const repository = "bench/busybox"
	server := &http.Server{Handler: serve.Handler(map[string]serve.Source{repository: l}), ReadHeaderTimeout: time.Minute}
	go func() {
		if err := server.Serve(listener); err != nil {
			progress("registry: %v", err)
		}
	}()
	address := listener.Addr().String()
	w.image = fmt.Sprintf("%s/%s@%s", address, repository, d.Digest)
	w.registries = filepath.Join(workDir, "registries.conf")
	return os.WriteFile(w.registries, fmt.Appendf(nil, "[[registry]]\nlocation = %q\ninsecure = true\n", address), 0o600)
}

// sink takes events and forgets them.
type sink struct{}

func (sink) Forward(context.Context, *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func takeEvents(ctx context.Context) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	eventsapi.RegisterTTRPCEventsService(server, sink{})
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", eventSocket)
	if err != nil {
		return err
	}
	go func() {
		if err := server.Serve(ctx, listener); err != nil && ctx.Err() == nil {
			progress("events: %v", err)
		}
	}()
	return nil
}

// runtimeConfig writes a handler's configuration.
func (w *world) runtimeConfig(name, content string) (string, error) {
	path := filepath.Join(workDir, name+".toml")
	common := fmt.Sprintf("development = true\nkubelet_root = %q\nstate_dir = \"/run/coffer\"\n%s\n[unsealed_registries]\nca = \"\"\nconfig = %q\n", kubeletRoot, content, w.registries)
	return path, os.WriteFile(path, []byte(common), 0o600)
}

// processConfig is the handler that runs the agent as a process.
func (w *world) processConfig() (string, error) {
	return w.runtimeConfig("process", fmt.Sprintf("driver = \"process\"\nagent = %q\ntee = \"none\"", w.agent))
}

// machineConfig is one that runs a virtual machine. Memory is what a bare machine
// is compared with.
func (w *world) machineConfig(image string, memory int) (string, error) {
	return w.runtimeConfig("machine", fmt.Sprintf("guest_image = %q\ntee = \"none\"\naccelerator = \"tcg\"\ndefault_memory = %d\noverhead_memory = %d\nboot_timeout = \"5m\"", image, memory/2, memory-memory/2))
}

// command runs a program and returns its output.
func command(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: %s", cmd.Path, err, out), ctx.Err())
	}
	return out, nil
}
