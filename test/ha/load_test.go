package ha

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/pgtest"
	"github.com/coffer-project/coffer/kbs/admin"
)

const (
	guests  = 8
	writers = 2
	// apart is how many operations lie between one failure and the next.
	apart = 60
)

// Who has an operation done.
const (
	guest  = "guest"
	writer = "administrator"
)

// client is one of the load's; n counts its operations.
type client struct {
	who       string
	operation func(ctx context.Context, n int) error
}

// load runs clients until stop is called, which waits for their last
// operations.
func load(t *testing.T, l *ledger, clients ...client) (stop func()) {
	t.Helper()
	var over atomic.Bool
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() {
			for n := 0; !over.Load(); n++ {
				if !l.try(t, c.who, func() error { return c.operation(t.Context(), n) }) {
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		over.Store(true)
		all.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// testLoad kills replicas and restarts the database while guests attest and
// administrators write.
func (c *cluster) testLoad(t *testing.T) {
	l := newLedger()
	var clients []client
	for range guests {
		attester := c.tee.attester(t)
		clients = append(clients, client{guest, func(ctx context.Context, _ int) error {
			g, w, err := c.guest(attester, c.url())
			if err != nil {
				return err
			}
			defer g.Close()
			path, content := l.newest()
			if err := l.get(ctx, g, w, seed, seedContent); err != nil {
				return err
			}
			if path == seed {
				return nil
			}
			return l.get(ctx, g, w, path, content)
		}})
	}
	for i := range writers {
		a := c.admin(t, c.url())
		clients = append(clients, client{writer, func(ctx context.Context, n int) error {
			path := fmt.Sprintf("load/writer%d/%d", i, n)
			return l.put(ctx, a, path, "content of "+path)
		}})
	}
	stop := load(t, l, clients...)
	l.await(t, apart)
	for _, mode := range []pgtest.Mode{pgtest.Fast, pgtest.Immediate, pgtest.Immediate} {
		c.pg.Restart(mode)
		l.await(t, apart)
	}
	// Everything at once: the database is gone, and a replica that waits for it
	// is killed with the requests it holds.
	c.pg.Stop(pgtest.Immediate)
	c.replicas[0].kill(t)
	c.pg.Resume()
	c.revive(t, c.replicas[0])
	l.await(t, apart)
	lost := c.replicas[replicas-1]
	for _, r := range c.replicas {
		r.kill(t)
		l.await(t, apart)
		if r == lost {
			r.patience = 3 * time.Second // for what follows
		}
		c.revive(t, r)
		l.await(t, apart)
	}
	// One replica loses the database for longer than it is patient. Whom it has
	// to turn away, and whoever keeps a connection to it, comes back elsewhere.
	before := l.second(guest)
	c.relay.set(true, false)
	c.balancer.await(t, lost, "DOWN")
	c.balancer.awaitIdle(t, lost)
	l.await(t, apart)
	c.relay.set(false, false)
	c.balancer.await(t, lost, "UP")
	l.await(t, apart)
	if n := l.second(guest) - before; n > 0 {
		t.Errorf("%d guests were turned away for good by a replica without a database", n)
	}
	stop()
	t.Logf("%s", l.summary())
	c.logShares(t)
	l.check(t, c)
}

// revive starts a replica again and waits until it has its share.
func (c *cluster) revive(t *testing.T, r *replica) {
	t.Helper()
	c.start(t, r)
	c.awaitReady(t, r)
	c.balancer.await(t, r, "UP")
}

// logShares prints how many connections each replica had.
func (c *cluster) logShares(t *testing.T) {
	t.Helper()
	table, err := c.balancer.table(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range c.replicas {
		ready, alive := table["ready/"+r.name], table["alive/"+r.name]
		t.Logf("%s: %s connections, %s while no replica was ready, %s redispatched, %s failed", r.name, ready["stot"], alive["stot"], ready["wredis"], ready["econ"])
		if ready["stot"] == "0" {
			t.Errorf("%s had no connection", r.name)
		}
	}
}

// testDrain stops replicas with SIGTERM under load: no request fails, although
// these clients try once.
func (c *cluster) testDrain(t *testing.T) {
	l := newLedger()
	var clients []client
	var failed atomic.Int64
	for i := range guests {
		attester := c.tee.attester(t)
		resource := mustURI(seed)
		// Some keep their connections from one handshake to the next.
		kept := newCaller(c.url(), c.root, true)
		t.Cleanup(kept.http.CloseIdleConnections)
		clients = append(clients, client{guest, func(ctx context.Context, _ int) error {
			x := kept
			switch i % 3 {
			case 1: // a connection for each handshake
				x = newCaller(c.url(), c.root, true)
				defer x.http.CloseIdleConnections()
			case 2: // a connection for each request
				x = newCaller(c.url(), c.root, false)
			}
			h, err := begin(ctx, x, "")
			if err != nil {
				return err
			}
			body, err := h.evidence(ctx, attester)
			if err != nil {
				return err
			}
			if err := h.attest(ctx, x, body); err != nil {
				return err
			}
			_, err = h.fetch(ctx, x, resource, true)
			return err
		}})
	}
	a := c.admin(t, c.url())
	clients = append(clients, client{writer, func(ctx context.Context, n int) error {
		return a.Bind(ctx, admin.Binding{Resource: fmt.Sprintf("drain/%d", n), InitData: c.tee.digest})
	}})
	for i, f := range clients {
		clients[i].operation = func(ctx context.Context, n int) error {
			if err := f.operation(ctx, n); err != nil {
				failed.Add(1)
				t.Errorf("%s: %v", f.who, err)
			}
			return nil // once
		}
	}
	stop := load(t, l, clients...)
	l.await(t, apart)
	for _, r := range c.replicas {
		r.signal(t, syscall.SIGTERM)
		// It says that it leaves while it still answers.
		if err := c.health(t.Context(), r, "/readyz", http.StatusServiceUnavailable); err != nil {
			poll(t, r.name, func(ctx context.Context) error { return c.health(ctx, r, "/readyz", http.StatusServiceUnavailable) })
		}
		if code := r.wait(t); code != 0 {
			t.Errorf("%s: expected exit code 0, got %d\n%s", r.name, code, r.tail())
		}
		l.await(t, apart)
		c.revive(t, r)
		l.await(t, apart)
	}
	stop()
	t.Logf("%d operations of one try each, %d failed", l.operations, failed.Load())
}
