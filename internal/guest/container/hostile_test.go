package container_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/container"
)

// Images say where a program starts, and bring links. Both have led out of
// containers in runtimes; the one in the guest image must not be so.

func mustNotCreate(t *testing.T, c *container.Crun, id string, cfg container.Config) {
	t.Helper()
	spec, err := container.Spec(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctr, err := c.Create(t.Context(), id, spec, container.IO{})
	if err != nil {
		return
	}
	t.Errorf("%s: the container was made", id)
	if err := ctr.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// A descriptor that the runtime has open, of a directory outside of the
// container, would be the way out (as in CVE-2024-21626).
func TestNoWorkingDirectoryThroughADescriptor(t *testing.T) {
	c := newCrun(t)
	cfg := config(t, "/bin/true")
	for fd := 3; fd < 16; fd++ {
		cfg.Cwd = fmt.Sprintf("/proc/self/fd/%d", fd)
		mustNotCreate(t, c, fmt.Sprintf("fd%d", fd), cfg)
	}
}

// With /proc elsewhere, what is masked and read only would be, too
// (as in CVE-2019-19921).
func TestNoProcThroughALink(t *testing.T) {
	c := newCrun(t)
	for _, target := range []string{"/tmp", "/vol/proc", "/"} {
		cfg := config(t, "/bin/true")
		proc := filepath.Join(cfg.Rootfs, "proc")
		if err := os.Remove(proc); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, proc); err != nil {
			t.Fatal(err)
		}
		cfg.Mounts = []container.Mount{{Source: t.TempDir(), Path: "/vol"}}
		mustNotCreate(t, c, "proc", cfg)
	}
}
