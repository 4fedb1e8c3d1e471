// Package layout reads and writes OCI image layouts: directories with
// index.json, oci-layout and blobs (OCI image specification v1.1, "Image
// Layout"). A layout is one repository.
package layout

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
)

const (
	versionFile = "oci-layout"
	versionJSON = `{"imageLayoutVersion":"1.0.0"}`
	indexFile   = "index.json"
	// maxVersion is how long oci-layout may be, in bytes.
	maxVersion = 4096
	// annotationRef names a manifest in index.json.
	annotationRef = "org.opencontainers.image.ref.name"
)

// Layout is an open layout. It implements oci.Fetcher and oci.Pusher and may be
// used by several goroutines at once, but by one writing process only.
type Layout struct {
	root *os.Root

	mu    sync.Mutex // guards writes of index.json
	index *oci.Index
}

var (
	_ oci.Fetcher = (*Layout)(nil)
	_ oci.Pusher  = (*Layout)(nil)
)

// Open opens the layout in dir. The caller closes it.
func Open(dir string) (*Layout, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("image layout: %w", err)
	}
	l := &Layout{root: root}
	if err := l.load(); err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("image layout %s: %w", dir, err)
	}
	return l, nil
}

// Create opens the layout in dir, making it first if dir does not exist or is
// empty. The caller closes it.
func Create(dir string) (*Layout, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("image layout: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("image layout: %w", err)
	}
	if len(entries) > 0 {
		return Open(dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("image layout: %w", err)
	}
	l := &Layout{root: root, index: &oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Manifests: []oci.Descriptor{}}}
	if err := errors.Join(l.writeFile(versionFile, []byte(versionJSON)), l.setManifests(l.index.Manifests)); err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("image layout %s: %w", dir, err)
	}
	return l, nil
}

// Close closes the directory.
func (l *Layout) Close() error { return l.root.Close() }

func (l *Layout) load() error {
	data, err := l.readFile(versionFile, maxVersion)
	if err != nil {
		return fmt.Errorf("this is no OCI image layout: %w", err)
	}
	if err := CheckVersion(data); err != nil {
		return err
	}
	if data, err = l.readFile(indexFile, oci.MaxDocument); err != nil {
		return err
	}
	l.index, err = ParseIndex(data)
	return err
}

// open opens a regular file for reading. It does not wait for a pipe's other
// end.
func (l *Layout) open(name string) (*os.File, error) {
	f, err := l.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: expected a regular file", name))
	}
	return f, nil
}

func (l *Layout) readFile(name string, limit int64) ([]byte, error) {
	f, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: longer than %d bytes", name, limit)
	}
	return data, nil
}

// Manifests lists the entries of index.json.
func (l *Layout) Manifests() []oci.Descriptor {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.index.Manifests)
}

// Resolve implements oci.Fetcher. A reference without tag and digest finds the
// layout's only manifest, whatever its tag, signatures aside; ref's registry
// and repository do not matter.
func (l *Layout) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	entries := l.Manifests()
	if ref.Digest != "" {
		for _, d := range entries {
			if d.Digest == ref.Digest {
				return bare(d), nil
			}
		}
		return l.describe(ref.Digest)
	}
	var found []oci.Descriptor
	for _, d := range entries {
		tag := TagOf(d)
		if tag == ref.Target() {
			return bare(d), nil
		}
		if ref.Tag == "" && !isSignature(tag) {
			found = append(found, bare(d))
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if ref.Tag == "" && len(found) > 1 {
		return oci.Descriptor{}, fmt.Errorf("image layout: it has %d images; say which one by tag or digest", len(found))
	}
	return oci.Descriptor{}, fmt.Errorf("image layout: tag %q: %w", ref.Target(), oci.ErrNotFound)
}

// bare is d without what index.json adds to it.
func bare(d oci.Descriptor) oci.Descriptor {
	return oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

func isSignature(tag string) bool { return path.Ext(tag) == ".sig" }

func blobPath(d oci.Digest) string { return path.Join("blobs", d.Algorithm(), d.Hex()) }

// Fetch implements oci.Fetcher. A blob of another size than d says is an error
// before any of it is read; a size of 0 stands for any.
func (l *Layout) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	f, err := l.OpenBlob(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && d.Size > 0 && info.Size() != d.Size {
		err = fmt.Errorf("image layout: blob %s: expected %d bytes, got %d", d.Digest, d.Size, info.Size())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// OpenBlob opens a blob as a file, for reading.
func (l *Layout) OpenBlob(_ context.Context, digest oci.Digest) (*os.File, error) {
	if _, err := oci.ParseDigest(string(digest)); err != nil {
		return nil, err
	}
	f, err := l.open(blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("image layout: blob %s: %w", digest, oci.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("image layout: blob %s: %w", digest, err)
	}
	return f, nil
}

// Push implements oci.Pusher. A blob appears under its name only when it is
// whole and its digest is right. What has that name already is left alone if it
// is a file of the right size, and replaced otherwise.
func (l *Layout) Push(ctx context.Context, d oci.Descriptor, content io.Reader) error {
	r, err := oci.VerifyReader(content, d)
	if err != nil {
		return err
	}
	name := blobPath(d.Digest)
	if info, err := l.root.Lstat(name); err == nil && info.Mode().IsRegular() && info.Size() == d.Size {
		return nil
	}
	if err := l.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return l.write(name, contextReader{ctx, r})
}

// contextReader reads until ctx ends.
type contextReader struct {
	ctx context.Context //nolint:containedctx // it lives as long as one copy
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

func (l *Layout) writeFile(name string, data []byte) error {
	return l.write(name, bytes.NewReader(data))
}

// write replaces a file as a whole.
func (l *Layout) write(name string, r io.Reader) (err error) {
	temp := path.Join(path.Dir(name), ".tmp-"+rand.Text())
	f, err := l.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = l.root.Remove(temp)
		}
	}()
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, make([]byte, 256<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return l.root.Rename(temp, name)
}
