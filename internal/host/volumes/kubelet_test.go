package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const podUID = "2f6a1c9e-5f6e-4d0e-9f2a-1d5b7c3e8a90"

// kubelet is a kubelet's directory with one pod in it.
type kubelet struct {
	t    *testing.T
	root string
	pod  string
}

func newKubelet(t *testing.T) *kubelet {
	t.Helper()
	// Short, and without links on the way: mounts are compared by path.
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	k := &kubelet{t: t, root: root, pod: filepath.Join(root, "pods", podUID)}
	k.mkdir("volumes")
	return k
}

func (k *kubelet) check(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

func (k *kubelet) mkdir(rel string) string {
	k.t.Helper()
	dir := filepath.Join(k.pod, rel)
	k.check(os.MkdirAll(dir, 0o755))
	return dir
}

func (k *kubelet) write(rel, content string) string {
	k.t.Helper()
	path := filepath.Join(k.mkdir(filepath.Dir(rel)), filepath.Base(rel))
	k.check(os.WriteFile(path, []byte(content), 0o644))
	return path
}

// atomic is a volume as the kubelet's atomic writer keeps it.
type atomic struct {
	k   *kubelet
	dir string
	n   int
}

func (k *kubelet) volume(plugin, name string, files map[string]string) *atomic {
	k.t.Helper()
	a := &atomic{k: k, dir: k.mkdir(filepath.Join("volumes", plugin, name))}
	k.check(os.Chmod(a.dir, 0o777))
	a.swap(files)
	return a
}

// swap replaces the files: a new directory, a link to it renamed over ..data,
// names that lead through it, and at last the old directory's removal.
func (a *atomic) swap(files map[string]string) {
	a.k.t.Helper()
	before, _ := os.Readlink(filepath.Join(a.dir, "..data"))
	a.n++
	version := fmt.Sprintf("..2026_11_22_17_00_%02d.%09d", a.n%60, a.n)
	dir := filepath.Join(a.dir, version)
	a.k.check(os.Mkdir(dir, 0o755))
	tops := map[string]bool{}
	for name, content := range files {
		path := filepath.Join(dir, name)
		a.k.check(os.MkdirAll(filepath.Dir(path), 0o755))
		a.k.check(os.WriteFile(path, []byte(content), 0o644))
		top, _, _ := strings.Cut(name, "/")
		tops[top] = true
	}
	a.k.check(os.Symlink(version, filepath.Join(a.dir, "..data_tmp")))
	a.k.check(os.Rename(filepath.Join(a.dir, "..data_tmp"), filepath.Join(a.dir, "..data")))
	for top := range tops {
		if err := os.Symlink(filepath.Join("..data", top), filepath.Join(a.dir, top)); err != nil && !os.IsExist(err) {
			a.k.t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(a.dir)
	a.k.check(err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !tops[e.Name()] {
			a.k.check(os.Remove(filepath.Join(a.dir, e.Name())))
		}
	}
	if before != "" {
		a.k.check(os.RemoveAll(filepath.Join(a.dir, before)))
	}
}

// subPath bind-mounts a part of a volume as the kubelet does.
func (k *kubelet) subPath(volume, container string, number int, part string) string {
	k.t.Helper()
	needMounts(k.t)
	real, err := filepath.EvalSymlinks(part)
	k.check(err)
	info, err := os.Stat(real)
	k.check(err)
	target := filepath.Join(k.mkdir(filepath.Join("volume-subpaths", volume, container)), fmt.Sprint(number))
	if info.IsDir() {
		k.check(os.Mkdir(target, 0o750))
	} else {
		k.check(os.WriteFile(target, nil, 0o640))
	}
	k.check(unix.Mount(real, target, "", unix.MS_BIND, ""))
	k.t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

func (k *kubelet) tmpfs(dir, options string) {
	k.t.Helper()
	needMounts(k.t)
	k.check(unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	k.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// manager is one with short times, closed at the end of the test.
func (k *kubelet) manager(change ...func(*Options)) (*Manager, *warnings) {
	k.t.Helper()
	w := &warnings{}
	o := Options{KubeletRoot: k.root, PodUID: podUID, HostPath: CopyHostPath, Warn: w.add}
	for _, f := range change {
		f(&o)
	}
	m := New(o)
	m.pace = pace{settle: 2e6, retry: 5e6, most: 20e6, attempt: 20e9}
	k.t.Cleanup(func() {
		if err := m.Close(); err != nil {
			k.t.Error(err)
		}
	})
	return m, w
}
