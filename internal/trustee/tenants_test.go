package trustee_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// adminOf administers one tenant with the trustee's own key.
func (e *env) adminOf(tenant string) *admin.Client {
	e.t.Helper()
	c, err := admin.New(admin.Options{URL: e.URL(), Tenant: tenant, RootPEM: e.RootPEM(), Key: e.AdminKey(), Now: e.clock.now})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(c.Close)
	return c
}

// attestAt runs a handshake at a tenant's URL and returns what a guest holds
// afterwards.
func (e *env) attestAt(c *http.Client, prefix string) (cookie, token map[string]string) {
	e.t.Helper()
	a := e.do(c, "POST", prefix+"/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"snp","extra-params":""}`), nil)
	ch, err := kbs.ParseChallenge(a.body)
	if err != nil {
		e.t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	key, err := kbs.GenerateTEEKey(rand.Reader)
	if err != nil {
		e.t.Fatal(err)
	}
	h := handshake{cookie: (&http.Response{Header: a.header}).Cookies()[0].Value, nonce: ch.Nonce, key: key}
	good := fakeAttester{measurement: measurement, field: fieldOf(e.t, document)}
	a = e.do(c, "POST", prefix+"/kbs/v0/attest", e.attestation(h, good, document), h.header())
	var doc kbs.TokenResponse
	if err := json.Unmarshal(a.body, &doc); err != nil || a.status != 200 {
		e.t.Fatalf("attest at %q: %d %s", prefix, a.status, a.body)
	}
	return h.header(), map[string]string{"Authorization": "Bearer " + doc.Token}
}

// TestTenantsAreApart: what one tenant's guests hold is worth nothing at
// another's, and neither are its resources, bindings, policies, reference
// values and authorities.
func TestTenantsAreApart(t *testing.T) {
	t.Parallel()
	e := start(t, "", func(o *trustee.Options) {
		o.Config.Plugins.PKI = config.PKI{Enabled: true, TrustDomain: "example.org", Roles: map[string]config.PKIRole{
			"web": {DNS: []string{"*.example.org"}, Usages: []string{"server"}, Lifetime: config.Duration(time.Hour)},
		}}
	})
	ctx, c := t.Context(), e.raw()
	for _, n := range []string{"acme", "globex"} {
		if err := e.admin().CreateTenant(ctx, n, ""); err != nil {
			t.Fatal(err)
		}
	}
	acme := e.adminOf("acme")
	for _, err := range []error{
		acme.SetResource(ctx, uri(t, "demo/key/1"), secret.New([]byte("of acme"))),
		acme.SetReferenceValue(ctx, admin.ReferenceValue{Name: "snp_launch_measurement", Values: []any{measurement}}),
		acme.Bind(ctx, admin.Binding{Resource: "demo", InitData: digestOf(t, document)}),
		acme.Bind(ctx, admin.Binding{Resource: "+pki", InitData: digestOf(t, document)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const of = "/tenants/acme"
	cookie, token := e.attestAt(c, of)
	_, elsewhere := e.attestAt(c, "/tenants/globex")
	otherCookie, otherToken := e.attestAt(c, "")
	both := maps.Clone(otherCookie)
	both["Authorization"] = token["Authorization"]
	twice := map[string]string{"Cookie": otherCookie["Cookie"] + "; " + cookie["Cookie"]}
	const path = "/kbs/v0/resource/demo/key/1"
	for name, tc := range map[string]struct {
		method, path string
		header       map[string]string
		status       int
	}{
		"own cookie":                        {"GET", of + path, cookie, 200},
		"own token":                         {"GET", of + path, token, 200},
		"own token beside a foreign cookie": {"GET", of + path, both, 200},
		"a foreign cookie first":            {"GET", of + path, twice, 401},
		"no credentials":                    {"GET", of + path, nil, 401},
		"default's cookie":                  {"GET", of + path, otherCookie, 401},
		"default's token":                   {"GET", of + path, otherToken, 401},
		"globex's token":                    {"GET", of + path, elsewhere, 401},
		"at the root, cookie":               {"GET", path, cookie, 401},
		"at the root, token":                {"GET", path, token, 401},
		"globex, nothing bound":             {"GET", "/tenants/globex" + path, elsewhere, 403},
		"globex's authority":                {"GET", "/tenants/globex/kbs/v0/pki/ca", elsewhere, 403},
		"own authority":                     {"GET", of + "/kbs/v0/pki/ca", token, 200},
		"nobody's":                          {"GET", "/tenants/nobody" + path, token, 404},
		"default's long name":               {"GET", "/tenants/default" + path, otherToken, 404},
		"upper case":                        {"GET", "/tenants/ACME" + path, token, 404},
		"twice":                             {"GET", of + of + path, token, 404},
		"back":                              {"GET", "/tenants/globex/../acme" + path, token, 404},
		"escaped":                           {"GET", "/tenants%2facme" + path, token, 400},
		"escaped letter":                    {"GET", of + "/kbs/v0/resource/demo/key/%31", token, 400},
		"escaped plugin":                    {"GET", of + "/kbs/v0/%72esource/demo/key/1", token, 400},
		"double slash":                      {"GET", of + "//kbs/v0/resource/demo/key/1", token, 400},
		"trailing slash":                    {"GET", of + path + "/", token, 400},
		"dot":                               {"GET", of + "/kbs/v0/resource/demo/./key/1", token, 400},
		"semicolon":                         {"GET", of + path + ";x=1", token, 400},
		"plugin mark":                       {"GET", of + "/kbs/v0/resource/+pki/issue/web", token, 400},
		"plugin upper case":                 {"GET", of + "/kbs/v0/RESOURCE/demo/key/1", token, 404},
		"HEAD":                              {"HEAD", of + path, token, 405},
		"another method":                    {"PROPFIND", of + path, token, 405},
		"lower case method":                 {"get", of + path, token, 405},
		"write with a guest's token":        {"POST", of + path, token, 401},
		"delete with a guest's token":       {"DELETE", of + path, token, 401},
		"list with a guest's token":         {"GET", of + "/kbs/v0/resource", token, 401},
	} {
		a := e.do(c, tc.method, tc.path, nil, tc.header)
		if a.status != tc.status {
			t.Errorf("%s: %s %s: got %d %s, want %d", name, tc.method, tc.path, a.status, a.body, tc.status)
		}
		if tc.status != 200 && bytes.Contains(a.body, []byte("of acme")) || strings.Contains(string(a.body), "globex") && strings.Contains(tc.path, of) {
			t.Errorf("%s: the answer tells %s", name, a.body)
		}
	}
	// Authorities differ.
	cas := map[string]bool{}
	if err := e.adminOf("globex").Bind(ctx, admin.Binding{Resource: "+pki", InitData: digestOf(t, document)}); err != nil {
		t.Fatal(err)
	}
	if err := e.adminOf("globex").SetReferenceValue(ctx, admin.ReferenceValue{Name: "snp_launch_measurement", Values: []any{measurement}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"acme", "globex"} {
		ca, err := e.adminOf(name).Plugin(ctx, admin.PluginRequest{Method: "GET", Plugin: "pki", Path: "authority"})
		if err != nil || !bytes.HasPrefix(ca, []byte("-----BEGIN CERT")) {
			t.Errorf("%s: %s, %v", name, ca, err)
		}
		cas[string(ca)] = true
	}
	if len(cas) != 2 {
		t.Error("two tenants share an authority")
	}
	// Disabling a tenant ends what its guests hold, at once.
	if err := e.admin().SetTenantEnabled(ctx, "acme", false); err != nil {
		t.Fatal(err)
	}
	for _, h := range []map[string]string{cookie, token} {
		if a := e.do(c, "GET", of+path, nil, h); a.status != 404 {
			t.Errorf("disabled: %d %s", a.status, a.body)
		}
	}
	// The record of each is its own.
	for _, n := range []string{"globex", ""} {
		list, err := e.adminOf(n).Audit(ctx, admin.AuditQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			if doc, _ := json.Marshal(x); bytes.Contains(doc, []byte("acme")) && n != "" {
				t.Errorf("globex reads %s", doc)
			}
		}
	}
	e.clock.advance(time.Hour)
	if a := e.do(c, "GET", path, nil, otherToken); a.status != 401 {
		t.Errorf("expired token: %d", a.status)
	}
	e.clock.advance(-2 * time.Hour)
	if a := e.do(c, "GET", path, nil, otherToken); a.status != 401 {
		t.Errorf("token of the future: %d", a.status)
	}
}
