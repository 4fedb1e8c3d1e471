package inflate_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-project/coffer/oci/internal/inflate"
)

func gunzip(stream []byte) ([]byte, error) {
	z, err := inflate.NewGzipReader(bytes.NewReader(stream))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func gzipped(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
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

func TestGzip(t *testing.T) {
	for name, data := range corpus() {
		for level := range 10 {
			t.Run(fmt.Sprintf("%s/%d", name, level), func(t *testing.T) {
				t.Parallel()
				stream := gzipped(t, data, level)
				got, err := gunzip(stream)
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("got %d bytes, error %v; want %d", len(got), err, len(data))
				}
			})
		}
	}
	data := corpus()["text"]
	z, err := inflate.NewGzipReader(bytes.NewReader(gzipped(t, data, 6)))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(z, data); err != nil {
		t.Error(err)
	}
}

// header is a gzip header with these flags and fields, and with its CRC if the
// flags say so.
func header(flags byte, fields string) []byte {
	h := append([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255}, fields...)
	if flags&2 != 0 {
		h = binary.LittleEndian.AppendUint16(h, uint16(crc32.ChecksumIEEE(h)))
	}
	return h
}

// gzipCases are members with "x" in them, as header and what follows say.
func gzipCases(t testing.TB) []streamCase {
	member := gzipped(t, []byte("x"), 6)
	rest := member[10:]
	wrong := func(i int) []byte {
		m := slices.Clone(member)
		m[len(m)-8+i] ^= 1
		return m
	}
	badCRC := header(2, "")
	badCRC[10] ^= 1
	const few, most, many = 500, 64 << 10, 64<<10 + 1
	return []streamCase{
		{"nothing", nil, "", "unexpected EOF"},
		{"one byte", []byte{0x1f}, "", "unexpected EOF"},
		{"no gzip", []byte("PK\x03\x04......"), "", "gzip: expected a header, which begins with 1f 8b, got 50 4b"},
		{"method", []byte{0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0}, "", "gzip: compression method: expected 8, got 7"},
		{"text", slices.Concat(header(1, ""), rest), "x", ""},
		{"header CRC", slices.Concat(header(2, ""), rest), "x", ""},
		{"wrong header CRC", slices.Concat(badCRC, rest), "", "gzip: CRC-16 of the header: expected"},
		{"extra", slices.Concat(header(4, "\x03\x00abc"), rest), "x", ""},
		{"most extra", slices.Concat(header(4+2, "\xff\xff"+strings.Repeat("e", 0xffff)), rest), "x", ""},
		{"extra that ends early", header(4, "\x04\x00abc"), "", "unexpected EOF"},
		{"all fields", slices.Concat(header(1+2+4+8+16, "\x01\x00e"+"name\x00"+"comment\x00"), rest), "x", ""},
		{"name", slices.Concat(header(8, strings.Repeat("n", few)+"\x00"), rest), "x", ""},
		{"longest name", slices.Concat(header(8, strings.Repeat("n", most)+"\x00"), rest), "x", ""},
		{"name too long", slices.Concat(header(8, strings.Repeat("n", many)+"\x00"), rest), "", "gzip: the file name is longer than 65536 bytes"},
		{"comment too long", slices.Concat(header(16, strings.Repeat("c", many)+"\x00"), rest), "", "gzip: the comment is longer than 65536 bytes"},
		{"name without end", header(8, "name"), "", "unexpected EOF"},
		{"reserved flag", slices.Concat(header(0x20, ""), rest), "", "gzip: flags 0x20: those of 0xe0 are reserved"},
		{"CRC", wrong(0), "x", "gzip: CRC-32: expected"},
		{"length", wrong(4), "x", "gzip: length modulo 2^32: expected 0, got 1"},
		{"no trailer", member[:len(member)-8], "x", "unexpected EOF"},
		{"half a trailer", member[:len(member)-4], "x", "unexpected EOF"},
		{"block type", slices.Concat(member[:10], []byte{7}), "", "corrupt at offset 10: block type"},
		{"members", slices.Concat(member, gzipped(t, nil, 6), header(8, "n\x00"), rest), "xx", ""},
		{"no history of another member", slices.Concat(member, member[:10], new(bitWriter).write(1, 1).write(1, 2).write(0b1000000, 7).write(0, 20).bytes()), "x", "a match 1 bytes back, 0 bytes from the beginning"},
		{"half a header behind", slices.Concat(member, []byte{0x1f, 0x8b}), "x", "unexpected EOF"},
		{"zeros behind", slices.Concat(member, make([]byte, 100_000)), "x", ""},
		{"zeros and more behind", slices.Concat(member, make([]byte, 100_000), []byte{'g'}), "x", "gzip: expected nothing but zeros behind the last member, got 0x67"},
		{"zeros and a member behind", slices.Concat(member, []byte{0}, member), "x", "gzip: expected nothing but zeros"},
		{"garbage behind", slices.Concat(member, []byte("garbage garbage")), "x", "gzip: expected a header, which begins with 1f 8b, got 67 61"},
	}
}

func TestGzipCases(t *testing.T) {
	for _, c := range gzipCases(t) {
		t.Run(c.name, func(t *testing.T) {
			for _, wrap := range []func(io.Reader) io.Reader{iotest.HalfReader, iotest.OneByteReader, iotest.DataErrReader} {
				var got []byte
				z, err := inflate.NewGzipReader(wrap(bytes.NewReader(c.stream)))
				if err == nil {
					got, err = io.ReadAll(z)
				}
				if string(got) != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				switch {
				case c.problem == "unexpected EOF":
					if err != io.ErrUnexpectedEOF {
						t.Errorf("error %v, want %v", err, io.ErrUnexpectedEOF)
					}
				case c.problem == "":
					if err != nil {
						t.Errorf("error %v", err)
					}
				case !corrupt(err) || !strings.Contains(err.Error(), c.problem):
					t.Errorf("error %v, want a CorruptError with %q", err, c.problem)
				}
				if z != nil {
					if n, again := z.Read(make([]byte, 1)); n != 0 || (err != nil && again != err) || (err == nil && again != io.EOF) {
						t.Errorf("reading on: %d, %v", n, again)
					}
				}
			}
		})
	}
}

// Thousands of members, as eStargz has them.
func TestManyMembers(t *testing.T) {
	var stream, want []byte
	for i := range 3000 {
		data := bytes.Repeat([]byte{byte(i)}, i%700)
		stream = append(stream, gzipped(t, data, 1+i%9)...)
		want = append(want, data...)
	}
	got, err := gunzip(stream)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, error %v; want %d", len(got), err, len(want))
	}
}
