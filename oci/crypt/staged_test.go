package crypt_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

// What Staged does in one goroutine, and in what pieces.
const (
	block  = 128 << 10
	inline = 4 * block
)

func openStaged(t testing.TB, ciphertext io.Reader, annotations map[string]string, key string) *crypt.Staged {
	t.Helper()
	l, err := crypt.Unwrap(t.Context(), annotations, keyMap{kid: key})
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.OpenStaged(ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestStaged(t *testing.T) {
	t.Parallel()
	key := randomKey(t)
	for _, size := range []int{0, 1, 16, 4097, inline, inline + 1, inline + 9*block + 5} {
		plain := []byte(strings.Repeat("staged plaintext, ", size/18+1))[:size]
		ciphertext, annotations := seal(t, plain, encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "half": iotest.HalfReader, "data with EOF": iotest.DataErrReader,
		} {
			s := openStaged(t, wrap(bytes.NewReader(ciphertext)), annotations, key)
			got, err := io.ReadAll(iotest.OneByteReader(io.LimitReader(s, 100)))
			if err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(append(got, rest...), plain) {
				t.Errorf("%s, %d bytes: %d read, %v", name, size, len(got)+len(rest), err)
			}
		}
	}
}

// Whatever is changed, the end of the plaintext does not come.
func TestStagedRefuses(t *testing.T) {
	t.Parallel()
	key := randomKey(t)
	plain := bytes.Repeat([]byte("x"), inline+5*block)
	ciphertext, annotations := seal(t, plain, encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
	for name, changed := range map[string]func([]byte) []byte{
		"first byte": func(b []byte) []byte { b[0] ^= 1; return b },
		"last byte":  func(b []byte) []byte { b[len(b)-1] ^= 0x80; return b },
		"cut off":    func(b []byte) []byte { return b[:len(b)-1] },
		"longer":     func(b []byte) []byte { return append(b, 0) },
		"empty":      func([]byte) []byte { return nil },
		"blocks exchanged": func(b []byte) []byte {
			b[0], b[crypt.KeySize] = b[crypt.KeySize], b[0]
			return b
		},
	} {
		s := openStaged(t, bytes.NewReader(changed(bytes.Clone(ciphertext))), annotations, key)
		if _, err := io.ReadAll(s); !errors.Is(err, crypt.ErrMAC) {
			t.Errorf("%s: want ErrMAC, got %v", name, err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, crypt.ErrMAC) {
			t.Errorf("%s: read again: want ErrMAC, got %v", name, err)
		}
	}
	// An error of the source is no end either.
	broken := errors.New("broken")
	s := openStaged(t, io.MultiReader(bytes.NewReader(ciphertext), iotest.ErrReader(broken)), annotations, key)
	if _, err := io.ReadAll(s); !errors.Is(err, broken) {
		t.Errorf("want the source's error, got %v", err)
	}
}

func BenchmarkStaged(b *testing.B) {
	key := randomKey(b)
	plain := make([]byte, 64<<20)
	ciphertext, annotations := seal(b, plain, encrypt.Recipient{KID: kid, Key: secret.New([]byte(key))})
	l, err := crypt.Unwrap(b.Context(), annotations, keyMap{kid: key})
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		s, err := l.OpenStaged(bytes.NewReader(ciphertext))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, buf); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
