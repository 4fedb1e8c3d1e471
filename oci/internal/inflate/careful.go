package inflate

// subIndex is where in a table of the given size the entry is that the subtable
// entry e leads to; rest are the bits behind those of the primary part.
func subIndex(e uint32, rest uint64, size uint32) uint32 {
	return (e>>16 + uint32(rest)&(1<<(e>>8&15)-1)) & (size - 1)
}

// withExtra is the length or distance of e; b is the input from its code word
// on.
func withExtra(e uint32, b uint64) uint32 {
	return e>>16 + uint32(b&(1<<(e&sizeMask)-1)>>(e>>8&15))
}

const (
	noLitCode  = "a literal or length with a code word that the block does not have"
	noDistCode = "a distance with a code word that the block does not have"
	noHistory  = "a match %d bytes back, %d bytes from the beginning"
)

// careful decodes one literal or match, or the end of a block, with whatever
// input there is. It is errShort, with nothing done, if that is not enough.
func (d *decoder) careful() error {
	d.fill()
	e := d.lit.entries[d.bits&(1<<litBits-1)]
	if e&(flagSpecial|flagEnd|flagNoCode) == flagSpecial {
		e = d.lit.entries[subIndex(e, d.bits>>litBits, litSize)]
	}
	n := uint(e & sizeMask)
	switch {
	case e&flagNoCode != 0:
		if d.nbits < maxBits { // with more of them there may be one
			return errShort
		}
		return d.corrupt(noLitCode)
	case n > d.nbits:
		return errShort
	case e&flagLiteral != 0:
		d.take(n)
		d.out[d.outPos] = byte(e >> 16)
		d.outPos++
	case e&flagEnd != 0:
		d.take(n)
		d.state = atHeader
	default:
		return d.carefulMatch(n, int(withExtra(e, d.bits)))
	}
	return nil
}

// carefulMatch decodes a distance, n bits ahead, and copies the match.
func (d *decoder) carefulMatch(n uint, length int) error {
	b, left := d.bits>>n, d.nbits-n
	e := d.dist.entries[b&(1<<distBits-1)]
	if e&(flagSpecial|flagNoCode) == flagSpecial {
		e = d.dist.entries[subIndex(e, b>>distBits, distSize)]
	}
	if e&flagSpecial != 0 {
		if left < maxBits {
			return errShort
		}
		return d.corrupt(noDistCode)
	}
	m := uint(e & sizeMask)
	if m > left {
		return errShort
	}
	distance := int(withExtra(e, b))
	if distance > d.outPos {
		return d.corrupt(noHistory, distance, d.outPos)
	}
	d.take(n + m)
	for i := d.outPos; i < d.outPos+length; i++ {
		d.out[i] = d.out[i-distance]
	}
	d.outPos += length
	return nil
}
