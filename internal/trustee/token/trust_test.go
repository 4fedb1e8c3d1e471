package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

func trust(t *testing.T, o TrustOptions) *Trust {
	t.Helper()
	if o.Issuer == "" {
		o.Issuer = "other"
	}
	if o.Now == nil {
		o.Now = func() time.Time { return start }
	}
	x, err := NewTrust(o)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// The chains that the reference implementation's verifier accepts and refuses.
func TestChainVectors(t *testing.T) {
	t.Parallel()
	for scenario, want := range map[string]string{
		"1": "", "2": "do not match", "3": "no chain", "4": "does not lead", "5": "", "6": "", "7": "",
	} {
		jwk, err := os.ReadFile(filepath.Join("testdata", "scenario0"+scenario+"-jwk.json"))
		if err != nil {
			t.Fatal(err)
		}
		roots, err := os.ReadFile(filepath.Join("testdata", "scenario0"+scenario+"-trust.pem"))
		if err != nil {
			t.Fatal(err)
		}
		x := trust(t, TrustOptions{Certificates: roots})
		var k jose.JSONWebKey
		err = json.Unmarshal(jwk, &k)
		if err == nil {
			_, err = x.candidates(t.Context(), jose.Header{JSONWebKey: &k, Algorithm: "RS256"})
		}
		switch {
		case want == "" && err != nil:
			t.Errorf("scenario %s: %v", scenario, err)
		case want == "no chain" && (err == nil || !strings.Contains(err.Error(), "expected a key with an x5c chain")):
			t.Errorf("scenario %s: got %v", scenario, err)
		case want != "" && err == nil:
			t.Errorf("scenario %s: want an error", scenario)
		case want != "" && want != "no chain" && !strings.Contains(err.Error(), want):
			t.Errorf("scenario %s: got %v, want %q", scenario, err, want)
		}
		// A year after the certificates' end they are worth nothing.
		if want == "" {
			late := trust(t, TrustOptions{Certificates: roots, Now: func() time.Time { return start.AddDate(11, 0, 0) }})
			if _, err := late.candidates(t.Context(), jose.Header{JSONWebKey: &k, Algorithm: "RS256"}); err == nil {
				t.Errorf("scenario %s: expired certificates: want an error", scenario)
			}
			if _, err := x.candidates(t.Context(), jose.Header{JSONWebKey: &k, Algorithm: "ES256"}); err == nil {
				t.Errorf("scenario %s: another algorithm: want an error", scenario)
			}
		}
	}
}

// foreign signs as another attestation service does.
func foreign(t *testing.T, k *ecdsa.PrivateKey, kid string, embed bool, certs []*x509.Certificate, change func(map[string]any)) string {
	t.Helper()
	payload := map[string]any{
		"iss": "other", "iat": start.Unix(), "exp": start.Add(time.Minute).Unix(),
		"submods": map[string]any{"cpu0": map[string]any{"ear.status": "affirming", "ear.veraison.annotated-evidence": map[string]any{"tdx": map[string]any{}}}},
	}
	if change != nil {
		change(payload)
	}
	o := &jose.SignerOptions{}
	if embed {
		o = o.WithHeader("jwk", jose.JSONWebKey{Key: &k.PublicKey, Algorithm: "ES256", Certificates: certs})
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k, KeyID: kid}}, o)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := s.Sign(doc)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

func TestForeignTokens(t *testing.T) {
	t.Parallel()
	k, unknown := key(t, elliptic.P256()), key(t, elliptic.P256())
	file := filepath.Join(t.TempDir(), "set.json")
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &k.PublicKey, KeyID: "k", Algorithm: "ES256"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, set, 0o600); err != nil {
		t.Fatal(err)
	}
	cert := selfSigned(t, k)
	roots, err := os.ReadFile("testdata/scenario01-trust.pem")
	if err != nil {
		t.Fatal(err)
	}
	now := start
	with := func(list ...*Trust) *Authority {
		a, err := New(t.Context(), Options{Keys: Static(unknown), Issuer: "own", Audience: "a", Lifetime: time.Minute, Now: func() time.Time { return now }, Trusted: list})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := with(trust(t, TrustOptions{JWKSets: []string{"file://" + file}, Tenants: []tenant.Name{"acme"}, Certificates: roots}))
	c, payload, err := a.Verify(t.Context(), "acme", foreign(t, k, "k", false, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if c.Tenant != "acme" || c.Protocol != "0.4.0" || len(c.ID) != 32 || c.Submods["cpu0"].Status != "affirming" || strings.Contains(string(payload), "acme") {
		t.Errorf("claims %+v, payload %s", c, payload)
	}
	for name, tok := range map[string]string{
		"no kid":       foreign(t, k, "", false, nil, nil),
		"key in token": foreign(t, k, "", true, nil, nil),
		"one audience": foreign(t, k, "k", false, nil, func(m map[string]any) { m["aud"] = "x" }),
	} {
		if _, _, err := a.Verify(t.Context(), "acme", tok); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tok := range map[string]string{
		"other key":           foreign(t, unknown, "k", false, nil, nil),
		"other key, no kid":   foreign(t, unknown, "", false, nil, nil),
		"other key in token":  foreign(t, unknown, "", true, nil, nil),
		"unknown kid":         foreign(t, k, "x", false, nil, nil),
		"chain of anyone":     foreign(t, k, "", true, []*x509.Certificate{cert}, nil),
		"expired":             foreign(t, k, "k", false, nil, func(m map[string]any) { m["exp"] = start.Unix() }),
		"no exp":              foreign(t, k, "k", false, nil, func(m map[string]any) { delete(m, "exp") }),
		"issued in future":    foreign(t, k, "k", false, nil, func(m map[string]any) { m["iat"] = start.Add(time.Hour).Unix() }),
		"not yet":             foreign(t, k, "k", false, nil, func(m map[string]any) { m["nbf"] = start.Add(time.Hour).Unix() }),
		"for another tenant":  foreign(t, k, "k", false, nil, func(m map[string]any) { m["coffer.tenant"] = "x" }),
		"own issuer":          foreign(t, k, "k", false, nil, func(m map[string]any) { m["iss"] = "own" }),
		"issuer of no one":    foreign(t, k, "k", false, nil, func(m map[string]any) { m["iss"] = "x" }),
		"malformed submodule": foreign(t, k, "k", false, nil, func(m map[string]any) { m["submods"] = 1 }),
	} {
		if _, _, err := a.Verify(t.Context(), "acme", tok); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	good := foreign(t, k, "k", false, nil, nil)
	if _, _, err := a.Verify(t.Context(), "rival", good); err == nil {
		t.Error("a tenant that does not trust the service: want an error")
	}
	if _, _, err := with().Verify(t.Context(), "acme", good); err == nil {
		t.Error("nobody is trusted: want an error")
	}
	if _, _, err := with(trust(t, TrustOptions{JWKSets: []string{file}, Audience: "us"})).Verify(t.Context(), "acme", good); err == nil {
		t.Error("no audience: want an error")
	}
	for name, o := range map[string]TrustOptions{
		"nothing":     {Issuer: "x", Now: time.Now},
		"no issuer":   {Now: time.Now, JWKSets: []string{file}},
		"plain HTTP":  {Issuer: "x", Now: time.Now, JWKSets: []string{"http://x/"}, Client: &http.Client{}},
		"no client":   {Issuer: "x", Now: time.Now, JWKSets: []string{"https://x/"}},
		"no file":     {Issuer: "x", Now: time.Now, JWKSets: []string{file + "x"}},
		"no set":      {Issuer: "x", Now: time.Now, JWKSets: []string{"testdata/scenario01-jwk.json"}},
		"no PEM":      {Issuer: "x", Now: time.Now, Certificates: []byte("x")},
		"private key": {Issuer: "x", Now: time.Now, Certificates: []byte("-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n")},
	} {
		if _, err := NewTrust(o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if _, err := New(t.Context(), Options{Keys: Static(k), Issuer: "other", Audience: "a", Lifetime: 1, Now: time.Now, Trusted: []*Trust{trust(t, TrustOptions{JWKSets: []string{file}})}}); err == nil {
		t.Error("a trusted service with our own issuer: want an error")
	}
}

func selfSigned(t *testing.T, k *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: start.Add(-time.Hour), NotAfter: start.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRemoteSets(t *testing.T) {
	t.Parallel()
	k1, k2 := key(t, elliptic.P256()), key(t, elliptic.P256())
	var keys atomic.Pointer[jose.JSONWebKeySet]
	var fetched, status atomic.Int32
	status.Store(http.StatusOK)
	keys.Store(&jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &k1.PublicKey, KeyID: "1"}}})
	var base string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/issuer/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(map[string]string{"jwks_uri": base + "/keys"})
		case "/keys":
			fetched.Add(1)
			w.WriteHeader(int(status.Load()))
			_ = json.NewEncoder(w).Encode(keys.Load())
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	base = srv.URL
	now := start
	for _, address := range []string{srv.URL + "/keys", srv.URL + "/issuer"} {
		fetched.Store(0)
		keys.Store(&jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &k1.PublicKey, KeyID: "1"}}})
		now = start
		x := trust(t, TrustOptions{JWKSets: []string{address}, Client: srv.Client(), Now: func() time.Time { return now }})
		a, err := New(t.Context(), Options{Keys: Static(k2), Issuer: "own", Audience: "a", Lifetime: time.Minute, Now: func() time.Time { return start }, Trusted: []*Trust{x}})
		if err != nil {
			t.Fatal(err)
		}
		verify := func(what string, k *ecdsa.PrivateKey, kid string, ok bool, fetches int32) {
			t.Helper()
			if _, _, err := a.Verify(t.Context(), "acme", foreign(t, k, kid, false, nil, nil)); (err == nil) != ok {
				t.Errorf("%s: %v", what, err)
			}
			if n := fetched.Load(); n != fetches {
				t.Errorf("%s: fetched %d times, want %d", what, n, fetches)
			}
		}
		verify("first", k1, "1", true, 1)
		verify("again", k1, "1", true, 1)
		verify("unknown, at once", k2, "2", false, 1)
		now = now.Add(setRetry)
		verify("unknown, later", k2, "2", false, 2)
		verify("unknown, at once again", k2, "2", false, 2)
		keys.Store(&jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &k2.PublicKey, KeyID: "2"}}})
		now = now.Add(setRetry)
		verify("rotated", k2, "2", true, 3)
		now = now.Add(setRefresh)
		status.Store(http.StatusInternalServerError)
		verify("down", k2, "2", true, 4)
		now = now.Add(setStale)
		verify("down for long", k2, "2", false, 5)
		status.Store(http.StatusOK)
		now = now.Add(setRetry)
		verify("up again", k2, "2", true, 6)
	}
}

func TestTEEKey(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ doc, extra, want string }{
		"EAR":     {`{"submods":{"cpu0":{"ear.veraison.annotated-evidence":{"runtime_data_claims":{"tee-pubkey":{"a":1}}}}},"tee-pubkey":{"b":1}}`, "", `{"a":1}`},
		"top":     {`{"tee-pubkey":{"b":1}}`, "", `{"b":1}`},
		"extra":   {`{"tee-pubkey":{"b":1},"x/y":{"z":{"c":1}}}`, "/x~1y/z", `{"c":1}`},
		"string":  {`{"tee-pubkey":"x"}`, "", ""},
		"none":    {`{}`, "x", ""},
		"garbage": {`[`, "/x", ""},
	} {
		got, ok := TEEKey(json.RawMessage(tc.doc), tc.extra)
		if string(got) != tc.want && ok || ok != (tc.want != "") {
			t.Errorf("%s: got %s, %v", name, got, ok)
		}
	}
}

func FuzzParseSet(f *testing.F) {
	set, err := os.ReadFile("testdata/scenario01-jwk.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"keys":[` + string(set) + `]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseSet(text)
		if (len(keys) == 0) == (err == nil) {
			t.Errorf("keys %v, error %v", keys, err)
		}
	})
}
