package inflate

import "encoding/binary"

// mark is a place in the input to come back to.
type mark struct {
	bits  uint64
	nbits uint
	pos   int
}

// header reads the header of a block (RFC 1951, 3.2.3). If it is not in the
// buffer as a whole nothing has been read.
func (d *decoder) header() error {
	at := mark{d.bits, d.nbits, d.inPos}
	err := d.readHeader()
	if err == errShort {
		d.bits, d.nbits, d.inPos = at.bits, at.nbits, at.pos
	}
	return err
}

func (d *decoder) readHeader() error {
	d.fill()
	if d.nbits < 3 {
		return errShort
	}
	final := d.take(1) == 1
	var err error
	next := inCodes
	switch kind := d.take(2); kind {
	case 0:
		next, err = inStored, d.storedHeader()
	case 1:
		err = d.fixedCodes()
	case 2:
		d.fixed = false
		err = d.dynamicCodes()
	default:
		err = d.corrupt("block type: expected 0, 1 or 2, got %d", kind)
	}
	if err != nil {
		return err
	}
	d.final, d.state = final, next
	return nil
}

// storedHeader reads the length of a stored block (3.2.4).
func (d *decoder) storedHeader() error {
	d.align()
	if d.inEnd-d.inPos < 4 {
		return errShort
	}
	n, check := binary.LittleEndian.Uint16(d.in[d.inPos:]), binary.LittleEndian.Uint16(d.in[d.inPos+2:])
	if n != ^check {
		return d.corrupt("stored block: length %#04x has complement %#04x, expected %#04x", n, check, ^n)
	}
	d.inPos += 4
	d.stored = int(n)
	return nil
}

// copyStored copies what there is of a stored block.
func (d *decoder) copyStored() error {
	n := copy(d.out[d.outPos:min(outLimit, d.outPos+d.stored)], d.in[d.inPos:d.inEnd])
	d.inPos += n
	d.outPos += n
	d.stored -= n
	if d.stored == 0 {
		d.state = atHeader
	} else if n == 0 {
		return errShort
	}
	return nil
}

// fixedCodes builds the tables of 3.2.6.
func (d *decoder) fixedCodes() error {
	if d.fixed {
		return nil
	}
	var lit [288]uint8
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	var dist [32]uint8
	for i := range dist {
		dist[i] = 5
	}
	if !d.lit.build(lit[:]) || !d.dist.build(dist[:]) {
		return d.corrupt("the fixed codes")
	}
	d.fixed = true
	return nil
}

// codeLengthOrder is the order of 3.2.7.
var codeLengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicCodes reads the code lengths of 3.2.7 and builds the tables.
func (d *decoder) dynamicCodes() error {
	d.fill()
	if d.nbits < 14 {
		return errShort
	}
	nlit, ndist, nlen := int(d.take(5))+257, int(d.take(5))+1, int(d.take(4))+4
	if nlit > maxLitLen {
		return d.corrupt("dynamic block: %d literal and length codes, at most %d are allowed", nlit, maxLitLen)
	}
	if ndist > maxDist {
		return d.corrupt("dynamic block: %d distance codes, at most %d are allowed", ndist, maxDist)
	}
	var order [19]uint8
	for i := range nlen {
		if i&15 == 0 {
			d.fill()
		}
		if d.nbits < 3 {
			return errShort
		}
		order[codeLengthOrder[i]] = uint8(d.take(3))
	}
	var t lengthTable
	if !t.build(order[:]) {
		return d.corrupt("dynamic block: the code of the code lengths is not complete")
	}
	if err := d.codeLengths(&t, nlit+ndist); err != nil {
		return err
	}
	if d.lengths[endOfBlock] == 0 {
		return d.corrupt("dynamic block: there is no code for its end")
	}
	if !d.lit.build(d.lengths[:nlit]) {
		return d.corrupt("dynamic block: the literal and length code is not complete")
	}
	if !d.dist.build(d.lengths[nlit : nlit+ndist]) {
		return d.corrupt("dynamic block: the distance code is not complete")
	}
	return nil
}

// codeLengths reads n code lengths to d.lengths.
func (d *decoder) codeLengths(t *lengthTable, n int) error {
	for i := 0; i < n; {
		if d.nbits < 14 {
			d.fill()
		}
		e := t.entries[d.bits&(1<<lengthBits-1)]
		symbol, size := e>>4, uint(e&15)
		var value uint8
		var repeat, extra uint
		switch {
		case symbol < 16:
			value, repeat = uint8(symbol), 1
		case symbol == 16:
			repeat, extra = 3, 2
		case symbol == 17:
			repeat, extra = 3, 3
		default:
			repeat, extra = 11, 7
		}
		if size+extra > d.nbits {
			return errShort
		}
		d.take(size)
		repeat += d.take(extra)
		if symbol == 16 {
			if i == 0 {
				return d.corrupt("dynamic block: it begins with a repeated code length")
			}
			value = d.lengths[i-1]
		}
		if int(repeat) > n-i {
			return d.corrupt("dynamic block: more than %d code lengths", n)
		}
		for range repeat {
			d.lengths[i] = value
			i++
		}
	}
	return nil
}
