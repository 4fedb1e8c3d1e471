package trustee_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// adminToken signs claims over good ones as an administrator would.
func adminToken(t *testing.T, key ed25519.PrivateKey, now time.Time, change map[string]any) map[string]string {
	t.Helper()
	claims := map[string]any{"iss": "coffer", "sub": "admin", "aud": []string{"KBS"}, "role": "admin", "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()}
	for k, v := range change {
		claims[k] = v
		if v == nil {
			delete(claims, k)
		}
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(claims)
	sig, err := s.Sign(body)
	if err != nil {
		t.Fatal(err)
	}
	compact, _ := sig.CompactSerialize()
	return map[string]string{"Authorization": "Bearer " + compact}
}

func TestAdminAuthentication(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	c := e.raw()
	now := e.clock.now()
	_, foreign, _ := ed25519.GenerateKey(rand.Reader)
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	none := b64(`{"alg":"none"}`) + "." + b64(fmt.Sprintf(`{"iss":"coffer","aud":"KBS","role":"admin","iat":%d,"exp":%d}`, now.Unix(), now.Unix()+60)) + "."
	for _, tc := range []struct {
		name   string
		header map[string]string
		status int
		detail string
	}{
		{"good", adminToken(t, e.AdminKey(), now, nil), 200, ""},
		{"audience as a string", adminToken(t, e.AdminKey(), now, map[string]any{"aud": "KBS"}), 200, ""},
		{"none", nil, 401, "Bearer"},
		{"basic", map[string]string{"Authorization": "Basic YTpi"}, 401, "Bearer"},
		{"alg none", map[string]string{"Authorization": "Bearer " + none}, 401, "EdDSA"},
		{"foreign key", adminToken(t, foreign, now, nil), 401, "signature"},
		{"issuer", adminToken(t, e.AdminKey(), now, map[string]any{"iss": "x"}), 401, "iss"},
		{"audience", adminToken(t, e.AdminKey(), now, map[string]any{"aud": []string{"x"}}), 401, "aud"},
		{"no audience", adminToken(t, e.AdminKey(), now, map[string]any{"aud": nil}), 401, "aud"},
		{"expired", adminToken(t, e.AdminKey(), now.Add(-time.Hour), nil), 401, "expired"},
		{"no exp", adminToken(t, e.AdminKey(), now, map[string]any{"exp": nil}), 401, "exp"},
		{"no iat", adminToken(t, e.AdminKey(), now, map[string]any{"iat": nil}), 401, "iat"},
		{"future", adminToken(t, e.AdminKey(), now.Add(time.Hour), nil), 401, "future"},
		{"too long", adminToken(t, e.AdminKey(), now, map[string]any{"exp": now.Add(3 * time.Hour).Unix()}), 401, "lifetime"},
		{"role", adminToken(t, e.AdminKey(), now, map[string]any{"role": "guest"}), 403, "role"},
		{"types", adminToken(t, e.AdminKey(), now, map[string]any{"exp": "soon"}), 401, "types"},
	} {
		for _, path := range []string{"/admin/v1/resources", "/kbs/v0/resource"} {
			if a := e.do(c, "GET", path, nil, tc.header); a.status != tc.status || !strings.Contains(a.info.Detail, tc.detail) {
				t.Errorf("%s: %s: %d %s", tc.name, path, a.status, a.body)
			}
		}
	}
	// Nothing without a token, whatever the path.
	for _, x := range []string{"POST /kbs/v0/resource/a/b/c", "DELETE /kbs/v0/resource/a/b/c", "POST /kbs/v0/resource-policy", "GET /kbs/v0/resource-policy", "POST /kbs/v0/attestation-policy",
		"POST /kbs/v0/reference-value", "GET /kbs/v0/reference-value/x", "PUT /admin/v1/reference-values/x", "DELETE /admin/v1/reference-values/x", "PUT /admin/v1/bindings",
		"DELETE /admin/v1/bindings", "GET /admin/v1/verdicts", "GET /admin/v1/nothing", "PATCH /admin/v1/bindings"} {
		method, path, _ := strings.Cut(x, " ")
		if a := e.do(c, method, path, []byte(`{}`), nil); a.status != 401 {
			t.Errorf("%s: %d %s", x, a.status, a.body)
		}
	}
	// An attestation token is no administrator's.
	h := e.begin(c, "0.4.0")
	a := e.do(c, "POST", "/kbs/v0/attest", e.attestation(h, fakeAttester{measurement: measurement, field: fieldOf(t, document)}, ""), h.header())
	tok, err := kbs.ParseTokenResponse(a.body)
	if err != nil {
		t.Fatal(err)
	}
	if a := e.do(c, "GET", "/admin/v1/resources", nil, map[string]string{"Authorization": "Bearer " + tok.Token}); a.status != 401 {
		t.Errorf("%d", a.status)
	}
}

func TestAdminRequests(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	c := e.raw()
	header := adminToken(t, e.AdminKey(), e.clock.now(), nil)
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	std := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	digest := strings.Repeat("ab", 48)
	for _, tc := range []struct {
		request, body string
		status        int
		want          string
	}{
		{"POST /kbs/v0/resource/demo/key/1", "content", 200, ""},
		{"POST /kbs/v0/resource/demo/key/2", "", 200, ""},
		{"GET /kbs/v0/resource", "", 200, `["demo/key/1","demo/key/2"]`},
		{"DELETE /kbs/v0/resource/demo/key/2", "", 200, ""},
		{"DELETE /kbs/v0/resource/demo/key/2", "", 200, ""},
		{"GET /admin/v1/resources", "", 200, `["demo/key/1"]`},
		{"POST /kbs/v0/resource/demo/key", "x", 400, "three segments"},
		{"POST /kbs/v0/resource/demo/key/.x", "x", 400, "dot"},
		{"POST /kbs/v0/resource/demo/key/big", strings.Repeat("x", 1<<20+1), 413, "1048576"},
		{"PUT /kbs/v0/resource/demo/key/1", "x", 405, "POST"},

		{"GET /kbs/v0/resource-policy", "", 200, `["resource-policy"]`},
		{"POST /kbs/v0/resource-policy", `{"policy":"` + b64("package policy\ndefault allow := false") + `"}`, 200, ""},
		{"POST /kbs/v0/resource-policy", `{"policy":"` + b64("package policy\nallow if nothing(1)") + `"}`, 400, "resource-policy:2"},
		{"POST /kbs/v0/resource-policy", `{"policy":"` + b64("package policy\nallow if http.send({})") + `"}`, 400, "http.send"},
		{"POST /kbs/v0/resource-policy", `{"policy":"***"}`, 400, "base64url"},
		{"POST /kbs/v0/resource-policy", `{"policy":"","x":1}`, 400, "x"},
		{"POST /kbs/v0/attestation-policy", `{"type":"rego","policy_id":"default_cpu","policy":"` + b64("package policy\ntrust_claims := {}") + `"}`, 200, ""},
		{"POST /kbs/v0/attestation-policy", `{"type":"rego","policy_id":"strict_cpu","policy":"` + b64("package policy\ntrust_claims := {} if query_reference_value(\"x\")") + `"}`, 200, ""},
		{"POST /kbs/v0/attestation-policy", `{"type":"rego","policy_id":"default","policy":"` + b64("package policy") + `"}`, 400, "default_cpu"},
		{"POST /kbs/v0/attestation-policy", `{"type":"cel","policy_id":"default_cpu","policy":""}`, 400, "rego"},
		{"POST /kbs/v0/attestation-policy", `{"policy_id":"a/b_cpu","policy":""}`, 400, "characters"},
		{"GET /kbs/v0/attestation-policy", "", 200, `["default_cpu","strict_cpu"]`},

		{"POST /kbs/v0/reference-value", `{"version":"0.1.0","type":"sample","payload":"` + std(`{"svn":[1,2],"flag":true}`) + `"}`, 200, ""},
		{"POST /kbs/v0/reference-value", `{"type":"rim","payload":""}`, 400, "sample"},
		{"GET /kbs/v0/reference-value/svn", "", 200, `[1,2]`},
		{"GET /kbs/v0/reference-value/flag", "", 200, `true`},
		{"GET /kbs/v0/reference-value/none", "", 404, "not registered"},
		{"PUT /admin/v1/reference-values/m", `{"values":["aa"],"description":"old"}`, 200, ""},
		{"POST /admin/v1/reference-values/m", `{"values":["bb"],"description":"new","inputs":{"vcpus":2}}`, 200, ""},
		{"GET /kbs/v0/reference-value/m", "", 200, `["aa","bb"]`},
		{"POST /admin/v1/reference-values/flag", `{"values":[false]}`, 409, "scalar"},
		{"PUT /admin/v1/reference-values/m", `{"values":[]}`, 400, "1 to"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"expires":"2020-01-01T00:00:00Z"}`, 400, "past"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"name":"n"}`, 400, "name"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"values":["b"]}`, 400, "values"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"inputs":[]}`, 400, "inputs"},
		{"DELETE /admin/v1/reference-values/none", "", 404, "not registered"},
		{"DELETE /admin/v1/reference-values/flag", "", 200, ""},

		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + digest + `","description":"web"}`, 200, ""},
		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + strings.ToUpper(digest) + `"}`, 400, "lower-case"},
		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + digest[:62] + `"}`, 400, "whole"},
		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + strings.Repeat("0", 96) + `"}`, 400, "zero"},
		{"PUT /admin/v1/bindings", `{"resource":"","initdata":"` + digest + `"}`, 400, "resource"},
		{"PUT /admin/v1/bindings", `{"resource":"*","initdata":"` + digest + `"}`, 400, "resource"},
		{"GET /admin/v1/bindings", "", 200, `[{"resource":"demo","initdata":"` + digest + `","description":"web"}]`},
		{"DELETE /admin/v1/bindings?resource=demo&initdata=" + strings.Repeat("cd", 48), "", 404, "no such binding"},
		{"DELETE /admin/v1/bindings?resource=demo", "", 200, ""},
		{"DELETE /admin/v1/bindings", "", 400, "resource"},

		{"GET /admin/v1/verdicts", "", 200, `[]`},
		{"GET /admin/v1/verdicts?limit=0", "", 400, "limit"},
		{"GET /admin/v1/verdicts?limit=x", "", 400, "limit"},
		{"GET /admin/v1/nothing", "", 404, "no such path"},
		{"PATCH /admin/v1/bindings", "", 405, "PUT"},
	} {
		method, path, _ := strings.Cut(tc.request, " ")
		a := e.do(c, method, path, []byte(tc.body), header)
		ok := a.status == tc.status && strings.Contains(string(a.body), tc.want)
		if tc.status == 200 && strings.TrimSpace(string(a.body)) != tc.want {
			ok = false
		}
		if !ok {
			t.Errorf("%s %.80s: got %d %s; want %d %s", tc.request, tc.body, a.status, a.body, tc.status, tc.want)
		}
	}
	var list []struct {
		Name    string
		Entries []struct {
			Description string
			Expires     time.Time
			Inputs      json.RawMessage
		}
	}
	if err := json.Unmarshal(e.do(c, "GET", "/admin/v1/reference-values", nil, header).body, &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Name != "m" || list[0].Entries[0].Description != "old" || string(list[0].Entries[1].Inputs) != `{"vcpus":2}` ||
		list[0].Entries[0].Expires.Sub(e.clock.now()) < 364*24*time.Hour {
		t.Errorf("%+v", list)
	}
}

// TestAdminClient: the library's client and this server agree.
func TestAdminClient(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	a := e.populate("the secret")
	ctx := t.Context()
	if u, err := a.Resources(ctx); err != nil || len(u) != 1 || u[0] != uri(t, "demo/key/1") {
		t.Errorf("%v, %v", u, err)
	}
	if v, err := a.ReferenceValues(ctx); err != nil || len(v) != 1 || v[0].Name != "snp_launch_measurement" || len(v[0].Values) != 2 || v[0].Description != "guest 1.2" || v[0].Expires == nil {
		t.Errorf("%+v, %v", v, err)
	}
	want := admin.Binding{Resource: "demo", InitData: digestOf(t, document), Description: "web"}
	if b, err := a.Bindings(ctx); err != nil || len(b) != 1 || b[0] != want {
		t.Errorf("%+v, %v", b, err)
	}
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	// A new policy is in force at once.
	if err := a.SetResourcePolicy(ctx, "package policy\ndefault allow := false"); err != nil {
		t.Fatal(err)
	}
	_, err := e.guest(good, document).Resource(ctx, uri(t, "demo/key/1"))
	refusal(t, err, 403, "resource-policy")
	if err := a.SetResourcePolicy(ctx, "package policy\nallow := true"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.guest(fakeAttester{measurement: "x", field: make([]byte, 32)}, "").Resource(ctx, uri(t, "demo/key/1")); err != nil {
		t.Error(err)
	}
	for _, err := range []error{a.Unbind(ctx, want), a.DeleteReferenceValue(ctx, "snp_launch_measurement"), a.DeleteResource(ctx, uri(t, "demo/key/1"))} {
		if err != nil {
			t.Error(err)
		}
	}
	_, err = e.guest(good, document).Resource(ctx, uri(t, "demo/key/1"))
	refusal(t, err, 404, "")
}

func TestConfiguredKeysAndCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pub, priv, _ := ed25519.GenerateKey(rand.Reader)
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "admin.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	first := start(t, "", nil) // its authority makes the certificate
	e := start(t, "", func(o *trustee.Options) {
		o.Config.Admin.PublicKeys = []string{file}
		o.Config.TLS.Certificate, o.Config.TLS.PrivateKey, o.Config.TLS.Root = first.dir+"/server.pem", first.dir+"/server-key.pem", first.dir+"/ca.pem"
	})
	if e.AdminKey() != nil || !bytes.Equal(e.RootPEM(), first.RootPEM()) {
		t.Error("key or root")
	}
	c, err := admin.New(admin.Options{URL: e.URL(), RootPEM: e.RootPEM(), Key: priv})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetResource(t.Context(), uri(t, "a/b/c"), secret.New([]byte("x"))); err != nil {
		t.Error(err)
	}
	plain := start(t, "", func(o *trustee.Options) { o.Config.TLS.InsecureHTTP = true })
	a := plain.do(plain.raw(), "POST", "/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"snp","extra-params":""}`), nil)
	if a.status != 200 || strings.Contains(a.header.Get("Set-Cookie"), "Secure") {
		t.Errorf("%d %v", a.status, a.header)
	}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	c := e.raw()
	var doc struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(e.do(c, "GET", "/.well-known/openid-configuration", nil, nil).body, &doc); err != nil || doc.Issuer != "coffer-trustee" {
		t.Fatalf("%+v, %v", doc, err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(e.do(c, "GET", strings.TrimPrefix(doc.JWKS, e.URL()), nil, nil).body, &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
		t.Fatalf("%+v, %v", set, err)
	}
	h := e.begin(c, "0.4.0")
	a := e.do(c, "POST", "/kbs/v0/attest", e.attestation(h, fakeAttester{measurement: measurement, field: fieldOf(t, document)}, ""), h.header())
	tok, err := kbs.ParseTokenResponse(a.body)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := jose.ParseSignedCompact(tok.Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := sig.Verify(set.Key(sig.Signatures[0].Protected.KeyID)[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	// Where the ecosystem's relying parties look for the key.
	var claims struct {
		Profile string `json:"eat_profile"`
		Submods map[string]struct {
			Evidence struct {
				Runtime struct {
					Key json.RawMessage `json:"tee-pubkey"`
				} `json:"runtime_data_claims"`
			} `json:"ear.veraison.annotated-evidence"`
		} `json:"submods"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if k, err := kbs.ParseTEEPubKey(claims.Submods["cpu0"].Evidence.Runtime.Key); err != nil || k != h.key.Public() {
		t.Errorf("%v, %v", k, err)
	}
}

// TestUnbindMeansWhatItSays: only a request for it removes all bindings.
func TestUnbindMeansWhatItSays(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	a := e.populate("the secret")
	digest := digestOf(t, document)
	for _, query := range []string{
		"resource=demo&init_data=" + digest, "resource=demo&initdata=" + digest + ";", "resource=demo&initdata=", "resource=demo&resource=demo",
		"resource=demo&initdata=" + digest + "&initdata=" + digest,
	} {
		got := e.do(e.raw(), "DELETE", "/admin/v1/bindings?"+query, nil, adminToken(t, e.AdminKey(), e.clock.now(), nil))
		if got.status != 400 {
			t.Errorf("%s: %d %s", query, got.status, got.body)
		}
	}
	if list, err := a.Bindings(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("bindings %+v, %v", list, err)
	}
}
