package pull

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
)

// maxZstdWindow is how far back a zstd frame may refer, in bytes, which is what
// a decoder has to keep (RFC 8878, 3.1.1.1.2, asks for 8 MiB at least).
const maxZstdWindow = 32 << 20

// decompress opens a compressed stream. The returned function frees what the
// decoder holds.
func decompress(r io.Reader, c oci.Compression) (io.Reader, func(), error) {
	switch c {
	case oci.Uncompressed:
		return r, func() {}, nil
	case oci.Gzip:
		// It reads all members, and refuses anything behind the last.
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w", err)
		}
		return named{z, "gzip"}, func() { _ = z.Close() }, nil
	case oci.Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w", err)
		}
		return named{z, "zstd"}, z.Close, nil
	default:
		return nil, nil, fmt.Errorf("compression %v", c)
	}
}

// named says whose error it is.
type named struct {
	r    io.Reader
	name string
}

// Read implements io.Reader.
func (n named) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", n.name, err)
	}
	return k, err
}

// ahead reads a stream on a goroutine of its own, so that decompressing and
// making files go on at the same time.
type ahead struct {
	full   chan block
	free   chan []byte
	cancel context.CancelFunc
	wg     sync.WaitGroup

	ctx     context.Context
	current block
	rest    []byte
}

type block struct {
	data []byte
	err  error
}

const aheadBlocks = 4

func newAhead(ctx context.Context, r io.Reader) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{full: make(chan block, aheadBlocks), free: make(chan []byte, aheadBlocks), ctx: ctx, cancel: cancel}
	for range aheadBlocks {
		a.free <- make([]byte, chunk)
	}
	a.wg.Go(func() { a.fill(r) })
	return a
}

func (a *ahead) fill(r io.Reader) {
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.ctx.Done():
			return
		}
		n, err := 0, error(nil)
		for n < chunk && err == nil {
			var k int
			k, err = r.Read(buf[n:chunk])
			n += k
		}
		// There is room: there are no more blocks than the channel holds.
		a.full <- block{buf[:n], err}
		if err != nil {
			return
		}
	}
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.current.err != nil {
			return 0, a.current.err
		}
		if a.current.data != nil {
			a.free <- a.current.data
			a.current.data = nil
		}
		b, ok := <-a.full
		if !ok {
			return 0, a.ctx.Err()
		}
		a.current, a.rest = b, b.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// close ends the goroutine and waits for it. Its source must not block for
// ever; a spool ends with its context.
func (a *ahead) close() {
	a.cancel()
	a.wg.Wait()
}
