package ha

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/coffer-project/coffer/kbs/admin"
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
