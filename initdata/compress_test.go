package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"strings"
	"testing"
)

func pack(t testing.TB, raw []byte) []byte {
	t.Helper()
	gz, err := Compress(raw)
	if err != nil {
		t.Fatal(err)
	}
	return gz
}

func TestAnnotation(t *testing.T) {
	t.Parallel()
	s, err := EncodeAnnotation([]byte(vector))
	if err != nil {
		t.Fatal(err)
	}
	again, err := EncodeAnnotation([]byte(vector))
	if err != nil || s != again {
		t.Errorf("not deterministic (%v)", err)
	}
	raw, err := DecodeAnnotation(s)
	if err != nil || string(raw) != vector {
		t.Errorf("DecodeAnnotation = %q, %v", raw, err)
	}
	for name, tc := range map[string]struct{ in, want string }{
		"empty":      {"", "not gzip data"},
		"line break": {s[:10] + "\n" + s[10:], "line break"},
		"newline":    {s + "\n", "line break"},
		"alphabet":   {strings.Repeat("-_", 20), "not standard base64"},
		"padding":    {s + "=", "not standard base64"},
		"plain":      {base64.StdEncoding.EncodeToString([]byte(vector)), "not gzip data"},
		"long":       {strings.Repeat("A", 4*MaxBytes), "more than a document"},
	} {
		if raw, err := DecodeAnnotation(tc.in); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %d bytes, %v; want an error with %q", name, len(raw), err, tc.want)
		}
	}
}

func TestDecompressRefuses(t *testing.T) {
	t.Parallel()
	gz := pack(t, []byte(vector))
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	zeros := make([]byte, 1<<20)
	for range 64 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	crc := bytes.Clone(gz)
	crc[len(crc)-6] ^= 1
	size := bytes.Clone(gz)
	size[len(size)-1] ^= 1
	for name, tc := range map[string]struct {
		gz   []byte
		want string
	}{
		"bomb":          {bomb.Bytes(), "unpacks to more than 1048576 bytes"},
		"second member": {append(bytes.Clone(gz), gz...), "followed by"},
		"trailing byte": {append(bytes.Clone(gz), 0), "followed by 1 more bytes"},
		"truncated":     {gz[:len(gz)-1], "unexpected EOF"},
		"half":          {gz[:len(gz)/2], "unexpected EOF"},
		"crc":           {crc, "checksum"},
		"size":          {size, "checksum"},
		"too long":      {make([]byte, 2*MaxBytes), "gzip data has"},
	} {
		if raw, err := Decompress(tc.gz, MaxBytes); err == nil || raw != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %d bytes, %v; want an error with %q", name, len(raw), err, tc.want)
		}
	}
	full := make([]byte, MaxBytes)
	if raw, err := Decompress(pack(t, full), MaxBytes); err != nil || len(raw) != MaxBytes {
		t.Errorf("a document of the limit's size: %d bytes, %v", len(raw), err)
	}
	if _, err := Decompress(pack(t, []byte("ab")), 1); err == nil {
		t.Error("a document one byte too long was accepted")
	}
	if _, err := Compress(make([]byte, MaxBytes+1)); err == nil {
		t.Error("Compress accepted a document that is too long")
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add(pack(f, []byte(vector)))
	f.Add([]byte("\x1f\x8b\x08\x1c"))
	f.Fuzz(func(t *testing.T, gz []byte) {
		const limit = 1 << 12
		raw, err := Decompress(gz, limit)
		if err != nil && raw != nil || len(raw) > limit {
			t.Fatalf("%d bytes, %v", len(raw), err)
		}
		if err == nil {
			back, err := Decompress(pack(t, raw), limit)
			if err != nil || !bytes.Equal(raw, back) {
				t.Fatalf("round trip: %v", err)
			}
		}
	})
}

func FuzzDecodeAnnotation(f *testing.F) {
	s, err := EncodeAnnotation([]byte(vector))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s)
	f.Add("H4sI")
	f.Fuzz(func(t *testing.T, s string) {
		if raw, err := DecodeAnnotation(s); err != nil && raw != nil || len(raw) > MaxBytes {
			t.Fatalf("%d bytes, %v", len(raw), err)
		}
	})
}
