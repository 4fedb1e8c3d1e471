package inflate

import "encoding/binary"

// A pattern of i bytes, i < 8, times spread[i] is the pattern repeated in eight
// bytes, of which the first stride[i] are whole patterns.
var (
	spread = [8]uint64{
		0, 0x0101010101010101, 0x0001000100010001, 0x0001000001000001,
		0x0000000100000001, 0x0000010000000001, 0x0001000000000001, 0x0100000000000001,
	}
	stride = [8]uint8{0, 8, 8, 6, 8, 5, 6, 7}
)

// fastInput is how much input there has to be for a step of the fast loop: it
// reads eight bytes twice, the second time up to seven bytes on.
const fastInput = 16

// fast decodes within a block of Huffman codes as long as a step can neither
// reach the end of the input buffer nor that of the window. It ends with the
// block, or leaves the rest to the careful loop.
//
// A step is three literals, or up to two and a match. A refill leaves at least
// 56 bits, of which two literals take up to 2×11 and a length up to 15+5, so
// that 14 are left for the primary part of the distance table. After the other
// refill a distance takes up to 15+13, so that there are enough for the lookup
// that begins the next step.
//
// How fast it is is decided by the chain from one lookup to the next: what is
// removed by an entry, and what is looked up with the bits behind. Refills are
// not part of it: a lookup is made with the bits that are left, and while it
// waits for memory the refill, which leaves those bits as they are, is done.
// For the same reason only the lowest six bits of the bit count are kept right:
// entries are subtracted from it as they are. It is one function, without calls,
// since a call would move all of it from registers to memory and back.
func (d *decoder) fast() error {
	if d.inEnd-d.inPos < fastInput {
		return nil
	}
	var (
		bits    = d.bits
		nbits   = uint64(d.nbits)
		in      = uint(d.inPos)
		out     = uint(d.outPos)
		inLimit = uint(d.inEnd - fastInput)
		dist    uint
		failed  string
	)
	bits |= binary.LittleEndian.Uint64(d.in[in&(inSize-1):][:8]) << (nbits & 63)
	in += uint(^nbits & 63 >> 3)
	nbits |= 56
	e := d.lit.entries[bits&(1<<litBits-1)]
	for in <= inLimit && out < outLimit {
		bits |= binary.LittleEndian.Uint64(d.in[in&(inSize-1):][:8]) << (nbits & 63)
		in += uint(^nbits & 63 >> 3)
		nbits |= 56

		if e&flagLiteral != 0 {
			d.out[out] = byte(e >> 16)
			out++
			bits >>= e & sizeMask
			nbits -= uint64(e)
			e = d.lit.entries[bits&(1<<litBits-1)]
			if e&flagLiteral != 0 {
				d.out[out] = byte(e >> 16)
				out++
				bits >>= e & sizeMask
				nbits -= uint64(e)
				e = d.lit.entries[bits&(1<<litBits-1)]
				if e&flagLiteral != 0 {
					d.out[out] = byte(e >> 16)
					out++
					bits >>= e & sizeMask
					nbits -= uint64(e)
					e = d.lit.entries[bits&(1<<litBits-1)]
					continue
				}
			}
		}
		if e&flagSpecial != 0 {
			if e&(flagEnd|flagNoCode) == 0 {
				e = d.lit.entries[subIndex(e, bits>>litBits, litSize)]
			}
			if e&flagLiteral != 0 {
				d.out[out] = byte(e >> 16)
				out++
				bits >>= e & sizeMask
				nbits -= uint64(e)
				e = d.lit.entries[bits&(1<<litBits-1)]
				continue
			}
			if e&flagSpecial != 0 {
				if e&flagEnd != 0 {
					bits >>= e & sizeMask
					nbits -= uint64(e)
					d.state = atHeader
				} else {
					failed = noLitCode
				}
				break
			}
		}
		length := uint(withExtra(e, bits))
		bits >>= e & sizeMask
		nbits -= uint64(e)

		e = d.dist.entries[bits&(1<<distBits-1)]
		bits |= binary.LittleEndian.Uint64(d.in[in&(inSize-1):][:8]) << (nbits & 63)
		in += uint(^nbits & 63 >> 3)
		nbits |= 56
		if e&flagSpecial != 0 {
			if e&flagNoCode == 0 {
				e = d.dist.entries[subIndex(e, bits>>distBits, distSize)]
			}
			if e&flagSpecial != 0 {
				failed = noDistCode
				break
			}
		}
		dist = uint(withExtra(e, bits))
		bits >>= e & sizeMask
		nbits -= uint64(e)
		e = d.lit.entries[bits&(1<<litBits-1)]
		if dist > out {
			failed = noHistory
			break
		}
		from, end := out-dist, out+length
		switch {
		case dist >= 16:
			*(*[16]byte)(d.out[out&outMask:][:16]) = *(*[16]byte)(d.out[from&outMask:][:16])
			for out += 16; out < end; out += 16 {
				from += 16
				*(*[16]byte)(d.out[out&outMask:][:16]) = *(*[16]byte)(d.out[from&outMask:][:16])
			}
		case dist >= 8:
			for ; out < end; out += 8 {
				binary.LittleEndian.PutUint64(d.out[out&outMask:][:8], binary.LittleEndian.Uint64(d.out[from&outMask:][:8]))
				from += 8
			}
		default:
			pattern := binary.LittleEndian.Uint64(d.out[from&outMask:][:8]) & (1<<(8*dist) - 1) * spread[dist&7]
			for ; out < end; out += uint(stride[dist&7]) {
				binary.LittleEndian.PutUint64(d.out[out&outMask:][:8], pattern)
			}
		}
		out = end
	}
	nbits &= 63
	d.bits, d.nbits = bits&(1<<nbits-1), uint(nbits)
	d.inPos, d.outPos = int(in), int(out)
	d.unread()
	switch failed {
	case "":
		return nil
	case noHistory:
		return d.corrupt(noHistory, dist, out)
	default:
		return d.corrupt("%s", failed)
	}
}
