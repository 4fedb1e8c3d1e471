package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci/layer"
)

// nodevRoot is an empty directory on a tmpfs where device nodes do nothing.
func nodevRoot(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, "size=8m"); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("not supported: nothing can be mounted here: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("something is left in use: %v", err)
		}
	})
	return dir
}

func apply(t *testing.T, root string, limits layer.Limits, layers ...io.Reader) (layer.Stats, error) {
	t.Helper()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	u, err := layer.NewUnpacker(f, limits)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for _, l := range layers {
		if err := u.Apply(t.Context(), l); err != nil {
			return u.Stats(), err
		}
	}
	return u.Stats(), nil
}

// Where device nodes do nothing they are made, with what the layer says of them.
func TestUnpackDevices(t *testing.T) {
	t.Parallel()
	root := nodevRoot(t)
	null := device("dev/null", tar.TypeChar, 1, 3)
	null.Uid, null.Gid, null.ModTime = 3, 70_000, time.Unix(1_000_000_000, 0)
	disk := device("dev/sda", tar.TypeBlock, 8, 300)
	if _, err := apply(t, root, layer.Limits{}, bytes.NewReader(stream(t, file("dev/sda", "replaced"), null, disk))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		mode, gid uint32
		rdev      uint64
	}{"dev/null": {unix.S_IFCHR | 0o666, 70_000, unix.Mkdev(1, 3)}, "dev/sda": {unix.S_IFBLK | 0o666, 0, unix.Mkdev(8, 300)}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil || st.Mode != want.mode || st.Rdev != want.rdev || st.Gid != want.gid {
			t.Errorf("%s: mode %o, device %#x, group %d, %v", name, st.Mode, st.Rdev, st.Gid, err)
		}
	}
	if _, err := os.ReadFile(filepath.Join(root, "dev/null")); !errors.Is(err, unix.EACCES) {
		t.Errorf("the device works: %v", err)
	}
	for _, bad := range []entry{device("n", tar.TypeChar, 4096, 1), device("n", tar.TypeBlock, 1, 1<<20)} {
		if _, err := apply(t, root, layer.Limits{}, bytes.NewReader(stream(t, bad))); err == nil || !strings.Contains(err.Error(), "expected numbers from 0 to 4095") {
			t.Errorf("%d:%d: %v", bad.Devmajor, bad.Devminor, err)
		}
	}
}

// overlayfs's own attributes would be believed: the image lies below an overlay.
func TestUnpackRefusesOverlayAttributes(t *testing.T) {
	t.Parallel()
	for _, e := range []entry{dir("d"), file("f", "x"), symlink("l", "x"), dir("./"), device("p", tar.TypeFifo, 0, 0)} {
		for _, name := range []string{"trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy"} {
			e.PAXRecords = map[string]string{"SCHILY.xattr." + name: "y"}
			if _, err := unpack(t, layer.Limits{}, stream(t, e)); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s on %q: %v", name, e.Name, err)
			}
		}
	}
}

// Names are bytes. What is longer than the kernel's limit is refused by name.
func TestUnpackNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", 255)
	names := []string{"\xff\xfe\x80", "a\nb", " ", "-rf", "back\\slash", "colon:", long, long + "/" + long + "/" + long, "ünïcode", "...", ".wh", "wh.x"}
	want := map[string]string{}
	var entries []entry
	for i, name := range names {
		if name == long+"/"+long+"/"+long {
			name = "deep/" + name
		}
		body := fmt.Sprint(i)
		e := file(name, body)
		e.Format = tar.FormatGNU
		entries = append(entries, e)
		want[name] = body
		for d := filepath.Dir(name); d != "."; d = filepath.Dir(d) {
			want[d] = "dir"
		}
	}
	root, err := unpack(t, layer.Limits{}, stream(t, entries...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, listing(t, root)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	for _, bad := range []string{long + "n", "d/" + long + "n/f"} {
		_, err := unpack(t, layer.Limits{}, stream(t, file(bad, "")))
		if err == nil || !strings.Contains(err.Error(), "name of 256 bytes in a path, at most 255") {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

// Files larger than what is written at once, many at once, empty ones, and
// replaced ones while they are being written, are all whole.
func TestUnpackContents(t *testing.T) {
	t.Parallel()
	needRoot(t)
	want := map[string]string{}
	var entries []entry
	add := func(name, body string) {
		entries = append(entries, file(name, body))
		want[name] = body
	}
	for i, size := range []int{0, 1, 255 << 10, 256 << 10, 256<<10 + 1, 3<<20 + 17, 0, 700 << 10} {
		add(fmt.Sprintf("size%d", i), strings.Repeat(fmt.Sprintf("%07d ", i), size/8+1)[:size])
	}
	for i := range 500 {
		add(fmt.Sprintf("small%d", i), strings.Repeat("s", i*13))
		if i%50 == 0 {
			add("again", fmt.Sprint("version ", i)) // each replaces the one before
		}
	}
	entries = append(entries, hardlink("linked", "size5"))
	want["linked"] = want["size5"]
	for range 3 {
		root, err := unpack(t, layer.Limits{}, stream(t, entries...))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, listing(t, root)); diff != "" {
			t.Fatal("the tree differs")
		}
	}
}

// A full file system is reported with the entry that did not fit, and no
// descriptor stays open.
func TestUnpackFull(t *testing.T) {
	t.Parallel()
	root := nodevRoot(t)
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	for i := range 100 {
		entries = append(entries, file(fmt.Sprintf("f%d", i), strings.Repeat("x", 200<<10)))
	}
	_, err = apply(t, root, layer.Limits{}, bytes.NewReader(stream(t, entries...)))
	if e, ok := errors.AsType[*layer.Error](err); !ok || !strings.HasPrefix(e.Entry, "f") || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("want ENOSPC of an entry, got %v", err)
	}
	after, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if len(after) > len(before)+50 { // other tests run, too
		t.Errorf("%d descriptors before, %d after", len(before), len(after))
	}
}

// Zeros may follow the end of an archive, and nothing else.
func TestUnpackPadding(t *testing.T) {
	t.Parallel()
	l := stream(t, file("a", "1"))
	if _, err := unpack(t, layer.Limits{}, append(bytes.Clone(l), make([]byte, 100_000)...)); err != nil {
		t.Error(err)
	}
	for name, garbage := range map[string][]byte{"text": []byte("x"), "archive": l, "late": append(make([]byte, 100_000), 1)} {
		if _, err := unpack(t, layer.Limits{}, append(bytes.Clone(l), garbage...)); err == nil || !strings.Contains(err.Error(), "behind the end of the archive") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A directory keeps its time when a layer changes something in it, and one that
// no entry names has none.
func TestUnpackDirectoryTimes(t *testing.T) {
	t.Parallel()
	d := dir("d")
	d.ModTime = time.Unix(1_000_000_000, 0)
	root, err := unpack(t, layer.Limits{}, stream(t, d, file("d/a", ""), file("d/b", ""), symlink("l", "d"), file("i/j/k", "")),
		stream(t, file("d/new", "")), stream(t, file("d/.wh.a", "")), stream(t, file("l/through", "")), stream(t, hardlink("i/h", "d/b")))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"d": 1_000_000_000, "i": 0, "i/j": 0} {
		fi, err := os.Stat(filepath.Join(root, name))
		if err != nil || fi.ModTime().Unix() != want {
			t.Errorf("%s: want %d, got %v, %v", name, want, fi.ModTime(), err)
		}
	}
}

// Whiteouts hide what is below a layer and nothing of the layer itself, in
// whatever order, with and without links on the way: compared with a model that
// applies layers to a map.
func FuzzWhiteouts(f *testing.F) {
	needRoot(f)
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 250, 251, 252, 253, 254})
	f.Add([]byte("whiteouts of a tree, opaque and not"))
	f.Add(bytes.Repeat([]byte{17, 99, 3}, 20))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64 {
			return
		}
		model := map[string]string{}
		var layers [][]byte
		var entries []entry
		ours := map[string]bool{}
		hide := func(prefix string, self bool) {
			for name := range model {
				if (self && name == prefix || strings.HasPrefix(name, prefix+"/") || prefix == "") && !ours[name] {
					delete(model, name)
				}
			}
		}
		flush := func() {
			layers = append(layers, stream(t, entries...))
			entries, ours = nil, map[string]bool{}
		}
		for i, b := range data {
			where := []string{"a", "b", "a/c", "a/d", "b/c", "a/c/e", "b/c/f", "g"}[b%8]
			switch b >> 3 % 5 {
			case 0, 1:
				name := where + fmt.Sprintf("/f%d", b>>6)
				entries = append(entries, file(name, fmt.Sprint(i)))
				model[name], ours[name] = fmt.Sprint(i), true
			case 2:
				d, base := filepath.Split(where)
				entries = append(entries, file(d+".wh."+base, ""))
				hide(where, true)
			case 3:
				entries = append(entries, file(where+"/.wh..wh..opq", ""))
				hide(where, false)
			case 4:
				flush()
			}
		}
		flush()
		root, err := unpack(t, layer.Limits{}, layers...)
		if err != nil {
			t.Fatal(err)
		}
		got := listing(t, root)
		for name, kind := range got {
			if kind == "dir" {
				delete(got, name) // of these the model says nothing
			}
		}
		if diff := cmp.Diff(model, got); diff != "" {
			t.Errorf("files (-model +got):\n%s", diff)
		}
	})
}
