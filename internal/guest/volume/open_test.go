package volume_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/volume"
)

// ephemeral is a volume in memory, and the directory that it is at.
func ephemeral(t *testing.T) (m *volume.Manager, dir string) {
	t.Helper()
	env.Need(t)
	root := t.TempDir()
	m, err := volume.NewManager(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Ephemeral("scratch", volume.Ephemeral{Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(filepath.Join(root, ".mounts")); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	return m, filepath.Join(root, "scratch")
}

// What a container has made in a volume is mounted as it is: files, sockets and
// pipes, and what a link of the volume leads to.
func TestOpenFindsWhatIsThere(t *testing.T) {
	m, dir := ephemeral(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, "releases/2"), 0o700))
	check(os.WriteFile(filepath.Join(dir, "releases/2/tool"), []byte("two"), 0o711))
	check(os.Symlink("releases/2", filepath.Join(dir, "current")))
	check(os.Symlink("../../current/tool", filepath.Join(dir, "releases/2/self")))
	check(unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	check(err)
	defer l.Close()
	for sub, kind := range map[string]os.FileMode{
		"releases/2/tool": 0, "current/tool": 0, "releases/2/self": 0, "current": os.ModeDir,
		"pipe": os.ModeNamedPipe, "socket": os.ModeSocket,
	} {
		d, err := m.Open("scratch", sub, true)
		if err != nil {
			t.Errorf("%s: %v", sub, err)
			continue
		}
		want, err := os.Stat(filepath.Join(dir, sub))
		check(err)
		if got, err := os.Lstat(d.Path()); err != nil || got.Mode().Type() != kind || !os.SameFile(got, want) {
			t.Errorf("%s: opened %v, %v", sub, got, err)
		}
		check(d.Close())
	}
	// Directories are made behind a link, too, and are everyone's.
	d, err := m.Open("scratch", "current/new/deep", true)
	check(err)
	defer d.Close()
	for _, made := range []string{"new", "new/deep"} {
		if st, err := os.Stat(filepath.Join(dir, "releases/2", made)); err != nil || st.Mode().Perm() != 0o777 {
			t.Errorf("%s: %v, %v", made, st, err)
		}
	}
	if _, err := m.Open("scratch", "missing", false); !os.IsNotExist(err) && !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing directory that nobody may make: %v", err)
	}
}

// A container that plants links, devices or loops where a later one has a sub path
// gets it nothing but what is in the volume.
func TestOpenDoesNotLeave(t *testing.T) {
	m, dir := ephemeral(t)
	outside := t.TempDir()
	for name, target := range map[string]string{
		"root": "/", "absolute": outside, "up": "..", "up-again": "a/../../..", "file": "/etc/passwd", "loop": "loop", "dangling": "nowhere/at/all",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	for sub, why := range map[string]string{
		"root": "leads out", "root/etc": "leads out", "absolute/x": "leads out", "up/x": "leads out", "up-again": "leads out", "file": "leads out",
		"../..": "leads out", "/etc": "leads out", "a/../../b": "leads out", "loop": "too many levels", "loop/x": "too many levels",
		"dangling": "no such file", "null": "got a device", "null/x": "not a directory",
	} {
		d, err := m.Open("scratch", sub, true)
		if err == nil {
			t.Errorf("%s was opened: %s", sub, d.Path())
			_ = d.Close()
			continue
		}
		if !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "scratch") {
			t.Errorf("%s: %v, want %q", sub, err, why)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("made outside: %v, %v", left, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a directory was made through a link that leads nowhere")
	}
}

// While a container swaps a directory for a link, over and over, what is opened
// and what is made is in the volume.
func TestOpenWhileNamesChange(t *testing.T) {
	m, dir := ephemeral(t)
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "x"), 0o777); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "x"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
			}
		}
	})
	opened := 0
	for range 2000 {
		d, err := m.Open("scratch", "x/sub/../sub", true)
		if err != nil {
			continue
		}
		opened++
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("made outside: %v, %v", left, err)
	}
	if opened == 0 {
		t.Error("nothing was ever opened")
	}
}
