// Package blobcache puts an untrusted cache of blobs before a registry: the
// host's, which other pods have filled.
//
// A [Fetcher] asks the cache first and the registry when the cache has nothing
// or fails. What the cache gives is checked by digest: documents before they
// are handed on, layers while they are read. A cache that gives anything else
// than what was asked for is reported and left alone from then on.
//
// Into the cache goes only what the host could have had itself: layers that are
// encrypted, and what was read without credentials. Nothing else is asked of it
// either, so that it learns of no private content.
package blobcache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/coffer-project/coffer/oci"
)

// ErrLied is [oci.ErrLied]: the cache gave something else than was asked for.
// The next fetch of the same content goes to the registry.
var ErrLied = oci.ErrLied

// Cache is a store of blobs that need not be honest. Implementations may be
// used by several goroutines at once, and bound their own time.
type Cache interface {
	// Get opens the blob with the digest of d. If d.Size is zero the size is
	// not known, and at most [oci.MaxDocument] bytes are given. The error
	// wraps [oci.ErrNotFound] when the cache has no such blob.
	Get(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error)
	// Put offers a blob. It reads d.Size bytes of r at most, and may stop
	// early without an error when it does not want the blob.
	Put(ctx context.Context, d oci.Descriptor, r io.Reader) error
}

// Public is what an [oci.Fetcher] may implement: it says whether everything it
// reads is read without credentials, so that anybody could.
type Public interface{ Public() bool }

// Options of a [Fetcher].
type Options struct {
	// Lied is told, once for each Fetcher, that the cache gave something else
	// than was asked for. It may be nil.
	Lied func(oci.Digest, error)
}

// Fetcher reads a repository through a cache. It is safe for concurrent use,
// and meant for one image.
type Fetcher struct {
	registry oci.Fetcher
	cache    Cache
	options  Options
	public   bool

	mu    sync.Mutex
	lied  bool
	known map[oci.Digest]document
}

// document is a manifest that the cache gave to Resolve.
type document struct {
	mediaType string
	data      []byte
}

// maxKnown bounds how many documents are kept between Resolve and Fetch: an
// index and its manifests.
const maxKnown = 4

// New puts c before f.
func New(f oci.Fetcher, c Cache, o Options) *Fetcher {
	p, ok := f.(Public)
	return &Fetcher{registry: f, cache: c, options: o, public: ok && p.Public(), known: map[oci.Digest]document{}}
}

var (
	_ oci.Fetcher   = (*Fetcher)(nil)
	_ oci.Referrers = (*Fetcher)(nil)
)

// Resolve implements [oci.Fetcher]. A digest is looked up in the cache, where
// the manifest itself says of which type it is; what a tag names, only the
// registry knows.
func (f *Fetcher) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest != "" && f.public && f.trusted() {
		data, err := f.document(ctx, oci.Descriptor{Digest: ref.Digest})
		if err == nil {
			if mediaType, ok := typeOf(data); ok {
				f.keep(ref.Digest, document{mediaType, data})
				return oci.Descriptor{MediaType: mediaType, Digest: ref.Digest, Size: int64(len(data))}, nil
			}
		} else if ctx.Err() != nil {
			return oci.Descriptor{}, err
		}
	}
	return f.registry.Resolve(ctx, ref)
}

// typeOf is the media type that a manifest or an index gives itself. One
// without is left to the registry to name.
func typeOf(data []byte) (string, bool) {
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &doc) != nil {
		return "", false
	}
	return doc.MediaType, oci.IsManifest(doc.MediaType) || oci.IsIndex(doc.MediaType)
}

// Referrers implements [oci.Referrers] by asking the registry: a cache has no
// say in which signatures there are.
func (f *Fetcher) Referrers(ctx context.Context, subject oci.Digest, artifactType string) ([]oci.Descriptor, error) {
	r, ok := f.registry.(oci.Referrers)
	if !ok {
		return nil, fmt.Errorf("referrers of %s: %w: the source has no such API", subject, oci.ErrNotFound)
	}
	return r.Referrers(ctx, subject, artifactType)
}

// Fetch implements [oci.Fetcher].
func (f *Fetcher) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if !f.shareable(d) {
		return f.registry.Fetch(ctx, d)
	}
	if doc, ok := f.take(d); ok {
		return io.NopCloser(bytes.NewReader(doc)), nil
	}
	if f.trusted() {
		rc, err := f.fromCache(ctx, d)
		if err == nil || ctx.Err() != nil {
			return rc, err
		}
	}
	rc, err := f.registry.Fetch(ctx, d)
	if err != nil || !f.trusted() {
		return rc, err
	}
	return f.offering(ctx, d, rc)
}

// shareable says whether the host may have d: it is encrypted, or public.
func (f *Fetcher) shareable(d oci.Descriptor) bool {
	if d.Size <= 0 {
		return false
	}
	if f.public {
		return true
	}
	format, err := oci.ParseLayerMediaType(d.MediaType)
	return err == nil && format.Encrypted
}

// fromCache gets d from the cache: a small one whole and checked, a large one as
// a reader that checks.
func (f *Fetcher) fromCache(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if d.Size <= oci.MaxDocument {
		data, err := f.document(ctx, d)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	rc, err := f.cache.Get(ctx, d)
	if err != nil {
		return nil, f.judge(ctx, d.Digest, err)
	}
	checked, err := oci.VerifyReader(rc, d)
	if err != nil {
		_ = rc.Close()
		return nil, err
	}
	return &suspect{f: f, ctx: ctx, digest: d.Digest, Reader: checked, Closer: rc}, nil
}

// document reads all of a small blob and checks it. Without a size in d, it may
// have up to [oci.MaxDocument] bytes.
func (f *Fetcher) document(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	rc, err := f.cache.Get(ctx, d)
	if err != nil {
		return nil, f.judge(ctx, d.Digest, err)
	}
	defer func() { _ = rc.Close() }()
	data, err := io.ReadAll(io.LimitReader(rc, oci.MaxDocument+1))
	if err == nil {
		want := d
		if want.Size == 0 {
			want.Size = min(int64(len(data)), oci.MaxDocument)
		}
		err = check(want, data)
	}
	if err != nil {
		return nil, f.blame(ctx, d.Digest, err)
	}
	return data, nil
}

func check(d oci.Descriptor, data []byte) error {
	v, err := oci.NewVerifier(d)
	if err != nil {
		return err
	}
	if _, err := v.Write(data); err != nil {
		return err
	}
	return v.Verify()
}

// judge passes on that the cache has nothing, and blames it for anything else.
func (f *Fetcher) judge(ctx context.Context, digest oci.Digest, err error) error {
	if errors.Is(err, oci.ErrNotFound) {
		return err
	}
	return f.blame(ctx, digest, err)
}

// blame reports that the cache failed, and leaves it alone from now on, unless
// it was the caller who gave up.
func (f *Fetcher) blame(ctx context.Context, digest oci.Digest, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f.mu.Lock()
	first := !f.lied
	f.lied = true
	f.mu.Unlock()
	err = fmt.Errorf("host's blob cache: %s: %w: %w", digest, ErrLied, err)
	if first && f.options.Lied != nil {
		f.options.Lied(digest, err)
	}
	return err
}

// trusted says whether the cache is still worth asking.
func (f *Fetcher) trusted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.lied
}

func (f *Fetcher) keep(digest oci.Digest, d document) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.known) >= maxKnown {
		clear(f.known)
	}
	f.known[digest] = d
}

// take returns what Resolve has read and checked already.
func (f *Fetcher) take(d oci.Descriptor) ([]byte, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	doc, ok := f.known[d.Digest]
	if !ok || doc.mediaType != d.MediaType || int64(len(doc.data)) != d.Size {
		return nil, false
	}
	return doc.data, true
}

// suspect is a layer from the cache. Its first error is the cache's fault.
type suspect struct {
	f      *Fetcher
	ctx    context.Context
	digest oci.Digest
	io.Reader
	io.Closer
	err error
}

// Read implements io.Reader.
func (s *suspect) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = s.f.blame(s.ctx, s.digest, err)
	}
	s.err = err
	return n, err
}
