package imagetool_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/cli/imagetool"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

const (
	keyURI = "kbs:///shop/image/app"
	marker = "a marker that must not be readable"
)

func testKey() []byte { return bytes.Repeat([]byte{5}, crypt.KeySize) }

type keys struct{}

func (keys) Key(_ context.Context, kid string) (secret.Bytes, error) {
	if kid != keyURI {
		return secret.Bytes{}, errNone
	}
	return secret.New(testKey()), nil
}

func options(t *testing.T) run.ImageOptions {
	t.Helper()
	return run.ImageOptions{Spool: t.TempDir()}
}

func buildInto(t *testing.T, l *layout.Layout, c oci.Compression, platform oci.Platform, marker string) oci.Descriptor {
	t.Helper()
	low, high := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{filepath.Join(low, "a"): marker + " a", filepath.Join(high, "b"): marker + " b"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(high, "link")); err != nil {
		t.Fatal(err)
	}
	d, err := build.Build(t.Context(), l, build.Options{
		Layers: []build.Tree{{Dir: low, ModTime: time.Unix(1, 0)}, {Dir: high, ModTime: time.Unix(1, 0)}}, Compression: c,
		Config: oci.ImageConfig{OS: platform.OS, Architecture: platform.Architecture, Config: oci.ContainerConfig{Cmd: []string{"/x"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// plainLayout is an image of two layers.
func plainLayout(t *testing.T, c oci.Compression) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plain")
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Tag(t.Context(), buildInto(t, l, c, oci.GuestPlatform(), marker), "v1"); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":v1"
}

// indexLayout is an image for two platforms, with something in its index that
// is no image.
func indexLayout(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "index")
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	x := oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex}
	for _, arch := range []string{"amd64", "arm64"} {
		p := oci.Platform{OS: "linux", Architecture: arch}
		d := buildInto(t, l, oci.Gzip, p, arch)
		d.Platform = &p
		x.Manifests = append(x.Manifests, d)
	}
	blob, err := oci.PushBytes(t.Context(), l, "application/vnd.in-toto+json", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := oci.PushBytes(t.Context(), l, oci.MediaTypeConfig, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{blob}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, data)
	if err != nil {
		t.Fatal(err)
	}
	d.Platform = &oci.Platform{OS: "unknown", Architecture: "unknown"}
	x.Manifests = append(x.Manifests, d)
	if data, err = json.Marshal(x); err != nil {
		t.Fatal(err)
	}
	if d, err = oci.PushBytes(t.Context(), l, oci.MediaTypeIndex, data); err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, "v1"); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":v1"
}

func source(t *testing.T, name string, o run.ImageOptions) *run.Source {
	t.Helper()
	o.Spool = t.TempDir()
	src, err := run.OpenSource(t.Context(), name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

func destination(t *testing.T, name string, o run.ImageOptions) *imagetool.Destination {
	t.Helper()
	o.Spool = t.TempDir()
	dst, err := imagetool.OpenDestination(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dst.Close() })
	return dst
}

func encryption(layers ...int) imagetool.Encryption {
	return imagetool.Encryption{Recipients: []encrypt.Recipient{{KID: keyURI, Key: secret.New(testKey())}}, Layers: layers, Rand: rand.Reader}
}

func encryptWith(t *testing.T, from, to string, o run.ImageOptions, layers ...int) *imagetool.Result {
	t.Helper()
	src := source(t, from, o)
	r, err := imagetool.Encrypt(t.Context(), src, src.Ref, destination(t, to, o), encryption(layers...), imagetool.Options{Spool: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func encryptAll(t *testing.T, from, to string) *imagetool.Result {
	t.Helper()
	return encryptWith(t, from, to, options(t))
}

func decrypt(t *testing.T, from, to string) *imagetool.Result {
	t.Helper()
	src := source(t, from, options(t))
	r, err := imagetool.Decrypt(t.Context(), src, src.Ref, destination(t, to, options(t)), keys{}, imagetool.Options{Spool: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func copyImage(t *testing.T, from, to string) *imagetool.Result {
	t.Helper()
	src := source(t, from, options(t))
	r, err := imagetool.Copy(t.Context(), src, src.Ref, destination(t, to, options(t)), imagetool.Options{Spool: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func report(t *testing.T, name string) *imagetool.Report {
	t.Helper()
	src := source(t, name, options(t))
	r, err := imagetool.Inspect(t.Context(), src, src.Ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newDir(t *testing.T) string {
	t.Helper()
	return "oci:" + filepath.Join(t.TempDir(), "out") + ":v1"
}

// TestThereAndBack: each compression survives, and decryption gives the layers
// that were encrypted, byte for byte.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	for _, c := range []oci.Compression{oci.Uncompressed, oci.Gzip, oci.Zstd} {
		plain, encrypted, decrypted := plainLayout(t, c), newDir(t), newDir(t)
		r := encryptAll(t, plain, encrypted)
		if r.Digest == r.Source || len(r.Images) != 1 || r.Images[0].Encrypted != 2 {
			t.Errorf("%s: %+v", c, r)
		}
		for _, l := range report(t, encrypted).Manifests[0].Layers {
			if !l.Encrypted || l.Compression != c.String() {
				t.Errorf("%s: layer %+v", c, l)
			}
		}
		if d := decrypt(t, encrypted, decrypted); d.Images[0].Encrypted != 0 || d.Digest != r.Source {
			t.Errorf("%s: decrypted %+v, expected the digest %s", c, d, r.Source)
		}
		sameTree(t, c.String(), pulled(t, encrypted, 2, options(t)), pulled(t, plain, 0, options(t)))
	}
}

func TestChosenLayers(t *testing.T) {
	t.Parallel()
	plain := plainLayout(t, oci.Gzip)
	for _, test := range []struct {
		layers []int
		want   []bool
	}{{[]int{0}, []bool{true, false}}, {[]int{-1}, []bool{false, true}}, {[]int{0, 1}, []bool{true, true}}} {
		out := newDir(t)
		encryptWith(t, plain, out, options(t), test.layers...)
		for i, l := range report(t, out).Manifests[0].Layers {
			if l.Encrypted != test.want[i] {
				t.Errorf("%v: layer %d: %+v", test.layers, i, l)
			}
		}
	}
	src := source(t, plain, options(t))
	if _, err := imagetool.Encrypt(t.Context(), src, src.Ref, destination(t, newDir(t), options(t)), encryption(2), imagetool.Options{}); err == nil || !strings.Contains(err.Error(), "--layer 2: the image has the layers 0 to 1") {
		t.Errorf("a layer that is not there: %v", err)
	}
}

// TestIndex: all platforms are changed, what is no image is left out of a
// changed index and stays in a copy.
func TestIndex(t *testing.T) {
	t.Parallel()
	plain, encrypted, decrypted, copied, one := indexLayout(t), newDir(t), newDir(t), newDir(t), newDir(t)
	r := encryptAll(t, plain, encrypted)
	if len(r.Images) != 2 || len(r.LeftOut) != 1 {
		t.Errorf("encrypted: %+v", r)
	}
	got := report(t, encrypted)
	if len(got.Manifests) != 2 || got.Manifests[0].Platform != "linux/amd64" || got.Manifests[1].Platform != "linux/arm64" || !got.Manifests[1].Layers[0].Encrypted {
		t.Errorf("encrypted: %+v", got)
	}
	if d := decrypt(t, encrypted, decrypted); len(d.Images) != 2 {
		t.Errorf("decrypted: %+v", d)
	}
	if r := copyImage(t, plain, copied); r.Digest != r.Source || len(r.LeftOut) != 0 || len(report(t, copied).Manifests) != 3 {
		t.Errorf("copied: %+v", r)
	}
	src := source(t, plain, options(t))
	r, err := imagetool.Copy(t.Context(), src, src.Ref, destination(t, one, options(t)), imagetool.Options{Platform: &oci.Platform{OS: "linux", Architecture: "arm64"}})
	if err != nil || len(r.Images) != 1 || r.Images[0].Platform != "linux/arm64" || r.Digest != r.Source {
		t.Errorf("one platform: %+v %v", r, err)
	}
	file := "docker-archive:" + filepath.Join(t.TempDir(), "a.tar") + ":localhost/a:v1"
	if _, err := imagetool.Copy(t.Context(), src, src.Ref, destination(t, file, options(t)), imagetool.Options{}); err == nil || !strings.Contains(err.Error(), "name it with --platform") {
		t.Errorf("all platforms in a Docker archive: %v", err)
	}
}

// TestEncryptionNotLost: a Docker archive takes no encrypted image, and leaves
// no file.
func TestEncryptionNotLost(t *testing.T) {
	t.Parallel()
	plain, encrypted := plainLayout(t, oci.Gzip), newDir(t)
	encryptAll(t, plain, encrypted)
	file := filepath.Join(t.TempDir(), "a.tar")
	name := "docker-archive:" + file + ":localhost/a:v1"
	src := source(t, encrypted, options(t))
	if _, err := imagetool.Copy(t.Context(), src, src.Ref, destination(t, name, options(t)), imagetool.Options{}); !isLost(err) {
		t.Errorf("copy: %v", err)
	}
	src = source(t, plain, options(t))
	if _, err := imagetool.Encrypt(t.Context(), src, src.Ref, destination(t, name, options(t)), encryption(), imagetool.Options{}); !isLost(err) {
		t.Errorf("encrypt: %v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was left: %v", err)
	}
	decrypt(t, encrypted, name)
	sameTree(t, "decrypted into an archive", pulled(t, "docker-archive:"+file, 0, options(t)), pulled(t, plain, 0, options(t)))
}

func isLost(err error) bool {
	_, ok := errors.AsType[*imagetool.EncryptionLostError](err)
	return ok
}

// TestSignaturesCopied: both of cosign's forms arrive, and still verify.
func TestSignaturesCopied(t *testing.T) {
	t.Parallel()
	name := plainLayout(t, oci.Gzip)
	src := source(t, name, options(t))
	store, ok := src.Fetcher.(signature.Store)
	if !ok {
		t.Fatal("a layout takes no signatures")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d, err := src.Resolve(t.Context(), src.Ref)
	if err != nil {
		t.Fatal(err)
	}
	ref := oci.Reference{Registry: "registry.example", Repository: "a"}.WithDigest(d.Digest)
	for _, sign := range []func() (oci.Descriptor, error){
		func() (oci.Descriptor, error) { return signature.Sign(t.Context(), store, ref, key, rand.Reader) },
		func() (oci.Descriptor, error) { return signature.SignBundle(t.Context(), store, ref, key, rand.Reader) },
	} {
		if _, err := sign(); err != nil {
			t.Fatal(err)
		}
	}
	out := newDir(t)
	if r := copyImage(t, name, out); r.Signatures != 2 {
		t.Errorf("copied %d signatures", r.Signatures)
	}
	found := report(t, out).Found
	if len(found) != 2 || found[0].Kind != "cosign" || found[1].Kind != "referrer" || !slices.ContainsFunc(found, func(f imagetool.Found) bool { return strings.Contains(f.ArtifactType, "sigstore.bundle") }) {
		t.Errorf("found %+v", found)
	}
}

// TestDamaged: nothing that is not what it says is tagged.
func TestDamaged(t *testing.T) {
	t.Parallel()
	name := plainLayout(t, oci.Gzip)
	encrypted := newDir(t)
	encryptAll(t, name, encrypted)
	for what, image := range map[string]string{"plain": name, "encrypted": encrypted} {
		r := report(t, image)
		layer := r.Manifests[0].Layers[1]
		dir, _, _ := strings.Cut(strings.TrimPrefix(image, "oci:"), ":")
		blob := filepath.Join(dir, "blobs", "sha256", layer.Digest.Hex())
		data, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.Chmod(blob, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(blob, data, 0o600); err != nil {
			t.Fatal(err)
		}
		src := source(t, image, options(t))
		out := newDir(t)
		if _, err := imagetool.Copy(t.Context(), src, src.Ref, destination(t, out, options(t)), imagetool.Options{}); err == nil {
			t.Errorf("%s: copied", what)
		}
		if what == "encrypted" {
			if _, err := imagetool.Decrypt(t.Context(), src, src.Ref, destination(t, out, options(t)), keys{}, imagetool.Options{}); err == nil {
				t.Errorf("%s: decrypted", what)
			}
		}
		l, err := layout.Open(strings.TrimSuffix(strings.TrimPrefix(out, "oci:"), ":v1"))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(l.Manifests()); n != 0 {
			t.Errorf("%s: %d manifests are tagged", what, n)
		}
		_ = l.Close()
	}
}

// TestWrongDiffID: a layer that is what its digest says, and not what the
// configuration says it unpacks to.
func TestWrongDiffID(t *testing.T) {
	t.Parallel()
	name := plainLayout(t, oci.Gzip)
	src := source(t, name, options(t))
	store, ok := src.Fetcher.(signature.Store)
	if !ok {
		t.Fatal("cannot write")
	}
	_, m, err := build.Inspect(t.Context(), src, src.Ref, oci.GuestPlatform())
	if err != nil {
		t.Fatal(err)
	}
	m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0]
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), store, oci.MediaTypeManifest, data)
	if err != nil {
		t.Fatal(err)
	}
	ref := src.Ref.WithDigest(d.Digest)
	if _, err := imagetool.Copy(t.Context(), src, ref, destination(t, newDir(t), options(t)), imagetool.Options{}); err == nil || !strings.Contains(err.Error(), "diff ID") {
		t.Errorf("copy: %v", err)
	}
	if _, err := imagetool.Encrypt(t.Context(), src, ref, destination(t, newDir(t), options(t)), encryption(), imagetool.Options{}); err == nil || !strings.Contains(err.Error(), "diff ID") {
		t.Errorf("encrypt: %v", err)
	}
}
