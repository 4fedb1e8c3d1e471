package inflate_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-project/coffer/oci/internal/inflate"
)

type streamCase struct {
	name    string
	stream  []byte
	want    string // output
	problem string // of the error; none if empty
}

// with is a code of n symbols with these code lengths.
func with(n int, lengths map[int]uint8) huffman {
	l := make([]uint8, n)
	for s, k := range lengths {
		l[s] = k
	}
	return newHuffman(l)
}

// headerCases are the edges of RFC 1951, 3.2.3 to 3.2.7.
func headerCases() []streamCase {
	a, match := token{literal: 'a'}, token{length: 4, dist: 1}
	lit := with(286, map[int]uint8{'a': 2, 'b': 2, 256: 2, 258: 2})
	none, one := with(1, nil), with(1, map[int]uint8{0: 1})
	fixedLit, fixedDist := fixedCodes()
	new := func() *bitWriter { return &bitWriter{} }
	raw := func(l huffman, d huffman) *bitWriter { return new().dynamicHeader(1, l, d, false) }
	return []streamCase{
		{"nothing", nil, "", "unexpected EOF"},
		{"block type 3", new().write(1, 1).write(3, 2).bytes(), "", "block type: expected 0, 1 or 2, got 3"},
		{"empty stored", new().stored(1, nil).bytes(), "", ""},
		{"empty fixed", new().write(1, 1).write(1, 2).tokens(fixedLit, fixedDist, nil).bytes(), "", ""},
		{"empty blocks before", new().stored(0, nil).stored(0, nil).stored(1, []byte("x")).bytes(), "x", ""},
		{"stored complement", []byte{1, 2, 0, 0xfd, 0xfe, 'x', 'y'}, "", "stored block: length 0x0002 has complement 0xfefd, expected 0xfffd"},
		{"stored too short", []byte{1, 3, 0, 0xfc, 0xff, 'x', 'y'}, "xy", "unexpected EOF"},
		{"behind the end", append(new().stored(1, []byte("x")).bytes(), "more"...), "x", ""},

		{"no distance code", raw(lit, none).tokens(lit, none, []token{a, a}).bytes(), "aa", ""},
		{"no distance code, used", lit2(raw(lit, none), lit).write(0, 30).bytes(), "a", "distance with a code word that the block does not have"},
		{"one distance code", raw(lit, one).tokens(lit, one, []token{a, match, match}).bytes(), "aaaaaaaaa", ""},
		{"one distance code, the other used", lit2(raw(lit, one), lit).write(1, 1).write(0, 30).bytes(), "a", "distance with a code word that the block does not have"},
		{"one distance code of two bits", raw(lit, with(1, map[int]uint8{0: 2})).bytes(), "", "dynamic block: the distance code is not complete"},
		{"oversubscribed distance code", raw(lit, with(3, map[int]uint8{0: 1, 1: 1, 2: 1})).bytes(), "", "dynamic block: the distance code is not complete"},
		{"end of block alone", raw(with(257, map[int]uint8{256: 1}), none).write(0, 1).bytes(), "", ""},
		{"end of block alone, the other used", raw(with(257, map[int]uint8{256: 1}), none).write(1, 1).write(0, 30).bytes(), "", "literal or length with a code word that the block does not have"},
		{"incomplete literal code", raw(with(257, map[int]uint8{'a': 2, 256: 2}), one).bytes(), "", "dynamic block: the literal and length code is not complete"},
		{"oversubscribed literal code", raw(with(257, map[int]uint8{'a': 1, 'b': 1, 256: 1}), one).bytes(), "", "dynamic block: the literal and length code is not complete"},
		{"no end of block", raw(with(257, map[int]uint8{'a': 1, 'b': 1}), one).bytes(), "", "dynamic block: there is no code for its end"},
		{"no literal code", raw(with(257, nil), one).bytes(), "", "dynamic block: there is no code for its end"},

		{"287 literal codes", new().write(1, 1).write(2, 2).write(30, 5).write(0, 9).bytes(), "", "dynamic block: 287 literal and length codes, at most 286 are allowed"},
		{"31 distance codes", new().write(1, 1).write(2, 2).write(0, 5).write(30, 5).write(0, 4).bytes(), "", "dynamic block: 31 distance codes, at most 30 are allowed"},
		{"no code lengths", new().write(1, 1).write(2, 2).write(0, 14).write(0, 12).bytes(), "", "dynamic block: the code of the code lengths is not complete"},
		{"one code length", new().write(1, 1).write(2, 2).write(0, 14).write(1, 12).write(0, 20).bytes(), "", "dynamic block: the code of the code lengths is not complete"},
		{"oversubscribed code lengths", new().write(1, 1).write(2, 2).write(0, 14).write(0o1111, 12).bytes(), "", "dynamic block: the code of the code lengths is not complete"},
		// 16 and 17 have one bit.
		{"repetition of nothing", new().write(1, 1).write(2, 2).write(0, 14).write(0o0011, 12).write(0, 8).bytes(), "", "dynamic block: it begins with a repeated code length"},
		// 17 and 18 have one bit: 138 + 138 > 258.
		{"too many code lengths", new().write(1, 1).write(2, 2).write(0, 14).write(0o0110, 12).write(0xffff, 16).bytes(), "", "dynamic block: more than 258 code lengths"},

		{"fixed 286", new().write(1, 1).write(1, 2).write(0b01100011, 8).write(0, 20).bytes(), "", "literal or length with a code word that the block does not have"},
		{"fixed 287", new().write(1, 1).write(1, 2).write(0b11100011, 8).write(0, 20).bytes(), "", "literal or length with a code word that the block does not have"},
		{"fixed distance 30", lit3(fixedLit).write(0b01111, 5).write(0, 30).bytes(), "a", "distance with a code word that the block does not have"},
		{"too far", new().write(1, 1).write(1, 2).tokens(fixedLit, fixedDist, []token{a, {length: 3, dist: 2}}).bytes(), "a", "a match 2 bytes back, 1 bytes from the beginning"},
		{"too far at once", new().write(1, 1).write(1, 2).tokens(fixedLit, fixedDist, []token{{length: 3, dist: 1}}).bytes(), "", "a match 1 bytes back, 0 bytes from the beginning"},
		{"258 the long way", long258(fixedLit).bytes(), strings.Repeat("a", 259), ""},
	}
}

// lit2 writes an a and a length of 4, and lit3 does, with the fixed codes; the
// distance follows.
func lit2(w *bitWriter, lit huffman) *bitWriter {
	lit.write(w, 'a')
	lit.write(w, 258)
	return w
}

func lit3(lit huffman) *bitWriter { return lit2(new(bitWriter).write(1, 1).write(1, 2), lit) }

// long258 has a length of 258 as symbol 284 with all extra bits set.
func long258(lit huffman) *bitWriter {
	w := new(bitWriter).write(1, 1).write(1, 2)
	lit.write(w, 'a')
	lit.write(w, 284)
	w.write(31, 5).write(0, 5)
	lit.write(w, 256)
	return w
}

// The same stream is decoded carefully, and by the fast loop, for which more
// input is put behind.
func TestHeaders(t *testing.T) {
	z := inflate.NewReader(nil)
	for _, c := range headerCases() {
		t.Run(c.name, func(t *testing.T) {
			for _, tail := range []int{0, 100} {
				stream := slices.Concat(c.stream, make([]byte, tail))
				got, err := decode(stream)
				if c.problem == "unexpected EOF" && tail > 0 {
					continue
				}
				if string(got) != c.want {
					t.Errorf("%d bytes behind: got %q, want %q", tail, got, c.want)
				}
				if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
					t.Errorf("%d bytes behind: error %v, want %q", tail, err, c.problem)
				}
				compareFlate(t, z, stream)
			}
		})
	}
}

// Streams that end early, wherever that is.
func TestTruncated(t *testing.T) {
	z := inflate.NewReader(nil)
	streams := map[string][]byte{"byte by hand": new(bitWriter).stored(1, []byte("abc")).bytes()}
	for _, name := range []string{"text", "runs", "skewed", "random"} {
		streams[name] = deflated(t, corpus()[name][:3000], 6)
	}
	r := rand.New(rand.NewPCG(8, 8))
	lit, dist := randomCode(r, 286), randomCode(r, 30)
	streams["long codes"] = new(bitWriter).dynamicHeader(1, lit, dist, false).tokens(lit, dist, randomTokens(r, 0, 3000)).bytes()
	for name, stream := range streams {
		whole, err := decode(stream)
		if err != nil {
			t.Fatal(name, err)
		}
		for n := range stream {
			got, err := decode(stream[:n])
			if err != io.ErrUnexpectedEOF || !bytes.HasPrefix(whole, got) {
				t.Fatalf("%s, first %d bytes: %d bytes, error %v", name, n, len(got), err)
			}
			if n%16 == 0 {
				compareFlate(t, z, stream[:n])
			}
		}
	}
}

// Streams with bits flipped: accepted and decoded as compress/flate does.
func TestFlipped(t *testing.T) {
	z := inflate.NewReader(nil)
	for _, stream := range seeds(t) {
		stream = stream[:min(len(stream), 300)]
		for bit := range len(stream) * 8 {
			if bit > 700 && bit%37 != 0 {
				continue
			}
			s := slices.Clone(stream)
			s[bit/8] ^= 1 << (bit % 8)
			compareFlate(t, z, s)
		}
	}
}

// A source's errors come through, behind what was decoded before.
func TestSourceErrors(t *testing.T) {
	data := corpus()["text"]
	stream := deflated(t, data, 6)
	broken := errors.New("broken")
	half := stream[:len(stream)/2]
	got, err := io.ReadAll(inflate.NewReader(io.MultiReader(bytes.NewReader(half), iotest.ErrReader(broken))))
	if err != broken {
		t.Errorf("error %v, want %v", err, broken)
	}
	if want, _ := io.ReadAll(flate.NewReader(bytes.NewReader(half))); !bytes.HasPrefix(got, want) || len(want) == 0 {
		t.Errorf("%d bytes before the error, want %d", len(got), len(want))
	}
	if _, err := decodeFrom(readerFunc(func([]byte) (int, error) { return 0, nil })); err != io.ErrNoProgress {
		t.Errorf("a source that gives nothing: %v", err)
	}
	for _, n := range []int{-1, 1 << 30} {
		if _, err := decodeFrom(readerFunc(func([]byte) (int, error) { return n, nil })); err == nil || !strings.Contains(err.Error(), "Read returned") {
			t.Errorf("a source that returns %d: %v", n, err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func decodeFrom(r io.Reader) ([]byte, error) { return io.ReadAll(inflate.NewReader(r)) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestWriteToErrors(t *testing.T) {
	stream := deflated(t, corpus()["text"], 6)
	full := errors.New("full")
	for _, c := range []struct {
		w    writerFunc
		n    int64
		want string
	}{
		{func(p []byte) (int, error) { return 5, full }, 5, "full"},
		{func(p []byte) (int, error) { return 7, nil }, 7, "short write"},
		{func(p []byte) (int, error) { return len(p) + 1, nil }, 0, "Write returned"},
	} {
		n, err := inflate.NewReader(bytes.NewReader(stream)).WriteTo(c.w)
		if n != c.n || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d, %v; want %d, %s", n, err, c.n, c.want)
		}
	}
}

// What is decoded is handed out before more input is waited for.
func TestFlushed(t *testing.T) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("some text")); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r, pipe := io.Pipe()
	defer r.Close()
	go pipe.Write(b.Bytes()) //nolint:errcheck // ends with the pipe
	p := make([]byte, 100)
	n, err := io.ReadAtLeast(inflate.NewReader(r), p, 9)
	if err != nil || string(p[:n]) != "some text" {
		t.Errorf("got %q, %v", p[:n], err)
	}
}

// 128 MiB, through a pipe.
func TestHuge(t *testing.T) {
	if testing.Short() {
		t.Skip("128 MiB")
	}
	block := make([]byte, 4<<20)
	for i := range block {
		block[i] = byte(i / 4096)
	}
	r, w := io.Pipe()
	go func() {
		z, _ := flate.NewWriter(w, 1)
		for range 32 {
			if _, err := z.Write(block); err != nil {
				break
			}
		}
		w.CloseWithError(z.Close())
	}()
	at, wrong := 0, -1
	n, err := inflate.NewReader(r).WriteTo(writerFunc(func(p []byte) (int, error) {
		for rest := p; len(rest) > 0; {
			k := min(len(rest), len(block)-at%len(block))
			if !bytes.Equal(rest[:k], block[at%len(block):][:k]) && wrong < 0 {
				wrong = at
			}
			at += k
			rest = rest[k:]
		}
		return len(p), nil
	}))
	if err != nil || n != 32*int64(len(block)) || wrong >= 0 {
		t.Errorf("%d bytes, error %v, first wrong piece at %d", n, err, wrong)
	}
}

func TestAllocations(t *testing.T) {
	data := corpus()["text"]
	stream := deflated(t, data, 6)
	gz := gzipped(t, data, 6)
	src := bytes.NewReader(nil)
	z := inflate.NewReader(src)
	g, err := inflate.NewGzipReader(bytes.NewReader(gz))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(5, func() {
		src.Reset(stream)
		z.Reset(src)
		if _, err := z.WriteTo(io.Discard); err != nil {
			t.Error(err)
		}
		src.Reset(gz)
		if err := g.Reset(src); err != nil {
			t.Error(err)
		}
		if _, err := g.WriteTo(io.Discard); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
