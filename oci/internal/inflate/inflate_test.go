package inflate_test

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-project/coffer/oci/internal/inflate"
)

func decode(stream []byte) ([]byte, error) {
	return io.ReadAll(inflate.NewReader(bytes.NewReader(stream)))
}

// corpus are contents of different kinds.
func corpus() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 40_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 80_000)
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 8)
	}
	var text strings.Builder
	for text.Len() < 300_000 {
		fmt.Fprintf(&text, "%x the %d-th of them, ", r.Uint32N(5000), r.IntN(100))
	}
	var runs []byte
	for len(runs) < 150_000 {
		runs = append(runs, bytes.Repeat(random[len(runs)%1000:][:1+r.IntN(20)], 1+r.IntN(100))...)
	}
	return map[string][]byte{
		"empty": {}, "byte": {7}, "random": random, "skewed": skewed, "text": []byte(text.String()), "runs": runs,
		"zeros": make([]byte, 400_000), "far": slices.Concat(random[:32768], random[:32768], random[:1000]),
	}
}

func deflated(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// countingWriter knows the largest piece.
type countingWriter struct {
	bytes.Buffer
	largest int
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.largest = max(w.largest, len(p))
	return w.Buffer.Write(p)
}

// What compress/flate writes is read, however it comes and is taken.
func TestReaders(t *testing.T) {
	sources := map[string]func(io.Reader) io.Reader{
		"whole":        func(r io.Reader) io.Reader { return r },
		"one byte":     iotest.OneByteReader,
		"half":         iotest.HalfReader,
		"data and EOF": iotest.DataErrReader,
	}
	for name, data := range corpus() {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			stream := deflated(t, data, level)
			for source, wrap := range sources {
				t.Run(fmt.Sprintf("%s/%d/%s", name, level, source), func(t *testing.T) {
					t.Parallel()
					z := inflate.NewReader(wrap(bytes.NewReader(stream)))
					got, err := io.ReadAll(z)
					if err != nil || !bytes.Equal(got, data) {
						t.Fatalf("Read: got %d bytes, error %v; want %d", len(got), err, len(data))
					}
					if n, err := z.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("Read at the end: %d, %v", n, err)
					}
					z.Reset(wrap(bytes.NewReader(stream)))
					var w countingWriter
					n, err := z.WriteTo(&w)
					if err != nil || n != int64(len(data)) || !bytes.Equal(w.Bytes(), data) {
						t.Fatalf("WriteTo: %d, %v, wrote %d bytes; want %d", n, err, w.Len(), len(data))
					}
					if w.largest > 300<<10 {
						t.Errorf("WriteTo wrote %d bytes at once", w.largest)
					}
				})
			}
		}
	}
	data := corpus()["text"]
	z := inflate.NewReader(bytes.NewReader(deflated(t, data, 6)))
	if err := iotest.TestReader(z, data); err != nil {
		t.Error(err)
	}
}

// Blocks made by hand, with all codes that there can be.
func TestBlocks(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 5))
		var w bitWriter
		var want []byte
		for block, blocks := 0, 1+r.IntN(4); block < blocks; block++ {
			final := uint32(0)
			if block == blocks-1 {
				final = 1
			}
			kind := r.IntN(3)
			if kind == 0 {
				data := make([]byte, r.IntN(2000)*r.IntN(20))
				for i := range data {
					data[i] = byte(r.Uint32())
				}
				w.stored(final, data)
				want = append(want, data...)
				continue
			}
			tokens := randomTokens(r, len(want), r.IntN(50_000))
			lit, dist := fixedCodes()
			if kind == 1 {
				w.write(final, 1).write(1, 2)
			} else {
				lit, dist = randomCode(r, 286), randomCode(r, 30)
				w.dynamicHeader(final, lit, dist, r.IntN(2) == 0)
			}
			w.tokens(lit, dist, tokens)
			want = expand(want, tokens)
		}
		got, err := decode(w.bytes())
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: got %d bytes, error %v, want %d", seed, len(got), err, len(want))
		}
		if theirs, err := io.ReadAll(flate.NewReader(bytes.NewReader(w.bytes()))); err != nil || !bytes.Equal(theirs, want) {
			t.Fatalf("seed %d: compress/flate: %d bytes, error %v, want %d", seed, len(theirs), err, len(want))
		}
	}
}

// Every distance and length, at places where the fast loop decodes, and the
// careful one.
func TestMatches(t *testing.T) {
	lit, dist := fixedCodes()
	r := rand.New(rand.NewPCG(3, 4))
	var start []token
	for range 32768 {
		start = append(start, token{literal: byte(r.Uint32())})
	}
	for d := 1; d <= 32768; d += 1 + d/12 {
		var tokens []token
		for _, length := range []int{3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 257, 258} {
			tokens = append(tokens, token{length: length, dist: d}, token{literal: 'x'})
		}
		for _, tail := range []int{0, 100} {
			all := slices.Concat(start, tokens, slices.Repeat([]token{{literal: 'y'}}, tail))
			stream := new(bitWriter).write(1, 1).write(1, 2).tokens(lit, dist, all).bytes()
			if got, err := decode(stream); err != nil || !bytes.Equal(got, expand(nil, all)) {
				t.Fatalf("distance %d: %d bytes, error %v", d, len(got), err)
			}
		}
	}
}
