package lzma_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os/exec"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/measure/vtpm/internal/lzma"
)

// small is "It was the best of times, it was the worst of times, " five times,
// compressed by liblzma 5.4.1 (Python's lzma module, FORMAT_ALONE); the size of
// the data has been put into the header.
const small = "XQAAgAAJAQAAAAAAAAAknQAHc0OFGcG8YZ4WQz9JpScVtPUQGFS/zZE4OzOLUny8NEunpqve///wN/gA"

func TestDecompress(t *testing.T) {
	xz, err := exec.LookPath("xz")
	if err != nil {
		t.Skip("xz is not installed")
	}
	for name, data := range map[string][]byte{
		"text":   []byte(strings.Repeat("It was the best of times, it was the worst of times, ", 50)),
		"zeros":  make([]byte, 1<<20),
		"digits": numbers(200000),
		"mixed":  append(numbers(3000), append(make([]byte, 70000), numbers(9000)...)...),
		"short":  []byte("a"),
	} {
		for _, options := range []string{"preset=6", "preset=0", "lc=0,lp=2,pb=0", "lc=4,lp=0,pb=4"} {
			c := exec.CommandContext(t.Context(), xz, "--format=lzma", "--lzma1="+options, "--stdout")
			c.Stdin = bytes.NewReader(data)
			packed, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			copy(packed[5:], sizeOf(data)) // xz leaves the size open
			got, err := lzma.Decompress(packed, len(data))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, %s: %d bytes of %d, %v", name, options, len(got), len(data), err)
			}
		}
	}
}

// numbers are bytes without repetitions, from a counter and SHA-256.
func numbers(n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		b = append(b, hex.EncodeToString(sum[:])...)
	}
	return b[:n]
}

func sizeOf(data []byte) []byte {
	n := len(data)
	return []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 0, 0, 0, 0}
}

func TestHostile(t *testing.T) {
	packed, err := base64.StdEncoding.DecodeString(small)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("It was the best of times, it was the worst of times, ", 5)
	if got, err := lzma.Decompress(packed, 1<<16); err != nil || string(got) != want {
		t.Fatalf("got %q, %v", got, err)
	}
	teetest.EachPrefix(packed, func(cut []byte) { _, _ = lzma.Decompress(cut, 1<<16) })
	huge := bytes.Clone(packed)
	copy(huge[5:], "\xff\xff\xff\xff\xff\xff\xff\x7f")
	if _, err := lzma.Decompress(huge, 1<<16); err == nil || !strings.Contains(err.Error(), "at most 65536") {
		t.Errorf("huge: got %v", err)
	}
	bad := bytes.Clone(packed)
	bad[0] = 225
	if _, err := lzma.Decompress(bad, 1<<16); err == nil || !strings.Contains(err.Error(), "properties") {
		t.Errorf("properties: got %v", err)
	}
	if _, err := lzma.Decompress(packed[:20], 1<<16); err == nil {
		t.Error("cut off: expected an error")
	}
}

func FuzzDecompress(f *testing.F) {
	packed, err := base64.StdEncoding.DecodeString(small)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := lzma.Decompress(in, 1<<16)
		if err == nil && len(out) > 1<<16 {
			t.Errorf("%d bytes", len(out))
		}
	})
}
