package machine_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/machine"
)

func TestNodes(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("device nodes need root")
	}
	dev := t.TempDir()
	for _, dir := range []string{"net", "pts"} {
		if err := os.Mkdir(filepath.Join(dev, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]uint32{"null": unix.S_IFCHR | 0o666, "net/tun": unix.S_IFCHR | 0o660, "vdb": unix.S_IFBLK | 0o600, "pts/0": unix.S_IFCHR | 0o600} {
		path := filepath.Join(dev, name)
		if err := unix.Mknod(path, mode, int(unix.Mkdev(7, 8))); err != nil {
			t.Skipf("no device nodes here: %v", err)
		}
		if err := os.Chmod(path, os.FileMode(mode&0o777)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dev, "vdb"), 0, 6); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("vdb", filepath.Join(dev, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dev, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := machine.Nodes(dev)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b container.Node) int { return len(a.Path) - len(b.Path) })
	want := []container.Node{{Path: "/dev/vdb", Type: "b", Major: 7, Minor: 8, Mode: 0o600, GID: 6}, {Path: "/dev/net/tun", Type: "c", Major: 7, Minor: 8, Mode: 0o660}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := machine.Nodes(filepath.Join(dev, "none")); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
}
