package pull_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

// store is a repository in memory, which a test can spoil. It is safe for
// concurrent use.
type store struct {
	mu      sync.Mutex
	blobs   map[oci.Digest][]byte
	tags    map[string]oci.Descriptor
	types   map[oci.Digest]string
	fetched []oci.Digest
}

func newStore() *store {
	return &store{blobs: map[oci.Digest][]byte{}, tags: map[string]oci.Descriptor{}, types: map[oci.Digest]string{}}
}

func (s *store) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ref.Digest != "" {
		b, ok := s.blobs[ref.Digest]
		if !ok {
			return oci.Descriptor{}, fmt.Errorf("manifest %s: %w", ref.Digest, oci.ErrNotFound)
		}
		return oci.Descriptor{MediaType: s.types[ref.Digest], Digest: ref.Digest, Size: int64(len(b))}, nil
	}
	d, ok := s.tags[ref.Target()]
	if !ok {
		return oci.Descriptor{}, fmt.Errorf("tag %s: %w", ref.Target(), oci.ErrNotFound)
	}
	return d, nil
}

func (s *store) Fetch(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched = append(s.fetched, d.Digest)
	b, ok := s.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, oci.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *store) Push(_ context.Context, d oci.Descriptor, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d.Digest], s.types[d.Digest] = b, d.MediaType
	return nil
}

func (s *store) Tag(_ context.Context, d oci.Descriptor, tag string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tags[tag] = d
	return nil
}

type keyMap map[string][]byte

func (m keyMap) Key(_ context.Context, kid string) (secret.Bytes, error) {
	k, ok := m[kid]
	if !ok {
		return secret.Bytes{}, fmt.Errorf("no resource %s", kid)
	}
	return secret.New(bytes.Clone(k)), nil
}

var testKey = bytes.Repeat([]byte{7}, crypt.KeySize)

// image is an image in the making; its layers are tar streams.
type image struct {
	layers      [][]byte
	compression oci.Compression
	encrypted   bool
	// mediaType and indexType are those of the documents; empty: OCI's.
	mediaType, indexType string
	// The hooks spoil what would be right.
	config   func(*oci.ImageConfig)
	manifest func(*oci.Manifest)
	index    func(*oci.Index) // makes an index if not nil
}

func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := []byte(nil)
		if h.Typeflag == 0 {
			body = []byte(h.Linkname)
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeReg, "", int64(len(body)), 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file is a file whose content stands in Linkname.
func file(name, content string) tar.Header { return tar.Header{Name: name, Linkname: content} }

func compress(t testing.TB, b []byte, c oci.Compression) []byte {
	t.Helper()
	var out bytes.Buffer
	switch c {
	case oci.Gzip:
		w := gzip.NewWriter(&out)
		_, _ = w.Write(b)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	case oci.Zstd:
		w, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(b)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	default:
		return b
	}
	return out.Bytes()
}

func pushJSON(t testing.TB, s *store, mediaType string, v any) oci.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), s, mediaType, data)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// push stores the image and returns its reference.
func (i image) push(t testing.TB, s *store) oci.Reference {
	t.Helper()
	config := oci.ImageConfig{OS: "linux", Architecture: runtime.GOARCH, RootFS: oci.RootFS{Type: "layers"}, Config: oci.ContainerConfig{Cmd: []string{"/hello"}}}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest}
	for _, plain := range i.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, oci.FromBytes(plain))
		stored := compress(t, plain, i.compression)
		format := oci.LayerFormat{Compression: i.compression, Encrypted: i.encrypted}
		var annotations map[string]string
		if i.encrypted {
			l, err := encrypt.NewLayer(bytes.NewReader(stored), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if stored, err = io.ReadAll(l); err != nil {
				t.Fatal(err)
			}
			if annotations, err = l.Annotations(encrypt.Recipient{KID: kid, Key: secret.New(bytes.Clone(testKey))}); err != nil {
				t.Fatal(err)
			}
		}
		d := oci.Describe(format.MediaType(), stored)
		d.Annotations = annotations
		if err := s.Push(t.Context(), d, bytes.NewReader(stored)); err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, d)
	}
	if i.config != nil {
		i.config(&config)
	}
	m.Config = pushJSON(t, s, oci.MediaTypeConfig, config)
	if i.manifest != nil {
		i.manifest(&m)
	}
	d := pushJSON(t, s, cmp.Or(i.mediaType, oci.MediaTypeManifest), m)
	if i.index != nil {
		d.Platform = &oci.Platform{OS: "linux", Architecture: runtime.GOARCH}
		x := oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Manifests: []oci.Descriptor{d}}
		i.index(&x)
		d = pushJSON(t, s, cmp.Or(i.indexType, oci.MediaTypeIndex), x)
	}
	return oci.Reference{Registry: "reg.example", Repository: "shop/web", Digest: d.Digest}
}
