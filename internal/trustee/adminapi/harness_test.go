package adminapi

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/provenance"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

var _ Store = (*store.Store)(nil)

var fixed = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

// testKey is the key of a name: the same name, the same key.
func testKey(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func public(name string) ed25519.PublicKey {
	pub, _ := testKey(name).Public().(ed25519.PublicKey)
	return pub
}

// env is an API over a database of its own, with the tenants default, acme
// and beta. The key "root" is an administrator of every tenant.
type env struct {
	tb    testing.TB
	api   *API
	store *store.Store
}

func newEnv(tb testing.TB, change func(*Options)) *env {
	tb.Helper()
	kek, err := seal.File(secret.New(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		tb.Fatal(err)
	}
	e := &env{tb: tb}
	logger := slog.New(slog.DiscardHandler)
	e.store, err = store.Open(tb.Context(), store.Options{
		Path: filepath.Join(tb.TempDir(), "trustee.db"), KEK: kek, Now: func() time.Time { return fixed }, Rand: rand.Reader, Logger: logger,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := e.store.Close(); err != nil {
			tb.Error(err)
		}
	})
	for _, t := range []tenant.Name{"acme", "beta"} {
		if err := e.store.CreateTenant(tb.Context(), t, ""); err != nil {
			tb.Fatal(err)
		}
	}
	check := func(_ context.Context, _ tenant.Name, id, text string) error {
		if strings.Contains(text, "bad") {
			return &policy.CompileError{Err: fmt.Errorf("%s.rego:2: bad", id)}
		}
		return nil
	}
	o := Options{
		Store: e.store, Resources: e.store.Resources(),
		Auth: Auth{
			Keys:   []Key{{Public: public("root"), Name: "root", Roles: []string{admin.RoleAdmin}, Tenant: tenant.All}},
			Issuer: "coffer", Audience: "KBS", MaxLifetime: time.Hour, Now: func() time.Time { return fixed },
		},
		CheckResourcePolicy: check, CheckAttestationPolicy: check,
		Provenance: func(ctx context.Context, _ tenant.Name, message []byte) ([]refvalues.Reference, error) {
			return provenance.Parse(ctx, provenance.Options{AllowUnsigned: []string{provenance.Sample}, Now: func() time.Time { return fixed }}, message)
		},
		MaxBody: 1 << 16, MaxResource: 1 << 12, Lifetime: time.Hour, Now: func() time.Time { return fixed }, Logger: logger,
	}
	if change != nil {
		change(&o)
	}
	if e.api, err = New(o); err != nil {
		tb.Fatal(err)
	}
	return e
}

// token signs claims over good ones, in whatever header.
func token(tb testing.TB, key any, alg jose.SignatureAlgorithm, kid string, change map[string]any) string {
	tb.Helper()
	claims := map[string]any{"iss": "coffer", "sub": "someone", "aud": "KBS", "role": "admin", "iat": fixed.Unix(), "exp": fixed.Unix() + 60}
	for k, v := range change {
		claims[k] = v
		if v == nil {
			delete(claims, k)
		}
	}
	o := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		o = o.WithHeader("kid", kid)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, o)
	if err != nil {
		tb.Fatal(err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		tb.Fatal(err)
	}
	sig, err := s.Sign(body)
	if err != nil {
		tb.Fatal(err)
	}
	compact, err := sig.CompactSerialize()
	if err != nil {
		tb.Fatal(err)
	}
	return compact
}

func (e *env) token(name string, change map[string]any) string {
	e.tb.Helper()
	return token(e.tb, testKey(name), jose.EdDSA, "", change)
}

type reply struct {
	status int
	body   string
	header http.Header
	info   kbs.ErrorInfo
}

// do sends "METHOD /path" to a tenant with a bearer token.
func (e *env) do(t tenant.Name, bearer, request, body string) reply {
	e.tb.Helper()
	return e.doTLS(t, bearer, request, body, nil)
}

func (e *env) doTLS(t tenant.Name, bearer, request, body string, state *tls.ConnectionState) reply {
	e.tb.Helper()
	method, path, _ := strings.Cut(request, " ")
	r := httptest.NewRequestWithContext(tenant.With(e.tb.Context(), t), method, "https://trustee"+path, strings.NewReader(body))
	r.TLS, r.RemoteAddr = state, "192.0.2.7:4711"
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	w := httptest.NewRecorder()
	e.api.ServeHTTP(w, r)
	out := reply{status: w.Code, body: strings.TrimSpace(w.Body.String()), header: w.Header()}
	if w.Code >= 400 {
		if err := json.Unmarshal(w.Body.Bytes(), &out.info); err != nil || out.info.Detail == "" || out.info.Type == "" {
			e.tb.Errorf("%s: the body of status %d is no problem: %s", request, w.Code, w.Body)
		}
	}
	return out
}

// root sends as the administrator of every tenant, and expects a status.
func (e *env) root(t tenant.Name, request, body string, status int) reply {
	e.tb.Helper()
	got := e.do(t, e.token("root", nil), request, body)
	if got.status != status {
		e.tb.Fatalf("%s: got %d %s, want %d", request, got.status, got.body, status)
	}
	return got
}

// records are those of a tenant's administration, oldest first.
func (e *env) records(t tenant.Name) []audit.Record {
	e.tb.Helper()
	var out []audit.Record
	for before := int64(0); ; {
		list, err := e.store.Entries(e.tb.Context(), t, audit.Query{Kind: audit.KindAdmin, Before: before, Limit: audit.MaxLimit})
		if err != nil {
			e.tb.Fatal(err)
		}
		for _, x := range list {
			var r audit.Record
			if err := json.Unmarshal(x.Body, &r); err != nil {
				e.tb.Fatal(err)
			}
			out = append(out, r)
			before = x.Seq
		}
		if len(list) < audit.MaxLimit {
			slices.Reverse(out)
			return out
		}
	}
}

// addKey stores a key for a tenant.
func (e *env) addKey(t tenant.Name, name string, roles ...string) {
	e.tb.Helper()
	if _, err := e.store.AddAdmin(e.tb.Context(), store.Admin{Tenant: t, Name: name, Roles: roles, PublicKey: public(name)}); err != nil {
		e.tb.Fatal(err)
	}
}

// withCertificate is a connection whose client certificate was verified.
func withCertificate() *tls.ConnectionState {
	return &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{}}}}
}

// raw asks with a header as it stands.
func (e *env) raw(header http.Header) reply {
	r := httptest.NewRequestWithContext(e.tb.Context(), http.MethodGet, "https://trustee/admin/v1/bindings", nil)
	r.Header = header
	w := httptest.NewRecorder()
	e.api.ServeHTTP(w, r)
	return reply{status: w.Code, body: w.Body.String(), header: w.Header()}
}

func decodeInto(tb testing.TB, r reply, v any) {
	tb.Helper()
	if r.status != http.StatusOK {
		tb.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		tb.Fatalf("%s: %v", r.body, err)
	}
}

// pluginOf answers whatever is asked.
func pluginOf(answer string) func(context.Context, PluginCall) (*PluginAnswer, *problem.Error) {
	return func(context.Context, PluginCall) (*PluginAnswer, *problem.Error) {
		return &PluginAnswer{Body: secret.New([]byte(answer)), ContentType: "text/plain", Version: 7, Detail: "answered"}, nil
	}
}

func pemOf(tb testing.TB, name string) []byte {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(public(name))
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}
