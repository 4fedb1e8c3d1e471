package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// historySize is how far back a match may reach (RFC 1951, 2).
	historySize = 32 << 10
	// outSize is the size of the window that output is decoded to. It is a power
	// of two, as that of the input buffer, so that indices need no other check
	// than a mask; none ever changes by it.
	outSize = 256 << 10
	outMask = outSize - 1
	// outLimit is where the window counts as full: behind it is room for the
	// longest step of the fast loop, two literals and a match.
	outLimit = outSize - maxMatch - 2
	// copySlack is for what copying in pieces of 16 bytes writes too much.
	copySlack = 16

	// inSize is the size of the input buffer.
	inSize = 64 << 10
	// inSlack lets eight bytes be read wherever the buffer begins.
	inSlack = 8

	maxMatch   = 258
	maxLitLen  = 286 // RFC 1951, 3.2.7: HLIT and HDIST; 287 and 288, or 31 and 32,
	maxDist    = 30  // can be said, but have no meaning
	endOfBlock = 256
)

// errShort means that the input buffer ends within an element, which is decoded
// again when there is more of it.
var errShort = errors.New("inflate: more input is needed")

type state uint8

const (
	atHeader state = iota // a block header follows, or the stream has ended
	inStored              // within a stored block
	inCodes               // within a block of Huffman codes
)

// decoder decodes one DEFLATE stream after the other from the same source.
type decoder struct {
	src    io.Reader
	srcErr error // what src ended with
	err    error // what the decoder ended with

	// bits are the nbits next bits of input, the lowest first. Those above are
	// zero, and in[inPos:inEnd] follows them. read is what src has given.
	bits         uint64
	nbits        uint
	inPos, inEnd int
	read         int64

	// out[:outPos] is the history, out[outRead:outPos] was not handed out yet.
	outPos, outRead int

	state  state
	final  bool // the block is the last one
	stored int  // what is left of a stored block
	fixed  bool // the tables are those of a block of fixed codes

	lit     litTable
	dist    distTable
	lengths [maxLitLen + maxDist]uint8

	in  [inSize + inSlack]byte
	out [outSize + copySlack]byte
}

// reset begins with a new source.
func (d *decoder) reset(src io.Reader) {
	d.src, d.srcErr = src, nil
	d.bits, d.nbits, d.inPos, d.inEnd, d.read = 0, 0, 0, 0, 0
	d.restart()
}

// restart begins with a new stream of the same source.
func (d *decoder) restart() {
	d.err, d.state, d.final = nil, atHeader, false
	d.outPos, d.outRead = 0, 0
}

// handOut marks n bytes of what next returned as taken.
func (d *decoder) handOut(n int) { d.outRead += n }

// next returns decoded bytes, at least one, or an error; io.EOF is the end of
// the stream.
func (d *decoder) next() ([]byte, error) {
	for d.outRead == d.outPos {
		if d.err != nil {
			return nil, d.err
		}
		if d.outPos >= outLimit {
			d.outPos = copy(d.out[:historySize], d.out[d.outPos-historySize:d.outPos])
			d.outRead = d.outPos
		}
		err := d.run()
		if err == errShort && d.outRead == d.outPos {
			if err = d.more(); err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != errShort {
			d.err = err
		}
	}
	return d.out[d.outRead:d.outPos], nil
}

// run decodes until the window is full (nil) or there is nothing to go on with:
// errShort, io.EOF at the end of the stream, or what is wrong.
func (d *decoder) run() error {
	for d.outPos < outLimit {
		var err error
		switch d.state {
		case atHeader:
			if d.final {
				return io.EOF
			}
			err = d.header()
		case inStored:
			err = d.copyStored()
		case inCodes:
			if err = d.fast(); err == nil && d.state == inCodes && d.outPos < outLimit {
				err = d.careful()
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxEmptyReads is how often a source may give nothing at all, in a row.
const maxEmptyReads = 100

// more reads from the source, at least one byte, or returns its error. There
// must be room in the buffer: no element is as long as that.
func (d *decoder) more() error {
	d.unread() // as later ones may be, to where the buffer begins
	d.inEnd = copy(d.in[:], d.in[d.inPos:d.inEnd])
	d.inPos = 0
	for range maxEmptyReads {
		if d.srcErr != nil {
			return d.srcErr
		}
		room := d.in[d.inEnd:inSize]
		n, err := d.src.Read(room)
		if n < 0 || n > len(room) {
			err, n = fmt.Errorf("inflate: Read returned %d of at most %d bytes", n, len(room)), 0
		}
		d.srcErr = err
		d.inEnd += n
		d.read += int64(n)
		if n > 0 {
			return nil
		}
	}
	return io.ErrNoProgress
}

// fill makes nbits at least 56, if there is as much input in the buffer.
func (d *decoder) fill() {
	if d.inEnd-d.inPos >= 8 {
		d.bits |= binary.LittleEndian.Uint64(d.in[d.inPos:]) << d.nbits
		k := (63 - d.nbits) >> 3
		d.inPos += int(k)
		d.nbits += k << 3
		d.bits &= 1<<d.nbits - 1
		return
	}
	for d.nbits < 56 && d.inPos < d.inEnd {
		d.bits |= uint64(d.in[d.inPos]) << d.nbits
		d.inPos++
		d.nbits += 8
	}
}

// take removes n bits, which must be there.
func (d *decoder) take(n uint) uint {
	v := d.bits & (1<<n - 1)
	d.bits >>= n
	d.nbits -= n
	return uint(v)
}

// unread gives whole bytes back to the buffer.
func (d *decoder) unread() {
	d.inPos -= int(d.nbits >> 3)
	d.nbits &= 7
	d.bits &= 1<<d.nbits - 1
}

// offset is where in the input the next bit is, rounded down to bytes.
func (d *decoder) offset() int64 {
	return d.read - int64(d.inEnd-d.inPos) - int64(d.nbits+7)>>3
}

func (d *decoder) corrupt(format string, args ...any) error {
	return &CorruptError{d.offset(), fmt.Sprintf(format, args...)}
}

// align goes on at the next byte.
func (d *decoder) align() {
	d.unread()
	d.bits, d.nbits = 0, 0
}

// peek is the next byte of an aligned decoder, which all output has been taken
// from, as it may wait for it.
func (d *decoder) peek() (byte, error) {
	if d.inPos == d.inEnd {
		if err := d.more(); err != nil {
			return 0, err
		}
	}
	return d.in[d.inPos], nil
}

// readByte takes the byte that peek returns.
func (d *decoder) readByte() (byte, error) {
	c, err := d.peek()
	if err == nil {
		d.inPos++
	}
	return c, err
}

// readFull takes as many bytes as p has; the end of the source is io.EOF,
// wherever it is.
func (d *decoder) readFull(p []byte) error {
	for i := range p {
		c, err := d.readByte()
		if err != nil {
			return err
		}
		p[i] = c
	}
	return nil
}
