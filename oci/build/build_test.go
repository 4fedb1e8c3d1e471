package build_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

const (
	kid    = "kbs:///default/image-kek/1"
	marker = "coffer-plaintext-marker-0123456789"
)

var testKey = bytes.Repeat([]byte{9}, crypt.KeySize)

type keyMap map[string][]byte

func (m keyMap) Key(_ context.Context, kid string) (secret.Bytes, error) {
	k, ok := m[kid]
	if !ok {
		return secret.Bytes{}, fmt.Errorf("no resource %s", kid)
	}
	return secret.New(bytes.Clone(k)), nil
}

func recipients() []encrypt.Recipient {
	return []encrypt.Recipient{{KID: kid, Key: secret.New(bytes.Clone(testKey))}}
}

// tree makes a directory with files of all kinds.
func tree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755))
	must(os.Symlink("usr/bin", filepath.Join(dir, "bin")))
	must(os.WriteFile(filepath.Join(dir, "usr/bin/app"), []byte("#!/bin/sh\n"+strings.Repeat(marker, 10000)), 0o755))
	must(os.Chmod(filepath.Join(dir, "usr/bin/app"), 0o4755))
	must(os.Link(filepath.Join(dir, "usr/bin/app"), filepath.Join(dir, "usr/bin/zz")))
	must(os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600))
	must(os.Mkdir(filepath.Join(dir, "tmp"), 0o777))
	must(os.Chmod(filepath.Join(dir, "tmp"), 0o1777))
	must(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(os.WriteFile(filepath.Join(dir, strings.Repeat("long", 50)), []byte(strings.Repeat("é", 10)), 0o644))
	return dir
}

func newLayout(t testing.TB) (*layout.Layout, string) {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, dir
}

// describe lists a tree: kind, mode, owner, content.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st := fi.Sys().(*syscall.Stat_t)
		s := fmt.Sprintf("%v %d:%d", fi.Mode(), st.Uid, st.Gid)
		switch d.Type() {
		case 0:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %s links=%d", oci.FromBytes(b).Short(), st.Nlink)
		case fs.ModeSymlink:
			to, _ := os.Readlink(p)
			s += " -> " + to
		}
		if rel == "." {
			s = "" // a temporary directory's own mode is another
		}
		out[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func pullTo(t testing.TB, f oci.Fetcher, ref oci.Reference, policy *signature.Policy, keys crypt.KeySource) (string, *pull.Image) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not supported: unpacking layers needs root, to set owners")
	}
	if policy == nil {
		policy = signature.InsecureAcceptAnything()
	}
	dest := filepath.Join(t.TempDir(), "root")
	img, err := pull.Pull(t.Context(), pull.Options{Ref: ref, Fetcher: f, Policy: policy, Keys: keys, Dest: dest})
	if err != nil {
		t.Fatal(err)
	}
	return dest, img
}

func mustBuild(t testing.TB, p oci.Pusher, o build.Options) oci.Reference {
	t.Helper()
	d, err := build.Build(t.Context(), p, o)
	if err != nil {
		t.Fatal(err)
	}
	return oci.Reference{Registry: "reg.example", Repository: "shop/web", Digest: d.Digest}
}

func TestBuildAndPull(t *testing.T) {
	t.Parallel()
	dir := tree(t)
	want := describe(t, dir)
	for _, c := range []oci.Compression{oci.Uncompressed, oci.Gzip, oci.Zstd} {
		l, layoutDir := newLayout(t)
		o := build.Options{Layers: []build.Tree{{Dir: dir}}, Compression: c, Config: oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/bin/app"}}}}
		ref := mustBuild(t, l, o)
		// The same input gives the same image.
		if again := mustBuild(t, l, o); again != ref {
			t.Errorf("%v: built twice: %s and %s", c, ref, again)
		}
		root, img := pullTo(t, l, ref, nil, nil)
		if diff := cmp.Diff(want, describe(t, root)); diff != "" {
			t.Errorf("%v: tree (-want +got):\n%s", c, diff)
		}
		if img.Config.Config.Entrypoint[0] != "/bin/app" || img.Config.OS != "linux" {
			t.Errorf("config: %+v", img.Config)
		}

		o.Recipients, o.Rand = recipients(), rand.Reader
		encrypted := mustBuild(t, l, o)
		root, img = pullTo(t, l, encrypted, nil, keyMap{kid: testKey})
		if diff := cmp.Diff(want, describe(t, root)); diff != "" || img.EncryptedLayers != 1 {
			t.Errorf("%v encrypted: %+v, tree (-want +got):\n%s", c, img, diff)
		}

		// Encrypting an image afterwards is the same thing.
		d, err := build.Encrypt(t.Context(), l, ref, oci.GuestPlatform(), l, recipients(), "", rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		root, img = pullTo(t, l, ref.WithDigest(d.Digest), nil, keyMap{kid: testKey})
		if diff := cmp.Diff(want, describe(t, root)); diff != "" || img.EncryptedLayers != 1 {
			t.Errorf("%v encrypted afterwards: %+v, tree (-want +got):\n%s", c, img, diff)
		}
		if _, err := build.Encrypt(t.Context(), l, ref.WithDigest(d.Digest), oci.GuestPlatform(), l, recipients(), "", rand.Reader); err == nil || !strings.Contains(err.Error(), "encrypted already") {
			t.Errorf("encrypted twice: %v", err)
		}
		_ = layoutDir
	}
}

// What is pushed of an encrypted image is ciphertext.
func TestBuildEncryptedHidesContent(t *testing.T) {
	t.Parallel()
	l, dir := newLayout(t)
	mustBuild(t, l, build.Options{Layers: []build.Tree{{Dir: tree(t)}}, Recipients: recipients(), Rand: rand.Reader})
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil && bytes.Contains(b, []byte(marker)) {
			t.Errorf("the marker occurs in %s", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBuildLayersAndTimes(t *testing.T) {
	t.Parallel()
	one, two := tree(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(two, "empty"), []byte("no more"), 0o644); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	l, _ := newLayout(t)
	ref := mustBuild(t, l, build.Options{Layers: []build.Tree{{Dir: one, ModTime: at}, {Dir: two, ModTime: at}}, Compression: oci.Gzip})
	root, img := pullTo(t, l, ref, nil, nil)
	b, err := os.ReadFile(filepath.Join(root, "empty"))
	if err != nil || string(b) != "no more" || img.Layers != 2 {
		t.Errorf("%q, %v, %+v", b, err, img)
	}
	fi, err := os.Stat(filepath.Join(root, "usr/bin/app"))
	if err != nil || !fi.ModTime().Equal(at) {
		t.Errorf("time: %v, %v", fi.ModTime(), err)
	}
}

func TestBuildErrors(t *testing.T) {
	t.Parallel()
	whiteout, socket := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(whiteout, ".wh.x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(socket, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	for name, tt := range map[string]struct {
		o    build.Options
		want string
	}{
		"no layers":     {build.Options{}, "expected 1 to 128 layers, got 0"},
		"no directory":  {build.Options{Layers: []build.Tree{{Dir: "/does/not/exist"}}}, "/does/not/exist"},
		"whiteout name": {build.Options{Layers: []build.Tree{{Dir: whiteout}}}, filepath.Join(whiteout, ".wh.x") + ": names that start with .wh."},
		"socket":        {build.Options{Layers: []build.Tree{{Dir: socket}}}, filepath.Join(socket, "s") + ": S"},
		"no randomness": {build.Options{Layers: []build.Tree{{Dir: t.TempDir()}}, Recipients: recipients()}, "no source of random bytes"},
		"bad recipient": {build.Options{Layers: []build.Tree{{Dir: t.TempDir()}}, Recipients: []encrypt.Recipient{{KID: "x"}}, Rand: rand.Reader}, `key id "x"`},
	} {
		l, _ := newLayout(t)
		if _, err := build.Build(t.Context(), l, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

func TestCopyWithSignatures(t *testing.T) {
	t.Parallel()
	from, _ := newLayout(t)
	ref := mustBuild(t, from, build.Options{Layers: []build.Tree{{Dir: tree(t)}}})
	key, policy := newKey(t)
	if _, err := signature.Sign(t.Context(), from, ref, key, rand.Reader); err != nil {
		t.Fatal(err)
	}
	// An index around it.
	d, _, err := build.Inspect(t.Context(), from, ref, oci.GuestPlatform())
	if err != nil {
		t.Fatal(err)
	}
	platform := oci.GuestPlatform()
	d.Platform = &platform
	data, err := json.Marshal(oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Manifests: []oci.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	index, err := oci.PushBytes(t.Context(), from, oci.MediaTypeIndex, data)
	if err != nil {
		t.Fatal(err)
	}
	to, _ := newLayout(t)
	if got, err := build.Copy(t.Context(), from, ref.WithDigest(index.Digest), to); err != nil || got.Digest != index.Digest {
		t.Fatal(got, err)
	}
	_, img := pullTo(t, to, ref.WithDigest(index.Digest), policy, nil)
	if img.Verdict.Digest != ref.Digest || img.IndexDigest != index.Digest {
		t.Errorf("%+v", img)
	}
}
