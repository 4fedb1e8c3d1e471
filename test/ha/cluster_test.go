// Package ha runs what a production site runs: three replicas of the built
// coffer-trustee on one PostgreSQL behind haproxy. It holds what only real
// processes can show: that replicas are one trustee, that killing any of them
// or restarting the database loses nothing that was acknowledged, and that no
// client fails that retries once.
//
// COFFER_BIN is the directory of coffer-trustee; without it the test builds
// one. Tests skip without PostgreSQL or haproxy, and fail there when
// COFFER_REQUIRE_SERVERS=1.
package ha

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/pgtest"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

const (
	replicas = 3
	// port is everybody's: each has an address of its own.
	port = "8443"
	// drainDelay is how long a stopped replica serves on for haproxy to notice.
	drainDelay = time.Second
)

// cluster is a site.
type cluster struct {
	bin, dir string
	// prefix begins the addresses: the first three numbers of a loopback network
	// that is this process's alone. No port on it is taken.
	prefix   string
	pg       *pgtest.Server
	relay    *relay
	replicas []*replica
	balancer *balancer
	tee      *softwareTEE

	root []byte
	key  ed25519.PrivateKey
}

// replica is one trustee. It may be started again and again.
type replica struct {
	*process
	name, address, dir string
	// config is the file's text; patience is how long it waits for the database.
	config   string
	patience time.Duration
}

func (r *replica) file(name string) string { return filepath.Join(r.dir, "state", name) }

func (r *replica) url() string { return "https://" + r.address }

// newCluster starts everything. All replicas start at once on an empty
// database: who makes tables and keys is decided there.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	haproxy := findBalancer(t)
	dir, err := os.MkdirTemp("", "coffer-ha-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	pid := os.Getpid()
	c := &cluster{dir: dir, prefix: fmt.Sprintf("127.%d.%d", 64+pid>>8&127, pid&255), pg: pgtest.Start(t, pgtest.Durable())}
	c.bin = program(t)
	c.tee = newSoftwareTEE(t, dir)
	c.configure(t)
	t.Cleanup(func() {
		for _, r := range c.replicas {
			if r.process == nil {
				continue
			}
			r.kill(t)
			if t.Failed() {
				t.Logf("%s's failures:\n%s\nand the end of its log:\n%s", r.name, r.failures(), r.tail())
			}
		}
	})
	for _, r := range c.replicas {
		c.start(t, r)
	}
	for _, r := range c.replicas {
		c.awaitReady(t, r)
	}
	c.root = read(t, c.replicas[0].file("ca.pem"))
	block, _ := pem.Decode(read(t, c.replicas[0].file("admin-key.pem")))
	if block == nil {
		t.Fatal("admin-key.pem holds no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	c.key = key.(ed25519.PrivateKey)
	c.balancer = c.startBalancer(t, haproxy)
	c.populate(t)
	return c
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// configure writes the files of all replicas. The last one reaches the
// database through the relay.
func (c *cluster) configure(t *testing.T) {
	t.Helper()
	kek := make([]byte, 32)
	_, _ = rand.Read(kek) // never fails
	write(t, filepath.Join(c.dir, "kek.hex"), []byte(hex.EncodeToString(kek)+"\n"))
	database := c.pg.URL("trustee")
	c.relay = newRelay(t, filepath.Join(c.dir, "relay"), c.pg.Dir())
	for i := range replicas {
		r := &replica{name: fmt.Sprintf("replica%d", i+1), address: fmt.Sprintf("%s.%d:%s", c.prefix, i+1, port)}
		r.dir = filepath.Join(c.dir, r.name)
		if err := os.Mkdir(r.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(database)
		if err != nil {
			t.Fatal(err)
		}
		if i == replicas-1 {
			u.RawQuery = url.Values{"host": {c.relay.dir}}.Encode()
		}
		write(t, filepath.Join(r.dir, "database.url"), []byte(u.String()+"\n"))
		r.config = fmt.Sprintf(`
listen = %q
state_dir = "state"
[tls]
names = ["%[2]s.1", "%[2]s.2", "%[2]s.3", "%[2]s.10"]
[proxy]
trusted = ["%[2]s.10/32"]
[policy]
allow_simulated = true
[limits]
rate = 100000.0
burst = 100000
concurrent = 10000
drain_delay = %[3]q
[storage.kek]
file = "../kek.hex"
[storage.database]
url_file = "database.url"
retry_for = "RETRY"
[audit]
checkpoint_interval = "1s"
[tee.snp]
development_roots = [%[4]q]
`, r.address, c.prefix, drainDelay, c.tee.root)
		r.patience = 20 * time.Second
		c.replicas = append(c.replicas, r)
	}
}

// start runs a replica.
func (c *cluster) start(t *testing.T, r *replica) {
	t.Helper()
	file := filepath.Join(r.dir, "trustee.toml")
	write(t, file, []byte(strings.Replace(r.config, "RETRY", r.patience.String(), 1)))
	r.process = start(t, filepath.Join(r.dir, "log"), c.bin, "serve", "--config", file)
}

// awaitReady waits until a replica says that it is.
func (c *cluster) awaitReady(t *testing.T, r *replica) {
	t.Helper()
	poll(t, r.name, func(ctx context.Context) error {
		if err := r.alive(); err != nil {
			return err
		}
		return c.health(ctx, r, "/readyz", http.StatusOK)
	})
}

// health asks a replica for its health over a connection of its own.
func (c *cluster) health(ctx context.Context, r *replica, path string, status int) error {
	root, err := os.ReadFile(r.file("ca.pem"))
	if err != nil {
		return err
	}
	x := newCaller(r.url(), root, false)
	defer x.http.CloseIdleConnections()
	got, err := x.do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	if got.status != status {
		return fmt.Errorf("%s: expected %d, got %d", path, status, got.status)
	}
	return nil
}

// admin administers through the replica or balancer at a URL.
func (c *cluster) admin(t *testing.T, base string) *admin.Client {
	t.Helper()
	return newAdmin(t, admin.Options{URL: base, RootPEM: c.root, Key: c.key})
}

func newAdmin(t *testing.T, o admin.Options) *admin.Client {
	t.Helper()
	a, err := admin.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// url is the balancer's.
func (c *cluster) url() string { return "https://" + c.balancer.address }

// seed is a resource that guests fetch.
const seed, seedContent = "load/seed/one", "the first secret"

// populate stores what guests need to have a resource.
func (c *cluster) populate(t *testing.T) {
	t.Helper()
	a, ctx := c.admin(t, c.url()), t.Context()
	if err := errors.Join(
		a.SetResource(ctx, uri(t, seed), secret.New([]byte(seedContent))),
		a.SetReferenceValue(ctx, c.tee.reference()),
		a.Bind(ctx, admin.Binding{Resource: "load", InitData: c.tee.digest}),
	); err != nil {
		t.Fatal(err)
	}
}

func uri(t *testing.T, path string) kbs.ResourceURI {
	t.Helper()
	u, err := kbs.ParseResourceURI("kbs:///" + path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// tlsConfig trusts the site's root.
func tlsConfig(root []byte) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
}
