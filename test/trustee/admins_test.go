package tests

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// issuer is an OpenID provider.
type issuer struct {
	*httptest.Server
	key  *ecdsa.PrivateKey
	down atomic.Bool
	// asked counts requests for keys.
	asked atomic.Int64
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{}
	var err error
	if i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var doc any
		switch {
		case i.down.Load():
			w.WriteHeader(http.StatusInternalServerError)
			return
		case r.URL.Path == "/.well-known/openid-configuration":
			doc = map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}}
		case r.URL.Path == "/keys":
			i.asked.Add(1)
			doc = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}}
		default:
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(doc)
	}))
	t.Cleanup(i.Close)
	return i
}

// token signs claims over those that a good token has.
func (i *issuer) token(t *testing.T, key crypto.PrivateKey, change map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := map[string]any{
		"iss": i.URL, "aud": "coffer", "sub": "alice@example.org", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		"realm": map[string]any{"roles": []string{"coffer-secrets"}}, "org": "default",
	}
	for k, v := range change {
		c[k] = v
	}
	out, err := jwt.Signed(s).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOIDC lets an identity provider's people administer.
func TestOIDC(t *testing.T) {
	t.Parallel()
	idp := newIssuer(t)
	dir := t.TempDir()
	roots := write(t, filepath.Join(dir, "idp.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: idp.Certificate().Raw})))
	key, public := newAdmin(t)
	write(t, filepath.Join(dir, "root.pem"), public)
	s := embed(t, dir, `admin.public_keys = ["root.pem"]
[[admin.oidc]]
issuer = `+quote(idp.URL)+`
audience = "coffer"
roots = `+quote(roots)+`
role_claim = "realm.roles"
tenant_claim = "org"
roles = { coffer-secrets = "secret-writer", coffer-audit = "auditor" }
`)
	s.key = key
	s.must(s.admin("").CreateTenant(t.Context(), "acme", ""))
	with := func(tenant, token string) *admin.Client {
		return s.admin(tenant, func(o *admin.Options) {
			o.Key, o.TokenSource = nil, func(context.Context) (string, error) { return token, nil }
		})
	}
	set := func(c *admin.Client) error {
		return c.SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte(content)))
	}
	good := with("", idp.token(t, idp.key, nil))
	s.must(set(good))
	who, err := good.WhoAmI(t.Context())
	s.must(err)
	if who.Subject != "alice@example.org" {
		t.Errorf("%+v", who)
	}
	// What the role does not give, and where the claim does not reach.
	refused(t, second(good.SetPolicy(t.Context(), admin.PolicyResource, "", "package policy\nallow := true\n")), http.StatusForbidden, "policy.write")
	refused(t, second(good.Audit(t.Context(), admin.AuditQuery{})), http.StatusForbidden, "audit.read")
	refused(t, set(with("acme", idp.token(t, idp.key, nil))), http.StatusForbidden, "tenant")
	s.must(set(with("acme", idp.token(t, idp.key, map[string]any{"org": "acme"}))))
	auditor := with("", idp.token(t, idp.key, map[string]any{"realm": map[string]any{"roles": []string{"coffer-audit", "other"}}}))
	list, err := auditor.Audit(t.Context(), admin.AuditQuery{Subject: "alice@example.org"})
	s.must(err)
	if len(list) < 3 {
		t.Errorf("%d records of alice; want the change and the two refusals", len(list))
	}
	refused(t, set(auditor), http.StatusForbidden, "resource.write")

	mallory, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	for name, tc := range map[string]struct {
		key    crypto.PrivateKey
		change map[string]any
		status int
	}{
		"other key":     {mallory, nil, 401},
		"audience":      {idp.key, map[string]any{"aud": "another"}, 401},
		"issuer":        {idp.key, map[string]any{"iss": "https://other.example"}, 401},
		"expired":       {idp.key, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, 401},
		"no expiry":     {idp.key, map[string]any{"exp": nil}, 401},
		"future":        {idp.key, map[string]any{"iat": time.Now().Add(time.Hour).Unix()}, 401},
		"no role":       {idp.key, map[string]any{"realm": map[string]any{}}, 403},
		"foreign role":  {idp.key, map[string]any{"realm": map[string]any{"roles": "admin"}}, 403},
		"no tenant":     {idp.key, map[string]any{"org": nil}, 403},
		"all tenants":   {idp.key, map[string]any{"org": "**"}, 403},
		"tenant object": {idp.key, map[string]any{"org": map[string]any{"a": 1}}, 403},
	} {
		if e := asStatus(set(with("", idp.token(t, tc.key, tc.change)))); e == nil || e.Status != tc.status {
			t.Errorf("%s: %v; want %d", name, e, tc.status)
		}
	}
	// The provider is down: its keys are known.
	idp.down.Store(true)
	s.must(set(good))
	if n := idp.asked.Load(); n > 10 {
		t.Errorf("the provider was asked %d times", n)
	}
}

// authority makes certificates for tests.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

// issue makes a certificate for a server or a client, and its key, in PEM.
func (a *authority) issue(serial int64, usage x509.ExtKeyUsage) (cert, key string) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd}))
}

// TestClientCertificates: administrators show a certificate beside their
// token; guests need none.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "clients.pem"), ca.pem)
	s := launch(t, the.plain, dir, "admin.client_ca = \"clients.pem\"\nattestation_service.listen = \"127.0.0.1:0\"\n")
	pair := func(a *authority, usage x509.ExtKeyUsage) *tls.Certificate {
		c, k := a.issue(7, usage)
		p, err := tls.X509KeyPair([]byte(c), []byte(k))
		s.must(err)
		return &p
	}
	with := func(c *tls.Certificate) *admin.Client {
		return s.admin("", func(o *admin.Options) { o.Certificate = c })
	}
	good := with(pair(ca, x509.ExtKeyUsageClientAuth))
	s.must(good.SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte(content))))
	_, err := with(nil).Resources(t.Context())
	refused(t, err, http.StatusForbidden, "client certificate")
	// Of another authority, or for servers: the handshake fails.
	for name, c := range map[string]*tls.Certificate{"authority": pair(other, x509.ExtKeyUsageClientAuth), "usage": pair(ca, x509.ExtKeyUsageServerAuth)} {
		if _, err := with(c).Resources(t.Context()); err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	// The certificate alone is nothing.
	c := s.http(func(c *tls.Config) { c.Certificates = []tls.Certificate{*pair(ca, x509.ExtKeyUsageClientAuth)} })
	if x := s.do(c, "GET", "/admin/v1/resources", "", ""); x.status != http.StatusUnauthorized {
		t.Errorf("no token: %d %s", x.status, x.body)
	}
	s.must(s.good("").Attest(t.Context()))
	// No way around it by the attestation service.
	token := adminToken(t, s)
	if x := s.do(s.http(), "POST", "https://"+s.service+"/policy", token, `{"policy_id":"default_cpu","policy":"cGFja2FnZSBwb2xpY3k"}`); x.status != http.StatusForbidden || !strings.Contains(x.body, "certificate") {
		t.Errorf("at the attestation service: %d %s", x.status, x.body)
	}
}

// adminToken is a token as the production client signs it.
func adminToken(t *testing.T, s *site) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: s.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := s.clock.now()
	out, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": "coffer", "sub": "admin", "aud": "KBS", "role": "admin", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
