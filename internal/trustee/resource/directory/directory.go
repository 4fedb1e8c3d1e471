// Package directory keeps resources as files, DIR/TENANT/REPOSITORY/TYPE/TAG/
// VERSION, each sealed for exactly that name: who may write the directory can
// remove contents but neither read, forge nor swap them.
//
// A version's file appears with link(2) after its bytes are on the disk, so no
// reader and no crash ever sees half of one, and no number is given twice. A
// deletion is a file VERSION.deleted of the next number, which hides everything
// below it at once; the contents are removed after. Writers of one resource, in
// this process or another, exclude each other with flock(2) on its directory.
// Several replicas may share one directory where the file system has both.
package directory

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/tree"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// Box seals contents under a name; the same name opens them.
type Box interface {
	Seal(name string, plain []byte) ([]byte, error)
	Open(name string, sealed []byte) (secret.Bytes, error)
}

// Defaults of [Options].
const (
	DefaultVersions   = 100
	DefaultMaxContent = 1 << 20
	defaultConcurrent = 64
)

// Options of [New].
type Options struct {
	// Dir is created where it is missing. Nobody but its owner may write it.
	Dir string
	Box Box
	// MaxContent is the longest content in bytes, 0 for [DefaultMaxContent].
	MaxContent int
	// Versions is how many versions of a resource are kept, 0 for
	// [DefaultVersions].
	Versions int
	// Now and Rand default to the system's.
	Now  func() time.Time
	Rand io.Reader
}

// Backend implements [resource.Backend]. It is safe for concurrent use.
type Backend struct {
	o    Options
	root *os.Root
	// slots bounds the calls that are under way: a disk that hangs holds its
	// callers only as long as they wish to wait.
	slots chan struct{}
}

// New opens the directory.
func New(o Options) (*Backend, error) {
	if o.Dir == "" || o.Box == nil {
		return nil, errors.New("resource directory: expected a directory and what seals its files")
	}
	if o.MaxContent == 0 {
		o.MaxContent = DefaultMaxContent
	}
	if o.Versions == 0 {
		o.Versions = DefaultVersions
	}
	if o.Versions < 1 || o.MaxContent < 1 {
		return nil, fmt.Errorf("resource directory: expected at least 1 version and 1 byte, got %d and %d", o.Versions, o.MaxContent)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("resource directory: %w", err)
	}
	root, err := os.OpenRoot(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("resource directory: %w", err)
	}
	info, err := root.Stat(".")
	if err == nil && info.Mode().Perm()&0o022 != 0 {
		err = fmt.Errorf("expected mode 0700, got %#o: others could remove resources; run chmod 0700 %s", info.Mode().Perm(), o.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("resource directory %s: %w", o.Dir, errors.Join(err, root.Close()))
	}
	return &Backend{o: o, root: root, slots: make(chan struct{}, defaultConcurrent)}, nil
}

// Close releases the directory. Calls under way may fail.
func (b *Backend) Close() error { return b.root.Close() }

// folder is the resource's directory below the root. Neither part is taken on
// trust: both reach the file system.
func folder(t tenant.Name, p resource.Path) (string, error) {
	if _, err := tenant.Parse(string(t)); err != nil {
		return "", err
	}
	if _, err := resource.Parse(p.String()); err != nil {
		return "", err
	}
	return string(t) + "/" + p.String(), nil
}

// Put implements [resource.Backend]. After an error by ctx the version may have
// been stored or not.
func (b *Backend) Put(ctx context.Context, t tenant.Name, p resource.Path, content secret.Bytes) (int64, error) {
	dir, err := folder(t, p)
	if err != nil {
		return 0, err
	}
	if content.Len() > b.o.MaxContent {
		return 0, fmt.Errorf("resource %s: expected at most %d bytes, got %d", p, b.o.MaxContent, content.Len())
	}
	// The caller clears its own when we return, which may be before the disk does.
	content = secret.New(bytes.Clone(content.Expose()))
	version, err := run(ctx, b, func() (int64, error) {
		defer content.Clear()
		return b.put(ctx, dir, content)
	})
	return version, wrap("put", p, err)
}

// Get implements [resource.Backend].
func (b *Backend) Get(ctx context.Context, t tenant.Name, p resource.Path, version int64) (secret.Bytes, int64, error) {
	dir, err := folder(t, p)
	if err != nil {
		return secret.Bytes{}, 0, err
	}
	type result struct {
		content secret.Bytes
		version int64
	}
	r, err := run(ctx, b, func() (r result, err error) {
		r.content, r.version, err = b.get(dir, version)
		return r, err
	})
	if err != nil {
		return secret.Bytes{}, 0, wrap("get", p, err)
	}
	return r.content, r.version, nil
}

// Delete implements [resource.Backend].
func (b *Backend) Delete(ctx context.Context, t tenant.Name, p resource.Path) (bool, error) {
	dir, err := folder(t, p)
	if err != nil {
		return false, err
	}
	was, err := run(ctx, b, func() (bool, error) { return b.remove(ctx, dir) })
	return was, wrap("delete", p, err)
}

// Versions implements [resource.Backend].
func (b *Backend) Versions(ctx context.Context, t tenant.Name, p resource.Path) ([]resource.Info, error) {
	dir, err := folder(t, p)
	if err != nil {
		return nil, err
	}
	infos, err := run(ctx, b, func() ([]resource.Info, error) { return b.infos(dir, p) })
	return infos, wrap("list versions of", p, err)
}

// List implements [resource.Backend].
func (b *Backend) List(ctx context.Context, t tenant.Name, prefix, after string, limit int) ([]resource.Info, error) {
	if _, err := tenant.Parse(string(t)); err != nil {
		return nil, err
	}
	out, err := run(ctx, b, func() ([]resource.Info, error) {
		out := []resource.Info{}
		if limit < 1 {
			return out, nil
		}
		list := func(_ context.Context, folder string) ([]string, error) { return b.names(string(t) + "/" + folder) }
		return out, tree.Walk(ctx, list, prefix, after, func(p resource.Path) (bool, error) {
			info, err := b.newest(string(t)+"/"+p.String(), p)
			switch {
			case errors.Is(err, resource.ErrNotFound):
				return true, nil
			case err != nil:
				return false, fmt.Errorf("%s: %w", p, err)
			}
			out = append(out, info)
			return len(out) < limit, nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("resource directory: list: %w", classify(err))
	}
	return out, nil
}

// run carries out f, which may hang in the kernel, and waits for it or for ctx.
func run[T any](ctx context.Context, b *Backend, f func() (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("%d calls are waiting for the disk already: %w", cap(b.slots), ctx.Err())
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-b.slots }()
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func wrap(what string, p resource.Path, err error) error {
	if err == nil || errors.Is(err, resource.ErrNotFound) {
		return err
	}
	return fmt.Errorf("resource directory: %s %s: %w", what, p, classify(err))
}

// missing reports that a file or a directory on the way to it is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
