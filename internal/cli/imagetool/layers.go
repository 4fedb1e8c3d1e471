package imagetool

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
)

const copyBytes = 256 << 10

// copyBlob copies a blob and checks its digest, even if the destination has it
// and reads nothing.
func copyBlob(ctx context.Context, f oci.Fetcher, p oci.Pusher, d oci.Descriptor) error {
	rc, err := f.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }()
	r, err := oci.VerifyReader(rc, d)
	if err != nil {
		return err
	}
	return pushAll(ctx, p, d, r)
}

// pushAll pushes and reads what is left.
func pushAll(ctx context.Context, p oci.Pusher, d oci.Descriptor, r io.Reader) error {
	if err := p.Push(ctx, d, r); err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, contextReader{ctx, r}, make([]byte, copyBytes))
	return err
}

// openLayer opens a layer that is not encrypted. The returned function says,
// after r has been read to its end, whether the layer unpacks to diffID; it
// must be called.
func openLayer(ctx context.Context, f oci.Fetcher, l oci.Descriptor, c oci.Compression, diffID oci.Digest) (r io.Reader, check func() error, err error) {
	rc, err := f.Fetch(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	verified, err := oci.VerifyReader(rc, l)
	if err != nil {
		return nil, nil, errors.Join(err, rc.Close())
	}
	r, compare := checkDiffID(contextReader{ctx, verified}, c, diffID)
	return r, func() error { return errors.Join(compare(), rc.Close()) }, nil
}

// checkDiffID passes a compressed layer through and, on another goroutine,
// computes the digest of what it unpacks to.
func checkDiffID(r io.Reader, c oci.Compression, want oci.Digest) (io.Reader, func() error) {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := compareDiffID(pr, c, want)
		_, _ = io.Copy(io.Discard, pr) // so that the other side never waits
		done <- err
	}()
	tee := &teeReader{r: r, w: pw}
	return tee, func() error {
		if !tee.ended {
			_ = pw.CloseWithError(errors.New("the layer was not read to its end"))
		}
		_ = pw.Close()
		err := <-done
		if !tee.ended {
			return nil // who has stopped reading knows why
		}
		return err
	}
}

type teeReader struct {
	r     io.Reader
	w     *io.PipeWriter
	ended bool
}

// Read implements io.Reader.
func (t *teeReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if _, werr := t.w.Write(p[:n]); werr != nil && err == nil {
		err = werr
	}
	if err == io.EOF {
		t.ended = true
		_ = t.w.Close()
	}
	return n, err
}

func compareDiffID(r io.Reader, c oci.Compression, want oci.Digest) error {
	z, closeIt, err := decompress(r, c)
	if err != nil {
		return err
	}
	defer closeIt()
	sum := newHash(want)
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, z, make([]byte, copyBytes)); err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex() {
		return fmt.Errorf("diff ID: the configuration says %s, and the layer unpacks to %s:%s", want, want.Algorithm(), got)
	}
	return nil
}

func newHash(d oci.Digest) hash.Hash {
	if d.Algorithm() == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

func decompress(r io.Reader, c oci.Compression) (io.Reader, func(), error) {
	switch c {
	case oci.Uncompressed:
		return r, func() {}, nil
	case oci.Gzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w", err)
		}
		return z, func() {}, nil
	case oci.Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w", err)
		}
		return z, z.Close, nil
	default:
		return nil, nil, fmt.Errorf("compression %v is not known", c)
	}
}

// spoolFile is a file without a name.
func spoolFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "coffer-layer-*")
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("spool: %w", err), f.Close())
	}
	return f, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
