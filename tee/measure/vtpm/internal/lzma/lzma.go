// Package lzma decompresses the .lzma form of LZMA, in which UEFI firmware keeps
// its volumes: a header of 13 bytes (properties, size of the dictionary, size of
// the data) and one stream, as the LZMA specification of the LZMA SDK (9.20 and
// newer, file lzma-specification.txt) describes it. What is
// allocated grows with what has been decoded, not with what the header promises.
package lzma

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

const (
	headerSize = 13
	numStates  = 12
	maxPosBits = 4
	lenContext = 4
	endPosSlot = 14
	alignBits  = 4
	minMatch   = 2
	probInit   = 1 << 10
)

var errCorrupt = errors.New("lzma: the data is damaged")

// Decompress returns the data of a stream, which is at most limit bytes. Bytes
// behind the stream are ignored.
func Decompress(in []byte, limit int) ([]byte, error) {
	if len(in) < headerSize+5 {
		return nil, fmt.Errorf("lzma: expected at least %d bytes, got %d", headerSize+5, len(in))
	}
	size := binary.LittleEndian.Uint64(in[5:])
	if size > uint64(limit) {
		return nil, fmt.Errorf("lzma: size of the data: expected at most %d bytes, got %d", limit, size)
	}
	d, err := newDecoder(in[0])
	if err != nil {
		return nil, err
	}
	if err := d.rc.start(in[headerSize:]); err != nil {
		return nil, err
	}
	d.out = make([]byte, 0, min(int(size), 16*len(in)))
	if err := d.run(int(size)); err != nil {
		return nil, err
	}
	return d.out, nil
}

// rangeDecoder reads bits by their probabilities.
type rangeDecoder struct {
	in         []byte
	at         int
	width, low uint32
	short      bool
}

func (r *rangeDecoder) start(in []byte) error {
	if in[0] != 0 {
		return errCorrupt
	}
	r.in, r.at, r.width, r.low = in, 5, ^uint32(0), binary.BigEndian.Uint32(in[1:])
	return nil
}

func (r *rangeDecoder) normalize() {
	if r.width >= 1<<24 {
		return
	}
	r.width <<= 8
	if r.at >= len(r.in) {
		r.short = true
		return
	}
	r.low = r.low<<8 | uint32(r.in[r.at])
	r.at++
}

func (r *rangeDecoder) bit(p *uint16) uint32 {
	bound := (r.width >> 11) * uint32(*p)
	if r.low < bound {
		*p += (1<<11 - *p) >> 5
		r.width = bound
		r.normalize()
		return 0
	}
	*p -= *p >> 5
	r.low -= bound
	r.width -= bound
	r.normalize()
	return 1
}

// direct reads n bits that are equally likely.
func (r *rangeDecoder) direct(n uint32) uint32 {
	v := uint32(0)
	for range n {
		r.width >>= 1
		b := uint32(1)
		if r.low < r.width {
			b = 0
		} else {
			r.low -= r.width
		}
		r.normalize()
		v = v<<1 | b
	}
	return v
}

// tree reads n bits, the first first; its probabilities are those of a binary tree.
func (r *rangeDecoder) tree(p []uint16, n uint32) uint32 {
	m := uint32(1)
	for range n {
		m = m<<1 | r.bit(&p[m])
	}
	return m - 1<<n
}

// reverse reads n bits, the last first.
func (r *rangeDecoder) reverse(p []uint16, n uint32) uint32 {
	m, v := uint32(1), uint32(0)
	for i := range n {
		b := r.bit(&p[m])
		m = m<<1 | b
		v |= b << i
	}
	return v
}

func probs(n int) []uint16 { return slices.Repeat([]uint16{probInit}, n) }

// lengthDecoder has three ranges: 8 short lengths and 8 middle ones for each
// position, and 256 long ones.
type lengthDecoder struct {
	choice    [2]uint16
	low, mid  [1 << maxPosBits][]uint16
	highProbs []uint16
}

func newLengthDecoder() *lengthDecoder {
	l := &lengthDecoder{choice: [2]uint16{probInit, probInit}, highProbs: probs(1 << 8)}
	for i := range l.low {
		l.low[i], l.mid[i] = probs(1<<3), probs(1<<3)
	}
	return l
}

func (l *lengthDecoder) read(r *rangeDecoder, pos uint32) uint32 {
	if r.bit(&l.choice[0]) == 0 {
		return r.tree(l.low[pos], 3)
	}
	if r.bit(&l.choice[1]) == 0 {
		return 8 + r.tree(l.mid[pos], 3)
	}
	return 16 + r.tree(l.highProbs, 8)
}

type decoder struct {
	rc         rangeDecoder
	out        []byte
	lc, lp, pb uint32

	state    uint32
	reps     [4]uint32
	literals []uint16

	isMatch, isRep0Long      [numStates << maxPosBits]uint16
	isRep, isG0, isG1, isG2  [numStates]uint16
	slots                    [lenContext][]uint16
	special, align           []uint16
	matchLengths, repLengths *lengthDecoder
}

func newDecoder(properties byte) (*decoder, error) {
	if properties >= 9*5*5 {
		return nil, fmt.Errorf("lzma: properties: expected less than %d, got %d", 9*5*5, properties)
	}
	d := &decoder{lc: uint32(properties % 9), lp: uint32(properties / 9 % 5), pb: uint32(properties / 45)}
	d.literals = probs(0x300 << (d.lc + d.lp))
	for _, p := range [][]uint16{d.isMatch[:], d.isRep0Long[:], d.isRep[:], d.isG0[:], d.isG1[:], d.isG2[:]} {
		for i := range p {
			p[i] = probInit
		}
	}
	for i := range d.slots {
		d.slots[i] = probs(1 << 6)
	}
	d.special, d.align = probs(1+128-endPosSlot), probs(1<<alignBits)
	d.matchLengths, d.repLengths = newLengthDecoder(), newLengthDecoder()
	return d, nil
}

func (d *decoder) run(size int) error {
	for len(d.out) < size {
		pos := uint32(len(d.out)) & (1<<d.pb - 1)
		if d.rc.bit(&d.isMatch[d.state<<maxPosBits+pos]) == 0 {
			d.literal()
		} else if err := d.repeat(int(d.match(pos)), size); err != nil {
			return err
		}
		if d.rc.short {
			return fmt.Errorf("%w: it ends after %d of %d bytes", errCorrupt, len(d.out), size)
		}
		if d.reps[0] == ^uint32(0) {
			return fmt.Errorf("%w: end mark after %d of %d bytes", errCorrupt, len(d.out), size)
		}
	}
	return nil
}

func (d *decoder) literal() {
	previous, distance := uint32(0), int(d.reps[0])+1
	if n := len(d.out); n > 0 {
		previous = uint32(d.out[n-1])
	}
	context := (uint32(len(d.out))&(1<<d.lp-1))<<d.lc + previous>>(8-d.lc)
	p := d.literals[0x300*context:][:0x300]
	symbol := uint32(1)
	if d.state >= 7 && distance <= len(d.out) {
		like := uint32(d.out[len(d.out)-distance])
		for symbol < 0x100 {
			b := like >> 7 & 1
			like <<= 1
			got := d.rc.bit(&p[(1+b)<<8+symbol])
			symbol = symbol<<1 | got
			if got != b {
				break
			}
		}
	}
	for symbol < 0x100 {
		symbol = symbol<<1 | d.rc.bit(&p[symbol])
	}
	d.out = append(d.out, byte(symbol))
	switch {
	case d.state < 4:
		d.state = 0
	case d.state < 10:
		d.state -= 3
	default:
		d.state -= 6
	}
}

// match reads where and how long a repetition is.
func (d *decoder) match(pos uint32) (length uint32) {
	if d.rc.bit(&d.isRep[d.state]) == 0 {
		copy(d.reps[1:], d.reps[:3])
		length = d.matchLengths.read(&d.rc, pos)
		d.state = after(d.state, 7, 10)
		d.reps[0] = d.distance(length)
		return length + minMatch
	}
	if d.rc.bit(&d.isG0[d.state]) == 0 {
		if d.rc.bit(&d.isRep0Long[d.state<<maxPosBits+pos]) == 0 {
			d.state = after(d.state, 9, 11)
			return 1
		}
	} else {
		i := 1
		if d.rc.bit(&d.isG1[d.state]) == 1 {
			i = 2 + int(d.rc.bit(&d.isG2[d.state]))
		}
		distance := d.reps[i]
		copy(d.reps[1:i+1], d.reps[:i])
		d.reps[0] = distance
	}
	length = d.repLengths.read(&d.rc, pos)
	d.state = after(d.state, 8, 11)
	return length + minMatch
}

func after(state, literal, other uint32) uint32 {
	if state < 7 {
		return literal
	}
	return other
}

func (d *decoder) distance(length uint32) uint32 {
	slot := d.rc.tree(d.slots[min(length, lenContext-1)], 6)
	if slot < 4 {
		return slot
	}
	bits := slot>>1 - 1
	distance := (2 | slot&1) << bits
	if slot < endPosSlot {
		return distance + d.rc.reverse(d.special[distance-slot:], bits)
	}
	distance += d.rc.direct(bits-alignBits) << alignBits
	return distance + d.rc.reverse(d.align, alignBits)
}

func (d *decoder) repeat(n, size int) error {
	if d.reps[0] == ^uint32(0) {
		return nil // an end mark, which run refuses
	}
	from := len(d.out) - 1 - int(d.reps[0])
	if from < 0 || n > size-len(d.out) {
		return errCorrupt
	}
	for i := range n {
		d.out = append(d.out, d.out[from+i])
	}
	return nil
}
