package transit

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/kek/bao"
	"github.com/coffer-project/coffer/internal/trustee/kek/bao/baotest"
	"github.com/coffer-project/coffer/secret"
)

// The server is package baotest's stand-in: see there for what it proves.
func start(t testing.TB) (*baotest.Server, *bao.Client) {
	t.Helper()
	s := baotest.New(t)
	s.AddKey("kek", "aes256-gcm96")
	f := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(f, []byte(baotest.Root), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := bao.New(bao.Options{Address: s.URL, TokenFile: f})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func open(t testing.TB, server Server, o Options) *KEK {
	t.Helper()
	k, err := Open(t.Context(), server, o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func dataKey() secret.Bytes { return secret.New([]byte("0123456789abcdef0123456789ABCDEF")) }

func TestWrap(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.AddKey("other", "aes256-gcm96")
	k := open(t, c, Options{Key: "kek"})
	if k.ID() != "transit:transit/kek" {
		t.Errorf("ID %q", k.ID())
	}
	if scoped := open(t, c, Options{Key: "kek", Scope: "team-a"}); scoped.ID() != "transit:team-a/transit/kek" {
		t.Errorf("ID %q", scoped.ID())
	}
	wrapped, err := k.Wrap(t.Context(), dataKey())
	if err != nil || !strings.HasPrefix(string(wrapped), "vault:v1:") {
		t.Fatalf("got %q, %v", wrapped, err)
	}
	got, err := open(t, c, Options{Key: "kek"}).Unwrap(t.Context(), wrapped)
	if err != nil || !got.Equal(dataKey()) {
		t.Fatalf("got %d bytes, %v", got.Len(), err)
	}
	for i := range wrapped {
		bad := slices.Clone(wrapped)
		bad[i] ^= 1
		if got, err := k.Unwrap(t.Context(), bad); i > len("vault:v1:") && err == nil || err != nil && got.Len() != 0 {
			t.Errorf("byte %d changed: %d bytes, %v", i, got.Len(), err)
		}
	}
	if got, err := open(t, c, Options{Key: "other"}).Unwrap(t.Context(), wrapped); err == nil || got.Len() != 0 {
		t.Error("another key unwraps it")
	}
	for _, n := range []int{0, maxKey + 1} {
		if _, err := k.Wrap(t.Context(), secret.New(make([]byte, n))); err == nil {
			t.Errorf("%d bytes: want an error", n)
		}
	}
	for _, n := range []int{1, 16, maxKey} {
		if _, err := k.Wrap(t.Context(), secret.New(make([]byte, n))); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	log, _ := s.Requests()
	for _, l := range log {
		if !strings.HasPrefix(l, "GET /v1/transit/keys/") && !strings.HasPrefix(l, "POST /v1/transit/encrypt/") && !strings.HasPrefix(l, "POST /v1/transit/decrypt/") {
			t.Errorf("request %q needs more rights than the documented ones", l)
		}
	}
}

// A server that somebody started; the key stays there.
func TestRealServer(t *testing.T) {
	t.Parallel()
	address, token := baotest.Real(t)
	c, err := bao.New(bao.Options{Address: address, TokenFile: token})
	if err != nil {
		t.Fatal(err)
	}
	name := "coffer-test-" + rand.Text()
	if _, err := Open(t.Context(), c, Options{Key: name}); err == nil || !strings.Contains(err.Error(), "create it") {
		t.Errorf("a missing key: %v", err)
	}
	for kind, want := range map[string]bool{"aes256-gcm96": true, "chacha20-poly1305": true, "rsa-2048": false} {
		if err := c.Do(t.Context(), bao.Request{Method: http.MethodPost, Path: "transit/keys/" + name + kind, Body: map[string]string{"type": kind}}, nil); err != nil {
			t.Fatal(err)
		}
		k, err := Open(t.Context(), c, Options{Key: name + kind})
		if (err == nil) != want {
			t.Errorf("%s: %v", kind, err)
		}
		if err != nil {
			continue
		}
		w, err := k.Wrap(t.Context(), dataKey())
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if got, err := k.Unwrap(t.Context(), w); err != nil || !got.Equal(dataKey()) {
			t.Errorf("%s: %v", kind, err)
		}
		w[len(w)-3] ^= 1
		if _, err := k.Unwrap(t.Context(), w); err == nil {
			t.Errorf("%s: an altered key unwraps", kind)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.AddKey("rsa", "rsa-4096")
	for want, o := range map[string]Options{
		"expected a name":     {},
		"create it":           {Key: "missing"},
		"with authentication": {Key: "rsa"},
		"transit mount":       {Key: "kek", Mount: "../sys"},
		"got \"a/b\"":         {Key: "a/b"},
		"random numbers":      {Key: "kek", Rand: strings.NewReader("")},
	} {
		if _, err := Open(t.Context(), c, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", o, err, want)
		}
	}
	log, _ := s.Requests()
	if slices.Contains(log, "POST /v1/transit/encrypt/missing") {
		t.Error("a misspelt name would have created a key")
	}
	// Policies need not allow to look at the key.
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/keys/") {
			baotest.Fail(w, http.StatusForbidden, "permission denied")
			return true
		}
		return false
	})
	open(t, c, Options{Key: "kek"})
}

func TestBrokenServer(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	k := open(t, c, Options{Key: "kek"})
	answer := func(part, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, part) {
				return false
			}
			_, _ = w.Write([]byte(body))
			return true
		}
	}
	for name, f := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"no ciphertext":       answer("/encrypt/", `{"data":{}}`),
		"the key itself":      answer("/encrypt/", `{"data":{"ciphertext":"vault:v1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlBQkNERUY="}}`),
		"not base64":          answer("/encrypt/", `{"data":{"ciphertext":"vault:v1:%%%"}}`),
		"too short":           answer("/encrypt/", `{"data":{"ciphertext":"vault:v1:MDEy"}}`),
		"cannot be unwrapped": answer("/encrypt/", `{"data":{"ciphertext":"vault:v1:`+strings.Repeat("AAAA", 20)+`"}}`),
		"another key back":    answer("/decrypt/", `{"data":{"plaintext":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}`),
		"nothing back":        answer("/decrypt/", `{"data":{"plaintext":""}}`),
		"no base64 back":      answer("/decrypt/", `{"data":{"plaintext":"!"}}`),
		"too much back":       answer("/decrypt/", `{"data":{"plaintext":"`+strings.Repeat("AAAA", 1000)+`"}}`),
	} {
		s.SetFault(f)
		if w, err := k.Wrap(t.Context(), dataKey()); err == nil || strings.Contains(err.Error(), "0123456789abcdef") || strings.Contains(err.Error(), "MDEyMzQ1") {
			t.Errorf("%s: got %q, %v", name, w, err)
		}
	}
	s.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
		baotest.Fail(w, 503, "Vault is sealed")
		return true
	})
	if _, err := k.Wrap(t.Context(), dataKey()); !errors.Is(err, bao.ErrUnavailable) || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("sealed: %v", err)
	}
	release := make(chan struct{})
	defer close(release)
	s.SetFault(func(http.ResponseWriter, *http.Request) bool { <-release; return true })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := k.Unwrap(ctx, []byte("vault:v1:"+strings.Repeat("AAAA", 20))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: %v", err)
	}
}

func FuzzWellFormed(f *testing.F) {
	f.Add("vault:v1:" + strings.Repeat("AAAA", 20))
	f.Add("vault:v:")
	f.Add(":v1:AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if wellFormed(s) && (len(s) > maxWrapped || strings.ContainsAny(s, "\"\\ \x00")) {
			t.Errorf("%q is taken for a ciphertext", s)
		}
	})
}
