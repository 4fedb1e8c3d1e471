package pull_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layer"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/signature"
)

const kid = "kbs:///default/image-kek/1"

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not supported: unpacking layers needs root, to set owners")
	}
}

func options(t testing.TB, s *store, ref oci.Reference) pull.Options {
	t.Helper()
	needRoot(t)
	return pull.Options{Ref: ref, Fetcher: s, Policy: signature.InsecureAcceptAnything(), Keys: keyMap{kid: testKey},
		Dest: filepath.Join(t.TempDir(), "root"), Spool: t.TempDir()}
}

// contains checks that an error says all of parts.
func contains(t testing.TB, name string, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: want %q, got: %v", name, part, err)
		}
	}
}

// gone checks that a failed pull left nothing.
func gone(t testing.TB, o pull.Options) {
	t.Helper()
	for _, dir := range []string{filepath.Dir(o.Dest), o.Spool} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) > 0 {
			t.Errorf("%s was left in %s", entries[0].Name(), dir)
		}
	}
}

func threeLayers(t testing.TB) [][]byte {
	return [][]byte{
		tarOf(t, tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}, file("etc/a", "one"), file("hello", strings.Repeat("x", 1<<20))),
		tarOf(t, file("etc/b", "two"), file(".wh.hello", "")),
		tarOf(t, file("etc/a", "three")),
	}
}

func TestPull(t *testing.T) {
	t.Parallel()
	for _, c := range []oci.Compression{oci.Uncompressed, oci.Gzip, oci.Zstd} {
		for _, encrypted := range []bool{false, true} {
			for _, index := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v encrypted=%v index=%v", c, encrypted, index), func(t *testing.T) {
					t.Parallel()
					s := newStore()
					i := image{layers: threeLayers(t), compression: c, encrypted: encrypted}
					if index {
						i.index = func(*oci.Index) {}
					}
					o := options(t, s, i.push(t, s))
					var last pull.Progress
					o.Progress = func(p pull.Progress) { last = p }
					img, err := pull.Pull(t.Context(), o)
					if err != nil {
						t.Fatal(err)
					}
					for name, want := range map[string]string{"etc/a": "three", "etc/b": "two"} {
						if got, err := os.ReadFile(filepath.Join(o.Dest, name)); err != nil || string(got) != want {
							t.Errorf("%s: want %q, got %q, %v", name, want, got, err)
						}
					}
					if _, err := os.Lstat(filepath.Join(o.Dest, "hello")); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("hello was not hidden: %v", err)
					}
					if fi, err := os.Stat(o.Dest); err != nil || fi.Mode().Perm() != 0o755 {
						t.Errorf("root directory: %v, %v", fi.Mode(), err)
					}
					wantEncrypted := 0
					if encrypted {
						wantEncrypted = 3
					}
					if img.Layers != 3 || img.EncryptedLayers != wantEncrypted || (img.IndexDigest != "") != index || img.Config.Config.Cmd[0] != "/hello" ||
						img.Verdict.Requirement != "insecureAcceptAnything" || img.Unpacked.Bytes < 1<<20 {
						t.Errorf("image: %+v", img)
					}
					if last.Stage != pull.StageDone || last.Done != img.Bytes || last.Total != img.Bytes {
						t.Errorf("last progress: %+v", last)
					}
					if entries, _ := os.ReadDir(filepath.Dir(o.Dest)); len(entries) != 1 {
						t.Errorf("more than the root was left: %v", entries)
					}
				})
			}
		}
	}
}

func TestPullRefuses(t *testing.T) {
	t.Parallel()
	good := threeLayers(t)
	flip := func(s *store, d oci.Digest, at int) { s.blobs[d][at] ^= 1 }
	for name, tt := range map[string]struct {
		image image
		// spoil changes the repository or the options after the push.
		spoil func(t *testing.T, s *store, m *oci.Manifest, o *pull.Options)
		want  string
		is    error
	}{
		"tag only":          {spoil: func(_ *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Ref.Digest = "" }, want: "expected a reference with a digest"},
		"no policy":         {spoil: func(_ *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Policy = nil }, want: "no signature policy"},
		"destination there": {spoil: func(_ *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Dest = filepath.Dir(o.Dest) }, want: "exists already"},
		"another image under the name": {spoil: func(t *testing.T, s *store, _ *oci.Manifest, o *pull.Options) {
			other := image{layers: good[2:]}.push(t, s)
			s.blobs[o.Ref.Digest] = s.blobs[other.Digest]
		}, want: "digest differs: expected sha256:"},
		"manifest missing": {spoil: func(_ *testing.T, s *store, _ *oci.Manifest, o *pull.Options) { delete(s.blobs, o.Ref.Digest) }, want: "not found", is: oci.ErrNotFound},
		"manifest is HTML": {spoil: func(_ *testing.T, s *store, _ *oci.Manifest, o *pull.Options) { s.types[o.Ref.Digest] = "text/html" }, want: `media type "text/html"`},
		"manifest as index": {spoil: func(_ *testing.T, s *store, _ *oci.Manifest, o *pull.Options) {
			s.types[o.Ref.Digest] = oci.MediaTypeIndex
		}, want: "mediaType: expected"},
		"index loop":                    {image: image{index: func(x *oci.Index) { x.Manifests[0].MediaType = oci.MediaTypeIndex }}, want: "nested indexes are refused"},
		"index without platform":        {image: image{index: func(x *oci.Index) { x.Manifests[0].Platform.Architecture = "s390x" }}, want: "no manifest for linux/"},
		"index with another's manifest": {image: image{index: func(x *oci.Index) { x.Manifests[0].Digest = oci.FromBytes(nil) }}, want: "fetch sha256:e3b0"},
		"index with wrong size":         {image: image{index: func(x *oci.Index) { x.Manifests[0].Size++ }}, want: "size differs"},
		"artifact":                      {image: image{manifest: func(m *oci.Manifest) { m.Config.MediaType = "application/vnd.wasm.config.v1+json" }}, want: "this is not a container image"},
		"layer media type":              {image: image{manifest: func(m *oci.Manifest) { m.Layers[1].MediaType = "application/zip" }}, want: "layers[1].mediaType"},
		"no layers":                     {image: image{manifest: func(m *oci.Manifest) { m.Layers = []oci.Descriptor{} }}, want: "layers: expected at least one"},
		"layer dropped":                 {image: image{manifest: func(m *oci.Manifest) { m.Layers = m.Layers[:2] }}, want: "rootfs.diff_ids: expected 2, one for each layer of the manifest, got 3"},
		"layer added":                   {image: image{config: func(c *oci.ImageConfig) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:2] }}, want: "rootfs.diff_ids: expected 3"},
		"config missing":                {image: image{manifest: func(m *oci.Manifest) { m.Config.Digest = oci.FromBytes(nil) }}, want: "image configuration: fetch", is: oci.ErrNotFound},
		"config for another":            {image: image{config: func(c *oci.ImageConfig) { c.Architecture = "riscv64" }}, want: "another platform"},
		"config too large":              {image: image{manifest: func(m *oci.Manifest) { m.Config.Size = 5 << 20 }}, want: "at most 4194304 are allowed"},
		"layer missing":                 {spoil: func(_ *testing.T, s *store, m *oci.Manifest, _ *pull.Options) { delete(s.blobs, m.Layers[1].Digest) }, want: "layer 2 of 3 (sha256:", is: oci.ErrNotFound},
		"layer corrupted":               {image: image{compression: oci.Gzip}, spoil: func(_ *testing.T, s *store, m *oci.Manifest, _ *pull.Options) { flip(s, m.Layers[1].Digest, 40) }, want: "digest differs"},
		"layer header corrupted":        {image: image{compression: oci.Zstd}, spoil: func(_ *testing.T, s *store, m *oci.Manifest, _ *pull.Options) { flip(s, m.Layers[0].Digest, 0) }, want: "layer 1 of 3"},
		"layer cut off": {image: image{compression: oci.Gzip}, spoil: func(_ *testing.T, s *store, m *oci.Manifest, _ *pull.Options) {
			d := m.Layers[0].Digest
			s.blobs[d] = s.blobs[d][:len(s.blobs[d])/2]
		}, want: "size differs"},
		"layer longer": {spoil: func(_ *testing.T, s *store, m *oci.Manifest, _ *pull.Options) {
			d := m.Layers[2].Digest
			s.blobs[d] = append(s.blobs[d], make([]byte, 1<<20)...)
		}, want: "size differs"},
		"diff ID":                       {image: image{config: func(c *oci.ImageConfig) { c.RootFS.DiffIDs[1] = oci.FromBytes(nil) }}, want: "diff ID differs: expected sha256:e3b0"},
		"diff ID of an encrypted layer": {image: image{encrypted: true, compression: oci.Gzip, config: func(c *oci.ImageConfig) { c.RootFS.DiffIDs[2] = oci.FromBytes(nil) }}, want: "layer 3 of 3"},
		"encrypted layer corrupted":     {image: image{encrypted: true}, spoil: func(_ *testing.T, s *store, m *oci.Manifest, _ *pull.Options) { flip(s, m.Layers[0].Digest, 0) }, want: "digest differs"},
		"MAC": {image: image{encrypted: true, manifest: func(m *oci.Manifest) {
			m.Layers[0].Annotations[crypt.AnnotationPubOpts] = m.Layers[1].Annotations[crypt.AnnotationPubOpts]
		}}, want: "MAC does not match", is: crypt.ErrMAC},
		"another layer's key": {image: image{encrypted: true, manifest: func(m *oci.Manifest) {
			m.Layers[0].Annotations[crypt.AnnotationKeys] = m.Layers[1].Annotations[crypt.AnnotationKeys]
		}}, want: "layer 1 of 3", is: crypt.ErrMAC},
		"key refused":                  {image: image{encrypted: true}, spoil: func(_ *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Keys = keyMap{} }, want: "no resource " + kid},
		"no source of keys":            {image: image{encrypted: true}, spoil: func(_ *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Keys = nil }, want: "no source of keys"},
		"encrypted layer called plain": {image: image{encrypted: true, manifest: func(m *oci.Manifest) { m.Layers[0].MediaType = oci.MediaTypeLayer }}, want: "says that it is not encrypted"},
		"plain layer called encrypted": {image: image{manifest: func(m *oci.Manifest) { m.Layers[0].MediaType += "+encrypted" }}, want: "pubopts: missing"},
		"gzip called zstd":             {image: image{compression: oci.Gzip, manifest: func(m *oci.Manifest) { m.Layers[0].MediaType = oci.MediaTypeLayerZstd }}, want: "zstd: "},
		"tar called gzip":              {image: image{manifest: func(m *oci.Manifest) { m.Layers[0].MediaType = oci.MediaTypeLayerGzip }}, want: "gzip: "},
		"too large":                    {spoil: func(_ *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Limits.Compressed = 1 << 20 }, want: "the image is too large"},
		"too large unpacked":           {spoil: func(_ *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Limits.Unpacked.Bytes = 1 << 19 }, want: `entry "hello": beyond the limit`, is: layer.ErrLimit},
		"path escape":                  {image: image{layers: [][]byte{tarOf(t, file("../../etc/cron.d/x", "x"))}}, want: `".." component`},
		"device node":                  {image: image{layers: [][]byte{tarOf(t, tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8})}}, want: "device node 8:0"},
		"hard link out":                {image: image{layers: [][]byte{tarOf(t, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"})}}, want: "hard link"},
		"unsigned":                     {spoil: func(t *testing.T, _ *store, _ *oci.Manifest, o *pull.Options) { o.Policy, _ = signedPolicy(t) }, want: "the image is not signed"},
		"wrongly signed": {spoil: func(t *testing.T, s *store, _ *oci.Manifest, o *pull.Options) {
			_, other := signedPolicy(t)
			o.Policy, _ = signedPolicy(t)
			sign(t, s, o.Ref, other)
		}, want: "verifies under key"},
		"signed for another digest": {spoil: func(t *testing.T, s *store, _ *oci.Manifest, o *pull.Options) {
			policy, key := signedPolicy(t)
			o.Policy = policy
			d := sign(t, s, o.Ref.WithDigest(oci.FromBytes([]byte("other"))), key)
			_ = s.Tag(t.Context(), d, signature.Tag(o.Ref.Digest))
		}, want: "the signature is good, but for another image"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore()
			i := tt.image
			if i.layers == nil {
				i.layers = good
			}
			var m oci.Manifest
			change := i.manifest
			i.manifest = func(made *oci.Manifest) {
				if change != nil {
					change(made)
				}
				m = *made
			}
			ref := i.push(t, s)
			o := options(t, s, ref)
			kept := o
			if tt.spoil != nil {
				tt.spoil(t, s, &m, &o)
			}
			img, err := pull.Pull(t.Context(), o)
			if err == nil || img != nil {
				t.Fatalf("accepted: %+v", img)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want %q, got: %v", tt.want, err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
			gone(t, kept)
		})
	}
}

func signedPolicy(t testing.TB) (*signature.Policy, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	p, err := signature.SignedBy(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return p, key
}

func sign(t testing.TB, s *store, ref oci.Reference, key *ecdsa.PrivateKey) oci.Descriptor {
	t.Helper()
	d, err := signature.Sign(t.Context(), s, ref, key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A signature suffices on the index or on the manifest, and without one no
// layer is fetched.
func TestPullSigned(t *testing.T) {
	t.Parallel()
	policy, key := signedPolicy(t)
	s := newStore()
	var manifest oci.Digest
	ref := image{layers: threeLayers(t), index: func(x *oci.Index) { manifest = x.Manifests[0].Digest }}.push(t, s)
	o := options(t, s, ref)
	o.Policy = policy
	if _, err := pull.Pull(t.Context(), o); err == nil {
		t.Fatal("an unsigned image was accepted")
	}
	if len(s.fetched) != 2 {
		t.Errorf("more than index and manifest was fetched: %v", s.fetched)
	}
	sign(t, s, ref.WithDigest(manifest), key)
	img, err := pull.Pull(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if img.Verdict.Digest != manifest {
		t.Errorf("want %s, got %+v", manifest, img.Verdict)
	}
}

// A bomb ends at the limit, soon and without filling anything.
func TestPullBombs(t *testing.T) {
	t.Parallel()
	var empty bytes.Buffer
	w := tar.NewWriter(&empty)
	_ = w.Close()
	for _, c := range []oci.Compression{oci.Gzip, oci.Zstd} {
		s := newStore()
		// Nothing in the archive, but 96 MiB behind its end.
		plain := append(bytes.Clone(empty.Bytes()), make([]byte, 96<<20)...)
		o := options(t, s, image{layers: [][]byte{plain}, compression: c}.push(t, s))
		o.Limits.Unpacked.Bytes = 1 << 20
		_, err := pull.Pull(t.Context(), o)
		if !errors.Is(err, layer.ErrLimit) || !strings.Contains(err.Error(), "layer 1 of 1") {
			t.Errorf("%v: want ErrLimit, got %v", c, err)
		}
		gone(t, o)
	}
}

// A zstd frame may not demand more memory than the window's limit.
func TestPullZstdWindow(t *testing.T) {
	t.Parallel()
	plain := threeLayers(t)[0]
	var stored bytes.Buffer
	w, err := zstd.NewWriter(&stored, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	for range 8 { // too much for one block, so that the frame has the window
		_, _ = w.Write(make([]byte, 1<<20))
	}
	_, _ = w.Write(plain)
	_ = w.Close()
	s := newStore()
	d := oci.Describe(oci.MediaTypeLayerZstd, stored.Bytes())
	_ = s.Push(t.Context(), d, bytes.NewReader(stored.Bytes()))
	o := options(t, s, image{layers: [][]byte{plain}, manifest: func(m *oci.Manifest) { m.Layers[0] = d }}.push(t, s))
	if _, err := pull.Pull(t.Context(), o); err == nil || !strings.Contains(err.Error(), "window size exceeded") {
		t.Errorf("want a refusal of the window, got %v", err)
	}
	gone(t, o)
}

// blocking is a repository whose layers never come.
type blocking struct {
	*store
	started chan struct{}
	once    sync.Once
}

func (b *blocking) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if _, err := oci.ParseLayerMediaType(d.MediaType); err != nil {
		return b.store.Fetch(ctx, d)
	}
	b.once.Do(func() { close(b.started) })
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestPullCancelled(t *testing.T) {
	t.Parallel()
	b := &blocking{store: newStore(), started: make(chan struct{})}
	o := options(t, b.store, image{layers: threeLayers(t)}.push(t, b.store))
	o.Fetcher = b
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-b.started; cancel() }()
	if _, err := pull.Pull(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("want context.Canceled, got %v", err)
	}
	gone(t, o)
}

func FuzzLayer(f *testing.F) {
	plain := threeLayers(f)[2]
	for _, c := range []oci.Compression{oci.Uncompressed, oci.Gzip, oci.Zstd} {
		f.Add(compress(f, plain, c), int(c))
	}
	f.Fuzz(func(t *testing.T, stored []byte, c int) {
		if c < 0 || c > 2 {
			return
		}
		s := newStore()
		d := oci.Describe(oci.LayerFormat{Compression: oci.Compression(c)}.MediaType(), stored)
		_ = s.Push(t.Context(), d, bytes.NewReader(stored))
		o := options(t, s, image{layers: [][]byte{plain}, manifest: func(m *oci.Manifest) { m.Layers[0] = d }}.push(t, s))
		o.Limits.Unpacked = layer.Limits{Entries: 100, Bytes: 1 << 20, Depth: 16}
		if _, err := pull.Pull(t.Context(), o); err != nil {
			gone(t, o)
		}
	})
}
