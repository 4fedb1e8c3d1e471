package ahead_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/coffer-project/coffer/oci/internal/ahead"
)

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func TestReader(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, ahead.Block - 1, ahead.Block, ahead.Inline - 1, ahead.Inline, ahead.Inline + 1, ahead.Inline + 20*ahead.Block + 7} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"plain": func(r io.Reader) io.Reader { return r }, "half": iotest.HalfReader, "data with error": iotest.DataErrReader,
		} {
			data := random(size)
			seen := sha256.New()
			r := ahead.New(wrap(bytes.NewReader(data)), func(b []byte) { _, _ = seen.Write(b) })
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, %d bytes: got %d bytes, %v", name, size, len(got), err)
			}
			if want := sha256.Sum256(data); !bytes.Equal(seen.Sum(nil), want[:]) {
				t.Errorf("%s, %d bytes: the tap saw something else", name, size)
			}
			if _, err := r.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%s, %d bytes: after the end: %v", name, size, err)
			}
			r.Close()
			if _, err := r.Read(make([]byte, 1)); err != ahead.ErrClosed {
				t.Errorf("%s, %d bytes: after Close: %v", name, size, err)
			}
			r.Close()
		}
	}
}

// The bytes before an error arrive before the error does.
func TestReaderError(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, size := range []int{0, 10, ahead.Inline + 3*ahead.Block + 10} {
		data := random(size)
		r := ahead.New(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), nil)
		got, err := io.ReadAll(r)
		if err != broken || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %d bytes, %v", size, len(got), err)
		}
		r.Close()
	}
}

// endless counts what is read from it.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) { e.n += len(p); return len(p), nil }

// A consumer that stops leaves no goroutine, and no more than the blocks was
// read ahead of it.
func TestReaderStops(t *testing.T) { // not parallel: counts goroutines
	before := runtime.NumGoroutine()
	for range 20 {
		var src endless
		r := ahead.New(&src, func([]byte) {})
		const used = ahead.Inline + 10*ahead.Block
		if _, err := io.CopyN(io.Discard, r, used); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if most := used + 6*ahead.Block; src.n > most {
			t.Errorf("%d bytes were read for %d", src.n, used)
		}
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("%d goroutines before, %d after", before, now)
	}
}

// A short stream is read without goroutines.
func TestReaderInline(t *testing.T) { // not parallel: counts goroutines
	before := runtime.NumGoroutine()
	r := ahead.New(&endless{}, func([]byte) {})
	if _, err := io.CopyN(io.Discard, r, ahead.Inline); err != nil {
		t.Fatal(err)
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("%d goroutines before, %d after", before, now)
	}
	r.Close()
}
