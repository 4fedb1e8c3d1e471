package ha

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// testChanges: a change made through one replica counts on the others at
// their very next request. Each has been asked before, and holds what it
// caches.
func (c *cluster) testChanges(t *testing.T) {
	for i := range replicas {
		s := &changes{c: c, t: t, ctx: t.Context()}
		for j := range replicas {
			r := c.replicas[(i+j)%replicas]
			s.at, s.admins = append(s.at, c.caller(t, r)), append(s.admins, c.admin(t, r.url()))
		}
		t.Run(fmt.Sprintf("through %s", c.replicas[i].name), func(t *testing.T) {
			s.t = t
			s.run()
		})
	}
}

// changes makes changes through the first replica, and undoes them through
// the second.
type changes struct {
	c      *cluster
	t      *testing.T
	ctx    context.Context
	at     []*caller
	admins []*admin.Client
	guest  *handshake
}

func (s *changes) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// attest has a new session on every replica but skip, and asks for the
// resource: the appraisal is in the token, the decision follows it.
func (s *changes) attest(what string, skip, want int) {
	s.t.Helper()
	for i, x := range s.at {
		if i == skip {
			continue
		}
		h, err := s.c.attested(s.t, x, "")
		s.must(err)
		_, err = h.fetch(s.ctx, x, uri(s.t, seed), true)
		if got := max(status(err), http.StatusOK); got != want || err != nil && status(err) == 0 {
			s.t.Errorf("%s: attestation on replica %d: expected %d, got %v", what, i, want, err)
		}
	}
}

// fetch asks every replica but skip for the resource.
func (s *changes) fetch(what string, skip, want int) {
	s.t.Helper()
	for i, x := range s.at {
		if i == skip {
			continue
		}
		_, err := s.guest.fetch(s.ctx, x, uri(s.t, seed), false)
		if got := max(status(err), http.StatusOK); got != want || err != nil && status(err) == 0 {
			s.t.Errorf("%s: resource on replica %d: expected %d, got %v", what, i, want, err)
		}
	}
}

const none = -1 // of the replicas is left out

func (s *changes) run() {
	var err error
	s.guest, err = s.c.attested(s.t, s.at[0], "")
	s.must(err)
	s.fetch("before", none, http.StatusOK)

	binding := admin.Binding{Resource: "load", InitData: s.c.tee.digest}
	s.must(s.admins[0].Unbind(s.ctx, binding))
	s.fetch("unbound", 0, http.StatusForbidden)
	s.must(s.admins[1].Bind(s.ctx, binding))
	s.fetch("bound", 1, http.StatusOK)

	_, err = s.admins[0].SetPolicy(s.ctx, admin.PolicyResource, "load/seed", "package policy\nimport rego.v1\ndefault allow := false\n")
	s.must(err)
	s.fetch("denied by a policy", 0, http.StatusForbidden)
	s.must(s.admins[1].DeletePolicy(s.ctx, admin.PolicyResource, "load/seed"))
	s.fetch("policy deleted", 1, http.StatusOK)

	other := s.c.tee.reference()
	other.Values = []any{strings.Repeat("ab", 48)}
	s.must(s.admins[0].SetReferenceValue(s.ctx, other))
	s.attest("another reference value", 0, http.StatusForbidden)
	s.must(s.admins[1].SetReferenceValue(s.ctx, s.c.tee.reference()))
	s.attest("reference value restored", 1, http.StatusOK)

	s.content()
	s.administrator()
	s.tokenKey()
	s.tenant()
}

// content: a new version of a resource is what everybody gets.
func (s *changes) content() {
	u := uri(s.t, "load/seed/changing")
	for i, a := range s.admins {
		want := fmt.Sprintf("version of replica %d", i)
		_, err := a.PutResource(s.ctx, u, secret.New([]byte(want)))
		s.must(err)
		for j, x := range s.at {
			v, err := s.guest.fetch(s.ctx, x, u, false)
			if err != nil || string(v.Expose()) != want {
				s.t.Errorf("stored on %d, read on %d: got %q, %v", i, j, v.Expose(), err)
			}
		}
	}
	s.must(s.admins[0].DeleteResource(s.ctx, u))
	for j, x := range s.at {
		if _, err := s.guest.fetch(s.ctx, x, u, false); status(err) != http.StatusNotFound {
			s.t.Errorf("deleted on 0, read on %d: got %v", j, err)
		}
	}
}

// administrator: a new key is good everywhere, a revoked one nowhere.
func (s *changes) administrator() {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	s.must(err)
	der, err := x509.MarshalPKIXPublicKey(public)
	s.must(err)
	added, err := s.admins[0].AddAdmin(s.ctx, admin.NewAdministrator{
		Name: "a key for a while", Roles: []string{admin.RoleAuditor}, PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
	})
	s.must(err)
	var clients []*admin.Client
	for _, x := range s.at {
		a := newAdmin(s.t, admin.Options{URL: x.base, RootPEM: s.c.root, Key: key, Role: admin.RoleAuditor})
		if _, err := a.WhoAmI(s.ctx); err != nil {
			s.t.Errorf("a new key: %v", err)
		}
		clients = append(clients, a)
	}
	s.must(s.admins[1].RemoveAdmin(s.ctx, added.ID))
	for i, a := range clients {
		if _, err := a.WhoAmI(s.ctx); status(err) != http.StatusUnauthorized {
			s.t.Errorf("a revoked key on replica %d: got %v", i, err)
		}
	}
}

// tokenKey: the new key signs and verifies everywhere, what the old one has
// signed stays good, and who looks the keys up finds the new one anywhere.
func (s *changes) tokenKey() {
	alg := "ES384"
	if keys, err := s.admins[1].TokenKeys(s.ctx); err == nil && len(keys) > 0 && keys[0].Algorithm == alg {
		alg = "ES256"
	}
	key, err := s.admins[0].RotateTokenKey(s.ctx, alg)
	s.must(err)
	for i, x := range s.at {
		a, err := x.do(s.ctx, http.MethodGet, "/.well-known/jwks.json", nil, nil)
		s.must(err)
		var set struct {
			Keys []struct {
				ID string `json:"kid"`
			} `json:"keys"`
		}
		s.must(json.Unmarshal(a.body, &set))
		if len(set.Keys) < 2 || set.Keys[0].ID != key.KeyID {
			s.t.Errorf("a rotated key: JWKS of replica %d: expected %s first, got %+v", i, key.KeyID, set.Keys)
		}
	}
	s.fetch("a token of the old key", none, http.StatusOK)
	for i, x := range s.at {
		h, err := s.c.attested(s.t, x, "")
		s.must(err)
		var header struct {
			ID string `json:"kid"`
		}
		s.must(part(h.token, 0, &header))
		if header.ID != key.KeyID {
			s.t.Errorf("a rotated key: replica %d signs with %s, expected %s", i, header.ID, key.KeyID)
		}
		s.guest = h
		s.fetch("a token of the new key", none, http.StatusOK)
	}
}

// tenant: a new tenant is there for everybody, a disabled one for nobody.
func (s *changes) tenant() {
	name := "shop-" + strings.ReplaceAll(strings.TrimPrefix(s.at[0].base, "https://127."), ".", "-")
	name = strings.TrimSuffix(name, ":"+port)
	prefix := "/tenants/" + name
	for i, x := range s.at {
		if _, err := begin(s.ctx, x, prefix); status(err) != http.StatusNotFound {
			s.t.Errorf("a tenant to be, on replica %d: got %v", i, err)
		}
	}
	s.must(s.admins[0].CreateTenant(s.ctx, name, "a new tenant"))
	for i, x := range s.at {
		if _, err := begin(s.ctx, x, prefix); err != nil {
			s.t.Errorf("a new tenant on replica %d: %v", i, err)
		}
		// Another tenant's token is none here.
		if _, err := (&handshake{prefix: prefix, key: s.guest.key, token: s.guest.token}).fetch(s.ctx, x, uri(s.t, seed), false); status(err) != http.StatusUnauthorized {
			s.t.Errorf("another tenant's token on replica %d: got %v", i, err)
		}
	}
	s.must(s.admins[1].SetTenantEnabled(s.ctx, name, false))
	for i, x := range s.at {
		if _, err := begin(s.ctx, x, prefix); status(err) != http.StatusNotFound {
			s.t.Errorf("a disabled tenant on replica %d: got %v", i, err)
		}
	}
}
