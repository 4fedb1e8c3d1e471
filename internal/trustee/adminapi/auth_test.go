package adminapi

import (
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// signed makes a token of a header and claims as they stand.
func signed(key ed25519.PrivateKey, header, claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(claims))
	return text + "." + enc(ed25519.Sign(key, []byte(text)))
}

// TestTimesAreTakenLiterally: times at the ends of their range must not turn
// around into a token that lives for ever.
func TestTimesAreTakenLiterally(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	const head = `{"alg":"EdDSA"}`
	const rest = `"iss":"coffer","sub":"x","aud":"KBS","role":"admin"`
	const good = `{` + rest + `,"iat":1788264000,"exp":1788264060}`
	for claims, want := range map[string]int{
		good: 200,
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
		`{` + rest + `,"iat":1788264000,"exp":1788264060,"tenant":"acme"}`:     403,
		`{` + rest + `,"iat":1788264000,"exp":1788264060,"tenant":"default"}`:  200,
		`{` + rest + `,"iat":1788264000,"exp":1788264060,"tenant":"*"}`:        200,
		`{` + rest + `,"iat":1788264000,"exp":1788264060,"tenant":7}`:          401,
		`[` + rest + `]`: 401,
	} {
		if got := e.do(tenant.Default, signed(testKey("root"), head, claims), "GET /admin/v1/bindings", ""); got.status != want {
			t.Errorf("%s: got %d %s, want %d", claims, got.status, got.body, want)
		}
	}
	for _, header := range []string{`{"alg":"EdDSA","crit":["exp"],"exp":1}`, `{"alg":"EdDSA","b64":false,"crit":["b64"]}`, `{"alg":"ES256"}`, `{"alg":"none"}`, `{}`,
		`{"alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AAAA"}}x`} {
		if got := e.do(tenant.Default, signed(testKey("root"), header, good), "GET /admin/v1/bindings", ""); got.status != 401 {
			t.Errorf("header %s: %d", header, got.status)
		}
	}
	// A key in the header is not used.
	if got := e.do(tenant.Default, signed(testKey("stranger"), head, good), "GET /admin/v1/bindings", ""); got.status != 401 {
		t.Errorf("stranger: %d", got.status)
	}
}

// TestHeader: what is no single bearer token is none.
func TestHeader(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	good := e.token("root", nil)
	for name, bearer := range map[string]string{
		"none": "", "space": " " + good, "two": good + "," + good, "padding": good + "=", "cut": good[:len(good)-4], "long": good + strings.Repeat("x", maxToken),
		"json": `{"payload":"e30","signatures":[]}`, "dots": "..", "two parts": "a.b",
	} {
		got := e.do(tenant.Default, bearer, "GET /admin/v1/bindings", "")
		if got.status != 401 || got.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	for _, values := range [][]string{{"Bearer " + good, "Bearer " + good}, {"Basic " + good}, {good}, {"bearer " + good}} {
		if r := e.raw(http.Header{"Authorization": values}); r.status != 401 {
			t.Errorf("%.20s: %d", values, r.status)
		}
	}
	if r := e.raw(http.Header{"Authorization": {"Bearer " + good}}); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestRoles: a token claims one role, within what its key may.
func TestRoles(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	e.addKey("acme", "writer", admin.RoleSecretWriter, admin.RoleAuditor)
	e.addKey("acme", "owner", admin.RoleAdmin)
	for _, tc := range []struct {
		key, role, request string
		status             int
	}{
		{"writer", admin.RoleSecretWriter, "POST /kbs/v0/resource/a/b/c", 200},
		{"writer", admin.RoleAuditor, "GET /admin/v1/audit", 200},
		// Each of its roles by itself.
		{"writer", admin.RoleSecretWriter, "GET /admin/v1/audit", 403},
		{"writer", admin.RoleAuditor, "POST /kbs/v0/resource/a/b/c", 403},
		{"writer", admin.RoleAdmin, "GET /admin/v1/audit", 403},
		{"writer", "", "GET /admin/v1/audit", 403},
		{"writer", "guest", "GET /admin/v1/audit", 403},
		{"owner", admin.RoleAuditor, "GET /admin/v1/audit", 200},
		{"owner", admin.RoleAuditor, "POST /kbs/v0/resource/a/b/c", 403},
		{"owner", admin.RoleAdmin, "POST /kbs/v0/resource/a/b/c", 200},
		{"owner", "Admin", "GET /admin/v1/audit", 403},
	} {
		if got := e.do("acme", e.token(tc.key, map[string]any{"role": tc.role}), tc.request, "x"); got.status != tc.status {
			t.Errorf("%+v: %d %s", tc, got.status, got.body)
		}
	}
	var who admin.WhoAmI
	decodeInto(t, e.do("acme", e.token("writer", map[string]any{"role": admin.RoleSecretWriter, "sub": "w\x00\n" + strings.Repeat("é", 300)}), "GET /admin/v1/whoami", ""), &who)
	if who.Method != "key" || who.KeyID != store.AdminID(public("writer")) || who.Tenant != "acme" || len(who.Tenants) != 1 || who.Tenants[0] != "acme" ||
		strings.ContainsAny(who.Subject, "\x00\n") || len(who.Subject) > maxSubject+8 || len(who.Permissions) != 8 {
		t.Errorf("%+v", who)
	}
}

// TestStoredKeys: added, used, named in the token or not, and revoked at once.
func TestStoredKeys(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	const request = "GET /admin/v1/bindings"
	use := func(at tenant.Name) int { return e.do(at, e.token("new", nil), request, "").status }
	if use("acme") != 401 {
		t.Error("a key that nobody added")
	}
	e.addKey("acme", "new", admin.RoleAdmin)
	if use("acme") != 200 || use("beta") != 401 || use(tenant.Default) != 401 || use("nowhere") != 401 {
		t.Error("a key of one tenant")
	}
	for kid, want := range map[string]int{store.AdminID(public("new")): 200, "unknown": 200, store.AdminID(public("root")): 200} {
		if got := e.do("acme", token(t, testKey("new"), jose.EdDSA, kid, nil), request, ""); got.status != want {
			t.Errorf("kid %s: %d", kid, got.status)
		}
	}
	e.root("acme", "DELETE /admin/v1/admins/"+store.AdminID(public("new")), "", 200)
	if use("acme") != 401 {
		t.Error("a revoked key is accepted")
	}
	e.addKey(tenant.All, "new", admin.RoleAdmin)
	if use("acme") != 200 || use("beta") != 200 || use("nowhere") != 404 {
		t.Error("a key of every tenant")
	}
	e.root("acme", "DELETE /admin/v1/admins/"+store.AdminID(public("new")), "", 200)
	if use("acme") != 401 || use("beta") != 401 {
		t.Error("a revoked key of every tenant is accepted")
	}
}

// TestNoOracle: who administers one tenant is told the same of one that is
// there, one that is not and one that is disabled.
func TestNoOracle(t *testing.T) {
	t.Parallel()
	e := newEnv(t, func(o *Options) {
		o.Auth.Keys = append(o.Auth.Keys, Key{Public: public("configured"), Roles: []string{admin.RoleAdmin}, Tenant: "acme"})
	})
	e.addKey("acme", "stored", admin.RoleAdmin)
	e.root(tenant.Default, "PATCH /admin/v1/tenants/beta", `{"enabled":false}`, 200)
	for _, key := range []string{"configured", "stored", "stranger"} {
		var bodies []string
		for _, at := range []tenant.Name{tenant.Default, "beta", "nowhere"} {
			got := e.do(at, e.token(key, nil), "GET /admin/v1/bindings", "")
			bodies = append(bodies, got.body)
		}
		if bodies[0] != bodies[1] || bodies[1] != bodies[2] {
			t.Errorf("%s: %q", key, bodies)
		}
	}
	for _, at := range []tenant.Name{"beta", "nowhere"} {
		if got := e.root(at, "GET /admin/v1/bindings", "", 404); !strings.Contains(got.info.Detail, "no such tenant") {
			t.Errorf("%s", got.body)
		}
		e.root(at, "POST /kbs/v0/resource/a/b/c", "x", 404)
	}
	e.root(tenant.Default, "PATCH /admin/v1/tenants/beta", `{"enabled":true}`, 200)
	e.root("beta", "GET /admin/v1/bindings", "", 200)
	for _, r := range e.records("beta") {
		t.Errorf("%+v", r)
	}
	n := 0
	for _, r := range e.records("acme") {
		if r.Status == 403 && strings.Contains(r.Detail, "at the URL of tenant") {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d attempts on record, want 3", n)
	}
}

// TestClientCertificate: with it required, a token alone is not enough, and
// its use without one is on record.
func TestClientCertificate(t *testing.T) {
	t.Parallel()
	e := newEnv(t, func(o *Options) { o.Auth.RequireClientCertificate = true })
	const request = "GET /admin/v1/bindings"
	good := e.token("root", nil)
	if got := e.doTLS(tenant.Default, good, request, "", nil); got.status != 403 || !strings.Contains(got.info.Detail, "certificate") {
		t.Errorf("plain: %d %s", got.status, got.body)
	}
	state := withCertificate()
	if got := e.doTLS(tenant.Default, good, request, "", state); got.status != 200 {
		t.Errorf("with: %d %s", got.status, got.body)
	}
	// Certificates that nobody verified do not count.
	state.PeerCertificates, state.VerifiedChains = state.VerifiedChains[0], nil
	if got := e.doTLS(tenant.Default, good, request, "", state); got.status != 403 {
		t.Errorf("not verified: %d", got.status)
	}
	if got := e.doTLS(tenant.Default, "", request, "", withCertificate()); got.status != 401 {
		t.Errorf("no token: %d", got.status)
	}
	if got := e.records(tenant.Default); len(got) != 2 || got[0].Status != 403 || got[0].Subject != "someone" {
		t.Errorf("%+v", got)
	}
	if _, p := e.api.Authorize(t.Context(), Credentials{Bearer: good}, tenant.Default, PolicyWrite); p == nil || p.Status != 403 {
		t.Errorf("Authorize: %v", p)
	}
}

// TestAuthorize is for parts with an interface of their own.
func TestAuthorize(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	e.addKey("acme", "author", admin.RolePolicyAuthor)
	bearer := e.token("author", map[string]any{"role": admin.RolePolicyAuthor})
	who, p := e.api.Authorize(t.Context(), Credentials{Bearer: bearer, Client: "c"}, "acme", PolicyWrite)
	if p != nil || who.Subject != "someone" || !who.May(ReferenceWrite) || who.May(ResourceWrite) {
		t.Errorf("%+v, %v", who, p)
	}
	if _, p := e.api.Authorize(t.Context(), Credentials{Bearer: bearer, Client: "c"}, "acme", ResourceWrite); p == nil || p.Status != 403 {
		t.Errorf("%v", p)
	}
	if _, p := e.api.Authorize(t.Context(), Credentials{Bearer: bearer}, "beta", PolicyWrite); p == nil || p.Status != 401 {
		t.Errorf("%v", p)
	}
	if got := e.records("acme"); len(got) != 1 || got[0].Action != string(ResourceWrite) || got[0].Client != "c" || got[0].Status != 403 {
		t.Errorf("%+v", got)
	}
}

func TestAuthRefusesConfiguration(t *testing.T) {
	t.Parallel()
	now := func() time.Time { return fixed }
	key := Key{Public: public("root"), Roles: []string{admin.RoleAdmin}, Tenant: tenant.All}
	for name, change := range map[string]func(*Auth){
		"good":        nil,
		"audience":    func(a *Auth) { a.Audience = "" },
		"lifetime":    func(a *Auth) { a.MaxLifetime = 0 },
		"clock":       func(a *Auth) { a.Now = nil },
		"twice":       func(a *Auth) { a.Keys = append(a.Keys, a.Keys[0]) },
		"no role":     func(a *Auth) { a.Keys[0].Roles = nil },
		"role":        func(a *Auth) { a.Keys[0].Roles = []string{"root"} },
		"role twice":  func(a *Auth) { a.Keys[0].Roles = []string{"admin", "admin"} },
		"no tenant":   func(a *Auth) { a.Keys[0].Tenant = "" },
		"tenant":      func(a *Auth) { a.Keys[0].Tenant = "A" },
		"key":         func(a *Auth) { a.Keys[0].Public = a.Keys[0].Public[:31] },
		"same issuer": func(a *Auth) { a.Providers = []*Provider{{o: ProviderOptions{Issuer: "coffer"}}} },
	} {
		a := Auth{Keys: []Key{key}, Issuer: "coffer", Audience: "KBS", MaxLifetime: time.Hour, Now: now}
		if change != nil {
			change(&a)
		}
		if err := a.check(); (err != nil) != (change != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a, err := New(Options{}); err == nil || a != nil {
		t.Error("no options")
	}
}

// FuzzAuthenticate: only what an administrator signed is let in.
func FuzzAuthenticate(f *testing.F) {
	e := newEnv(f, nil)
	good := signed(testKey("root"), `{"alg":"EdDSA","typ":"JWT"}`, `{"iss":"coffer","sub":"x","aud":["KBS"],"role":"admin","iat":1788264000,"exp":1788264060}`)
	f.Add(good)
	f.Add(signed(testKey("root"), `{"alg":"EdDSA"}`, `{}`))
	f.Add("a.b.c")
	f.Add("eDp5")
	f.Fuzz(func(t *testing.T, bearer string) {
		who, p := e.api.authenticate(t.Context(), bearer, tenant.Default)
		// Another spelling of the same base64 is the same token.
		if p == nil && (who.Subject != "x" || len(bearer) != len(good)) {
			t.Fatalf("%q was accepted as %+v", bearer, who)
		}
	})
}
