package adminapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// issuer is an OpenID provider in this process.
type issuer struct {
	server *httptest.Server
	mu     sync.Mutex
	// keys are what its JWKS holds.
	keys []jose.JSONWebKey
	// configured is what discovery says of the issuer, "" for the truth.
	configured string
	status     int
	asked      int
}

func newIssuer(tb testing.TB) *issuer {
	tb.Helper()
	i := &issuer{status: http.StatusOK}
	i.server = httptest.NewTLSServer(i)
	tb.Cleanup(i.server.Close)
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked++
	if i.status != http.StatusOK {
		http.Redirect(w, r, "/elsewhere", i.status)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		name := i.server.URL
		if i.configured != "" {
			name = i.configured
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": name, "jwks_uri": i.server.URL + "/keys"})
	case "/keys":
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": i.keys})
	default:
		http.NotFound(w, r)
	}
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func jwk(key crypto.PublicKey, kid, alg, use string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: alg, Use: use}
}

// clock is a clock to turn.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// oidcEnv is an env with one provider.
func oidcEnv(t *testing.T, i *issuer, change func(*ProviderOptions)) (*env, *clock) {
	t.Helper()
	c := &clock{t: fixed}
	o := ProviderOptions{Issuer: i.server.URL, Audience: "trustee", Tenant: tenant.All, HTTP: i.server.Client(), Now: c.now}
	if change != nil {
		change(&o)
	}
	p, err := NewProvider(o)
	if err != nil {
		t.Fatal(err)
	}
	return newEnv(t, func(o *Options) { o.Auth.Providers, o.Auth.Now = []*Provider{p}, c.now }), c
}

func ecKey(tb testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func rsaKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}
