package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/internal/inflate"
)

// Limits on an archive.
const (
	maxMembers = 100_000
	// maxNames bounds the names of all members together, in bytes.
	maxNames = 16 << 20
	maxLinks = 8
	// maxBytes bounds what a compressed archive unpacks to.
	maxBytes = 256 << 30
)

// indexed is an archive whose members have been found.
type indexed struct {
	file    *os.File
	members map[string]member
	digests map[member]oci.Digest
}

type member struct {
	offset, size int64
	// link is the member that this one stands for, a path in the archive.
	link string
	// twice is true if the name occurs more than once: one program would read
	// the first, and another the last.
	twice bool
}

// open opens and indexes an archive, which the caller closes. A compressed one
// is unpacked to a spool first.
func open(ctx context.Context, file, spool string) (*indexed, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would be waited for
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("expected a regular file: an archive is read more than once")
	}
	magic := make([]byte, 2)
	if err == nil && info.Size() > 2 {
		_, err = f.ReadAt(magic, 0)
	}
	if err == nil && isGzip(magic) {
		var plain *os.File
		if plain, err = gunzip(ctx, f, spool); err == nil {
			_ = f.Close()
			f = plain
		}
	}
	a := &indexed{file: f, members: map[string]member{}, digests: map[member]oci.Digest{}}
	if err == nil {
		err = a.index(ctx)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return a, nil
}

// Close closes the file.
func (a *indexed) Close() error { return a.file.Close() }

func isGzip(b []byte) bool { return bytes.HasPrefix(b, []byte{0x1f, 0x8b}) }

func gunzip(ctx context.Context, r io.Reader, spool string) (_ *os.File, err error) {
	z, err := inflate.NewGzipReader(contextReader{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	f, err := os.CreateTemp(spool, "coffer-archive-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	n, err := io.Copy(f, io.LimitReader(z, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	if n > maxBytes {
		return nil, fmt.Errorf("gzip: unpacks to more than %d bytes", int64(maxBytes))
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
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

// index lists the members. The tar reader reads no more than headers from a
// file that can be sought, so the offset of a member's content is where the
// file stands.
func (a *indexed) index(ctx context.Context) error {
	tr := tar.NewReader(a.file)
	for count, names := 0, 0; ; count++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if count >= maxMembers {
			return fmt.Errorf("more than %d members", maxMembers)
		}
		if names += len(hdr.Name) + len(hdr.Linkname); names > maxNames {
			return fmt.Errorf("the names of its members are longer than %d bytes together", maxNames)
		}
		name := path.Clean("/" + hdr.Name)
		m := member{size: hdr.Size}
		switch hdr.Typeflag {
		case tar.TypeReg:
			if sparse(hdr) {
				return fmt.Errorf("member %.128q: is a sparse file, of which not everything is in the archive", hdr.Name)
			}
			if m.offset, err = a.file.Seek(0, io.SeekCurrent); err != nil {
				return err
			}
		case tar.TypeSymlink: // old "docker save" stores a layer once
			m.link = path.Join(path.Dir(name), hdr.Linkname)
		case tar.TypeLink:
			m.link = path.Clean("/" + hdr.Linkname)
		default:
			continue
		}
		_, m.twice = a.members[name]
		a.members[name] = m
	}
}

// sparse says whether a regular file is kept without its holes.
func sparse(hdr *tar.Header) bool {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// find finds the member that has the content of the one with that name.
func (a *indexed) find(name string) (member, error) {
	at := path.Clean("/" + name)
	for range maxLinks {
		m, ok := a.members[at]
		switch {
		case !ok:
			return member{}, fmt.Errorf("member %.128q: missing", name)
		case m.twice:
			return member{}, fmt.Errorf("member %.128q: occurs more than once", at[1:])
		case m.link == "":
			return m, nil
		}
		at = m.link
	}
	return member{}, fmt.Errorf("member %.128q: more than %d links in a row", name, maxLinks)
}

func (a *indexed) content(m member) *io.SectionReader {
	return io.NewSectionReader(a.file, m.offset, m.size)
}

// read returns the content of a member of at most limit bytes.
func (a *indexed) read(name string, limit int64) ([]byte, error) {
	m, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if m.size > limit {
		return nil, fmt.Errorf("member %.128q: %d bytes, at most %d are allowed", name, m.size, limit)
	}
	return io.ReadAll(a.content(m))
}

// digest computes the digest of a member, once.
func (a *indexed) digest(ctx context.Context, m member) (oci.Digest, error) {
	if d, ok := a.digests[m]; ok {
		return d, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, a.content(m)}); err != nil {
		return "", err
	}
	a.digests[m] = oci.FromHash(h)
	return a.digests[m], nil
}
