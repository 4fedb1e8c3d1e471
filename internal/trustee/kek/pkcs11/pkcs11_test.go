package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/hsmtest"
	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
	"github.com/coffer-project/coffer/secret"
)

func TestMain(m *testing.M) { os.Exit(hsmtest.Main(m)) }

func token(t testing.TB) *cryptoki.Token {
	t.Helper()
	h := hsmtest.New(t)
	m, err := cryptoki.Load(h.Module)
	if errors.Is(err, cryptoki.ErrNoCgo) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	tok, err := m.Token(t.Context(), cryptoki.Options{Label: h.Label, PIN: cryptoki.PINFile(h.PINFile), Write: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return tok
}

func open(t testing.TB, tok Token, o Options) *KEK {
	t.Helper()
	k, err := Open(t.Context(), tok, o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func dataKey() secret.Bytes { return secret.New([]byte("0123456789abcdef0123456789ABCDEF")) }

func TestWrap(t *testing.T) {
	tok := token(t)
	for _, m := range []Mechanism{Auto, GCM, KeyWrapPad} {
		t.Run(string(m), func(t *testing.T) {
			k := open(t, tok, Options{Key: "kek", Create: true, Mechanism: m})
			if want := "pkcs11:" + tok.Label() + "/kek"; k.ID() != want {
				t.Errorf("ID %q, want %q", k.ID(), want)
			}
			wrapped, err := k.Wrap(t.Context(), dataKey())
			if err != nil {
				t.Fatal(err)
			}
			// Any other handle on the same key unwraps it, whatever it would use itself.
			got, err := open(t, tok, Options{Key: "kek"}).Unwrap(t.Context(), wrapped)
			if err != nil || !got.Equal(dataKey()) {
				t.Fatalf("got %d bytes, %v", got.Len(), err)
			}
			for i := range wrapped {
				bad := bytes.Clone(wrapped)
				bad[i] ^= 0x40
				if got, err := k.Unwrap(t.Context(), bad); err == nil || got.Len() != 0 {
					t.Errorf("byte %d changed: unwrapped to %d bytes", i, got.Len())
				}
			}
			for _, n := range []int{0, 1, 2, 12, 28, 29, len(wrapped) - 1} {
				if got, err := k.Unwrap(t.Context(), wrapped[:n]); err == nil || got.Len() != 0 {
					t.Errorf("%d bytes of it: unwrapped to %d bytes", n, got.Len())
				}
			}
			if _, err := k.Unwrap(t.Context(), make([]byte, maxWrapped+1)); err == nil {
				t.Error("too long: want an error")
			}
			if got, err := open(t, tok, Options{Key: "other-" + string(m), Create: true}).Unwrap(t.Context(), wrapped); err == nil || got.Len() != 0 {
				t.Error("another key unwraps it")
			}
			for _, n := range []int{1, 7, 8, 9, 16, 48, maxKey} {
				if m == KeyWrapPad && n%8 != 0 {
					continue
				}
				key := secret.New(bytes.Repeat([]byte{9}, n))
				w, err := k.Wrap(t.Context(), key)
				if err != nil {
					t.Errorf("%d bytes: %v", n, err)
					continue
				}
				if got, err := k.Unwrap(t.Context(), w); err != nil || !got.Equal(key) {
					t.Errorf("%d bytes: got %d, %v", n, got.Len(), err)
				}
			}
			if _, err := k.Wrap(t.Context(), secret.New(make([]byte, 9))); (err != nil) != (m == KeyWrapPad) {
				t.Errorf("9 bytes: %v", err)
			}
			for _, n := range []int{0, maxKey + 1} {
				if _, err := k.Wrap(t.Context(), secret.New(make([]byte, n))); err == nil {
					t.Errorf("%d bytes: want an error", n)
				}
			}
		})
	}
}

func TestWrapConcurrently(t *testing.T) {
	k := open(t, token(t), Options{Key: "kek", Create: true})
	var wg sync.WaitGroup
	for range 24 { // three times the sessions
		wg.Go(func() {
			w, err := k.Wrap(t.Context(), dataKey())
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := k.Unwrap(t.Context(), w); err != nil || !got.Equal(dataKey()) {
				t.Errorf("got %d bytes, %v", got.Len(), err)
			}
		})
	}
	wg.Wait()
}

// generate makes a key that the operator might have made.
func generate(t testing.TB, tok *cryptoki.Token, label string, bytes uint, sensitive bool) {
	t.Helper()
	err := tok.Do(t.Context(), func(_ context.Context, s cryptoki.Session) error {
		_, err := s.GenerateKey(cryptoki.MechAESKeyGen, []cryptoki.Attribute{
			{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassSecretKey)}, {Type: cryptoki.AttrKeyType, Value: uint(cryptoki.KeyAES)},
			{Type: cryptoki.AttrToken, Value: true}, {Type: cryptoki.AttrLabel, Value: []byte(label)}, {Type: cryptoki.AttrValueLen, Value: bytes},
			{Type: cryptoki.AttrSensitive, Value: sensitive}, {Type: cryptoki.AttrExtractable, Value: !sensitive},
			{Type: cryptoki.AttrEncrypt, Value: true}, {Type: cryptoki.AttrDecrypt, Value: true},
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	tok := token(t)
	generate(t, tok, "short", 16, true)
	generate(t, tok, "readable", 32, false)
	generate(t, tok, "twice", 32, true)
	generate(t, tok, "twice", 32, true)
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "expected a label"},
		{Options{Key: strings.Repeat("x", 200)}, "expected a label"},
		{Options{Key: "missing"}, "no AES key of that label"},
		{Options{Key: "short"}, "expected an AES key of 32 bytes"},
		{Options{Key: "readable"}, "CKA_SENSITIVE"},
		{Options{Key: "twice"}, "expected one AES key of that label, got 2"},
		{Options{Key: "twice", Create: true}, "expected one AES key of that label, got 2"},
		{Options{Key: "kek", Create: true, Mechanism: "des"}, `no mechanism "des"`},
		{Options{Key: "norand", Create: true, Rand: strings.NewReader("x")}, "random numbers"},
	} {
		if _, err := Open(t.Context(), tok, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", c.o, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, tok, Options{Key: "kek"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A key that is deleted while the trustee runs is an error by name, and one that
// is there again under another value does not unwrap.
func TestKeyIsReplaced(t *testing.T) {
	tok := token(t)
	k := open(t, tok, Options{Key: "kek", Create: true})
	wrapped, err := k.Wrap(t.Context(), dataKey())
	if err != nil {
		t.Fatal(err)
	}
	err = tok.Do(t.Context(), func(_ context.Context, s cryptoki.Session) error {
		o, err := k.find(s)
		if err != nil {
			return err
		}
		return s.Destroy(o)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Unwrap(t.Context(), wrapped); !errors.Is(err, errNoKey) {
		t.Errorf("deleted key: %v", err)
	}
	open(t, tok, Options{Key: "kek", Create: true})
	if got, err := k.Unwrap(t.Context(), wrapped); err == nil || got.Len() != 0 {
		t.Errorf("another value under the same label unwraps it to %d bytes", got.Len())
	}
}
