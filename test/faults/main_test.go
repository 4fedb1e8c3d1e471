// Package faults drives the real shim as containerd does (start, the Task
// service over ttrpc, delete), breaks one thing at one step of a pod's life,
// and asks two questions: does the error say what happened and what to do, and
// is anything left? Leftovers are counted by what the kernel knows: processes,
// open files, mounts, control groups, network devices, and files.
//
// Most pods here run in the agent as a process (driver "process"), which has
// the same host side as a machine; a few need a real one.
package faults

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
)

// Environment variables.
const (
	// binVariable is a directory that has the shim and the agent already.
	binVariable = "COFFER_BIN"
	// requireVariable turns "cannot run here" from a skip into a failure.
	requireVariable = "COFFER_REQUIRE_VM"
	// guestVariable is the guest image's directory.
	guestVariable = "COFFER_GUEST_IMAGE"
)

const shimName = "containerd-shim-coffer-v2"

// TestMain makes this program a guest agent that lies when it is called like one.
func TestMain(m *testing.M) {
	if lie, ok := strings.CutPrefix(filepath.Base(os.Args[0]), liarPrefix); ok {
		os.Exit(beLiar(lie))
	}
	// Most of the time a test waits for other processes. The command line may say
	// another number.
	if err := flag.Set("test.parallel", strconv.Itoa(3*runtime.NumCPU())); err != nil {
		panic(err)
	}
	status := m.Run()
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(status)
}

// shared is what all tests use and none changes.
var shared struct {
	once  sync.Once
	err   error
	dir   string
	shim  string
	agent string
	// image is a layout with busybox, of digest.
	image  *layout.Layout
	digest string
	config oci.ImageConfig
}

// unsupported skips, or fails where the thing should be there.
func unsupported(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(requireVariable) != "" {
		t.Fatalf("%s, and %s is set", why, requireVariable)
	}
	t.Skipf("not supported here: %s", why)
}

// need prepares what is shared, or skips.
func need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		unsupported(t, "pods need root and namespaces")
	}
	for _, path := range []string{"/usr/bin/crun", "/bin/busybox"} {
		if _, err := os.Stat(path); err != nil {
			unsupported(t, err.Error()+" (Debian packages crun and busybox-static)")
		}
	}
	shared.once.Do(func() { shared.err = prepare(t) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
}

func prepare(t testing.TB) error {
	var err error
	if shared.dir, err = os.MkdirTemp("", "cfb"); err != nil {
		return err
	}
	for name, to := range map[string]*string{shimName: &shared.shim, "coffer-agent": &shared.agent} {
		if dir := os.Getenv(binVariable); dir != "" {
			*to = filepath.Join(dir, name)
			continue
		}
		*to = filepath.Join(shared.dir, name)
		cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "no_grpc", "-o", *to, "github.com/coffer-project/coffer/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return makeImage(t)
}

// makeImage makes the image that pods run.
func makeImage(t testing.TB) error {
	root := filepath.Join(shared.dir, "rootfs")
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sh", "sleep", "cat", "echo", "yes", "true", "dd"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	if shared.image, err = layout.Create(filepath.Join(shared.dir, "layout")); err != nil {
		return err
	}
	shared.config = oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}}
	d, err := build.Build(t.Context(), shared.image, build.Options{Layers: []build.Tree{{Dir: root}}, Config: shared.config})
	shared.digest = string(d.Digest)
	return err
}
