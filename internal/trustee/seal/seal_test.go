package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/secret"
)

func fileKey(t testing.TB, fill byte) KEK {
	t.Helper()
	k, err := File(secret.New(bytes.Repeat([]byte{fill}, KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func generate(t testing.TB, kek KEK, id int64) DataKey {
	t.Helper()
	k, err := Generate(t.Context(), kek, id, rand.Reader, time.UnixMilli(1_800_000_000_000))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newBox(t testing.TB, ids ...int64) *Box {
	t.Helper()
	b, kek := NewBox(rand.Reader), fileKey(t, 1)
	for _, id := range ids {
		if err := b.Add(t.Context(), kek, generate(t, kek, id)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestFileKEK(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := File(secret.New(make([]byte, n))); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("expected 32 bytes, got %d", n)) {
			t.Errorf("%d bytes: got %v", n, err)
		}
	}
	a, b := fileKey(t, 1), fileKey(t, 2)
	if a.ID() == b.ID() || a.ID() != fileKey(t, 1).ID() || !strings.HasPrefix(a.ID(), "file:") || len(a.ID()) != len("file:")+8 {
		t.Errorf("ids %q, %q", a.ID(), b.ID())
	}
	key := secret.New([]byte("0123456789abcdef0123456789abcdef"))
	w, err := a.Wrap(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Wrap(ctx, key)
	if err != nil || bytes.Equal(w, again) || bytes.Contains(w, key.Expose()) {
		t.Errorf("two wrappings must differ and hide the key: %x, %x, %v", w, again, err)
	}
	if got, err := a.Unwrap(ctx, w); err != nil || !got.Equal(key) {
		t.Errorf("unwrap: %v", err)
	}
	if _, err := b.Unwrap(ctx, w); !errors.Is(err, ErrWrongKEK) {
		t.Errorf("another key: got %v", err)
	}
	for i := range w {
		bad := bytes.Clone(w)
		bad[i] ^= 1
		if _, err := a.Unwrap(ctx, bad); err == nil {
			t.Fatalf("byte %d changed: want an error", i)
		}
		if _, err := a.Unwrap(ctx, w[:i]); err == nil {
			t.Fatalf("cut to %d bytes: want an error", i)
		}
	}
}

func TestSealOpen(t *testing.T) {
	t.Parallel()
	b := newBox(t, 1)
	for _, n := range []int{0, 1, 15, 16, 17, 1 << 20} {
		plain := bytes.Repeat([]byte{0x5a}, n)
		sealed, err := b.Seal("default/a/b/c/1", plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != n+Overhead {
			t.Errorf("%d bytes sealed to %d", n, len(sealed))
		}
		if n > 8 && bytes.Contains(sealed, plain) {
			t.Error("the plaintext shows")
		}
		got, err := b.Open("default/a/b/c/1", sealed)
		if err != nil || !bytes.Equal(got.Expose(), plain) {
			t.Errorf("open %d bytes: %v", n, err)
		}
		for _, name := range []string{"", "default/a/b/c/2", "other/a/b/c/1", "default/a/b/c/1 "} {
			if _, err := b.Open(name, sealed); !errors.Is(err, ErrAltered) {
				t.Errorf("under %q: got %v", name, err)
			}
		}
	}
}

func TestOpenRefusesEveryChange(t *testing.T) {
	t.Parallel()
	b := newBox(t, 1, 2)
	sealed, err := b.Seal("n", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		if _, err := b.Open("n", sealed[:i]); !errors.Is(err, ErrAltered) {
			t.Fatalf("cut to %d bytes: got %v", i, err)
		}
		for bit := range 8 {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, err := b.Open("n", bad); !errors.Is(err, ErrAltered) && !errors.Is(err, ErrUnknownKey) {
				t.Fatalf("byte %d bit %d changed: got %v", i, bit, err)
			}
		}
	}
	if _, err := b.Open("n", append(bytes.Clone(sealed), 0)); !errors.Is(err, ErrAltered) {
		t.Errorf("a byte appended: got %v", err)
	}
}

func TestRing(t *testing.T) {
	t.Parallel()
	ctx, kek := t.Context(), fileKey(t, 1)
	b := NewBox(rand.Reader)
	if _, err := b.Seal("n", nil); err == nil || b.Newest() != 0 {
		t.Errorf("an empty box: got %v, newest %d", err, b.Newest())
	}
	one, two := generate(t, kek, 1), generate(t, kek, 2)
	if err := b.Add(ctx, kek, two); err != nil {
		t.Fatal(err)
	}
	byTwo, err := b.Seal("n", []byte("two"))
	if err != nil {
		t.Fatal(err)
	}
	// An older key that arrives late opens and does not seal.
	if err := b.Add(ctx, kek, one); err != nil {
		t.Fatal(err)
	}
	if b.Newest() != 2 || !slices.Equal(b.Keys(), []int64{1, 2}) || !b.Has(1) || b.Has(3) {
		t.Errorf("newest %d of %v", b.Newest(), b.Keys())
	}
	if id, err := KeyOf(byTwo); id != 2 || err != nil {
		t.Errorf("sealed by %d, %v", id, err)
	}
	// A replica that has only key 1 says so, takes key 2, and can read.
	other := NewBox(rand.Reader)
	if err := other.Add(ctx, kek, one); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open("n", byTwo); !errors.Is(err, ErrUnknownKey) {
		t.Fatalf("got %v", err)
	}
	if err := other.Add(ctx, kek, two); err != nil {
		t.Fatal(err)
	}
	if got, err := other.Open("n", byTwo); err != nil || string(got.Expose()) != "two" {
		t.Errorf("got %v", err)
	}
}

type badKEK struct {
	KEK
	wrap, unwrap func([]byte) ([]byte, error)
}

func (k badKEK) Wrap(ctx context.Context, key secret.Bytes) ([]byte, error) {
	if k.wrap != nil {
		return k.wrap(key.Expose())
	}
	return k.KEK.Wrap(ctx, key)
}

func (k badKEK) Unwrap(ctx context.Context, w []byte) (secret.Bytes, error) {
	if k.unwrap == nil {
		return k.KEK.Unwrap(ctx, w)
	}
	b, err := k.unwrap(w)
	return secret.New(b), err
}

func TestDataKeyErrors(t *testing.T) {
	t.Parallel()
	ctx, kek := t.Context(), fileKey(t, 1)
	good := generate(t, kek, 1)
	outage := errors.New("outage")
	b := NewBox(rand.Reader)
	for name, tc := range map[string]struct {
		kek  KEK
		key  DataKey
		want string
		is   error
	}{
		"another KEK":    {fileKey(t, 2), good, "restore that key", ErrWrongKEK},
		"id zero":        {kek, DataKey{KEK: kek.ID(), Wrapped: good.Wrapped}, "positive number, got 0", nil},
		"altered":        {kek, DataKey{ID: 1, KEK: kek.ID(), Wrapped: good.Wrapped[1:]}, "unwrap data key 1", ErrWrongKEK},
		"huge":           {kek, DataKey{ID: 1, KEK: kek.ID(), Wrapped: make([]byte, MaxWrapped+1)}, "at most 4096 bytes", nil},
		"KEK fails":      {badKEK{KEK: kek, unwrap: func([]byte) ([]byte, error) { return nil, outage }}, good, "unwrap data key 1 with file:", outage},
		"KEK shortens":   {badKEK{KEK: kek, unwrap: func([]byte) ([]byte, error) { return make([]byte, 16), nil }}, good, "expected 32 bytes, got 16", nil},
		"KEK gives none": {badKEK{KEK: kek, unwrap: func([]byte) ([]byte, error) { return nil, nil }}, good, "expected 32 bytes, got 0", nil},
	} {
		err := b.Add(ctx, tc.kek, tc.key)
		if err == nil || !strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	if len(b.Keys()) != 0 {
		t.Errorf("keys %v were added", b.Keys())
	}
	if _, err := Generate(ctx, kek, 0, rand.Reader, time.Time{}); err == nil {
		t.Error("id 0: want an error")
	}
	if _, err := Generate(ctx, kek, 1, bytes.NewReader(make([]byte, 31)), time.Time{}); err == nil {
		t.Error("short randomness: want an error")
	}
	for _, w := range []func([]byte) ([]byte, error){
		func([]byte) ([]byte, error) { return nil, outage },
		func([]byte) ([]byte, error) { return make([]byte, MaxWrapped+1), nil },
	} {
		if _, err := Generate(ctx, badKEK{KEK: kek, wrap: w}, 1, rand.Reader, time.Time{}); err == nil {
			t.Error("a failing Wrap: want an error")
		}
	}
	poor := NewBox(bytes.NewReader(nil))
	if err := poor.Add(ctx, kek, good); err != nil {
		t.Fatal(err)
	}
	if _, err := poor.Seal("n", nil); err == nil {
		t.Error("no randomness for a nonce: want an error")
	}
}

func TestRewrap(t *testing.T) {
	t.Parallel()
	ctx, from, to := t.Context(), fileKey(t, 1), fileKey(t, 2)
	k := generate(t, from, 3)
	b := NewBox(rand.Reader)
	if err := b.Add(ctx, from, k); err != nil {
		t.Fatal(err)
	}
	sealed, err := b.Seal("n", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	moved, err := Rewrap(ctx, from, to, k)
	if err != nil {
		t.Fatal(err)
	}
	if moved.KEK != to.ID() || moved.ID != 3 || !moved.Created.Equal(k.Created) {
		t.Errorf("got %+v", moved)
	}
	fresh := NewBox(rand.Reader)
	if err := fresh.Add(ctx, to, moved); err != nil {
		t.Fatal(err)
	}
	if got, err := fresh.Open("n", sealed); err != nil || string(got.Expose()) != "content" {
		t.Errorf("got %v", err)
	}
	if _, err := Rewrap(ctx, to, from, k); !errors.Is(err, ErrWrongKEK) {
		t.Errorf("the wrong way round: got %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	ctx, kek := t.Context(), fileKey(t, 1)
	b := newBox(t, 1)
	var wg sync.WaitGroup
	for i := range 4 {
		k := generate(t, kek, int64(i)+2)
		wg.Go(func() {
			if err := b.Add(ctx, kek, k); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for j := range 200 {
				name := fmt.Sprint(i, j)
				sealed, err := b.Seal(name, []byte(name))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := b.Open(name, sealed); err != nil || string(got.Expose()) != name {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if b.Newest() != 5 || len(b.Keys()) != 5 {
		t.Errorf("keys %v", b.Keys())
	}
}

// FuzzOpen: no bytes but the sealed ones open, and none do under another name.
func FuzzOpen(f *testing.F) {
	b := newBox(f, 1, 7)
	sealed, err := b.Seal("name", []byte("content"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("name", sealed)
	f.Add("", sealed[:Overhead])
	f.Add("name", []byte{version})
	f.Add("name", append([]byte{version, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 28)...))
	f.Add("name", bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		got, err := b.Open(name, data)
		if err == nil && (name != "name" || !bytes.Equal(data, sealed)) {
			t.Fatalf("opened %x as %q under %q", data, got.Expose(), name)
		}
		if err != nil && !errors.Is(err, ErrAltered) && !errors.Is(err, ErrUnknownKey) {
			t.Fatalf("an error that callers cannot tell: %v", err)
		}
	})
}

// FuzzUnwrap: a file KEK unwraps nothing but what it wrapped.
func FuzzUnwrap(f *testing.F) {
	kek := fileKey(f, 1)
	wrapped := generate(f, kek, 1).Wrapped
	f.Add(wrapped)
	f.Add(wrapped[:12])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := kek.Unwrap(t.Context(), data); err == nil && !bytes.Equal(data, wrapped) {
			t.Fatalf("unwrapped %x", data)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	box := newBox(b, 1)
	sealed, err := box.Seal("default/a/b/c/1", make([]byte, 1024))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := box.Open("default/a/b/c/1", sealed); err != nil {
			b.Fatal(err)
		}
	}
}
