package ha

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// TestHighAvailability takes one site through everything, gentle things first.
func TestHighAvailability(t *testing.T) {
	c := newCluster(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"one root", c.testRoot},
		{"the client's address", c.testAddress},
		{"one session", c.testSession},
		{"changes count at once", c.testChanges},
		{"the database is lost", c.testLost},
		{"graceful stop", c.testDrain},
		{"load and failures", c.testLoad},
	} {
		if !t.Run(part.name, part.run) {
			return
		}
	}
}

// testRoot: what clients have pinned vouches for every replica, and for the
// same name behind the balancer.
func (c *cluster) testRoot(t *testing.T) {
	for _, r := range c.replicas {
		if !bytes.Equal(read(t, r.file("ca.pem")), c.root) {
			t.Errorf("%s has another ca.pem", r.name)
		}
		if err := c.health(t.Context(), r, "/readyz", http.StatusOK); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
	}
	x := newCaller(c.url(), c.root, false)
	seen := map[string]bool{}
	for range 2 * replicas {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, x.base+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := x.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		seen[string(resp.TLS.PeerCertificates[0].Raw)] = true
	}
	if len(seen) != replicas {
		t.Errorf("the balancer shows %d certificates, expected one of each of %d replicas", len(seen), replicas)
	}
}

// testAddress: records name the client and not the balancer, and nobody else
// can say who a client is.
func (c *cluster) testAddress(t *testing.T) {
	from := net.ParseIP(c.prefix + ".77")
	for base, forged := range map[string]bool{c.url(): false, c.replicas[0].url(): true} {
		x := newCaller(base, c.root, false)
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
		x.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err == nil && forged {
				_, err = fmt.Fprintf(conn, "PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n")
			}
			return conn, err
		}
		h, err := c.attested(t, x, "")
		if forged {
			if err == nil {
				t.Error("a client could say who it is")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		session, err := sessionOf(h.token)
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.admin(t, c.url()).Audit(t.Context(), admin.AuditQuery{Session: session})
		if err != nil || len(list) != 1 {
			t.Fatalf("%d records, %v", len(list), err)
		}
		if r, err := list[0].Record(); err != nil || r.Client != from.String() {
			t.Errorf("expected client %s on record, got %q, %v", from, r.Client, err)
		}
	}
}

// orders are all orders of three replicas.
func orders() [][3]int {
	return [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
}

// testSession: a session begun on one replica is attested on another, and its
// cookie and token are good on the third; it is used up on all.
func (c *cluster) testSession(t *testing.T) {
	ctx := t.Context()
	var at []*caller
	for _, r := range c.replicas {
		at = append(at, c.caller(t, r))
	}
	guest := c.tee.attester(t)
	for _, o := range orders() {
		h, err := begin(ctx, at[o[0]], "")
		if err != nil {
			t.Fatal(err)
		}
		body, err := h.evidence(ctx, guest)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.attest(ctx, at[o[1]], body); err != nil {
			t.Fatalf("begun on %d, attested on %d: %v", o[0], o[1], err)
		}
		for _, withCookie := range []bool{true, false} {
			v, err := h.fetch(ctx, at[o[2]], uri(t, seed), withCookie)
			if err != nil || string(v.Expose()) != seedContent {
				t.Errorf("order %v, cookie %v: got %q, %v", o, withCookie, v.Expose(), err)
			}
		}
		for i, x := range at {
			if err := h.attest(ctx, x, body); status(err) != http.StatusUnauthorized {
				t.Errorf("order %v: used again on %d: got %v", o, i, err)
			}
		}
		// What is in the record came from another replica than the one asked.
		session, err := sessionOf(h.token)
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.admin(t, c.replicas[o[0]].url()).Audit(ctx, admin.AuditQuery{Session: session})
		if err != nil || len(list) != 3 {
			t.Errorf("order %v: expected an attestation and two releases on record, got %d, %v", o, len(list), err)
		}
	}
	// The same evidence on all replicas at one time: one of them takes it.
	for range 5 {
		h, err := begin(ctx, at[0], "")
		if err != nil {
			t.Fatal(err)
		}
		body, err := h.evidence(ctx, guest)
		if err != nil {
			t.Fatal(err)
		}
		errs := make([]error, len(at))
		together(len(at), func(i int) {
			mine := *h
			errs[i] = mine.attest(ctx, at[i], body)
		})
		granted := 0
		for _, err := range errs {
			if err == nil {
				granted++
			} else if status(err) != http.StatusUnauthorized {
				t.Errorf("got %v", err)
			}
		}
		if granted != 1 {
			t.Errorf("one session was attested %d times: %v", granted, errs)
		}
	}
}

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

// testLost: a replica without its database says so, serves nobody, is left
// out, and recovers by itself; the others go on.
func (c *cluster) testLost(t *testing.T) {
	lost := c.replicas[replicas-1]
	for name, stall := range map[string]bool{"cut": false, "silent": true} {
		c.relay.set(!stall, stall)
		poll(t, name+": "+lost.name, func(ctx context.Context) error { return c.health(ctx, lost, "/readyz", http.StatusServiceUnavailable) })
		if err := c.health(t.Context(), lost, "/healthz", http.StatusOK); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.balancer.await(t, lost, "DOWN")
		for range 2 * replicas {
			g, w, err := c.guest(c.tee.attester(t), c.url())
			if err != nil {
				t.Fatal(err)
			}
			v, err := g.Resource(t.Context(), uri(t, seed))
			if err != nil || string(v.Expose()) != seedContent || w.disturbed() > 0 {
				t.Errorf("%s: beside it: got %q, %v after %d repetitions", name, v.Expose(), err, w.disturbed())
			}
			g.Close()
		}
		c.relay.set(false, false)
		c.awaitReady(t, lost)
		c.balancer.await(t, lost, "UP")
		if _, err := c.attested(t, c.caller(t, lost), ""); err != nil {
			t.Errorf("%s: recovered: %v", name, err)
		}
	}
	// All at once: nobody is ready, everybody is alive, and all recover.
	c.pg.Stop(0)
	for _, r := range c.replicas {
		poll(t, r.name, func(ctx context.Context) error { return c.health(ctx, r, "/readyz", http.StatusServiceUnavailable) })
		if err := c.health(t.Context(), r, "/healthz", http.StatusOK); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
		c.balancer.await(t, r, "DOWN")
	}
	// A guest that comes now waits, and is served.
	got := make(chan error, 1)
	g, _, err := c.guest(c.tee.attester(t), c.url())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	go func() {
		_, err := g.Resource(t.Context(), uri(t, seed))
		got <- err
	}()
	c.pg.Resume()
	if err := <-got; err != nil {
		t.Errorf("a guest that came while there was no database: %v", err)
	}
	for _, r := range c.replicas {
		c.awaitReady(t, r)
		c.balancer.await(t, r, "UP")
	}
}
