package inflate

import "math/bits"

// Tables are indexed with the next bits of input. The primary part answers codes
// of up to litBits or distBits bits; for longer ones it leads to a subtable
// behind it, which is indexed with the bits that follow. Entries are
//
//	literal        bits 0-5: bits to remove; 15: set; 16-23: the literal
//	length, or     bits 0-5: bits to remove, with extra bits; 8-11: bits of the
//	distance       code word; 16-31: base, to which the extra bits are added
//	end of block   bits 0-5: bits to remove; 13, 14: set
//	subtable       bits 8-11: bits of its index; 14: set; 16-31: where it is
//	no code word   bits 12, 14: set
//
// so that fields of the same purpose are at the same place in all, and the
// lowest byte can be used without masking.
const (
	litBits    = 11
	distBits   = 8
	lengthBits = 7
	maxBits    = 15

	// litSize and distSize are powers of two, for their indices to be masked.
	// For complete codes of 288 and 32 symbols 2342 and 402 entries are the
	// most; build refuses more.
	litSize  = 4096
	distSize = 1024

	sizeMask    = 63
	flagLiteral = 1 << 15
	flagSpecial = 1 << 14
	flagEnd     = 1 << 13
	flagNoCode  = 1 << 12

	noCode = flagSpecial | flagNoCode
)

type litTable struct{ entries [litSize]uint32 }

type distTable struct{ entries [distSize]uint32 }

// lengthTable decodes code lengths. An entry is symbol<<4 + bits.
type lengthTable struct{ entries [1 << lengthBits]uint16 }

// code is a canonical Huffman code (RFC 1951, 3.2.2).
type code struct {
	count  [maxBits + 1]int
	sorted [288]uint16 // symbols, shorter codes first
	// single is true if there is one symbol only, which has one bit, and empty
	// if there is none.
	single, empty bool
}

// set sorts symbols. It is false if the code is neither complete nor one of the
// two exceptions.
func (c *code) set(lengths []uint8) bool {
	for _, n := range lengths {
		c.count[n&maxBits]++
	}
	c.count[0] = 0
	var at [maxBits + 1]int
	left, used := 1, 0
	for n := 1; n <= maxBits; n++ {
		left = left<<1 - c.count[n]
		if left < 0 {
			return false
		}
		at[n] = used
		used += c.count[n]
	}
	for symbol, n := range lengths {
		if n != 0 {
			c.sorted[at[n&maxBits]] = uint16(symbol)
			at[n&maxBits]++
		}
	}
	c.empty = used == 0
	c.single = used == 1 && c.count[1] == 1
	return left == 0 || c.empty || c.single
}

// following is the code word after w of the same length n, both with their
// first bit lowest, which is how they are in the input. It is 0 after the last.
func following(w uint32, n int) uint32 {
	free := ^w & (1<<n - 1)
	if free == 0 {
		return 0
	}
	top := uint32(1) << (bits.Len32(free) - 1)
	return w&(top-1) | top
}

// fill makes a table for c out of what entry returns for a symbol and the
// length of its code word. The first primary bits of input index the first part
// of the table. It is false if the table is too small.
func (c *code) fill(table []uint32, primary int, entry func(symbol uint16, n int) uint32) bool {
	if c.empty || c.single {
		for i := range 1 << primary {
			table[i] = noCode
			if c.single && i&1 == 0 {
				table[i] = entry(c.sorted[0], 1)
			}
		}
		return true
	}
	// Tables of 1, 2, 3… bits: each is the one before twice, and the code words
	// of its own length.
	size, w, next := 1, uint32(0), 0
	for n := 1; n <= primary; n++ {
		copy(table[size:2*size], table[:size])
		size *= 2
		for range c.count[n] {
			table[w] = entry(c.sorted[next], n)
			next++
			w = following(w, n)
		}
	}
	return c.fillSub(table, primary, w, next, entry)
}

// fillSub makes the subtables for the code words from w on.
func (c *code) fillSub(table []uint32, primary int, w uint32, next int, entry func(uint16, int) uint32) bool {
	start, end, prefix := 0, 1<<primary, ^uint32(0)
	for n := primary + 1; n <= maxBits; n++ {
		for left := c.count[n]; left > 0; left-- {
			if p := w & (1<<primary - 1); p != prefix {
				// The subtable is as large as the words with that prefix
				// need: it ends where they fill it.
				width := n - primary
				for room := 1<<width - left; room > 0 && width < maxBits-primary; {
					width++
					room = room<<1 - c.count[primary+width]
				}
				prefix, start, end = p, end, end+1<<width
				if end > len(table) {
					return false
				}
				table[p] = flagSpecial | uint32(width)<<8 | uint32(start)<<16
			}
			e := entry(c.sorted[next], n)
			for i := start + int(w>>primary); i < end; i += 1 << (n - primary) {
				table[i] = e
			}
			next++
			w = following(w, n)
		}
	}
	return true
}

// lengthBase and distBase are the tables of 3.2.5: base<<4 + extra bits.
var (
	lengthBase = [29]uint16{
		3 << 4, 4 << 4, 5 << 4, 6 << 4, 7 << 4, 8 << 4, 9 << 4, 10 << 4,
		11<<4 + 1, 13<<4 + 1, 15<<4 + 1, 17<<4 + 1, 19<<4 + 2, 23<<4 + 2, 27<<4 + 2, 31<<4 + 2,
		35<<4 + 3, 43<<4 + 3, 51<<4 + 3, 59<<4 + 3, 67<<4 + 4, 83<<4 + 4, 99<<4 + 4, 115<<4 + 4,
		131<<4 + 5, 163<<4 + 5, 195<<4 + 5, 227<<4 + 5, 258 << 4,
	}
	distBase = [30]uint32{
		1 << 4, 2 << 4, 3 << 4, 4 << 4, 5<<4 + 1, 7<<4 + 1, 9<<4 + 2, 13<<4 + 2,
		17<<4 + 3, 25<<4 + 3, 33<<4 + 4, 49<<4 + 4, 65<<4 + 5, 97<<4 + 5, 129<<4 + 6, 193<<4 + 6,
		257<<4 + 7, 385<<4 + 7, 513<<4 + 8, 769<<4 + 8, 1025<<4 + 9, 1537<<4 + 9, 2049<<4 + 10, 3073<<4 + 10,
		4097<<4 + 11, 6145<<4 + 11, 8193<<4 + 12, 12289<<4 + 12, 16385<<4 + 13, 24577<<4 + 13,
	}
)

func litEntry(symbol uint16, n int) uint32 {
	switch {
	case symbol < endOfBlock:
		return flagLiteral | uint32(symbol)<<16 | uint32(n)
	case symbol == endOfBlock:
		return flagSpecial | flagEnd | uint32(n)
	case symbol < maxLitLen:
		base := uint32(lengthBase[symbol-endOfBlock-1])
		return base>>4<<16 | uint32(n)<<8 | (uint32(n) + base&15)
	default:
		return noCode
	}
}

func distEntry(symbol uint16, n int) uint32 {
	if symbol >= maxDist {
		return noCode
	}
	base := distBase[symbol]
	return base>>4<<16 | uint32(n)<<8 | (uint32(n) + base&15)
}

// build makes the table for code lengths of literals and lengths. It is false
// if they are no code.
func (t *litTable) build(lengths []uint8) bool {
	var c code
	return c.set(lengths) && c.fill(t.entries[:], litBits, litEntry)
}

// build makes the table for code lengths of distances.
func (t *distTable) build(lengths []uint8) bool {
	var c code
	return c.set(lengths) && c.fill(t.entries[:], distBits, distEntry)
}

// build makes the table for the code of code lengths, which has no exceptions.
func (t *lengthTable) build(lengths []uint8) bool {
	var c code
	if !c.set(lengths) || c.empty || c.single {
		return false
	}
	var table [1 << lengthBits]uint32
	ok := c.fill(table[:], lengthBits, func(symbol uint16, n int) uint32 { return uint32(symbol)<<4 | uint32(n) })
	for i, e := range table {
		t.entries[i] = uint16(e)
	}
	return ok
}
