package adminapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

func TestOIDC(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	r, ec, other := rsaKey(t), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	i.keys = []jose.JSONWebKey{
		jwk(r.Public(), "r", "", "sig"), jwk(ec.Public(), "e", "ES256", "sig"), jwk(ed.Public(), "d", "", ""), jwk(other.Public(), "enc", "", "enc"),
	}
	e, _ := oidcEnv(t, i, nil)
	oidcToken := func(key any, alg jose.SignatureAlgorithm, kid string, change map[string]any) string {
		claims := map[string]any{"iss": i.server.URL, "aud": []string{"x", "trustee"}, "sub": "alice"}
		for k, v := range change {
			claims[k] = v
		}
		return token(t, key, alg, kid, claims)
	}
	der, err := x509.MarshalPKIXPublicKey(r.Public())
	if err != nil {
		t.Fatal(err)
	}
	// The confusion of algorithms: a public key as the secret of an HMAC.
	confused := func(secret []byte) string {
		enc := base64.RawURLEncoding.EncodeToString
		payload, _, _ := strings.Cut(strings.SplitN(oidcToken(r, jose.RS256, "r", nil), ".", 2)[1], ".")
		text := enc([]byte(`{"alg":"HS256","kid":"r","typ":"JWT"}`)) + "." + payload
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		return text + "." + enc(mac.Sum(nil))
	}
	unsigned := func() string {
		payload, _, _ := strings.Cut(strings.SplitN(oidcToken(r, jose.RS256, "r", nil), ".", 2)[1], ".")
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + payload + "."
	}
	for name, tc := range map[string]struct {
		bearer string
		status int
		detail string
	}{
		"RSA":              {oidcToken(r, jose.RS256, "r", nil), 200, ""},
		"PSS":              {oidcToken(r, jose.PS256, "r", nil), 200, ""},
		"EC":               {oidcToken(ec, jose.ES256, "e", nil), 200, ""},
		"Ed25519":          {oidcToken(ed, jose.EdDSA, "d", nil), 200, ""},
		"no kid":           {oidcToken(ec, jose.ES256, "", nil), 200, ""},
		"audience alone":   {oidcToken(ec, jose.ES256, "e", map[string]any{"aud": "trustee"}), 200, ""},
		"wrong kid":        {oidcToken(ec, jose.ES256, "r", nil), 401, "signature"},
		"unknown key":      {oidcToken(ecKey(t, elliptic.P256()), jose.ES256, "e", nil), 401, "signature"},
		"key for another":  {oidcToken(other, jose.ES256, "enc", nil), 401, "signature"},
		"algorithm":        {oidcToken(r, jose.RS512, "r", nil), 401, "EdDSA"},
		"none":             {unsigned(), 401, "EdDSA"},
		"HS256 DER":        {confused(der), 401, "EdDSA"},
		"HS256 PEM":        {confused(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), 401, "EdDSA"},
		"audience":         {oidcToken(ec, jose.ES256, "e", map[string]any{"aud": "KBS"}), 401, "aud"},
		"no audience":      {oidcToken(ec, jose.ES256, "e", map[string]any{"aud": nil}), 401, "aud"},
		"issuer":           {oidcToken(ec, jose.ES256, "e", map[string]any{"iss": "https://elsewhere.example"}), 401, "EdDSA"},
		"issuer of keys":   {oidcToken(ed, jose.EdDSA, "d", map[string]any{"iss": "coffer"}), 401, "signature"},
		"expired":          {oidcToken(ec, jose.ES256, "e", map[string]any{"exp": fixed.Unix() - 1}), 401, "expired"},
		"no exp":           {oidcToken(ec, jose.ES256, "e", map[string]any{"exp": nil}), 401, "exp"},
		"no iat":           {oidcToken(ec, jose.ES256, "e", map[string]any{"iat": nil}), 401, "iat"},
		"future":           {oidcToken(ec, jose.ES256, "e", map[string]any{"iat": fixed.Unix() + 600}), 401, "future"},
		"not before":       {oidcToken(ec, jose.ES256, "e", map[string]any{"nbf": fixed.Unix() + 3600}), 401, "nbf"},
		"types":            {oidcToken(ec, jose.ES256, "e", map[string]any{"exp": "soon"}), 401, "types"},
		"no role":          {oidcToken(ec, jose.ES256, "e", map[string]any{"role": nil}), 403, "role"},
		"role":             {oidcToken(ec, jose.ES256, "e", map[string]any{"role": "developer"}), 403, "role"},
		"roles, one known": {oidcToken(ec, jose.ES256, "e", map[string]any{"role": []any{"developer", 7, "auditor"}}), 200, ""},
		"role not enough":  {oidcToken(ec, jose.ES256, "e", map[string]any{"role": "secret-writer"}), 403, "audit.read"},
		// The provider's key in an administrator's own shape, and the reverse.
		"key for provider": {token(t, testKey("root"), jose.EdDSA, "", map[string]any{"iss": i.server.URL, "aud": "trustee"}), 401, "signature"},
	} {
		got := e.do("acme", tc.bearer, "GET /admin/v1/audit", "")
		if got.status != tc.status || !strings.Contains(got.info.Detail, tc.detail) {
			t.Errorf("%s: %d %s; want %d %s", name, got.status, got.body, tc.status, tc.detail)
		}
	}
	if n := i.count(); n != 2 {
		t.Errorf("the provider was asked %d times, want 2: invented keys must not become requests", n)
	}
	var who admin.WhoAmI
	decodeInto(t, e.do("acme", oidcToken(r, jose.RS256, "r", map[string]any{"role": []string{"auditor", "secret-writer", "auditor"}}), "GET /admin/v1/whoami", ""), &who)
	if who.Subject != "alice" || who.Method != "oidc" || who.KeyID != "" || strings.Join(who.Roles, " ") != "auditor secret-writer" || who.Tenants[0] != "*" {
		t.Errorf("%+v", who)
	}
}

// TestOIDCClaims: where roles and tenants stand, and what they are called.
func TestOIDCClaims(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	key := ecKey(t, elliptic.P384())
	i.keys = []jose.JSONWebKey{jwk(key.Public(), "e", "", "")}
	file := filepath.Join(t.TempDir(), "jwks.json")
	doc, err := json.Marshal(jose.JSONWebKeySet{Keys: i.keys})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{
		"realm_access": map[string]any{"roles": []string{"ops", "staff"}},
		"https://x/y":  map[string]any{"a~b": "ops"},
		"tenants":      []string{"acme", "*", "../x", "beta"},
		"one":          "acme",
	}
	for name, tc := range map[string]struct {
		change func(*ProviderOptions)
		at     tenant.Name
		status int
	}{
		"dotted":                {func(o *ProviderOptions) { o.RoleClaim = "realm_access.roles" }, "acme", 200},
		"pointer":               {func(o *ProviderOptions) { o.RoleClaim = "/realm_access/roles" }, "acme", 200},
		"escaped pointer":       {func(o *ProviderOptions) { o.RoleClaim = "/https:~1~1x~1y/a~0b" }, "acme", 200},
		"nothing there":         {func(o *ProviderOptions) { o.RoleClaim = "realm_access.nothing.more" }, "acme", 403},
		"an object":             {func(o *ProviderOptions) { o.RoleClaim = "realm_access" }, "acme", 403},
		"not mapped":            {func(o *ProviderOptions) { o.RoleMap = map[string]string{"others": "admin"} }, "acme", 403},
		"mapped to less":        {func(o *ProviderOptions) { o.RoleMap = map[string]string{"staff": "secret-writer"} }, "acme", 403},
		"bound to it":           {func(o *ProviderOptions) { o.Tenant = "acme" }, "acme", 200},
		"bound to another":      {func(o *ProviderOptions) { o.Tenant = "beta" }, "acme", 403},
		"claimed":               {func(o *ProviderOptions) { o.TenantClaim = "one" }, "acme", 200},
		"claimed another":       {func(o *ProviderOptions) { o.TenantClaim = "one" }, "beta", 403},
		"claimed among others":  {func(o *ProviderOptions) { o.TenantClaim = "/tenants" }, "beta", 200},
		"claimed all":           {func(o *ProviderOptions) { o.TenantClaim = "tenants" }, tenant.Default, 200},
		"claimed all, bound":    {func(o *ProviderOptions) { o.TenantClaim, o.Tenant = "tenants", "acme" }, "beta", 403},
		"claimed within bounds": {func(o *ProviderOptions) { o.TenantClaim, o.Tenant = "tenants", "acme" }, "acme", 200},
		"claimed nothing":       {func(o *ProviderOptions) { o.TenantClaim = "absent" }, "acme", 403},
		"file":                  {func(o *ProviderOptions) { o.JWKS = file }, "acme", 200},
		"file URL":              {func(o *ProviderOptions) { o.JWKS = "file://" + file }, "acme", 200},
		"no file":               {func(o *ProviderOptions) { o.JWKS = file + "x" }, "acme", 503},
		"URL":                   {func(o *ProviderOptions) { o.JWKS = i.server.URL + "/keys" }, "acme", 200},
		"no URL":                {func(o *ProviderOptions) { o.JWKS = i.server.URL + "/x" }, "acme", 503},
		"algorithm":             {func(o *ProviderOptions) { o.Algorithms = []string{"RS256"} }, "acme", 401},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, _ := oidcEnv(t, i, func(o *ProviderOptions) {
				o.RoleClaim, o.RoleMap = "realm_access.roles", map[string]string{"ops": "auditor"}
				tc.change(o)
			})
			all := map[string]any{"iss": i.server.URL, "aud": "trustee"}
			for k, v := range claims {
				all[k] = v
			}
			if got := e.do(tc.at, token(t, key, jose.ES384, "e", all), "GET /admin/v1/audit", ""); got.status != tc.status {
				t.Errorf("%d %s, want %d", got.status, got.body, tc.status)
			}
		})
	}
}

// TestOIDCRotation: new keys are fetched when a token names one, old ones go,
// an outage is ridden out with what is known.
func TestOIDCRotation(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	first, second := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	i.keys = []jose.JSONWebKey{jwk(first.Public(), "1", "", "")}
	i.status = http.StatusServiceUnavailable
	e, c := oidcEnv(t, i, nil)
	use := func(key *ecdsa.PrivateKey, kid string) int {
		now := c.now().Unix()
		return e.do("acme", token(t, key, jose.ES256, kid, map[string]any{"iss": i.server.URL, "aud": "trustee", "iat": now, "exp": now + 60}), "GET /admin/v1/audit", "").status
	}
	if got := use(first, "1"); got != 503 {
		t.Errorf("down from the beginning: %d", got)
	}
	asked := i.count()
	if got := use(first, "1"); got != 503 || i.count() != asked {
		t.Errorf("down, at once again: %d, asked %d times", got, i.count()-asked)
	}
	i.set(func() { i.status = http.StatusOK })
	c.add(fetchEvery)
	if got := use(first, "1"); got != 200 {
		t.Errorf("up again: %d", got)
	}
	// Rotation: both keys for a while.
	i.set(func() { i.keys = append(i.keys, jwk(second.Public(), "2", "", "")) })
	if got := use(second, "2"); got != 401 {
		t.Errorf("new key, right after the last time: %d", got)
	}
	c.add(fetchEvery)
	if got := use(second, "2"); got != 200 || use(first, "1") != 200 {
		t.Errorf("new key: %d", got)
	}
	// The old one is withdrawn, and noticed within freshFor.
	i.set(func() { i.keys = i.keys[1:] })
	c.add(freshFor)
	if got := use(first, "1"); got != 401 || use(second, "2") != 200 {
		t.Errorf("withdrawn key: %d", got)
	}
	// An outage: what is known goes on to count, what is not cannot be judged.
	for name, change := range map[string]func(){
		"status":   func() { i.status = http.StatusBadGateway },
		"redirect": func() { i.status = http.StatusFound },
		"issuer":   func() { i.status, i.configured = http.StatusOK, "https://elsewhere.example" },
		"no keys":  func() { i.configured, i.keys = "", nil },
	} {
		i.set(change)
		c.add(freshFor)
		if got := use(second, "2"); got != 200 || use(first, "1") != 503 {
			t.Errorf("%s: %d", name, got)
		}
		i.set(func() {
			i.status, i.configured, i.keys = http.StatusOK, "", []jose.JSONWebKey{jwk(second.Public(), "2", "", "")}
		})
		c.add(freshFor)
		if got := use(second, "2"); got != 200 {
			t.Errorf("%s, after it: %d", name, got)
		}
	}
	i.server.Close()
	c.add(usableFor - time.Second)
	if got := use(second, "2"); got != 200 {
		t.Errorf("within the time that keys are kept: %d", got)
	}
	c.add(time.Second)
	if got := use(second, "2"); got != 503 {
		t.Errorf("beyond it: %d", got)
	}
}

// TestOIDCNeverBlocks: a provider that does not answer costs a token five
// seconds and those after it nothing.
func TestOIDCNeverBlocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := ProviderOptions{Issuer: "https://id.example", Audience: "trustee", Tenant: tenant.All, HTTP: &http.Client{Transport: silent{}}}
		p, err := NewProvider(o)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().Unix()
		bearer := token(t, testKey("x"), jose.EdDSA, "k", map[string]any{"iss": o.Issuer, "aud": "trustee", "iat": now, "exp": now + 60})
		start := time.Now()
		if _, e := p.authenticate(t.Context(), bearer); e == nil || e.Status != 503 || time.Since(start) > fetchTimeout {
			t.Errorf("%v after %v", e, time.Since(start))
		}
		start = time.Now()
		if _, e := p.authenticate(t.Context(), bearer); e == nil || e.Status != 503 || time.Since(start) != 0 {
			t.Errorf("again: %v after %v", e, time.Since(start))
		}
		// Who has less time does not wait longer.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		<-time.After(fetchEvery)
		if _, e := p.authenticate(ctx, bearer); e == nil || e.Status != 503 {
			t.Errorf("short of time: %v", e)
		}
		synctest.Wait()
		<-time.After(fetchTimeout)
	})
}

// silent never answers.
type silent struct{}

func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestProviderRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*ProviderOptions){
		"good":        nil,
		"issuer":      func(o *ProviderOptions) { o.Issuer = "" },
		"http":        func(o *ProviderOptions) { o.Issuer = "http://id.example" },
		"audience":    func(o *ProviderOptions) { o.Audience = "" },
		"tenant":      func(o *ProviderOptions) { o.Tenant = "" },
		"role map":    func(o *ProviderOptions) { o.RoleMap = map[string]string{"a": "root"} },
		"HS256":       func(o *ProviderOptions) { o.Algorithms = []string{"HS256"} },
		"none":        func(o *ProviderOptions) { o.Algorithms = []string{"none"} },
		"jwks http":   func(o *ProviderOptions) { o.JWKS = "http://id.example/keys" },
		"jwks user":   func(o *ProviderOptions) { o.JWKS = "https://u:p@id.example/keys" },
		"jwks scheme": func(o *ProviderOptions) { o.JWKS = "ftp://id.example/keys" },
	} {
		o := ProviderOptions{Issuer: "https://id.example", Audience: "x", Tenant: "acme"}
		if change != nil {
			change(&o)
		}
		if _, err := NewProvider(o); (err != nil) != (change != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// With keys from elsewhere, the issuer is but a name.
	if _, err := NewProvider(ProviderOptions{Issuer: "cluster.local", Audience: "x", Tenant: "acme", JWKS: "/etc/keys.json"}); err != nil {
		t.Error(err)
	}
}

func FuzzKeySet(f *testing.F) {
	doc, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk(public("x"), "k", "EdDSA", "sig")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"},{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		keys, err := parseKeys(doc)
		if (err == nil) != (len(keys) > 0) {
			t.Fatalf("%d keys and %v", len(keys), err)
		}
		for _, k := range keys {
			if !k.IsPublic() || !k.Valid() {
				t.Fatalf("%+v", k)
			}
			if _, ok := k.Key.([]byte); ok {
				t.Fatal("a shared secret")
			}
		}
	})
}
