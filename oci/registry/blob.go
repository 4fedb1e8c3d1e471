package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/coffer-project/coffer/oci"
)

const (
	// maxResumes is how often the transfer of a blob may break off and go on;
	// each resumeCredit bytes that came through allow one more.
	maxResumes   = 8
	resumeCredit = 16 << 20
)

// blob opens a blob from the first source that has it.
func (r *Repository) blob(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	b := &blobReader{repository: r, ctx: ctx, d: d, resumes: maxResumes}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blobReader reads a blob and, where the connection breaks off, goes on from
// there, at the same source or the next. Whether the whole is what was asked for
// is for the caller to check; what a mirror gave is checked here as well, so
// that one that lies is not asked again.
type blobReader struct {
	repository *Repository
	ctx        context.Context
	d          oci.Descriptor

	from    *endpoint
	stalled bool          // of from
	body    io.ReadCloser // nil between two connections
	offset  int64
	resumes int
	credit  int64
	// mirrored are the mirrors that gave parts, check their digest.
	mirrored []*endpoint
	check    *oci.Verifier
	err      error
}

// open asks the sources for the blob from the offset on.
func (b *blobReader) open() error {
	// Sources before the one that broke off are left behind, and so is one
	// that stood still.
	reached := b.from == nil
	usable := func(e *endpoint) bool {
		if e == b.from {
			reached = true
			return e.digests && !b.stalled
		}
		return reached && e.digests
	}
	return b.repository.each(b.ctx, usable, func(e *endpoint) error {
		body, err := e.openBlob(b.ctx, b.d, b.offset)
		if err != nil {
			return err
		}
		b.body, b.from, b.stalled = body, e, false
		if !e.mirror {
			return nil
		}
		b.mirrored = append(b.mirrored, e)
		if b.offset == 0 {
			b.check, err = oci.NewVerifier(b.d)
		}
		return err
	})
}

// openBlob asks for a blob from offset on. A server that does not do ranges
// sends all of it again, of which the beginning is dropped.
func (e *endpoint) openBlob(ctx context.Context, d oci.Descriptor, offset int64) (io.ReadCloser, error) {
	resp, err := e.do(ctx, request{method: http.MethodGet, path: "/blobs/" + string(d.Digest), actions: actionPull, from: offset})
	if err != nil {
		return nil, err
	}
	if err := e.positioned(resp, d, offset); err != nil {
		_ = resp.body.Close()
		return nil, err
	}
	return resp.body, nil
}

func (e *endpoint) positioned(resp *response, d oci.Descriptor, offset int64) error {
	switch resp.StatusCode {
	case http.StatusOK:
		if err := lengthAs(resp, d.Size); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, resp.body, offset); err != nil {
			return fmt.Errorf("the first %d bytes again: %w", offset, unexpected(err))
		}
		return nil
	case http.StatusPartialContent:
		want := fmt.Sprintf("bytes %d-%d/%d", offset, d.Size-1, d.Size)
		if got := resp.Header.Get("Content-Range"); offset == 0 || got != want && got != fmt.Sprintf("bytes %d-%d/*", offset, d.Size-1) {
			return fmt.Errorf("Content-Range: expected %q, got %q: %w", want, clip(got), ErrRefused)
		}
		return lengthAs(resp, d.Size-offset)
	}
	return &statusError{what: "GET blob", code: resp.StatusCode}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.offset == b.d.Size {
			b.err = b.end()
			break
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.d.Size-b.offset)])
		b.count(p[:n])
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if err != nil {
			b.err = b.resume(unexpected(err))
		}
	}
	return 0, b.err
}

// count takes in what was read.
func (b *blobReader) count(p []byte) {
	b.offset += int64(len(p))
	if b.check != nil {
		_, _ = b.check.Write(p) // never more than the size
	}
	for b.credit += int64(len(p)); b.credit >= resumeCredit; b.credit -= resumeCredit {
		b.resumes = min(b.resumes+1, maxResumes)
	}
}

// resume goes on after err.
func (b *blobReader) resume(err error) error {
	_ = b.body.Close()
	where := fmt.Errorf("blob %s broke off after %d of %d bytes: %w", b.d.Digest, b.offset, b.d.Size, err)
	switch {
	case b.ctx.Err() != nil:
		return context.Cause(b.ctx)
	case b.resumes == 0 || errors.Is(err, errStalled) && b.from == b.repository.origin():
		// What stood still once took its time already.
		return b.repository.explain(b.from, where)
	}
	b.resumes--
	b.stalled = errors.Is(err, errStalled)
	if err := b.client().options.Sleep(b.ctx, firstWait); err != nil {
		return err
	}
	if err := b.open(); err != nil {
		return fmt.Errorf("%w; then: %w", b.repository.explain(b.from, where), err)
	}
	return nil
}

func (b *blobReader) client() *Client { return b.from.client }

// end says whether the blob that was read to its end is whole and, where a
// mirror had a part in it, what was asked for.
func (b *blobReader) end() error {
	var more [1]byte
	if n, _ := b.body.Read(more[:]); n > 0 {
		return b.repository.explain(b.from, fmt.Errorf("blob %s: %w", b.d.Digest, &oci.MismatchError{Size: true, Expected: fmt.Sprint(b.d.Size), Got: "more"}))
	}
	if b.check == nil {
		return io.EOF
	}
	err := b.check.Verify()
	if err == nil {
		return io.EOF
	}
	for _, e := range b.mirrored {
		e.lied.Store(true)
	}
	return b.repository.explain(b.mirrored[0], fmt.Errorf("blob %s: %w: %w", b.d.Digest, oci.ErrLied, err))
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	if b.err == nil {
		b.err = errClosed
	}
	return b.body.Close()
}

var errClosed = errors.New("read of a blob that was closed")
