// Package inflate decodes DEFLATE streams (RFC 1951) and gzip files (RFC 1952)
// fast: pulling an image is bound by it.
//
// The package is one decoder with two faces, [Reader] for bare DEFLATE and
// [GzipReader] for gzip. The decoder (decoder.go) owns an input buffer and an
// output window and goes from block to block; blocks of Huffman codes are
// decoded by a fast loop (fast.go) as long as whole machine words can be read
// and the longest match can be written without looking at an edge, and by a
// careful loop (careful.go) elsewhere. Both use the tables of table.go.
//
// Input is not trusted. Every count, code and distance is checked, and what a
// stream can cost is fixed: a reader occupies about 350 KiB, whatever it reads,
// and allocates nothing while it does. How much comes out is for the caller to
// bound; DEFLATE yields at most 1032 bytes for one of input.
//
// Readers read ahead: they take as much from their source as fits into their
// buffer (64 KiB), which may be more than belongs to the stream. They never
// wait for input while there is output that has not been handed out.
package inflate

import (
	"fmt"
	"io"
)

// CorruptError says that the input is no valid stream. What was decoded before
// has been handed out.
type CorruptError struct {
	// Offset is how many bytes of input were decoded when it was found. What is
	// wrong ends there, or contains that byte.
	Offset int64
	// Problem names the field, and what was expected and found.
	Problem string
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt at offset %d: %s", e.Offset, e.Problem)
}

// Reader decodes a bare DEFLATE stream. It must not be used by several
// goroutines at once.
//
// It accepts what zlib accepts: a Huffman code must be complete, but for a
// literal or distance code with a single symbol of one bit, and a distance
// code without symbols, which must not be used then.
//
// A stream that ends early is [io.ErrUnexpectedEOF], one that is wrong a
// [*CorruptError]; other errors are the source's, as it gave them. Every error
// stays until Reset. What follows the last block is ignored.
type Reader struct {
	d decoder
}

// NewReader decodes the stream that r begins with.
func NewReader(r io.Reader) *Reader {
	z := new(Reader)
	z.Reset(r)
	return z
}

// Reset makes z decode another stream, as if it were new.
func (z *Reader) Reset(r io.Reader) { z.d.reset(r) }

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) { return read(p, &z.d) }

// WriteTo implements io.WriterTo: it decodes all that is left into w, in
// pieces of up to 256 KiB that w must not keep.
func (z *Reader) WriteTo(w io.Writer) (int64, error) { return writeTo(w, &z.d) }

// source is what decoded bytes are handed out of.
type source interface {
	// next returns bytes, at least one, or an error.
	next() ([]byte, error)
	// handOut marks the first n of them as taken.
	handOut(n int)
}

func read(p []byte, from source) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := from.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	from.handOut(n)
	return n, nil
}

func writeTo(w io.Writer, from source) (int64, error) {
	var total int64
	for {
		b, err := from.next()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(b)
		if n < 0 || n > len(b) {
			return total, fmt.Errorf("inflate: Write returned %d of %d bytes", n, len(b))
		}
		from.handOut(n)
		total += int64(n)
		if err == nil && n < len(b) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
	}
}
