package volume_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/volume"
)

// The escapes of GHSA-rh99-wc69-c255 (Contrast) and GHSA-q49m-57vm-c8cc (Kata
// Containers, CVE-2026-41326): a link that came first, .., absolute names, hard
// links and device nodes.
func TestPutNeverLeavesTheVolume(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][]entry{
		"a link, then through it":        {{name: "l", content: "/", kind: tar.TypeSymlink}, {name: "l/evil", content: "x"}},
		"a link in a directory":          {{name: "d/l", content: "../..", kind: tar.TypeSymlink}, {name: "d/l/evil", content: "x"}},
		"a link to a file":               {{name: "l", content: "/etc/passwd", kind: tar.TypeSymlink}, {name: "l", content: "x"}},
		"a hard link":                    {{name: "a", content: "x"}, {name: "b", content: "a", kind: tar.TypeLink}},
		"a hard link out of the volume":  {{name: "b", content: "/etc/passwd", kind: tar.TypeLink}},
		"a parent":                       {{name: "a/../../evil", content: "x"}},
		"a parent that comes back":       {{name: "a/../b", content: "x"}},
		"an absolute name":               {{name: "/evil", content: "x"}},
		"a double slash":                 {{name: "a//b", content: "x"}},
		"a dot in between":               {{name: "a/./b", content: "x"}},
		"the volume's own link":          {{name: "..data/evil", content: "x"}},
		"the volume's own name, nested":  {{name: "a/..1/evil", content: "x"}},
		"the volume itself":              {{name: ".", content: "x"}},
		"a block device":                 {{name: "d", kind: tar.TypeBlock}},
		"a directory out of the volume":  {{name: "../d", kind: tar.TypeDir}, {name: "a", content: "x"}},
		"an absolute directory":          {{name: "/d", kind: tar.TypeDir}, {name: "a", content: "x"}},
		"a file that is a directory too": {{name: "a", content: "x"}, {name: "a/b", content: "x"}},
		"a directory that is a file too": {{name: "a/b", content: "x"}, {name: "a", content: "x"}},
		"too deep":                       {{name: "1/2/3/4/5/6/7/8/9", content: "x"}},
		"too long":                       {{name: strings.Repeat("a/", 3) + strings.Repeat("b", 255) + "/" + strings.Repeat("c", 255), content: "x"}},
	} {
		dir := t.TempDir()
		m, err := volume.NewManager(filepath.Join(dir, "volumes"))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Put(t.Context(), "config", archive(t, entries...), newRule()); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "volumes/config")); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
		if got, err := os.ReadDir(dir); err != nil || len(got) != 1 {
			t.Errorf("%s: outside of the volumes are %v, %v", name, got, err)
		}
	}
}

// A link that stands in the new directory while it is filled is not followed
// either: not one on the way, nor one in a file's place.
func TestPutFollowsNoPlantedLink(t *testing.T) {
	t.Parallel()
	for _, planted := range []string{"d", "d/f"} {
		dir := t.TempDir()
		m, err := volume.NewManager(filepath.Join(dir, "volumes"))
		if err != nil {
			t.Fatal(err)
		}
		outside := filepath.Join(dir, "outside")
		if err := os.Mkdir(outside, 0o755); err != nil {
			t.Fatal(err)
		}
		plant := &planting{rule: newRule(), plant: func() {
			place := filepath.Join(dir, "volumes/config/..1")
			target := outside
			if planted != "d" {
				if err := os.Mkdir(filepath.Join(place, "d"), 0o755); err != nil {
					t.Error(err)
				}
				target = filepath.Join(outside, "f")
			}
			if err := os.Symlink(target, filepath.Join(place, planted)); err != nil {
				t.Error(err)
			}
		}}
		if err := m.Put(t.Context(), "config", archive(t, entry{name: "d/f", content: "evil"}), plant); err == nil {
			t.Errorf("%s: accepted", planted)
		}
		if got, err := os.ReadDir(outside); err != nil || len(got) != 0 {
			t.Errorf("%s: written through the link: %v, %v", planted, got, err)
		}
	}
}

// planting does something bad when it is asked about the first file.
type planting struct {
	*rule
	plant func()
}

func (p *planting) File(name string, size int64) (uint32, error) {
	p.plant()
	return p.rule.File(name, size)
}

func TestPutNestedFilesWithGroup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	gid := os.Getegid()
	if os.Geteuid() == 0 {
		gid = 2000
	}
	made := volume.File{Name: "conf/tls/key.pem", Mode: 0o440, Content: []byte("key")}
	in := archive(t, entry{name: "conf/", kind: tar.TypeDir}, entry{name: "conf/app.d/10.conf", content: "a"}, entry{name: "./conf/b", content: "b"},
		entry{name: "sealed.txt", content: "sealed.a.b.c"}, entry{name: "top", content: "t"})
	r := newRule()
	if err := m.Put(t.Context(), "config", in, r, volume.WithGroup(uint32(gid)), volume.WithFiles(made, volume.File{Name: "sealed.txt", Mode: 0o400, Content: []byte("secret")})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		content string
		mode    fs.FileMode
	}{"conf/app.d/10.conf": {"a", 0o640}, "conf/b": {"b", 0o640}, "conf/tls/key.pem": {"key", 0o440}, "sealed.txt": {"secret", 0o400}, "top": {"t", 0o640}} {
		path := filepath.Join(dir, "config", name)
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want.content {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Gid != uint32(gid) || fs.FileMode(st.Mode&0o7777) != want.mode {
			t.Errorf("%s: group %d mode %o, %v", name, st.Gid, st.Mode, err)
		}
		if err := unix.Stat(filepath.Dir(path), &st); err != nil || name != "top" && name != "sealed.txt" && (st.Gid != uint32(gid) || st.Mode&0o7777 != 0o755) {
			t.Errorf("%s: directory's group %d mode %o, %v", name, st.Gid, st.Mode, err)
		}
	}
	if len(r.digests) != 4 {
		t.Errorf("judged %d contents, want those of all 4 files of the archive", len(r.digests))
	}
	// A later version may make a file of what was a directory.
	if err := m.Make("config", volume.WithFiles(volume.File{Name: "conf", Mode: 0o444, Content: []byte("one")})); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(dir, "config")); len(got) != 1 || got["conf"] != "one" {
		t.Errorf("got %v", got)
	}
	for _, bad := range []string{"", "/x", "../x", "a/../x", "..x"} {
		if err := m.Make("config", volume.WithFiles(volume.File{Name: bad})); err == nil {
			t.Errorf("made %q", bad)
		}
	}
	// What the guest makes and what the host sends are not one file.
	if err := m.Put(t.Context(), "config", bytes.NewReader(archive(t, entry{name: "a", content: "x"}).Bytes()), newRule(), volume.WithFiles(volume.File{Name: "a"})); err == nil {
		t.Error("one name twice")
	}
	if got := content(t, filepath.Join(dir, "config")); len(got) != 1 {
		t.Errorf("a refused set left %v", got)
	}
}

// A pod that is the host's has the host's modes and owners, too; bits beside
// permissions are never taken.
func TestPutAttributesOfTheArchive(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("owners need root")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "own", Mode: 0o4751, Uid: 1000, Gid: 3000, Size: 1},
		{Name: "dir/other", Mode: 0o777, Uid: 1000, Gid: 3000, Size: 1},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		options    []volume.Option
		own, other [3]uint32 // user, group, mode
	}{
		{nil, [3]uint32{1000, 3000, 0o751}, [3]uint32{0, 0, 0o640}},
		{[]volume.Option{volume.WithGroup(2000)}, [3]uint32{1000, 2000, 0o751}, [3]uint32{0, 2000, 0o640}},
	} {
		dir := t.TempDir()
		m, err := volume.NewManager(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Put(t.Context(), "config", bytes.NewReader(b.Bytes()), newRule(), tt.options...); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string][3]uint32{"own": tt.own, "dir/other": tt.other} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, "config", name), &st); err != nil {
				t.Fatal(err)
			}
			if got := [3]uint32{st.Uid, st.Gid, st.Mode & 0o7777}; got != want {
				t.Errorf("%s: got %o, want %o", name, got, want)
			}
		}
	}
	b.Reset()
	w = tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "own", Uid: 1<<32 - 1, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	m, err := volume.NewManager(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Put(t.Context(), "config", &b, newRule()); err == nil || !strings.Contains(err.Error(), "owner") {
		t.Errorf("an owner that is none: %v", err)
	}
}
