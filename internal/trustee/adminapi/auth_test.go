package adminapi

import (
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

var fixed = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

func testAuth(tb testing.TB) (*Auth, func(header, claims string) string) {
	tb.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		tb.Fatal("key type")
	}
	a := &Auth{Keys: []ed25519.PublicKey{pub}, Issuer: "coffer", Audience: "KBS", MaxLifetime: time.Hour, Now: func() time.Time { return fixed }}
	return a, func(header, claims string) string {
		enc := base64.RawURLEncoding.EncodeToString
		signed := enc([]byte(header)) + "." + enc([]byte(claims))
		return signed + "." + enc(ed25519.Sign(key, []byte(signed)))
	}
}

// TestTimesAreTakenLiterally: times at the ends of their range must not turn
// around into a token that lives for ever.
func TestTimesAreTakenLiterally(t *testing.T) {
	t.Parallel()
	a, sign := testAuth(t)
	const head = `{"alg":"EdDSA"}`
	const rest = `"iss":"coffer","sub":"x","aud":"KBS","role":"admin"`
	for claims, want := range map[string]int{
		`{` + rest + `,"iat":1788264000,"exp":1788264060}`:                     0,
		`{` + rest + `,"iat":-9223372036854775808,"exp":9223372036854775807}`:  401,
		`{` + rest + `,"iat":-9223372036854775000,"exp":1788264060}`:           401,
		`{` + rest + `,"iat":1788264000,"exp":9223372036854775807}`:            401,
		`{` + rest + `,"iat":1788264000,"exp":1788264060,"nbf":1788264000000}`: 401,
		`{` + rest + `,"iat":1788264000.5,"exp":1788264060}`:                   401,
		`{` + rest + `,"iat":1788264000,"exp":1788264060,"role":"guest"}`:      403,
		`{` + rest + `,"iat":1788264000,"exp":1788264060,"ROLE":"guest"}`:      403,
		`{"iss":"coffer","aud":"KBS","iat":1788264000,"exp":1788264060}`:       403,
		`{"iss":"coffer","aud":["a",1],"iat":1788264000,"exp":1788264060}`:     401,
		`{"iss":"coffer","aud":{"KBS":1},"iat":1788264000,"exp":1788264060}`:   401,
		`[` + rest + `]`: 401,
	} {
		r := httptest.NewRequest(http.MethodGet, "/admin/v1/bindings", nil)
		r.Header.Set("Authorization", "Bearer "+sign(head, claims))
		_, e := a.authenticate(r)
		got := 0
		if e != nil {
			got = e.Status
		}
		if got != want {
			t.Errorf("%s: got %d, want %d (%v)", claims, got, want, e)
		}
	}
	for _, header := range []string{`{"alg":"EdDSA","crit":["exp"],"exp":1}`, `{"alg":"EdDSA","b64":false,"crit":["b64"]}`, `{"alg":"ES256"}`, `{"alg":"none"}`, `{}`} {
		r := httptest.NewRequest(http.MethodGet, "/admin/v1/bindings", nil)
		r.Header.Set("Authorization", "Bearer "+sign(header, `{`+rest+`,"iat":1788264000,"exp":1788264060}`))
		if _, e := a.authenticate(r); e == nil {
			t.Errorf("header %s was accepted", header)
		}
	}
}

// FuzzAuthenticate: only what an administrator signed is let in.
func FuzzAuthenticate(f *testing.F) {
	a, sign := testAuth(f)
	good := "Bearer " + sign(`{"alg":"EdDSA","typ":"JWT"}`, `{"iss":"coffer","sub":"x","aud":["KBS"],"role":"admin","iat":1788264000,"exp":1788264060}`)
	f.Add(good)
	f.Add("Bearer " + sign(`{"alg":"EdDSA"}`, `{}`))
	f.Add("Bearer a.b.c")
	f.Add("Basic eDp5")
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest(http.MethodGet, "/admin/v1/bindings", nil)
		r.Header["Authorization"] = []string{header}
		subject, e := a.authenticate(r)
		// Another spelling of the same base64 is the same token.
		if e == nil && (subject != "x" || len(header) != len(good)) {
			t.Fatalf("%q was accepted as %q", header, subject)
		}
	})
}
