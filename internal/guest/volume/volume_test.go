package volume_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/guest/volume"
)

var env guesttest.Env

func TestMain(m *testing.M) { guesttest.Main(m, &env) }

type entry struct {
	name, content string
	kind          byte
}

func archive(t testing.TB, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Size: int64(len(e.content)), Mode: 0o600}
		if e.kind != tar.TypeReg {
			h.Size, h.Linkname = 0, e.content
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// rule accepts files up to a size and remembers digests.
type rule struct {
	maxSize int64
	digests map[string][sha256.Size]byte
	final   error
}

func (r *rule) File(name string, size int64) (uint32, error) {
	if size > r.maxSize {
		return 0, errors.New(name + " is too large")
	}
	return 0o640, nil
}

func (r *rule) Discard(name string) bool { return strings.HasPrefix(name, "sealed") }

func (r *rule) Attributes(name string) bool { return strings.HasPrefix(name, "own") }

func (r *rule) Content(name string, _ int64, digest [sha256.Size]byte) error {
	r.digests[name] = digest
	return nil
}

func (r *rule) Commit(publish func() error) error {
	if r.final != nil {
		return r.final
	}
	return publish()
}

func newRule() *rule { return &rule{maxSize: 100, digests: map[string][sha256.Size]byte{}} }

// content reads a files volume as a container sees it.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(b)
	}
	return got
}

func TestPutReplacesAsAWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open("config", "", false); err == nil {
		t.Error("a volume without content was opened")
	}
	r := newRule()
	if err := m.Put(t.Context(), "config", archive(t, entry{name: "./", kind: tar.TypeDir}, entry{name: "a", content: "1"}, entry{name: "./b", content: "2"}), r); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "2"}, content(t, filepath.Join(dir, "config"))); diff != "" {
		t.Error(diff)
	}
	if want := sha256.Sum256([]byte("1")); r.digests["a"] != want {
		t.Errorf("digest of a: %x, want %x", r.digests["a"], want)
	}
	if st, err := os.Stat(filepath.Join(dir, "config/a")); err != nil || st.Mode() != 0o640 {
		t.Errorf("mode: %v, %v", st.Mode(), err)
	}
	if err := m.Put(t.Context(), "config", archive(t, entry{name: "b", content: "3"}, entry{name: "c", content: "4"}), newRule()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"b": "3", "c": "4"}
	if diff := cmp.Diff(want, content(t, filepath.Join(dir, "config"))); diff != "" {
		t.Error(diff)
	}
	// A set that is refused at the end leaves everything as it was.
	refusing := newRule()
	refusing.final = errors.New("token is missing")
	if err := m.Put(t.Context(), "config", archive(t, entry{name: "x", content: "y"}), refusing); err == nil || !strings.Contains(err.Error(), "token is missing") {
		t.Errorf("error = %v", err)
	}
	if diff := cmp.Diff(want, content(t, filepath.Join(dir, "config"))); diff != "" {
		t.Error(diff)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "config"))
	if err != nil || len(entries) != 4 { // b, c, ..2, ..data
		t.Errorf("leftovers: %v, %v", entries, err)
	}
}

func TestPutRefuses(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][]entry{
		"parent":    {{name: "../evil", content: "x"}},
		"absolute":  {{name: "/etc/passwd", content: "x"}},
		"data link": {{name: "..data", content: "x"}},
		"symlink":   {{name: "l", content: "/etc/passwd", kind: tar.TypeSymlink}},
		"hard link": {{name: "l", content: "/etc/passwd", kind: tar.TypeLink}},
		"device":    {{name: "d", kind: tar.TypeChar}},
		"fifo":      {{name: "f", kind: tar.TypeFifo}},
		"twice":     {{name: "a", content: "x"}, {name: "./a", content: "y"}},
		"too large": {{name: "a", content: strings.Repeat("x", 101)}},
	} {
		dir := t.TempDir()
		m, err := volume.NewManager(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Put(t.Context(), "config", archive(t, entries...), newRule()); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "config")); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

func TestEphemeral(t *testing.T) {
	env.Need(t)
	dir := t.TempDir()
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Ephemeral("scratch", volume.Ephemeral{Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "scratch"), unix.MNT_DETACH) })
	if err := m.Ephemeral("scratch", volume.Ephemeral{Bytes: 1 << 20}); err != nil { // the same again
		t.Fatal(err)
	}
	group := uint32(2000)
	if err := m.Ephemeral("shared", volume.Ephemeral{Bytes: 1 << 20, Group: &group}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "shared"), unix.MNT_DETACH) })
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "shared"), &st); err != nil || st.Gid != 2000 || st.Mode&0o7777 != 0o2777 {
		t.Errorf("group %d, mode %o, %v", st.Gid, st.Mode, err)
	}
	d, err := m.Open("scratch", "a/b", true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if err := os.WriteFile(filepath.Join(d.Path(), "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "scratch/a/b/f")); err != nil {
		t.Error(err)
	}
	// A container plants a link where a later one mounts a sub path.
	if err := os.Symlink("/", filepath.Join(dir, "scratch/evil")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"evil", "evil/etc", "../..", "/etc"} {
		if d, err := m.Open("scratch", sub, true); err == nil {
			t.Errorf("sub path %s was opened: %s", sub, d.Path())
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "scratch/big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("more was written than the volume's size")
	}
}

// fakeDisk makes directories and remembers how large they may be.
type fakeDisk struct {
	dir   string
	sizes map[string]uint64
}

func (d fakeDisk) Directory(name string, size uint64) (string, error) {
	d.sizes[name] = size
	path := filepath.Join(d.dir, name)
	return path, os.Mkdir(path, 0o700)
}

func TestMedia(t *testing.T) {
	env.Need(t)
	dir := t.TempDir()
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	disk := fakeDisk{t.TempDir(), map[string]uint64{}}
	var memory unix.Sysinfo_t
	if err := unix.Sysinfo(&memory); err != nil {
		t.Fatal(err)
	}
	half := memory.Totalram * uint64(memory.Unit) / 2
	group := uint32(1234)
	use := func(name string, e volume.Ephemeral) (fs unix.Statfs_t, st unix.Stat_t) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(m.Ephemeral(name, e), unix.Statfs(path, &fs), unix.Stat(path, &st)); err != nil {
			t.Fatal(err)
		}
		return fs, st
	}
	size := func(fs unix.Statfs_t) uint64 { return fs.Blocks * uint64(fs.Bsize) }
	// No tmpfs is without a size.
	for name, tc := range map[string]struct{ ask, want uint64 }{
		"none": {0, half}, "small": {1 << 20, 1 << 20}, "huge": {1 << 60, half},
	} {
		fs, st := use(name, volume.Ephemeral{Bytes: tc.ask})
		if fs.Type != unix.TMPFS_MAGIC || size(fs) > tc.want+4096 || size(fs)+1<<20 < tc.want || st.Mode&0o7777 != 0o777 {
			t.Errorf("%s: type %#x, %d bytes, want %d, mode %o", name, fs.Type, size(fs), tc.want, st.Mode)
		}
	}
	m.UseDisk(disk)
	if fs, _ := use("memory", volume.Ephemeral{Memory: true, Bytes: 2 << 20}); fs.Type != unix.TMPFS_MAGIC || size(fs) != 2<<20 {
		t.Errorf("a volume of memory: type %#x", fs.Type)
	}
	fs, st := use("disk", volume.Ephemeral{Bytes: 3 << 20, Group: &group})
	if disk.sizes["disk"] != 3<<20 || len(disk.sizes) != 1 || st.Mode&0o7777 != 0o2777 || st.Gid != group || fs.Flags&(unix.ST_NOSUID|unix.ST_NODEV) != unix.ST_NOSUID|unix.ST_NODEV {
		t.Errorf("a volume of the disk: %v, mode %o, group %d, flags %#x", disk.sizes, st.Mode, st.Gid, fs.Flags)
	}
	// The file system of a block volume is a volume like the others.
	block := t.TempDir()
	if err := m.Mounted("block", block); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(block, "evil")); err != nil {
		t.Fatal(err)
	}
	if d, err := m.Open("block", "evil/etc", true); err == nil {
		t.Errorf("a link was followed to %s", d.Path())
	}
	d, err := m.Open("block", "a/b", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("left mounted:\n%s", mounts)
	}
	if _, err := m.Open("block", "", false); err == nil {
		t.Error("a closed volume is open")
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	m, err := volume.NewManager(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", ".mounts", "a/b"} {
		if err := m.Ephemeral(name, volume.Ephemeral{}); err == nil {
			t.Errorf("volume name %q was accepted", name)
		}
	}
}

// FuzzPut must leave nothing behind of an archive it refuses, and nothing
// outside the volume in any case.
func FuzzPut(f *testing.F) {
	f.Add(archive(f, entry{name: "a", content: "1"}).Bytes())
	f.Add(archive(f, entry{name: "l", content: "/etc/passwd", kind: tar.TypeSymlink}).Bytes())
	f.Add([]byte("not a tar"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		m, err := volume.NewManager(dir)
		if err != nil {
			t.Fatal(err)
		}
		err = m.Put(t.Context(), "v", bytes.NewReader(data), newRule())
		entries, rerr := os.ReadDir(dir)
		if rerr != nil || len(entries) != 2 { // the volume and the directory of mounts
			t.Fatalf("entries %v, %v", entries, rerr)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "v")); err != nil && len(left) != 0 {
			t.Fatalf("left %v after %v", left, err)
		}
	})
}

// A host may announce one version twice, and deliver the second time while the
// first is in use: what was accepted stays until something else is.
func TestPutOfAVersionInUseTouchesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Put(t.Context(), "config", archive(t, entry{name: "app.conf", content: "pinned"}), newRule()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"app.conf": "pinned"}
	seen := newRule()
	during := func() {
		if diff := cmp.Diff(want, content(t, filepath.Join(dir, "config"))); diff != "" {
			t.Errorf("while the version came again (-want +got):\n%s", diff)
		}
	}
	err = m.Put(t.Context(), "config", archive(t, entry{name: "app.conf", content: "forged"}), &watchful{seen, during})
	if err == nil || err.Error() != "volume config: refused" {
		t.Errorf("error = %v", err)
	}
	during()
}

// watchful looks at the volume when a file's content has come, and refuses it.
type watchful struct {
	*rule
	look func()
}

func (w *watchful) Content(string, int64, [sha256.Size]byte) error {
	w.look()
	return errors.New("refused")
}

// A volume without room for its names is left as it was, and Put says so: a
// container must not be started on what was only accepted.
func TestPutThatCannotBePublished(t *testing.T) {
	env.Need(t)
	dir := guesttest.Tmpfs(t)
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Put(t.Context(), "config", archive(t, entry{name: "app.conf", content: "old"}), newRule()); err != nil {
		t.Fatal(err)
	}
	r := &exhausting{newRule(), func() {
		// The last inode goes just before the files take effect.
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "nr_inodes=1000"); err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint("fill", i)))
			if err != nil {
				return
			}
			_ = f.Close()
		}
	}}
	if err := m.Put(t.Context(), "config", archive(t, entry{name: "app.conf", content: "new"}), r); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error = %v, want no space", err)
	}
	if diff := cmp.Diff(map[string]string{"app.conf": "old"}, content(t, filepath.Join(dir, "config"))); diff != "" {
		t.Error(diff)
	}
}

type exhausting struct {
	*rule
	exhaust func()
}

func (e *exhausting) Commit(publish func() error) error { e.exhaust(); return publish() }

// Containers of one volume that are created at the same time each make it.
func TestMakeAtOnce(t *testing.T) {
	dir := t.TempDir()
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				files := []volume.File{{Name: "key", Mode: 0o400, Content: []byte("secret")}, {Name: "b", Mode: 0o400, Content: []byte("too")}}
				if err := m.Make("keys", volume.WithFiles(files...)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if diff := cmp.Diff(map[string]string{"key": "secret", "b": "too"}, content(t, filepath.Join(dir, "keys"))); diff != "" {
		t.Error(diff)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 4 { // two names, the link, and one directory
		t.Errorf("left behind: %v", entries)
	}
}

// An ephemeral volume is for everyone before anyone may mount it.
func TestEphemeralAtOnce(t *testing.T) {
	env.Need(t)
	dir := guesttest.Tmpfs(t)
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	group := uint32(4711)
	for i := range 100 {
		name := fmt.Sprintf("shared%d", i)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := m.Ephemeral(name, volume.Ephemeral{Bytes: 4096, Group: &group}); err != nil {
					t.Error(err)
					return
				}
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Gid != group || st.Mode&unix.S_ISGID == 0 {
					t.Errorf("%s: group %d, mode %o, %v", name, st.Gid, st.Mode, err)
				}
			})
		}
		wg.Wait()
	}
}
