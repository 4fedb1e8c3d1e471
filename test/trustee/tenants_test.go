package tests

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// newAdmin makes a key for an administrator.
func newAdmin(t testing.TB) (ed25519.PrivateKey, string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return private, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// TestTenants: two owners with equal names of everything share a trustee, and
// neither can find out about the other.
func TestTenants(t *testing.T) {
	t.Parallel()
	s := embed(t, "", pkiConfig)
	root := s.admin("")
	clients, keys := map[string]*admin.Client{}, map[string]ed25519.PrivateKey{}
	for _, name := range []string{"acme", "bravo"} {
		s.must(root.CreateTenant(t.Context(), name, "the "+name+" company"))
		key, public := newAdmin(t)
		_, err := s.admin(name).AddAdmin(t.Context(), admin.NewAdministrator{Name: name + "-owner", Roles: []string{admin.RoleAdmin}, PublicKey: public})
		s.must(err)
		owner := *s
		owner.key, keys[name] = key, key
		clients[name] = owner.populate(name)
	}
	acme, bravo := clients["acme"], clients["bravo"]
	s.check("acme")
	s.check("bravo")

	// Guests: equal paths, different contents; a token is for its tenant.
	guest := s.good("acme")
	s.must(guest.Attest(t.Context()))
	plain := s.http()
	for path, want := range map[string]int{
		"/tenants/acme/kbs/v0/resource/demo/key/1":     http.StatusOK,
		"/tenants/bravo/kbs/v0/resource/demo/key/1":    http.StatusUnauthorized,
		"/kbs/v0/resource/demo/key/1":                  http.StatusUnauthorized,
		"/tenants/nobody/kbs/v0/resource/demo/key/1":   http.StatusNotFound,
		"/tenants/default/kbs/v0/resource/demo/key/1":  http.StatusUnauthorized,
		"/tenants/ACME/kbs/v0/resource/demo/key/1":     http.StatusNotFound,
		"/tenants/acme/tenants/acme/kbs/v0/auth":       http.StatusNotFound,
		"/tenants/acme/../bravo/kbs/v0/resource/a/b/c": http.StatusUnauthorized, // cleaned by the client
	} {
		if x := s.do(plain, "GET", path, guest.HeldToken(), ""); x.status != want && (want != http.StatusUnauthorized || x.status != http.StatusNotFound) {
			t.Errorf("%s: %d %s; want %d", path, x.status, x.body, want)
		}
	}

	// What belongs to one is not in the other: deleting, replacing, listing.
	s.must(
		acme.SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte("replaced"))),
		acme.SetResource(t.Context(), uri(t, "kbs:///demo/key/only-acme"), secret.New([]byte("x"))),
		acme.SetReferenceValue(t.Context(), admin.ReferenceValue{Name: "site_firmware", Values: []any{7}}),
	)
	_, err := acme.SetPolicy(t.Context(), admin.PolicyResource, "demo/key", "package policy\nallow := true\n")
	s.must(err)
	_, err = acme.SetPolicy(t.Context(), admin.PolicyAttestation, "strict_cpu", "package policy\n")
	s.must(err)
	s.check("bravo")
	for what, list := range map[string]func() (int, error){
		"resources": func() (int, error) { l, err := bravo.Resources(t.Context()); return len(l) - 1, err },
		"infos":     func() (int, error) { l, err := bravo.ResourceInfos(t.Context(), "demo"); return len(l) - 1, err },
		"versions": func() (int, error) {
			l, err := bravo.ResourceVersions(t.Context(), uri(t, "kbs:///demo/key/1"))
			return len(l) - 1, err
		},
		"reference values":  func() (int, error) { l, err := bravo.ReferenceValues(t.Context()); return len(l) - 1, err },
		"resource policies": func() (int, error) { l, err := bravo.Policies(t.Context(), admin.PolicyResource); return len(l), err },
		"attestation policies": func() (int, error) {
			l, err := bravo.Policies(t.Context(), admin.PolicyAttestation)
			return len(l), err
		},
		"administrators": func() (int, error) {
			n := 0
			l, err := bravo.Admins(t.Context())
			for _, x := range l {
				if strings.HasPrefix(x.Name, "acme") {
					n++
				}
			}
			return n, err
		},
		"audit": func() (int, error) {
			l, err := bravo.AuditFrom(t.Context(), 0, 1000)
			n := 0
			for _, e := range l {
				if strings.Contains(string(e.Body), "acme") {
					n++
				}
			}
			return n, err
		},
	} {
		if n, err := list(); err != nil || n != 0 {
			t.Errorf("%s: %d too many, %v", what, n, err)
		}
	}
	for what, err := range map[string]error{
		"policy":    second(bravo.Policy(t.Context(), admin.PolicyResource, "demo/key", 0)),
		"history":   second(bravo.ReferenceHistory(t.Context(), "site_firmware")),
		"reference": second(bravo.ReferenceValue(t.Context(), "site_firmware")),
	} {
		if e := asStatus(err); e == nil || e.Status != http.StatusNotFound {
			t.Errorf("%s: %v", what, err)
		}
	}

	// An owner's key at another tenant's URL, and at one that there is not:
	// the same answer.
	for _, tc := range []struct{ key, at string }{{"acme", "bravo"}, {"bravo", "acme"}, {"acme", ""}, {"acme", "nobody"}} {
		foreign := *s
		foreign.key = keys[tc.key]
		c := foreign.admin(tc.at)
		for what, err := range map[string]error{
			"resources":   second(c.Resources(t.Context())),
			"audit":       second(c.Audit(t.Context(), admin.AuditQuery{})),
			"policies":    second(c.Policies(t.Context(), admin.PolicyResource)),
			"checkpoints": second(c.Checkpoints(t.Context(), 0)),
			"set":         c.SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte("x"))),
			"tenants":     second(c.Tenants(t.Context())),
			"rotate":      second(c.RotateTokenKey(t.Context(), "")),
		} {
			if e := asStatus(err); e == nil || e.Status != http.StatusForbidden && e.Status != http.StatusUnauthorized && e.Status != http.StatusNotFound {
				t.Errorf("%s at %s: %s: %v", tc.key, tc.at, what, err)
			}
		}
	}
	for what, err := range map[string]error{
		"tenants": second(acme.Tenants(t.Context())), "rotate": second(acme.RotateTokenKey(t.Context(), "")),
		"create": acme.CreateTenant(t.Context(), "mine", ""), "switch": acme.SetTenantEnabled(t.Context(), "bravo", false),
	} {
		if e := asStatus(err); e == nil || e.Status != http.StatusForbidden && e.Status != http.StatusNotFound {
			t.Errorf("%s: %v", what, err)
		}
	}
	// An owner makes no administrator of all tenants.
	_, public := newAdmin(t)
	_, err = acme.AddAdmin(t.Context(), admin.NewAdministrator{Name: "all", Roles: []string{admin.RoleAdmin}, PublicKey: public, Tenant: "*"})
	refused(t, err, http.StatusForbidden, "tenant")
	_, err = acme.AddAdmin(t.Context(), admin.NewAdministrator{Name: "all", Roles: []string{admin.RoleAdmin}, PublicKey: public, Tenant: "bravo"})
	if e := asStatus(err); e == nil || e.Status < 400 || e.Status >= 500 {
		t.Errorf("an administrator of bravo's, by acme's: %v", err)
	}

	// Authorities are the tenants' own.
	cas := map[string]string{}
	d, _ := digest(t, document)
	for name, c := range clients {
		s.must(c.Bind(t.Context(), admin.Binding{Resource: "+pki", InitData: d}))
		v, err := s.good(name).Resource(t.Context(), uri(t, "kbs+pki:///ca"))
		s.must(err)
		cas[name] = string(v.Expose())
	}
	if cas["acme"] == cas["bravo"] {
		t.Error("two tenants, one authority")
	}

	// A tenant that is switched off: its guests, and nobody else's.
	s.must(root.SetTenantEnabled(t.Context(), "acme", false))
	if x := s.do(plain, "GET", "/tenants/acme/kbs/v0/resource/demo/key/1", guest.HeldToken(), ""); x.status != http.StatusNotFound {
		t.Errorf("switched off: %d %s", x.status, x.body)
	}
	s.check("bravo")
	s.must(root.SetTenantEnabled(t.Context(), "acme", true))
	if x := s.do(plain, "GET", "/tenants/acme/kbs/v0/resource/demo/key/1", guest.HeldToken(), ""); x.status != http.StatusOK {
		t.Errorf("switched on: %d %s", x.status, x.body)
	}
}

func second[T any](_ T, err error) error { return err }
