package peimage

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// image builds a PE32+ file with two sections, data behind them, and
// certificates at the end.
func image(certificates int) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x1000+0x105+certificates)
	for i := range b {
		b[i] = byte(i*31 + i>>8)
	}
	clear(b[:0x400])
	copy(b, "MZ")
	le.PutUint32(b[offLfanew:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	le.PutUint16(b[0x86:], 2)
	le.PutUint16(b[0x94:], 0xf0)
	le.PutUint16(b[0x98:], magicPE32Plus)
	le.PutUint32(b[0x98+offHeadersSize:], 0x400)
	le.PutUint32(b[0x98+offChecksum:], 0x12345678)
	le.PutUint32(b[0x98+108:], 16)
	if certificates > 0 {
		le.PutUint32(b[0x98+112+32:], 0x1105)
		le.PutUint32(b[0x98+112+36:], uint32(certificates))
	}
	for i, s := range [][2]uint32{{0x800, 0x800}, {0x400, 0x400}} { // not in the order of the file
		at := 0x98 + 0xf0 + 40*i
		le.PutUint32(b[at+16:], s[1])
		le.PutUint32(b[at+20:], s[0])
	}
	return b
}

func sum(t *testing.T, b []byte) []byte {
	t.Helper()
	h := sha512.New384()
	if err := Digest(h, b, nil); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}

func TestDigest(t *testing.T) {
	t.Parallel()
	for _, certificates := range []int{0, 0x48} {
		b := image(certificates)
		want := sha512.New384()
		want.Write(b[:0xd8])        // up to the checksum
		want.Write(b[0xdc:0x128])   // up to the certificate table's entry
		want.Write(b[0x130:0x1105]) // the rest, up to the certificates
		if got := sum(t, b); !bytes.Equal(got, want.Sum(nil)) {
			t.Errorf("%d bytes of certificates: got %x, want %x", certificates, got, want.Sum(nil))
		}
		// A file in two parts is the same file.
		for _, at := range []int{0x400, 0x600, 0x1104, len(b)} {
			h := sha512.New384()
			if err := Digest(h, b[:at], b[at:]); err != nil || !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
				t.Errorf("cut at %#x: got %x, %v", at, h.Sum(nil), err)
			}
		}
	}
	// Certificates that are gone do not count, whatever the header says of them.
	b := image(0x48)
	bare := b[:0x1000]
	binary.LittleEndian.PutUint32(b[0x98+112+36:], 0x999)
	want := sha512.New384()
	want.Write(bare[:0xd8])
	want.Write(bare[0xdc:0x128])
	want.Write(bare[0x130:])
	if got := sum(t, bare); !bytes.Equal(got, want.Sum(nil)) {
		t.Errorf("without certificates: got %x, want %x", got, want.Sum(nil))
	}
}

func TestEachByteCounts(t *testing.T) {
	t.Parallel()
	// Each byte counts but for those that may change when a file is signed.
	b := image(0x48)
	want := sum(t, b)
	for i := range b {
		if i >= 0x12c && i < 0x130 { // the size of the certificates says where they begin
			continue
		}
		skipped := i >= 0xd8 && i < 0xdc || i >= 0x128 && i < 0x12c || i >= 0x1105
		b[i] ^= 0x80
		h := sha512.New384()
		if err := Digest(h, b, nil); err == nil && bytes.Equal(h.Sum(nil), want) != skipped {
			t.Errorf("byte %#x: digest is the same: %t", i, !skipped)
		}
		b[i] ^= 0x80
	}
}

// The digest of a signed kernel is what its signature is about.
func TestSignedKernel(t *testing.T) {
	t.Parallel()
	found, err := filepath.Glob("../../../build/guest/vmlinuz")
	more, _ := filepath.Glob("/boot/vmlinuz-*")
	if err != nil || len(found)+len(more) == 0 {
		t.Skip("no kernel: build the guest image")
	}
	for _, path := range append(found, more...) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		head := b[:min(len(b), 4096)]
		hd, err := parseHeader(head)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if hd.certSize == 0 {
			continue
		}
		h := sha256.New()
		if err := Digest(h, head, b[len(head):]); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if !bytes.Contains(b[len(b)-hd.certSize:], h.Sum(nil)) {
			t.Errorf("%s: the signature is not over %x", path, h.Sum(nil))
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	for name, tc := range map[string]struct {
		change func(b []byte) []byte
		want   string
	}{
		"empty":             {func([]byte) []byte { return nil }, "MZ"},
		"no image":          {func(b []byte) []byte { b[0] = 0; return b }, "MZ"},
		"offset":            {func(b []byte) []byte { le.PutUint32(b[offLfanew:], 0xffffffff); return b }, "PE header"},
		"signature":         {func(b []byte) []byte { b[0x80] = 'N'; return b }, "PE header"},
		"magic":             {func(b []byte) []byte { b[0x98] = 0; return b }, "magic"},
		"many sections":     {func(b []byte) []byte { le.PutUint16(b[0x86:], 0xffff); return b }, "sections"},
		"optional header":   {func(b []byte) []byte { le.PutUint16(b[0x94:], 0x40); return b }, "optional header"},
		"few directories":   {func(b []byte) []byte { le.PutUint16(b[0x94:], 0x80); return b }, "directory entries"},
		"headers too large": {func(b []byte) []byte { le.PutUint32(b[0x98+offHeadersSize:], 0xffffffff); return b }, "SizeOfHeaders"},
		"headers too small": {func(b []byte) []byte { le.PutUint32(b[0x98+offHeadersSize:], 0x10); return b }, "SizeOfHeaders"},
		"section outside":   {func(b []byte) []byte { le.PutUint32(b[0x188+16:], 0xffffff00); return b }, "section 0"},
		"sections overlap":  {func(b []byte) []byte { le.PutUint32(b[0x188+20:], 0x600); return b }, "overlap"},
		"section in header": {func(b []byte) []byte { le.PutUint32(b[0x188+20:], 0); return b }, "overlap"},
		"certificates":      {func(b []byte) []byte { le.PutUint32(b[0x98+112+36:], 0xffffffff); return b }, "certificate table"},
		"cut":               {func(b []byte) []byte { return b[:0xfff] }, "section 0"},
	} {
		if err := Digest(sha512.New384(), tc.change(image(0x48)), nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
}

func FuzzDigest(f *testing.F) {
	f.Add(image(0), 0x400)
	f.Add(image(0x48), 0x1000)
	f.Add([]byte("MZ"), 0)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		whole := sha512.New384()
		err := Digest(whole, b, nil)
		if at < 0 || at > len(b) {
			return
		}
		parts := sha512.New384()
		if e := Digest(parts, b[:at], b[at:]); e == nil && (err != nil || !bytes.Equal(whole.Sum(nil), parts.Sum(nil))) {
			t.Errorf("in parts a digest, as a whole %v or another one", err)
		}
	})
}
