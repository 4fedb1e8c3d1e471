package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/ear"
)

var start = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

func key(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func authority(t *testing.T, now *time.Time, keys ...*ecdsa.PrivateKey) *Authority {
	t.Helper()
	a, err := New(t.Context(), Options{Keys: Static(keys...), Issuer: "coffer-trustee", Audience: "coffer", Lifetime: 5 * time.Minute, Now: func() time.Time { return *now }})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func jwks(t *testing.T, a *Authority) jose.JSONWebKeySet {
	t.Helper()
	set, err := a.JWKS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func mint(t *testing.T, a *Authority) string {
	t.Helper()
	s, err := a.Mint(t.Context(), "acme", ear.Claims{ID: "session", Submods: map[string]ear.Submod{"cpu0": {Status: ear.Affirming, Evidence: json.RawMessage(`{"tee":1}`)}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRoundTripAndRotation(t *testing.T) {
	t.Parallel()
	now := start
	k1, k2 := key(t, elliptic.P256()), key(t, elliptic.P384())
	old := authority(t, &now, k1)
	tok := mint(t, old)
	for name, a := range map[string]*Authority{"same": old, "restarted": authority(t, &now, k1), "rotated": authority(t, &now, k2, k1)} {
		c, payload, err := a.Verify(t.Context(), "acme", tok)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c.ID != "session" || c.Expires-c.IssuedAt != 300 || c.Submods["cpu0"].Status != ear.Affirming || !strings.Contains(string(payload), `"tee":1`) {
			t.Errorf("%s: %+v", name, c)
		}
	}
	header, _, _ := strings.Cut(tok, ".")
	h, _ := base64.RawURLEncoding.DecodeString(header)
	if want := fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"JWT"}`, jwks(t, old).Keys[0].KeyID); string(h) != want {
		t.Errorf("header %s, want %s", h, want)
	}
	if _, _, err := authority(t, &now, k2).Verify(t.Context(), "acme", tok); err == nil || !strings.Contains(err.Error(), "kid") {
		t.Errorf("dropped key: %v", err)
	}
	set, err := json.Marshal(jwks(t, authority(t, &now, k2, k1)))
	if err != nil || strings.Contains(string(set), `"d"`) || !strings.Contains(string(set), `"alg":"ES384"`) {
		t.Errorf("%s, %v", set, err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	now := start
	k := key(t, elliptic.P256())
	a := authority(t, &now, k)
	kid := jwks(t, a).Keys[0].KeyID
	sign := func(signer *ecdsa.PrivateKey, keyID string, payload map[string]any) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: signer, KeyID: keyID}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(payload)
		o, err := s.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := o.CompactSerialize()
		return c
	}
	good := func(change func(map[string]any)) map[string]any {
		m := map[string]any{"iss": "coffer-trustee", "aud": []string{"coffer"}, "nbf": start.Unix(), "iat": start.Unix(), "coffer.tenant": "acme", "exp": start.Add(time.Minute).Unix(), "jti": "x"}
		change(m)
		return m
	}
	if _, _, err := a.Verify(t.Context(), "acme", sign(k, kid, good(func(map[string]any) {}))); err != nil {
		t.Fatal(err)
	}
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	body, _ := json.Marshal(good(func(map[string]any) {}))
	for name, tok := range map[string]string{
		"empty":      "",
		"garbage":    "a.b.c",
		"alg none":   b64(`{"alg":"none","kid":"`+kid+`"}`) + "." + b64(string(body)) + ".",
		"HS256":      b64(`{"alg":"HS256","kid":"`+kid+`"}`) + "." + b64(string(body)) + "." + b64("0123456789abcdef0123456789abcdef"),
		"other key":  sign(key(t, elliptic.P256()), kid, good(func(map[string]any) {})),
		"no kid":     sign(k, "", good(func(map[string]any) {})),
		"issuer":     sign(k, kid, good(func(m map[string]any) { m["iss"] = "other" })),
		"audience":   sign(k, kid, good(func(m map[string]any) { m["aud"] = []string{"other"} })),
		"no aud":     sign(k, kid, good(func(m map[string]any) { delete(m, "aud") })),
		"expired":    sign(k, kid, good(func(m map[string]any) { m["exp"] = start.Unix() })),
		"no exp":     sign(k, kid, good(func(m map[string]any) { delete(m, "exp") })),
		"not before": sign(k, kid, good(func(m map[string]any) { m["nbf"] = start.Add(2 * time.Minute).Unix() })),
		"no nbf":     sign(k, kid, good(func(m map[string]any) { delete(m, "nbf") })),
		"no iat":     sign(k, kid, good(func(m map[string]any) { delete(m, "iat") })),
		"iat":        sign(k, kid, good(func(m map[string]any) { m["iat"] = start.Add(2 * time.Minute).Unix() })),
		"tenant":     sign(k, kid, good(func(m map[string]any) { m["coffer.tenant"] = "other" })),
		"no tenant":  sign(k, kid, good(func(m map[string]any) { delete(m, "coffer.tenant") })),
		"no jti":     sign(k, kid, good(func(m map[string]any) { delete(m, "jti") })),
		"too long":   strings.Repeat("a", MaxBytes+1),
	} {
		if _, _, err := a.Verify(t.Context(), "acme", tok); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	same := key(t, elliptic.P256())
	for name, o := range map[string]Options{
		"no key":         {Issuer: "a", Audience: "b", Lifetime: 1},
		"two of one key": {Issuer: "a", Audience: "b", Lifetime: 1, Now: time.Now, Keys: Static(same, same)},
		"no keys":        {Issuer: "a", Audience: "b", Lifetime: 1, Now: time.Now, Keys: Static()},
		"curve":          {Issuer: "a", Audience: "b", Lifetime: 1, Now: time.Now, Keys: Static(key(t, elliptic.P521()))},
		"issuer":         {Audience: "b", Lifetime: 1, Keys: Static(key(t, elliptic.P256()))},
	} {
		if _, err := New(t.Context(), o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func FuzzVerify(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	a, err := New(f.Context(), Options{Keys: Static(k), Issuer: "i", Audience: "a", Lifetime: time.Minute, Now: func() time.Time { return start }})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, s string) {
		if _, _, err := a.Verify(t.Context(), "acme", s); err == nil {
			t.Errorf("verified %q", s)
		}
	})
}

// What is wrong with a token is told to whoever sent it, and logged: it must
// not be as long as the token.
func TestErrorsAreShort(t *testing.T) {
	t.Parallel()
	now := start
	a := authority(t, &now, key(t, elliptic.P256()))
	long := strings.Repeat("x", MaxBytes/2)
	for _, header := range []string{
		`{"alg":"` + long + `"}`, `{"alg":"ES256","kid":"` + long + `"}`, `{"alg":"ES256","crit":["` + long + `"]}`, `{"alg":"ES256","jwk":{"kty":"` + long + `"}}`,
	} {
		compact := base64.RawURLEncoding.EncodeToString([]byte(header)) + ".e30.AAAA"
		if _, _, err := a.Verify(t.Context(), "acme", compact); err == nil || len(err.Error()) > 1024 {
			t.Errorf("%.32s…: got an error of %d bytes", header, len(fmt.Sprint(err)))
		}
	}
}
