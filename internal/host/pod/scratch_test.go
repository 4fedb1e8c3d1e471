package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
)

// TestScratchFull: a guest whose scratch disk the node has no room for sees
// errors of a disk; the host says why, and makes none that could not be used.
func TestScratchFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a file system of its own needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=40m"); err != nil {
		t.Skipf("not supported here: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	c := config(t)
	c.Driver, c.Scratch, c.ScratchDirectory = runtimeconfig.DriverQEMU, 64<<20, dir
	w := newWorld()
	p := New(w.options(c))
	s := aSandbox()
	s.SharePIDKnown = true
	if err := p.Boot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w.machine.agent.err = status.Error(codes.FailedPrecondition, "layer 1: write: input/output error")
	const full = "the node's scratch_directory "
	if err := p.Create(t.Context(), aContainer("c-1")); err == nil || strings.Contains(err.Error(), full) {
		t.Errorf("with room: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), make([]byte, 39<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	err := p.Create(t.Context(), aContainer("c-2"))
	if err == nil || !strings.Contains(err.Error(), "input/output error; "+full+dir+" is full, ") || !strings.Contains(err.Error(), "free space there") {
		t.Errorf("without room: %v", err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	w = newWorld()
	p = New(w.options(c))
	if err := p.Boot(t.Context(), s); err == nil || !strings.Contains(err.Error(), "scratch: "+full+dir+" is full, ") {
		t.Errorf("boot: %v", err)
	}
	if left := w.left(); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}
