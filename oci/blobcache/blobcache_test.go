package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/blobcache"
)

// source is a registry of blobs by digest.
type source struct {
	public bool
	blobs  map[oci.Digest][]byte
	mu     sync.Mutex
	asked  []string
}

func (s *source) Public() bool { return s.public }

func (s *source) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what)
}

func (s *source) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	s.note("resolve " + ref.Target())
	data, ok := s.blobs[ref.Digest]
	if !ok {
		return oci.Descriptor{}, oci.ErrNotFound
	}
	return oci.Describe(oci.MediaTypeManifest, data), nil
}

func (s *source) Fetch(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	s.note("fetch")
	data, ok := s.blobs[d.Digest]
	if !ok {
		return nil, oci.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// cache is one that does what its functions say.
type cache struct {
	mu   sync.Mutex
	get  func(d oci.Descriptor) (io.ReadCloser, error)
	gets int
	put  map[oci.Digest][]byte
	fail bool // every Put
}

func (c *cache) Get(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gets++
	if c.get == nil {
		return nil, oci.ErrNotFound
	}
	return c.get(d)
}

func (c *cache) Put(_ context.Context, d oci.Descriptor, r io.Reader) error {
	if c.fail {
		return errors.New("full")
	}
	data, err := io.ReadAll(io.LimitReader(r, d.Size))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put[d.Digest] = data
	return nil
}

var (
	small = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)
	large = bytes.Repeat([]byte("large"), 1<<20)
)

func newSource(public bool) *source {
	return &source{public: public, blobs: map[oci.Digest][]byte{oci.FromBytes(small): small, oci.FromBytes(large): large}}
}

func serving(data []byte) func(oci.Descriptor) (io.ReadCloser, error) {
	return func(oci.Descriptor) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func read(t *testing.T, f oci.Fetcher, d oci.Descriptor) ([]byte, error) {
	t.Helper()
	rc, err := f.Fetch(t.Context(), d)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(rc)
	if cerr := rc.Close(); err == nil {
		err = cerr
	}
	return data, err
}

// TestWhatTheHostMayHave: encrypted layers always, the rest if it is public.
func TestWhatTheHostMayHave(t *testing.T) {
	t.Parallel()
	const encrypted = oci.MediaTypeLayer + "+encrypted"
	for _, tc := range []struct {
		public    bool
		mediaType string
		want      bool
	}{
		{true, oci.MediaTypeLayer, true}, {true, oci.MediaTypeConfig, true}, {true, encrypted, true},
		{false, oci.MediaTypeLayer, false}, {false, oci.MediaTypeConfig, false}, {false, oci.MediaTypeManifest, false}, {false, "x/y+encrypted", false}, {false, encrypted, true},
	} {
		c := &cache{put: map[oci.Digest][]byte{}}
		f := blobcache.New(newSource(tc.public), c, blobcache.Options{})
		d := oci.Describe(tc.mediaType, large)
		if got, err := read(t, f, d); err != nil || !bytes.Equal(got, large) {
			t.Errorf("%+v: %v", tc, err)
		}
		if given := c.put[d.Digest]; (c.gets > 0) != tc.want || bytes.Equal(given, large) != tc.want {
			t.Errorf("%+v: asked %d times, given %d bytes", tc, c.gets, len(given))
		}
		// A private manifest is not looked up either.
		before := c.gets
		if _, err := f.Resolve(t.Context(), oci.Reference{Digest: oci.FromBytes(small)}); err != nil || (c.gets > before) != tc.public {
			t.Errorf("%+v: resolve: %v, asked %d times", tc, err, c.gets-before)
		}
	}
}

// TestLies: a document is checked before it is handed on, a layer while it is
// read; then the cache is left alone.
func TestLies(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		content []byte
		get     func(oci.Descriptor) (io.ReadCloser, error)
		failed  bool // the first read
	}{
		"other document":   {small, serving(bytes.Repeat([]byte("x"), len(small))), false},
		"short document":   {small, serving(small[1:]), false},
		"long document":    {small, serving(append(bytes.Clone(small), 'x')), false},
		"endless document": {small, func(oci.Descriptor) (io.ReadCloser, error) { return io.NopCloser(endless{}), nil }, false},
		"other layer":      {large, serving(bytes.Repeat([]byte("x"), len(large))), true},
		"short layer":      {large, serving(large[1:]), true},
		"long layer":       {large, serving(append(bytes.Clone(large), 'x')), true},
		"layer that fails": {large, func(oci.Descriptor) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(large[:9]), failing{})), nil
		}, true},
		"failure":            {large, func(oci.Descriptor) (io.ReadCloser, error) { return nil, errors.New("failed") }, false},
		"failure at a small": {small, func(oci.Descriptor) (io.ReadCloser, error) { return nil, errors.New("failed") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var told []oci.Digest
			c := &cache{get: tc.get, put: map[oci.Digest][]byte{}}
			f := blobcache.New(newSource(true), c, blobcache.Options{Lied: func(d oci.Digest, err error) {
				if !errors.Is(err, blobcache.ErrLied) {
					t.Errorf("told %v", err)
				}
				told = append(told, d)
			}})
			d := oci.Describe(oci.MediaTypeLayer, tc.content)
			got, err := read(t, f, d)
			if tc.failed != errors.Is(err, blobcache.ErrLied) || !tc.failed && (err != nil || !bytes.Equal(got, tc.content)) {
				t.Errorf("first read: %d bytes, %v", len(got), err)
			}
			gets := c.gets
			if got, err := read(t, f, d); err != nil || !bytes.Equal(got, tc.content) {
				t.Errorf("second read: %d bytes, %v", len(got), err)
			}
			if c.gets != gets || len(c.put) != 0 {
				t.Error("the cache was used again")
			}
			if len(told) != 1 || told[0] != d.Digest {
				t.Errorf("told of %v", told)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("failed") }

// TestResolve: a digest needs no registry, a tag does; the document that was
// looked at is not read twice.
func TestResolve(t *testing.T) {
	t.Parallel()
	s, c := newSource(true), &cache{get: serving(small), put: map[oci.Digest][]byte{}}
	f := blobcache.New(s, c, blobcache.Options{})
	d, err := f.Resolve(t.Context(), oci.Reference{Digest: oci.FromBytes(small), Tag: "v1"})
	if err != nil || d.MediaType != oci.MediaTypeManifest || d.Size != int64(len(small)) {
		t.Errorf("%+v, %v", d, err)
	}
	if got, err := read(t, f, d); err != nil || !bytes.Equal(got, small) || c.gets != 1 || len(s.asked) != 0 {
		t.Errorf("%v, the cache was asked %d times, the registry %v", err, c.gets, s.asked)
	}
	if _, err := f.Resolve(t.Context(), oci.Reference{Tag: "v1"}); !errors.Is(err, oci.ErrNotFound) || len(s.asked) != 1 || c.gets != 1 {
		t.Errorf("tag: %v, the registry was asked %v", err, s.asked)
	}
	// A document that does not say what it is, or is none.
	for _, text := range []string{`{"schemaVersion":2}`, `[]`, `{"mediaType":"x/y"}`} {
		data := []byte(text)
		s := newSource(true)
		s.blobs[oci.FromBytes(data)] = data
		f := blobcache.New(s, &cache{get: serving(data), put: map[oci.Digest][]byte{}}, blobcache.Options{})
		if d, err := f.Resolve(t.Context(), oci.Reference{Digest: oci.FromBytes(data)}); err != nil || d.MediaType != oci.MediaTypeManifest || len(s.asked) != 1 {
			t.Errorf("%s: %+v, %v, the registry was asked %v", text, d, err, s.asked)
		}
	}
	if _, err := f.Referrers(t.Context(), d.Digest, ""); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a source without the API: %v", err)
	}
}

// TestPutNeverFailsARead: a cache that is full, and a read that is given up.
func TestPutNeverFailsARead(t *testing.T) {
	t.Parallel()
	d := oci.Describe(oci.MediaTypeLayer, large)
	c := &cache{fail: true, put: map[oci.Digest][]byte{}}
	if got, err := read(t, blobcache.New(newSource(true), c, blobcache.Options{}), d); err != nil || !bytes.Equal(got, large) {
		t.Errorf("full: %v", err)
	}
	c = &cache{put: map[oci.Digest][]byte{}}
	rc, err := blobcache.New(newSource(true), c, blobcache.Options{}).Fetch(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rc, make([]byte, 100)); err != nil {
		t.Error(err)
	}
	if err := rc.Close(); err != nil || len(c.put) != 0 {
		t.Errorf("given up: %v, %d blobs in the cache", err, len(c.put))
	}
}

// TestCancelIsNoLie: a caller that gives up does not blame the cache.
func TestCancelIsNoLie(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c := &cache{get: func(oci.Descriptor) (io.ReadCloser, error) { cancel(); return nil, context.Canceled }}
	f := blobcache.New(newSource(true), c, blobcache.Options{Lied: func(oci.Digest, error) { t.Error("told") }})
	if _, err := f.Fetch(ctx, oci.Describe("x/y", large)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
