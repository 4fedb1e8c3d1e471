package session_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/coffer-project/coffer/internal/trustee/session"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

var start = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

func codec(t testing.TB, key byte, now func() time.Time) *session.Codec {
	t.Helper()
	c, err := session.New(session.Options{Key: secret.New(bytes.Repeat([]byte{key}, session.KeySize)), Now: now, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func at(d time.Duration) func() time.Time { return func() time.Time { return start.Add(d) } }

func sample() session.Session {
	return session.Session{
		Tenant: "acme", TEE: tee.SNP, Protocol: kbs.V040, Nonce: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)),
		Policy: "strict", Hash: kbs.SHA512, Created: start, Expires: start.Add(5 * time.Minute),
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*session.Session){
		"all":        func(*session.Session) {},
		"least":      func(s *session.Session) { s.Policy, s.Hash = "", "" },
		"text":       func(s *session.Session) { s.Nonce = `{"a":"ä"}` },
		"odd base64": func(s *session.Session) { s.Nonce = "AB==" },
		"default":    func(s *session.Session) { s.Tenant = tenant.Default },
		"longest":    func(s *session.Session) { s.TEE, s.Policy = tee.AzureSNPVTPM, strings.Repeat("p", 255) },
	} {
		s := sample()
		change(&s)
		c := codec(t, 1, at(0))
		cookie, err := c.Seal(&s)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := codec(t, 1, at(time.Minute)).Open(s.Tenant, cookie)
		if err != nil || len(s.ID) != 32 {
			t.Errorf("%s: %v, %q", name, err, s.ID)
			continue
		}
		if diff := cmp.Diff(&s, got, cmpopts.IgnoreUnexported(session.Session{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		// Guests of before this format take 256 characters.
		if len(cookie) > 256 && name != "longest" {
			t.Errorf("%s: %d characters", name, len(cookie))
		}
		if nonce, ok := got.Challenge(s.Nonce); !ok || nonce != s.Nonce {
			t.Errorf("%s: challenge %q, %t", name, nonce, ok)
		}
		if nonce, ok := got.Challenge(""); !ok || nonce != s.Nonce {
			t.Errorf("%s: unrepeated challenge %q, %t", name, nonce, ok)
		}
		if _, ok := got.Challenge(s.Nonce + "x"); ok {
			t.Errorf("%s: another challenge", name)
		}
	}
}

// TestLongChallenge: a document is known again, and needed to be repeated.
func TestLongChallenge(t *testing.T) {
	t.Parallel()
	s := sample()
	s.Nonce = strings.Repeat(`{"x":1}`, 10_000)
	c := codec(t, 1, at(0))
	cookie, err := c.Seal(&s)
	if err != nil || len(cookie) > 256 {
		t.Fatalf("%d characters, %v", len(cookie), err)
	}
	got, err := c.Open(s.Tenant, cookie)
	if err != nil {
		t.Fatal(err)
	}
	if nonce, ok := got.Challenge(s.Nonce); !ok || nonce != s.Nonce {
		t.Errorf("%t", ok)
	}
	for _, other := range []string{"", "x", s.Nonce[1:]} {
		if _, ok := got.Challenge(other); ok {
			t.Errorf("%.20q passed", other)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	c := codec(t, 1, at(0))
	s := sample()
	cookie, err := c.Seal(&s)
	if err != nil {
		t.Fatal(err)
	}
	second := sample()
	other, err := c.Seal(&second)
	if err != nil {
		t.Fatal(err)
	}
	if cookie == other || s.ID == second.ID {
		t.Error("two sessions are the same")
	}
	raw, _ := base64.RawURLEncoding.DecodeString(cookie)
	rawOther, _ := base64.RawURLEncoding.DecodeString(other)
	for name, bad := range map[string]string{
		"empty": "", "short": "AAAA", "line": cookie[:4] + "\n" + cookie[4:], "padded": cookie + "=", "long": cookie + strings.Repeat("A", session.MaxCookie),
		"cut": cookie[:len(cookie)-4], "longer": cookie + "AAAA", "old form": strings.Repeat("a", 32), "NUL": "\x00", "UTF-8": "\xff",
		"another's id": base64.RawURLEncoding.EncodeToString(append(bytes.Clone(rawOther[:17]), raw[17:]...)),
	} {
		if got, err := c.Open(s.Tenant, bad); !errors.Is(err, session.ErrInvalid) || got != nil {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 1 << (i % 8)
		if _, err := c.Open(s.Tenant, base64.RawURLEncoding.EncodeToString(changed)); !errors.Is(err, session.ErrInvalid) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for name, open := range map[string]func() error{
		"tenant":     func() error { _, err := c.Open("other", cookie); return err },
		"default":    func() error { _, err := c.Open(tenant.Default, cookie); return err },
		"key":        func() error { _, err := codec(t, 2, at(0)).Open(s.Tenant, cookie); return err },
		"expired":    func() error { _, err := codec(t, 1, at(5*time.Minute)).Open(s.Tenant, cookie); return err },
		"not yet":    func() error { _, err := codec(t, 1, at(-2*time.Minute)).Open(s.Tenant, cookie); return err },
		"long after": func() error { _, err := codec(t, 1, at(1e6*time.Hour)).Open(s.Tenant, cookie); return err },
	} {
		if err := open(); !errors.Is(err, session.ErrInvalid) || err.Error() != session.ErrInvalid.Error() {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// Replicas' clocks differ a little.
	if _, err := codec(t, 1, at(-30*time.Second)).Open(s.Tenant, cookie); err != nil {
		t.Error(err)
	}
}

func TestSealRefuses(t *testing.T) {
	t.Parallel()
	c := codec(t, 1, at(0))
	for name, change := range map[string]func(*session.Session){
		"no nonce": func(s *session.Session) { s.Nonce = "" },
		"policy":   func(s *session.Session) { s.Policy = strings.Repeat("p", 256) },
		"no time":  func(s *session.Session) { s.Created = time.Time{} },
	} {
		s := sample()
		change(&s)
		if cookie, err := c.Seal(&s); err == nil || cookie != "" {
			t.Errorf("%s: %q, %v", name, cookie, err)
		}
	}
	key := secret.New(make([]byte, session.KeySize))
	for name, o := range map[string]session.Options{
		"short key": {Key: secret.New(make([]byte, 16)), Now: time.Now, Rand: rand.Reader},
		"no clock":  {Key: key, Rand: rand.Reader},
		"no rand":   {Key: key, Now: time.Now},
	} {
		if _, err := session.New(o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	broken, err := session.New(session.Options{Key: key, Now: time.Now, Rand: io.LimitReader(rand.Reader, 8)})
	if err != nil {
		t.Fatal(err)
	}
	s := sample()
	if _, err := broken.Seal(&s); err == nil {
		t.Error("no randomness: want an error")
	}
}

func FuzzOpen(f *testing.F) {
	// Fuzzing's processes have to agree on the one cookie that is no forgery.
	c, err := session.New(session.Options{
		Key: secret.New(make([]byte, session.KeySize)), Now: at(0), Rand: bytes.NewReader(make([]byte, 16)),
	})
	if err != nil {
		f.Fatal(err)
	}
	s := sample()
	cookie, err := c.Seal(&s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cookie)
	f.Add("")
	f.Fuzz(func(t *testing.T, data string) {
		got, err := c.Open(s.Tenant, data)
		if (got == nil) == (err == nil) {
			t.Fatalf("got %v, %v", got, err)
		}
		if err == nil && data != cookie {
			t.Fatalf("forged %+v", got)
		}
	})
}
