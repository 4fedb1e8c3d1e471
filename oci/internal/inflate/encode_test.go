package inflate_test

import (
	"math/bits"
	"math/rand/v2"
	"slices"
)

// bitWriter makes DEFLATE streams by hand.
type bitWriter struct {
	buf  []byte
	bits uint64
	n    uint
}

// write appends the lowest n bits of v, at most 32, the lowest first.
func (w *bitWriter) write(v uint32, n int) *bitWriter {
	w.bits |= uint64(v) & (1<<n - 1) << w.n
	for w.n += uint(n); w.n >= 8; w.n -= 8 {
		w.buf = append(w.buf, byte(w.bits))
		w.bits >>= 8
	}
	return w
}

// align fills the last byte.
func (w *bitWriter) align() *bitWriter {
	if w.n > 0 {
		w.write(0, int(8-w.n))
	}
	return w
}

func (w *bitWriter) bytes() []byte { return slices.Clone(w.align().buf) }

func (w *bitWriter) stored(final uint32, data []byte) *bitWriter {
	w.write(final, 1).write(0, 2).align()
	w.write(uint32(len(data)), 16).write(^uint32(len(data)), 16)
	w.buf = append(w.buf, data...)
	return w
}

// huffman is a canonical code: for each symbol the length of its code word, 0
// if it has none, and the word with its first bit lowest.
type huffman struct {
	lengths []uint8
	words   []uint32
}

func newHuffman(lengths []uint8) huffman {
	h := huffman{lengths, make([]uint32, len(lengths))}
	word := uint32(0)
	for n := uint8(1); n <= 15; n++ {
		for s, k := range lengths {
			if k == n {
				h.words[s] = bits.Reverse32(word << (32 - n))
				word++
			}
		}
		word <<= 1
	}
	return h
}

func (h huffman) write(w *bitWriter, symbol int) {
	w.write(h.words[symbol], int(h.lengths[symbol]))
}

// dynamicHeader writes the header of a block with these codes. Code lengths
// are written one by one, or with all kinds of repetitions.
func (w *bitWriter) dynamicHeader(final uint32, lit, dist huffman, repeat bool) *bitWriter {
	w.write(final, 1).write(2, 2)
	w.write(uint32(len(lit.lengths)-257), 5).write(uint32(len(dist.lengths)-1), 5).write(19-4, 4)
	cl := newHuffman([]uint8{4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5})
	for _, s := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
		w.write(uint32(cl.lengths[s]), 3)
	}
	all := slices.Concat(lit.lengths, dist.lengths)
	for i := 0; i < len(all); {
		run := 1
		for i+run < len(all) && all[i+run] == all[i] {
			run++
		}
		switch {
		case repeat && all[i] == 0 && run >= 11:
			run = min(run, 138)
			cl.write(w, 18)
			w.write(uint32(run-11), 7)
		case repeat && all[i] == 0 && run >= 3:
			run = min(run, 10)
			cl.write(w, 17)
			w.write(uint32(run-3), 3)
		case repeat && i > 0 && all[i-1] == all[i] && run >= 3:
			run = min(run, 6)
			cl.write(w, 16)
			w.write(uint32(run-3), 2)
		default:
			cl.write(w, int(all[i]))
			run = 1
		}
		i += run
	}
	return w
}

var lengthSymbols = func() (t [259][3]uint32) { // symbol, extra, extra bits
	base := uint32(3)
	for symbol := uint32(257); symbol < 285; symbol++ {
		bits := uint32(0)
		if symbol >= 265 {
			bits = (symbol - 261) / 4
		}
		for extra := range uint32(1) << bits {
			t[base] = [3]uint32{symbol, extra, bits}
			if base < 258 {
				base++
			}
		}
	}
	t[258] = [3]uint32{285, 0, 0}
	return t
}()

func distSymbol(dist int) (symbol, extra, bits int) {
	base := 1
	for symbol = range 30 {
		bits = max(0, symbol/2-1)
		if dist < base+1<<bits {
			return symbol, dist - base, bits
		}
		base += 1 << bits
	}
	return 0, 0, 0
}

// token is a literal (length 0) or a match.
type token struct {
	literal      byte
	length, dist int
}

func (w *bitWriter) tokens(lit, dist huffman, tokens []token) *bitWriter {
	for _, t := range tokens {
		if t.length == 0 {
			lit.write(w, int(t.literal))
			continue
		}
		l := lengthSymbols[t.length]
		lit.write(w, int(l[0]))
		w.write(l[1], int(l[2]))
		symbol, extra, bits := distSymbol(t.dist)
		dist.write(w, symbol)
		w.write(uint32(extra), bits)
	}
	lit.write(w, 256)
	return w
}

// expand decodes tokens the plain way, behind out.
func expand(out []byte, tokens []token) []byte {
	for _, t := range tokens {
		if t.length == 0 {
			out = append(out, t.literal)
		}
		for range t.length {
			out = append(out, out[len(out)-t.dist])
		}
	}
	return out
}

// randomCode is a complete code for all n symbols, with words of up to 15 bits.
func randomCode(r *rand.Rand, n int) huffman {
	words := []uint8{0}
	for len(words) < n {
		i := r.IntN(len(words))
		if r.IntN(2) == 0 {
			i = len(words) - 1 // deep ones
		}
		if words[i] < 15 {
			words[i]++
			words = append(words, words[i])
		}
	}
	r.Shuffle(n, func(i, j int) { words[i], words[j] = words[j], words[i] })
	return newHuffman(words)
}

func fixedCodes() (lit, dist huffman) {
	var lengths []uint8
	for i := range 288 {
		switch {
		case i < 144, i >= 280:
			lengths = append(lengths, 8)
		case i < 256:
			lengths = append(lengths, 9)
		default:
			lengths = append(lengths, 7)
		}
	}
	return newHuffman(lengths), newHuffman(slices.Repeat([]uint8{5}, 32))
}

// randomTokens are tokens that yield about n bytes behind have bytes.
func randomTokens(r *rand.Rand, have, n int) []token {
	var tokens []token
	for end := have + n; have < end; {
		if have == 0 || r.IntN(3) > 0 {
			tokens = append(tokens, token{literal: byte(r.IntN(256))})
			have++
			continue
		}
		t := token{length: 3 + r.IntN(256), dist: 1 + r.IntN(min(have, 1<<(1+r.IntN(15))))}
		if r.IntN(2) == 0 {
			t.length = 3 + r.IntN(16)
		}
		tokens = append(tokens, t)
		have += t.length
	}
	return tokens
}
