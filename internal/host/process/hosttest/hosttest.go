// Package hosttest gives tests an agent as a process and an image that it can
// run. Only tests import it.
package hosttest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/internal/host/process"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/serve"
)

// Environment variables.
const (
	// AgentVariable names the program to run; without it, it is built.
	AgentVariable = "COFFER_GUEST_AGENT"
	// RequireVariable, when not empty, turns "cannot run here" from a skip into
	// a failure.
	RequireVariable = "COFFER_REQUIRE_VM"
)

// Need skips a test where containers cannot be run, with the reason.
func Need(t testing.TB) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "containers need root"
	}
	for _, path := range []string{"/usr/bin/crun", "/bin/busybox"} {
		if _, err := os.Stat(path); err != nil {
			why = err.Error() + " (Debian packages crun and busybox-static)"
		}
	}
	switch {
	case why == "":
	case os.Getenv(RequireVariable) != "":
		t.Fatalf("%s, and %s is set", why, RequireVariable)
	default:
		t.Skip(why)
	}
}

// Agent returns the path of coffer-agent as this tree has it.
func Agent(t testing.TB) string {
	t.Helper()
	Need(t)
	if path := os.Getenv(AgentVariable); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "coffer-agent")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/coffer-project/coffer/cmd/coffer-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build coffer-agent: %v\n%s", err, out)
	}
	return path
}

// Config is of a process in the namespace.
func (n *Net) Config(t testing.TB, id string) process.Config {
	t.Helper()
	return process.Config{ID: id, Agent: Agent(t), NetNS: n.Path, Development: true, Logger: slog.New(slog.DiscardHandler)}
}

// Launch runs an agent until the test ends.
func Launch(t testing.TB, c process.Config) *process.Machine {
	t.Helper()
	m, err := process.Launch(context.WithoutCancel(t.Context()), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, line := range m.Console() {
				t.Log("agent: " + line)
			}
		}
	})
	return m
}

// Image makes an image of busybox, whose entrypoint is /bin/sh, and serves it in
// the namespace until the test ends. It returns its reference.
func (n *Net) Image(t testing.TB) string {
	t.Helper()
	Need(t)
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	image, err := build.Build(t.Context(), l, build.Options{
		Layers: []build.Tree{{Dir: rootfs(t)}},
		Config: oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(serve.Handler(map[string]serve.Source{"test/busybox": l}))
	_ = server.Listener.Close()
	server.Listener = n.listen(t)
	server.Start()
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("host.coffer.internal:%s/test/busybox@%s", port, image.Digest)
}

// rootfs is a directory with busybox and all that it can be called by.
func rootfs(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "/bin/busybox", "--install", "-s", filepath.Join(root, "bin")).CombinedOutput(); err != nil {
		t.Fatalf("busybox --install: %v\n%s", err, out)
	}
	// The links lead to the machine's program: let them lead to the image's.
	entries, err := os.ReadDir(filepath.Join(root, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "busybox" {
			continue
		}
		path := filepath.Join(root, "bin", e.Name())
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("busybox", path); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
