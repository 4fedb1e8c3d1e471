package inflate

import "encoding/binary"

// fastInput is how much input the fast loop needs for a step: it reads eight
// bytes twice, the second time up to seven bytes on.
const fastInput = 16

// fast decodes within a block of Huffman codes while a step neither reaches the
// end of the input buffer nor of the window's slack. It ends with the block, or
// leaves the rest to the careful loop.
//
// A step is up to three entries of literals, or up to two and a match. A refill
// leaves 56 bits at least. Two entries of literals have up to 2×11 and a length
// 15+5, so that no other refill is needed before the distance, of up to 15+13.
//
// The bit count nbits is right in its lowest six bits only: entries are
// subtracted as they are.
func (d *decoder) fast() error {
	var (
		bits   = d.bits
		nbits  = uint64(d.nbits)
		in     = uint(d.inPos)
		out    = uint(d.outPos)
		limit  = uint(max(d.inEnd-fastInput, -1) + 1)
		failed string
		dist   uint
	)
	for in < limit && out < outLimit {
		bits |= binary.LittleEndian.Uint64(d.in[in&(inSize-1):][:8]) << (nbits & 63)
		in += uint((nbits ^ 63) & 63 >> 3)
		nbits |= 56

		e := d.lit.entries[bits&(1<<litBits-1)]
		if e&flagLiteral != 0 {
			binary.LittleEndian.PutUint16(d.out[out:][:2], uint16(e>>16))
			out += uint(e >> 8 & 3)
			bits >>= e & sizeMask
			nbits -= uint64(e)
			e = d.lit.entries[bits&(1<<litBits-1)]
			if e&flagLiteral != 0 {
				binary.LittleEndian.PutUint16(d.out[out:][:2], uint16(e>>16))
				out += uint(e >> 8 & 3)
				bits >>= e & sizeMask
				nbits -= uint64(e)
				e = d.lit.entries[bits&(1<<litBits-1)]
				if e&flagLiteral != 0 {
					binary.LittleEndian.PutUint16(d.out[out:][:2], uint16(e>>16))
					out += uint(e >> 8 & 3)
					bits >>= e & sizeMask
					nbits -= uint64(e)
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

		bits |= binary.LittleEndian.Uint64(d.in[in&(inSize-1):][:8]) << (nbits & 63)
		in += uint((nbits ^ 63) & 63 >> 3)
		nbits |= 56
		e = d.dist.entries[bits&(1<<distBits-1)]
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
		if dist > out {
			failed = noHistory
			break
		}
		copyMatch(&d.out, out, dist, length)
		out += length
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

// spread multiplies with 1 at every multiple of i bytes, which repeats a pattern
// of i bytes; stride is how many of the eight bytes are whole patterns.
var (
	spread = [8]uint64{0, 0x0101010101010101, 0x0001000100010001, 0x0001000001000001, 0x0000000100000001, 0x0000010000000001, 0x0001000000000001, 0x0100000000000001}
	stride = [8]uint8{0, 8, 8, 6, 8, 5, 6, 7}
)

// copyMatch copies length bytes from dist bytes before at. It writes up to 15
// bytes behind them.
func copyMatch(out *[outLimit + outSlack]byte, at, dist, length uint) {
	from := at - dist
	end := at + length
	switch {
	case dist >= 16:
		*(*[16]byte)(out[at:]) = *(*[16]byte)(out[from:])
		for length > 16 {
			at += 16
			from += 16
			length -= 16
			*(*[16]byte)(out[at:]) = *(*[16]byte)(out[from:])
		}
	case dist >= 8:
		for at < end {
			binary.LittleEndian.PutUint64(out[at:], binary.LittleEndian.Uint64(out[from:]))
			at += 8
			from += 8
		}
	default:
		v := binary.LittleEndian.Uint64(out[from:]) & (1<<(8*dist) - 1) * spread[dist&7]
		for at < end {
			binary.LittleEndian.PutUint64(out[at:], v)
			at += uint(stride[dist&7])
		}
	}
}
