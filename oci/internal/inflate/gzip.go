package inflate

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// maxHeaderString bounds a file name or comment in a gzip header, in bytes.
const maxHeaderString = 64 << 10

// The header of RFC 1952, 2.3.
const (
	gzipID1     = 0x1f
	gzipID2     = 0x8b
	gzipDeflate = 8

	gzipHeaderCRC = 1 << 1
	gzipExtra     = 1 << 2
	gzipName      = 1 << 3
	gzipComment   = 1 << 4
	gzipReserved  = 0xe0
)

// GzipReader decodes a gzip file: the contents of all its members, one after
// the other. It must not be used by several goroutines at once.
//
// CRC-32 and length of every member are checked, with the header's CRC where
// there is one; a header has no reserved flags set, and name and comment of at
// most 64 KiB. Behind the last member there may be zeros until the end of the
// source, as padding of tapes leaves them, and nothing else. (compress/gzip
// ignores reserved flags, and refuses zeros and names of 512 bytes.)
//
// Errors are those of [Reader]. Since checks come last, nothing that was read
// is known to be right before io.EOF.
type GzipReader struct {
	d    decoder
	crc  uint32 // of the member's content until now
	size uint32 // of it, modulo 2³²
	err  error
	head headerReader
}

// NewGzipReader decodes the file r, of which it reads the first header. A
// source without any input is io.ErrUnexpectedEOF.
func NewGzipReader(r io.Reader) (*GzipReader, error) {
	z := new(GzipReader)
	if err := z.Reset(r); err != nil {
		return nil, err
	}
	return z, nil
}

// Reset makes z decode another file, as NewGzipReader does.
func (z *GzipReader) Reset(r io.Reader) error {
	z.d.reset(r)
	z.crc, z.size = 0, 0
	z.err = unexpected(z.header())
	return z.err
}

// Read implements io.Reader.
func (z *GzipReader) Read(p []byte) (int, error) { return read(p, z) }

// WriteTo implements io.WriterTo: it decodes all that is left into w, in
// pieces of up to 256 KiB that w must not keep.
func (z *GzipReader) WriteTo(w io.Writer) (int64, error) { return writeTo(w, z) }

func (z *GzipReader) handOut(n int) { z.d.handOut(n) }

// next returns decoded bytes, at least one, or an error.
func (z *GzipReader) next() ([]byte, error) {
	for z.err == nil {
		fresh := z.d.outRead == z.d.outPos
		b, err := z.d.next()
		if err == nil {
			if fresh {
				z.crc = crc32.Update(z.crc, crc32.IEEETable, b)
				z.size += uint32(len(b))
			}
			return b, nil
		}
		if err == io.EOF {
			err = z.nextMember()
		}
		z.err = err
	}
	return nil, z.err
}

// nextMember checks the trailer of a member and reads the header of the next
// one. It returns io.EOF if there is none.
func (z *GzipReader) nextMember() error {
	var b [8]byte
	z.d.align()
	if err := z.d.readFull(b[:]); err != nil {
		return unexpected(err)
	}
	if want := binary.LittleEndian.Uint32(b[:]); want != z.crc {
		return z.d.corrupt("gzip: CRC-32: expected %08x, got %08x", want, z.crc)
	}
	if want := binary.LittleEndian.Uint32(b[4:]); want != z.size {
		return z.d.corrupt("gzip: length modulo 2^32: expected %d, got %d", want, z.size)
	}
	c, err := z.d.peek()
	if err != nil {
		return err
	}
	if c == 0 {
		return z.padding()
	}
	z.crc, z.size = 0, 0
	z.d.restart()
	return unexpected(z.header())
}

// padding reads zeros to the end of the source.
func (z *GzipReader) padding() error {
	for {
		c, err := z.d.readByte()
		if err != nil {
			return err
		}
		if c != 0 {
			return z.d.corrupt("gzip: expected nothing but zeros behind the last member, got %#02x", c)
		}
	}
}

// header reads a header (RFC 1952, 2.3).
func (z *GzipReader) header() error {
	h := &z.head
	h.d, h.crc = &z.d, 0
	b, err := h.read(10)
	if err != nil {
		return err
	}
	if b[0] != gzipID1 || b[1] != gzipID2 {
		return z.d.corrupt("gzip: expected a header, which begins with 1f 8b, got % x", b[:2])
	}
	if b[2] != gzipDeflate {
		return z.d.corrupt("gzip: compression method: expected 8, got %d", b[2])
	}
	flags := b[3]
	if flags&gzipReserved != 0 {
		return z.d.corrupt("gzip: flags %#02x: those of %#02x are reserved", flags, gzipReserved)
	}
	if flags&gzipExtra != 0 {
		if b, err = h.read(2); err != nil {
			return err
		}
		for left := int(binary.LittleEndian.Uint16(b)); left > 0; left -= len(b) {
			if b, err = h.read(min(left, len(h.buf))); err != nil {
				return err
			}
		}
	}
	for _, field := range []struct {
		flag byte
		name string
	}{{gzipName, "file name"}, {gzipComment, "comment"}} {
		if flags&field.flag == 0 {
			continue
		}
		if err := h.skipString(field.name); err != nil {
			return err
		}
	}
	if flags&gzipHeaderCRC == 0 {
		return nil
	}
	got := uint16(h.crc)
	if b, err = h.read(2); err != nil {
		return err
	}
	if want := binary.LittleEndian.Uint16(b); want != got {
		return z.d.corrupt("gzip: CRC-16 of the header: expected %04x, got %04x", want, got)
	}
	return nil
}

// headerReader reads a header and computes its CRC.
type headerReader struct {
	d   *decoder
	crc uint32
	buf [64]byte
}

// read returns the next n bytes, until it is called again.
func (h *headerReader) read(n int) ([]byte, error) {
	b := h.buf[:n]
	if err := h.d.readFull(b); err != nil {
		return nil, err
	}
	h.crc = crc32.Update(h.crc, crc32.IEEETable, b)
	return b, nil
}

// skipString reads a string and the zero that ends it.
func (h *headerReader) skipString(name string) error {
	for range maxHeaderString + 1 {
		b, err := h.read(1)
		if err != nil {
			return err
		}
		if b[0] == 0 {
			return nil
		}
	}
	return h.d.corrupt("gzip: the %s is longer than %d bytes", name, maxHeaderString)
}

// unexpected is err, but for an end that came too early.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
