package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// config lifts the limits per client: all guests here have one address.
const config = `listen = %q
state_dir = %q

[limits]
rate = 1000000.0
burst = 1000000
concurrent = 1024

[policy]
allow_simulated = true

[tee.snp]
development_roots = [%q]
`

// ownResources is how many resources are stored through the trustee, and
// fetched; ballast lies around them.
const ownResources = 500

// resourcePath is the path of one of those. Ballast sorts before and after
// each.
func resourcePath(i int) string { return fmt.Sprintf("bench/key/%07d-own", i*2000) }

// trustee is a trustee's state, and its process while it runs.
type trustee struct {
	*server
	b    *bench
	name string
}

func (b *bench) trustee(name string) *trustee { return &trustee{b: b, name: name} }

func (t *trustee) dir() string { return filepath.Join(t.b.work, t.name) }

// run starts the trustee and waits until it is ready.
func (t *trustee) run(ctx context.Context) error {
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	root := filepath.Join(t.b.work, "development.pem")
	file := filepath.Join(t.b.work, t.name+".toml")
	if err := errors.Join(os.WriteFile(root, t.b.fleet.root, 0o600), os.WriteFile(file, fmt.Appendf(nil, config, address, t.dir(), root), 0o600)); err != nil {
		return err
	}
	t.server, err = startServer(ctx, filepath.Join(t.b.work, t.name+".log"), address, filepath.Join(t.dir(), "ca.pem"), "/readyz", t.b.program, "serve", "--config", file)
	return err
}

// admin is the administration of a running trustee.
func (t *trustee) admin() (*admin.Client, error) {
	text, err := os.ReadFile(filepath.Join(t.dir(), "admin-key.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("admin-key.pem: no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("admin-key.pem: no Ed25519 key")
	}
	return admin.New(admin.Options{URL: t.url, RootPEM: t.rootPEM, Key: private, Now: time.Now})
}

// populate stores what the guests need and what else is asked for: resources
// that can be fetched, and reference values, of which the one that counts is
// the last of its list.
func (t *trustee) populate(ctx context.Context, resources, references int) error {
	a, err := t.admin()
	if err != nil {
		return err
	}
	defer a.Close()
	if err := a.Bind(ctx, admin.Binding{Resource: "bench", InitData: hex.EncodeToString(t.b.fleet.digest), Description: "the fleet"}); err != nil {
		return err
	}
	for i := range resources {
		uri, err := kbs.ParseResourceURI("kbs:///" + resourcePath(i))
		if err != nil {
			return err
		}
		if err := a.SetResource(ctx, uri, secret.New(append([]byte(nil), secretText...))); err != nil {
			return err
		}
	}
	return t.references(ctx, a, references)
}

// maxValues is how many values one reference may have.
const maxValues = 4096

// references registers n values: as many as one reference may have as launch
// measurements, the rest under names of their own.
func (t *trustee) references(ctx context.Context, a *admin.Client, n int) error {
	var values []any
	for i := range min(n, maxValues) - 1 {
		values = append(values, fmt.Sprintf("%096x", i))
	}
	good := t.b.fleet.guest.Measurement()
	values = append(values, hex.EncodeToString(good[:]))
	if err := a.SetReferenceValue(ctx, admin.ReferenceValue{Name: "snp_launch_measurement", Values: values, Description: "the fleet"}); err != nil {
		return err
	}
	return t.fill(ctx, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO reference_names (tenant, name, version, deleted) SELECT 'default', printf('other_%05d', i), 1, 0 FROM n`,
		`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO reference_versions (tenant, name, version, deleted, created, body)
		SELECT 'default', printf('other_%05d', i), 1, 0, 1, printf('{"name":"other_%05d","entries":[{"value":"%096x"}]}', i, i) FROM n`, n-maxValues)
}

// ballast puts n resources into the database, around those that are fetched.
// Their contents are random: nobody opens them.
func (t *trustee) ballast(ctx context.Context, n int) error {
	return t.fill(ctx, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO resources (tenant, path, version, deleted, size, created) SELECT 'default', printf('bench/key/%07d', i), 1, 0, 256, 1 FROM n`,
		`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO resource_versions (tenant, path, version, state, size, created, content)
		SELECT 'default', printf('bench/key/%07d', i), 1, 0, 256, 1, randomblob(293) FROM n`, n)
}

// fill runs statements about n rows on the database beside the trustee, which
// need not run.
func (t *trustee) fill(ctx context.Context, first, second string, n int) (err error) {
	if n <= 0 {
		return nil
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.dir(), "trustee.db")+"?_pragma=busy_timeout(60000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, stmt := range []string{first, second} {
		if _, err := tx.ExecContext(ctx, stmt, n); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}
