package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci/layer"
)

// entries make a tar stream; a header without a type is a file.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(body))}, body}
}
func dir(name string) entry {
	return entry{tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir}, ""}
}
func symlink(name, to string) entry {
	return entry{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}, ""}
}
func hardlink(name, to string) entry {
	return entry{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}, ""}
}
func device(name string, kind byte, major, minor int64) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Devmajor: major, Devminor: minor, Mode: 0o666}, ""}
}

func stream(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not supported: unpacking layers needs root, to set owners")
	}
}

// unpack unpacks the layers onto a fresh directory, whose parent is returned
// too, to look for escapes.
func unpack(t testing.TB, limits layer.Limits, layers ...[]byte) (root string, err error) {
	t.Helper()
	needRoot(t)
	root = filepath.Join(t.TempDir(), "outer", "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
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
		if err := u.Apply(t.Context(), bytes.NewReader(l)); err != nil {
			return root, err
		}
	}
	return root, nil
}

// listing describes a tree: path to kind, mode and content.
func listing(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if rel == "." {
			return nil
		}
		switch d.Type() {
		case fs.ModeDir:
			out[rel] = "dir"
		case fs.ModeSymlink:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			out[rel] = "-> " + to
		case fs.ModeNamedPipe:
			out[rel] = "fifo"
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out[rel] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnpackTrees(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		layers [][]entry
		want   map[string]string
	}{
		{"files, links and FIFO", [][]entry{{
			dir("./"), dir("./a/"), file("./a/f", "x"), symlink("a/abs", "/a/f"), hardlink("h", "/a/f"),
			{tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600}, ""}, file("/lead", "y"), file("d/e/f", "deep"),
		}}, map[string]string{"a": "dir", "a/f": "x", "a/abs": "-> /a/f", "h": "x", "p": "fifo", "lead": "y", "d": "dir", "d/e": "dir", "d/e/f": "deep"}},
		{"whiteout", [][]entry{{file("a", "1"), file("b/c", "2"), file("b/d", "3")}, {file(".wh.a", ""), file("b/.wh.c", ""), file("x/.wh.nothing", "")}},
			map[string]string{"b": "dir", "b/d": "3"}},
		{"whiteout of a tree", [][]entry{{file("b/c/d/e", "2"), file("k", "")}, {file(".wh.b", "")}}, map[string]string{"k": ""}},
		{"opaque directory keeps its own layer", [][]entry{{file("d/old", "1"), file("d/s/old", "2")}, {dir("d"), file("d/new", "n"), file("d/.wh..wh..opq", ""), file("d/s/new", "m")}},
			map[string]string{"d": "dir", "d/new": "n", "d/s": "dir", "d/s/new": "m"}},
		{"opaque marker after a child of a child", [][]entry{{file("d/s/old", "2")}, {file("d/s/new", "m"), file("d/.wh..wh..opq", "")}},
			map[string]string{"d": "dir", "d/s": "dir", "d/s/new": "m"}},
		{"whiteout and new file of one name", [][]entry{{file("d/f", "1"), file("d/g", "2")}, {file("d/f", "new"), file("d/.wh.f", ""), file(".wh.d", "")}},
			map[string]string{"d": "dir", "d/f": "new"}},
		{"opaque root", [][]entry{{file("a", "1"), file("b/c", "2")}, {file(".wh..wh..opq", ""), file("z", "3")}}, map[string]string{"z": "3"}},
		{"overlay whiteout", [][]entry{{file("a", "1"), file("b", "2")}, {device("a", tar.TypeChar, 0, 0)}}, map[string]string{"b": "2"}},
		{"AUFS names", [][]entry{{file(".wh..wh.plnk", ""), file(".wh..wh.orph/x", "y"), file("a", "")}}, map[string]string{"a": ""}},
		{"whiteouts in the first layer", [][]entry{{file("a", "1"), file(".wh.a", ""), file(".wh..wh..opq", "")}}, map[string]string{"a": "1"}},
		{"kinds replace each other", [][]entry{
			{file("a", "1"), file("b/x", "2"), symlink("c", "b"), dir("d")},
			{file("a/in", "x"), file("b", "file"), dir("c"), symlink("d", "b")},
		}, nil},
		{"merged usr", [][]entry{{dir("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")}, {file("lib/f", "1"), file("abs/g", "2"), hardlink("lib/h", "abs/g")}},
			map[string]string{"usr": "dir", "usr/lib": "dir", "lib": "-> usr/lib", "abs": "-> /usr/lib", "usr/lib/f": "1", "usr/lib/g": "2", "usr/lib/h": "2"}},
		{"whiteout behind a link", [][]entry{{file("usr/lib/f", "1"), symlink("lib", "usr/lib")}, {file("lib/.wh.f", "")}},
			map[string]string{"usr": "dir", "usr/lib": "dir", "lib": "-> usr/lib"}},
		{"a later entry wins", [][]entry{{file("a", "1"), file("a", "2"), dir("b"), file("b/x", "1"), dir("b"), symlink("l", "b"), file("l", "f")}},
			map[string]string{"a": "2", "b": "dir", "b/x": "1", "l": "f"}},
		{"cached parent is replaced", [][]entry{{file("d/a", "1"), file("e/x", "")}, {file("d/b", "2"), symlink("d", "e"), file("d/c", "3")}},
			map[string]string{"d": "-> e", "e": "dir", "e/x": "", "e/c": "3"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var layers [][]byte
			for _, l := range tt.layers {
				layers = append(layers, stream(t, l...))
			}
			root, err := unpack(t, layer.Limits{}, layers...)
			if tt.want == nil {
				if err == nil {
					t.Fatal("a file used as a directory was accepted")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, listing(t, root)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnpackMetadata(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_000_000_000, 0)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	su := file("su", "#!")
	su.Uid, su.Gid, su.Mode, su.ModTime = 1000, 2000, 0o6755, at
	ping := file("ping", "#!")
	ping.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "hi",
		"SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.trusted.other": "y",
	}
	d := dir("d")
	d.Mode, d.ModTime, d.Uid = 0o1777, at, 7
	l := symlink("l", "/nowhere")
	l.Uid, l.ModTime = 5, at
	top := dir("./")
	top.Mode, top.ModTime = 0o711, at

	needRoot(t)
	root := t.TempDir()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	stats, err := layer.Unpack(t.Context(), f, bytes.NewReader(stream(t, top, d, file("d/x", "1"), su, ping, l)), layer.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if want := (layer.Stats{Entries: 6, Bytes: 5, Allocated: 3 * 4096, SkippedXattrs: 2}); stats != want {
		t.Errorf("stats: want %+v, got %+v", want, stats)
	}
	for name, want := range map[string]struct {
		mode     uint32
		uid, gid uint32
		at       time.Time
	}{
		"su": {unix.S_IFREG | 0o6755, 1000, 2000, at},
		"d":  {unix.S_IFDIR | 0o1777, 7, 0, at},
		"l":  {unix.S_IFLNK | 0o777, 5, 0, at},
		".":  {unix.S_IFDIR | 0o711, 0, 0, at},
	} {
		fi, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid || !fi.ModTime().Equal(want.at) {
			t.Errorf("%s: want %+v, got mode %o owner %d:%d time %v", name, want, st.Mode, st.Uid, st.Gid, fi.ModTime())
		}
	}
	buf := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(root, "ping"), "security.capability", buf)
	if err != nil || string(buf[:n]) != capability {
		t.Errorf("security.capability: want %x, got %x, %v", capability, buf[:max(n, 0)], err)
	}
	n, err = unix.Getxattr(filepath.Join(root, "ping"), "user.note", buf)
	if err != nil || string(buf[:n]) != "hi" {
		t.Errorf("user.note: got %q, %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Getxattr(filepath.Join(root, "ping"), "trusted.other", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("trusted.other was set: %v", err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	t.Parallel()
	owner := file("f", "")
	owner.Uid, owner.Format = 1<<32-1, tar.FormatPAX
	many := file("f", "")
	many.PAXRecords = map[string]string{}
	for i := range 65 {
		many.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.x%d", i)] = "1"
	}
	badCapability := file("f", "")
	badCapability.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x"}
	chain := []entry{dir(strings.Repeat("d/", 8))}
	for i := range 4 {
		prev := strings.Repeat("d/", 8)
		if i > 0 {
			prev = fmt.Sprintf("l%d", i-1)
			chain = append(chain, dir(prev+"/"+strings.Repeat("d/", 8)))
			prev += "/" + strings.Repeat("d/", 8)
		}
		chain = append(chain, symlink(fmt.Sprintf("l%d", i), strings.TrimSuffix(prev, "/")))
	}
	valid := stream(t, file("a", strings.Repeat("x", 4096)))

	tests := []struct {
		name   string
		layer  []byte
		limits layer.Limits
		want   string
		is     error
	}{
		{"dot-dot", stream(t, file("../evil", "x")), layer.Limits{}, `entry "../evil": path has a ".." component`, nil},
		{"dot-dot inside", stream(t, file("a/../../evil", "x")), layer.Limits{}, `".." component`, nil},
		{"dot-dot directory", stream(t, dir("../evil")), layer.Limits{}, `".." component`, nil},
		{"hard link out by dot-dot", stream(t, hardlink("h", "../outside")), layer.Limits{}, `hard link target: path has a ".." component`, nil},
		{"hard link to nothing", stream(t, hardlink("h", "/etc/passwd")), layer.Limits{}, `hard link to "/etc/passwd": no such file`, unix.ENOENT},
		{"hard link to itself", stream(t, file("h", "x"), hardlink("h", "./h")), layer.Limits{}, "expected another file", nil},
		{"hard link to a directory", stream(t, dir("d"), hardlink("h", "d")), layer.Limits{}, "operation not permitted", unix.EPERM},
		{"hard link to the root", stream(t, hardlink("h", "/")), layer.Limits{}, "expected another file", nil},
		{"file through a dangling link", stream(t, symlink("l", "/nowhere"), file("l/f", "x")), layer.Limits{}, `directory "l": is a symbolic link that leads nowhere`, nil},
		{"file through a loop", stream(t, symlink("l", "m"), symlink("m", "l"), file("l/f", "x")), layer.Limits{}, "symbolic links", unix.ELOOP},
		{"file below a file", stream(t, file("f", "x"), file("f/g", "x")), layer.Limits{}, `directory "f": not a directory`, unix.ENOTDIR},
		{"symbolic link to nothing", stream(t, symlink("l", "")), layer.Limits{}, "without a target", nil},
		{"character device", stream(t, device("dev/mem", tar.TypeChar, 1, 1)), layer.Limits{}, `entry "dev/mem": device node 1:1: the file system`, nil},
		{"block device", stream(t, device("sda", tar.TypeBlock, 8, 0)), layer.Limits{}, "device node 8:0", nil},
		{"block device 0:0", stream(t, device("sda", tar.TypeBlock, 0, 0)), layer.Limits{}, "device node 0:0", nil},
		{"unknown type", stream(t, entry{tar.Header{Name: "v", Typeflag: 'V'}, ""}), layer.Limits{}, "tar entry type 'V'", nil},
		{"root that is a file", stream(t, file("./.", "")), layer.Limits{}, "root of a layer must be a directory", nil},
		{"whiteout of dot-dot", stream(t, file(".wh...", "")), layer.Limits{}, `whiteout of ".."`, nil},
		{"whiteout of nothing", stream(t, file("a/.wh.", "")), layer.Limits{}, `whiteout of ""`, nil},
		{"whiteout as a directory", stream(t, file(".wh.a/b", "")), layer.Limits{}, "are whiteouts", nil},
		{"owner", stream(t, owner), layer.Limits{}, "owner 4294967295:0", nil},
		{"many attributes", stream(t, many), layer.Limits{}, "extended attributes", layer.ErrLimit},
		{"bad capability", stream(t, badCapability), layer.Limits{}, `"security.capability"`, unix.EINVAL},
		{"too many entries", stream(t, file("a", ""), file("b", ""), file("c", "")), layer.Limits{Entries: 2}, `entry "c": beyond the limit of 2 entries`, layer.ErrLimit},
		{"too many bytes", stream(t, file("a", "123"), file("b", "4567")), layer.Limits{Bytes: 6}, `entry "b": beyond the limit of 6 bytes`, layer.ErrLimit},
		{"sparse bomb", sparseBomb(), layer.Limits{}, "beyond the limit", layer.ErrLimit},
		{"too deep", stream(t, file("a/b/c/d", "")), layer.Limits{Depth: 3}, "3 path components", layer.ErrLimit},
		{"too deep behind links", stream(t, chain...), layer.Limits{Depth: 20}, "behind symbolic links", layer.ErrLimit},
		{"too long", stream(t, file(strings.Repeat("a/", 3000)+"f", "")), layer.Limits{}, "path of", nil},
		{"cut off", valid[:2000], layer.Limits{}, "unexpected EOF", nil},
		{"no tar", bytes.Repeat([]byte("no tar"), 1000), layer.Limits{}, "tar stream: ", tar.ErrHeader},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root, err := unpack(t, tt.limits, tt.layer)
			if err == nil {
				t.Fatalf("accepted: %v", listing(t, root))
			}
			if _, ok := errors.AsType[*layer.Error](err); !ok {
				t.Errorf("error is a %T, want *layer.Error", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %q is not %v", err, tt.is)
			}
			if outside := listing(t, filepath.Dir(filepath.Dir(root))); len(outside) != 2+len(listing(t, root)) {
				t.Errorf("something was written outside of the root: %v", outside)
			}
		})
	}
}

// sparseBomb is a PAX sparse file that claims 2^62 bytes and stores none.
func sparseBomb() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// The writer refuses GNU.sparse records, so give it same-sized others.
	records := map[string]string{
		"GNU.xparse.major": "0", "GNU.xparse.minor": "1", "GNU.xparse.size": "4611686018427387904",
		"GNU.xparse.numblocks": "0", "GNU.xparse.map": "", "GNU.xparse.name": "bomb",
	}
	delete(records, "GNU.xparse.map")
	_ = w.WriteHeader(&tar.Header{Name: "bomb", Typeflag: tar.TypeReg, Mode: 0o600, PAXRecords: records, Format: tar.FormatPAX})
	_ = w.Close()
	return bytes.ReplaceAll(b.Bytes(), []byte("GNU.xparse"), []byte("GNU.sparse"))
}

// A link that leads out of the root leads to the same path in the root.
func TestUnpackLinksStayInside(t *testing.T) {
	t.Parallel()
	root, err := unpack(t, layer.Limits{},
		stream(t, dir("etc"), symlink("up", "../../.."), symlink("abs", "/etc"), symlink("far", "../../../../etc")),
		stream(t, file("up/one", "1"), file("abs/two", "2"), file("far/three", "3"), hardlink("up/four", "far/three")))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"etc": "dir", "up": "-> ../../..", "abs": "-> /etc", "far": "-> ../../../../etc",
		"one": "1", "etc/two": "2", "etc/three": "3", "four": "3"}
	if diff := cmp.Diff(want, listing(t, root)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if outside := listing(t, filepath.Dir(root)); len(outside) != len(want)+1 {
		t.Errorf("something was written outside of the root: %v", outside)
	}
}

// Limits hold for all layers together.
func TestUnpackBudget(t *testing.T) {
	t.Parallel()
	l := stream(t, file("a", "1234"))
	if _, err := unpack(t, layer.Limits{Bytes: 8}, l, l); err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(t, layer.Limits{Bytes: 7}, l, l); !errors.Is(err, layer.ErrLimit) {
		t.Errorf("want ErrLimit, got %v", err)
	}
}

func TestUnpackCancelled(t *testing.T) {
	t.Parallel()
	needRoot(t)
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := layer.Unpack(ctx, f, bytes.NewReader(stream(t, file("a", ""))), layer.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("want context.Canceled, got %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	needRoot(f)
	f.Add(stream(f, dir("a"), file("a/b", "x"), symlink("l", "/a"), file("l/c", "y"), hardlink("h", "a/b"), file(".wh.a", "")))
	f.Add(stream(f, file("../x", "")))
	f.Add(stream(f, symlink("l", "../.."), file("l/x", "1"), device("n", tar.TypeChar, 0, 0)))
	f.Add(sparseBomb())
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := layer.Limits{Entries: 64, Bytes: 1 << 16, Depth: 16}
		root, err := unpack(t, limits, stream(t, file("a/old", "1"), symlink("s", "/")), data)
		outside := listing(t, filepath.Dir(filepath.Dir(root)))
		if err == nil && len(outside) != 2+len(listing(t, root)) {
			t.Errorf("something was written outside of the root: %v", outside)
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	var entries []entry
	var size int64
	for i := range 2000 {
		e := file(fmt.Sprintf("d%d/f%d", i/50, i), strings.Repeat("x", 8192))
		size += e.Size
		entries = append(entries, e)
	}
	data := stream(b, entries...)
	b.SetBytes(size)
	for b.Loop() {
		root := b.TempDir()
		f, err := os.Open(root)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := layer.Unpack(b.Context(), f, bytes.NewReader(data), layer.Limits{}); err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
	}
}
