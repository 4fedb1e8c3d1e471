package inflate_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/coffer-project/coffer/oci/internal/inflate"
)

// maxFuzzOutput bounds what a fuzzed stream is decoded to.
const maxFuzzOutput = 1 << 20

// pieces gives its content in pieces of any size.
type pieces struct {
	rest []byte
	rand *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(len(p.rest), p.rand.IntN(40))])
	p.rest = p.rest[n:]
	return n, nil
}

// compareFlate decodes a stream with both decoders. They must agree on whether
// it is valid and on all output, but for two kinds of invalid streams. We refuse
// at once a dynamic block that can never end, as its end has no code word;
// compress/flate decodes it to the end of the input. And where the input ends
// early we decode all that is there, but compress/flate leaves out symbols whose
// code words are shorter than that for the end of the block.
//
// z decodes one stream after the other.
func compareFlate(t *testing.T, z *inflate.Reader, stream []byte) {
	want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(stream)), maxFuzzOutput))
	sources := map[string]io.Reader{
		"whole":  bytes.NewReader(stream),
		"pieces": &pieces{stream, rand.New(rand.NewPCG(uint64(len(stream)), 1))},
	}
	for name, r := range sources {
		z.Reset(r)
		got, err := io.ReadAll(io.LimitReader(z, maxFuzzOutput))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%s: error %v, compress/flate %v", name, err, wantErr)
		}
		same := bytes.Equal(got, want) ||
			noEnd(err) && bytes.HasPrefix(want, got) ||
			err == io.ErrUnexpectedEOF && bytes.HasPrefix(got, want)
		if !same {
			t.Fatalf("%s: %d bytes (%v), compress/flate %d (%v)", name, len(got), err, len(want), wantErr)
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !corrupt(err) {
			t.Fatalf("%s: error %v is of no known type", name, err)
		}
	}
}

func noEnd(err error) bool {
	c, ok := errors.AsType[*inflate.CorruptError](err)
	return ok && (c.Problem == "dynamic block: there is no code for its end" || c.Problem == "dynamic block: the code of the code lengths is not complete")
}

func corrupt(err error) bool {
	_, ok := errors.AsType[*inflate.CorruptError](err)
	return ok
}

// seeds are streams of all kinds of blocks, valid but for the last ones.
func seeds(t testing.TB) [][]byte {
	var out [][]byte
	for _, data := range corpus() {
		data = data[:min(len(data), 2000)]
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			out = append(out, deflated(t, data, level))
		}
	}
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 9))
		lit, dist := randomCode(r, 286), randomCode(r, 30)
		out = append(out, new(bitWriter).dynamicHeader(1, lit, dist, true).tokens(lit, dist, randomTokens(r, 0, 400)).bytes())
	}
	for _, c := range headerCases() {
		out = append(out, c.stream)
	}
	return out
}

func FuzzInflate(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	z := inflate.NewReader(nil)
	f.Fuzz(func(t *testing.T, stream []byte) { compareFlate(t, z, stream) })
}

// FuzzGzip compares with compress/gzip. We refuse reserved flags (RFC 1952,
// 2.3.1.2), which it ignores, and accept zeros behind the last member and names
// of 512 bytes or more, which it refuses.
func FuzzGzip(f *testing.F) {
	for _, name := range []string{"empty", "byte", "text", "random"} {
		data := corpus()[name]
		f.Add(gzipped(f, data[:min(len(data), 1000)], 6))
	}
	for _, c := range gzipCases(f) {
		f.Add(c.stream)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		var want []byte
		theirs, wantErr := gzip.NewReader(bytes.NewReader(stream))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(theirs, maxFuzzOutput))
		}
		var got []byte
		ours, err := inflate.NewGzipReader(&pieces{stream, rand.New(rand.NewPCG(uint64(len(stream)), 2))})
		if err == nil {
			got, err = io.ReadAll(io.LimitReader(ours, maxFuzzOutput))
		}
		if err == nil && wantErr == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, compress/gzip %d", len(got), len(want))
		}
		if err != nil && wantErr == nil {
			if c, ok := errors.AsType[*inflate.CorruptError](err); !ok || !bytes.Contains([]byte(c.Problem), []byte("reserved")) {
				t.Fatalf("error %v, compress/gzip has none", err)
			}
		}
		if err == nil && wantErr != nil && !errors.Is(wantErr, gzip.ErrHeader) {
			t.Fatalf("no error, compress/gzip %v", wantErr)
		}
	})
}
