package layer_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layer"
	"github.com/coffer-project/coffer/oci/layout"
)

// needTool finds a program of a Debian package.
func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("COFFER_REQUIRE_SERVERS") != "" {
			t.Fatalf("%s is not installed, and COFFER_REQUIRE_SERVERS is set", name)
		}
		t.Skipf("not supported: %s is not installed", name)
	}
	return path
}

func runTool(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), needTool(t, name), args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.Bytes())
	}
	return out
}

// described is all that is to be said about a file.
type described struct {
	Mode, UID, GID uint32
	Size           int64
	At             time.Time
	Rdev           uint64
	Target         string
	Content        string
	Links          string // the first name of the same file
	Xattrs         map[string]string
}

// describe describes a tree; times in whole seconds unless exact.
func describe(t *testing.T, root string, exact bool) map[string]described {
	t.Helper()
	out, first := map[string]described{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no stat", p)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		d := described{Mode: st.Mode, UID: st.Uid, GID: st.Gid, At: fi.ModTime(), Xattrs: xattrs(t, p)}
		if !exact {
			d.At = d.At.Truncate(time.Second)
		}
		if !fi.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			d.Size, d.Rdev, d.Links = st.Size, st.Rdev, first[st.Ino]
		}
		switch fi.Mode().Type() {
		case fs.ModeSymlink:
			d.Target, err = os.Readlink(p)
		case 0:
			var b []byte
			b, err = os.ReadFile(p)
			d.Content = fmt.Sprintf("%x", sha256.Sum256(b))
		}
		out[name] = d
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func xattrs(t *testing.T, path string) map[string]string {
	t.Helper()
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(value[:n])
	}
	return out
}

// sourceTree makes what an ordinary image has, and what less ordinary ones have.
func sourceTree(t *testing.T) string {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	do := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	long := strings.Repeat("long-", 30)
	do(os.MkdirAll(at("usr/bin"), 0o755), os.MkdirAll(at("var/empty"), 0o700), os.MkdirAll(at("tmp"), 0o755), os.Chmod(at("tmp"), os.ModeSticky|0o777),
		os.MkdirAll(at(long+"/"+long+"/"+long), 0o755), os.MkdirAll(at("etc/many"), 0o750))
	do(os.WriteFile(at("usr/bin/su"), []byte("#!su"), 0o755), os.Chown(at("usr/bin/su"), 0, 42), unix.Chmod(at("usr/bin/su"), 0o6755),
		os.WriteFile(at("usr/bin/ping"), []byte("#!ping"), 0o755), os.Link(at("usr/bin/ping"), at("usr/bin/ping6")),
		unix.Setxattr(at("usr/bin/ping"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		unix.Setxattr(at("usr/bin/ping"), "user.note", []byte("a\nb\x00c=d"), 0),
		os.Symlink("/usr/bin/ping", at("ping")), os.Symlink("../../nowhere", at("dangling")), os.Lchown(at("ping"), 5, 6),
		unix.Mkfifo(at("fifo"), 0o640), os.WriteFile(at("empty"), nil, 0o400),
		os.WriteFile(at("ids"), []byte("ids"), 0o604), os.Chown(at("ids"), 70_000, 4_000_000_000),
		os.WriteFile(at("not-utf8-\xff\xfe"), []byte("x"), 0o644), os.WriteFile(at("new\nline \"quoted\" \\"), []byte("y"), 0o644),
		os.WriteFile(at(long+"/"+long+"/"+long+"/"+long+"file"), []byte("deep"), 0o644), os.Symlink(strings.Repeat("t/", 80)+"t", at("long-target")),
		os.WriteFile(at("large"), bytes.Repeat([]byte("0123456789abcdef"), 1<<16), 0o644))
	sparse, err := os.Create(at("sparse"))
	do(err)
	_, err = sparse.WriteAt([]byte("in the middle"), 5<<20)
	do(err, sparse.Truncate(16<<20), sparse.Close())
	for i := range 300 {
		do(os.WriteFile(at(fmt.Sprintf("etc/many/f%03d", i)), bytes.Repeat([]byte{byte(i)}, i*37), fs.FileMode(0o600+i%64)))
	}
	stamp := time.Unix(1_234_567_890, 123_456_789)
	do(filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ts := unix.NsecToTimespec(stamp.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return root
}

// unpackInto unpacks layers onto a new directory.
func unpackInto(t *testing.T, layers ...[]byte) string {
	t.Helper()
	root := t.TempDir()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	u, err := layer.NewUnpacker(f, layer.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for _, l := range layers {
		if err := u.Apply(t.Context(), bytes.NewReader(l)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// What GNU tar packs, in each of its formats, comes out as GNU tar unpacks it:
// modes, owners, times, extended attributes, hard links, holes.
func TestUnpackLikeTar(t *testing.T) {
	t.Parallel()
	source := sourceTree(t)
	for _, format := range []string{"posix", "gnu"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			args := []string{"--format=" + format, "--sparse", "--numeric-owner", "--sort=name", "-c", "."}
			if format == "posix" {
				args = append([]string{"--xattrs", "--xattrs-include=*"}, args...)
			}
			packed := runTool(t, source, "tar", args...)
			theirs := t.TempDir()
			archive := filepath.Join(t.TempDir(), "l.tar")
			if err := os.WriteFile(archive, packed, 0o600); err != nil {
				t.Fatal(err)
			}
			runTool(t, theirs, "tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "-x", "-f", archive)
			ours := unpackInto(t, packed)
			exact := format == "posix"
			if diff := cmp.Diff(describe(t, theirs, exact), describe(t, ours, exact)); diff != "" {
				t.Errorf("tree (-tar +ours):\n%s", diff)
			}
			if format == "posix" {
				if diff := cmp.Diff(describe(t, source, true), describe(t, ours, true)); diff != "" {
					t.Errorf("tree (-source +ours):\n%s", diff)
				}
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(ours, "sparse"), &st); err != nil || st.Blocks*512 > 1<<20 {
				t.Errorf("the sparse file takes %d KiB, %v", st.Blocks/2, err)
			}
		})
	}
}

// An image of several layers comes out as umoci unpacks it.
func TestUnpackLikeUmoci(t *testing.T) {
	t.Parallel()
	needTool(t, "umoci")
	source := sourceTree(t)
	first := runTool(t, source, "tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", "-c", ".")
	second := stream(t, file(".wh.fifo", ""), file("usr/bin/.wh.su", ""), dir("etc/many"), file("etc/many/.wh..wh..opq", ""), file("etc/many/new", "n"),
		hardlink("again", "usr/bin/ping"), symlink("empty", "large"), file("usr/bin/ping6", "another file"), file("var", "a file now"))
	third := stream(t, dir("ping"), file("ping/in", "a directory now"), file(".wh.var", ""), dir("var"), file("var/x", "1"), file("var/x", "2"))
	layers := [][]byte{first, second, third}
	ours := unpackInto(t, layers...)

	where := filepath.Join(t.TempDir(), "oci")
	l, err := layout.Create(where)
	if err != nil {
		t.Fatal(err)
	}
	config := oci.ImageConfig{OS: "linux", Architecture: runtime.GOARCH, RootFS: oci.RootFS{Type: "layers"}}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest}
	for _, b := range layers {
		d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeLayer, b)
		if err != nil {
			t.Fatal(err)
		}
		m.Layers, config.RootFS.DiffIDs = append(m.Layers, d), append(config.RootFS.DiffIDs, d.Digest)
	}
	push := func(mediaType string, v any) oci.Descriptor {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d, err := oci.PushBytes(t.Context(), l, mediaType, data)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	m.Config = push(oci.MediaTypeConfig, config)
	if err := l.Tag(t.Context(), push(oci.MediaTypeManifest, m), "x"); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	runTool(t, "", "umoci", "unpack", "--image", where+":x", bundle)
	theirs := describe(t, filepath.Join(bundle, "rootfs"), true)
	mine := describe(t, ours, true)
	for _, tree := range []map[string]described{theirs, mine} {
		delete(tree, "") // umoci leaves the root of later layers as it is
	}
	if diff := cmp.Diff(theirs, mine); diff != "" {
		t.Errorf("tree (-umoci +ours):\n%s", diff)
	}
}
