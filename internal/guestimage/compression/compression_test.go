package compression_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guestimage/compression"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// sample is more than one block of LZ4's legacy frames, which hold 8 MiB; some of
// it does not compress.
func sample() []byte {
	data := bytes.Repeat([]byte("the kernel unpacks this. "), 400_000)
	random := rand.NewChaCha8([32]byte{})
	noise := make([]byte, 1<<20)
	_, _ = random.Read(noise)
	return append(data, noise...)
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	data := sample()
	for _, format := range manifest.Compressions() {
		packed, err := compression.Compress(data, format)
		if err != nil {
			t.Fatal(err)
		}
		again, err := compression.Compress(data, format)
		if err != nil || !bytes.Equal(packed, again) {
			t.Errorf("%s: other bytes the second time, %v", format, err)
		}
		if format != manifest.None && len(packed) > len(data)/2 {
			t.Errorf("%s: %d bytes of %d", format, len(packed), len(data))
		}
		got, err := compression.Decompress(packed, format, int64(len(data)))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes of %d come back, %v", format, len(got), len(data), err)
		}
		if format == manifest.None {
			continue
		}
		if _, err := compression.Decompress(packed, format, int64(len(data))-1); err == nil || !strings.Contains(err.Error(), "expected at most") {
			t.Errorf("%s: more than the limit: %v", format, err)
		}
		if _, err := compression.Decompress(packed[:len(packed)-3], format, int64(len(data))); err == nil {
			t.Errorf("%s: cut short, and no error", format)
		}
	}
}

// The kernel reads frames that begin with this, and no others
// (ARCHIVE_MAGICNUMBER in lib/decompress_unlz4.c of Linux).
func TestLegacyFrames(t *testing.T) {
	t.Parallel()
	packed, err := compression.Compress([]byte("x"), manifest.LZ4)
	if err != nil || !bytes.HasPrefix(packed, []byte{0x02, 0x21, 0x4c, 0x18}) {
		t.Errorf("%x, %v", packed, err)
	}
}

func TestUnknownFormat(t *testing.T) {
	t.Parallel()
	_, cerr := compression.Compress(nil, "xz")
	_, derr := compression.Decompress(nil, "xz", 1)
	for _, err := range []error{cerr, derr} {
		if err == nil || !strings.Contains(err.Error(), `expected one of ["none" "lz4" "zstd"], got "xz"`) {
			t.Errorf("got %v", err)
		}
	}
}
