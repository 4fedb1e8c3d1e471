package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// Schema 1 and 2 were SQLite's only. They knew no tenants, sealed resources
// directly with the key file, and kept a bounded log of verdicts. What they
// hold becomes the default tenant's:
//
//   - resources are sealed again, each as version 1;
//   - policies keep their versions; the one resource policy, "resource-policy",
//     takes the scope "" (everything);
//   - reference values become version 1 of their references;
//   - bindings stay as they are;
//   - verdicts open the audit chain, oldest first, marked by the action
//     "verdict.migrated": the chain vouches for them from now on only;
//   - sessions are dropped: a guest in the middle of a handshake, or with a
//     token of before, attests again.

const (
	legacyKEKCheck       = "kek-check"
	legacyResourcePolicy = "resource-policy"
	// migratedAction marks records that were verdicts.
	migratedAction = "verdict.migrated"
)

// upgrade brings a database of schema 1 or 2 to the current one. The two
// differ in a column of the verdicts that is of no use here.
//
// Statements run as they are: prepared ones would outlive their tables.
func (s *Store) upgrade(ctx context.Context, c conn, have int) error {
	if s.pool != nil {
		return fmt.Errorf("schema version %d was never PostgreSQL's: is this another program's database?", have)
	}
	l := legacy{s: s, c: c, box: seal.NewBox(s.o.Rand)}
	for _, step := range []func(context.Context) error{l.checkKEK, l.setAside, l.newKey, l.copyRows, l.references, l.resources, l.verdicts, l.drop} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("from version %d: %w", have, err)
		}
	}
	return nil
}

type legacy struct {
	s    *Store
	c    conn
	aead cipher.AEAD
	box  *seal.Box
}

func (l *legacy) exec(ctx context.Context, stmts ...string) error {
	for _, stmt := range stmts {
		if _, err := l.c.tx.ExecContext(ctx, stmt); err != nil {
			return err
		}
	}
	return nil
}

// each calls f with the scan function of each row.
func (l *legacy) each(ctx context.Context, stmt string, f func(scan func(...any) error) error) (err error) {
	rows, err := l.c.tx.QueryContext(ctx, stmt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// checkKEK opens the constant that was sealed when the database was made.
func (l *legacy) checkKEK(ctx context.Context) error {
	block, err := aes.NewCipher(l.s.o.LegacyKEK.Expose())
	if err != nil || l.s.o.LegacyKEK.Len() != seal.KeySize {
		return fmt.Errorf("key file of %d bytes: the resources of this database are sealed with it, expected it in the configuration until they are migrated, got %d bytes",
			seal.KeySize, l.s.o.LegacyKEK.Len())
	}
	if l.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	var sealed []byte
	if err := l.c.tx.QueryRowContext(ctx, "SELECT value FROM meta WHERE key = ?", legacyKEKCheck).Scan(&sealed); err != nil {
		return fmt.Errorf("key check: %w", err)
	}
	if _, err := l.unseal(legacyKEKCheck, sealed); err != nil {
		return errors.New("the key-encryption key is not the one this database was made with: restore the key file")
	}
	return nil
}

// unseal opens a random 96-bit nonce followed by AES-256-GCM ciphertext.
func (l *legacy) unseal(name string, sealed []byte) (secret.Bytes, error) {
	n := l.aead.NonceSize()
	if len(sealed) < n {
		return secret.Bytes{}, errors.New("sealed content is cut short")
	}
	plain, err := l.aead.Open(nil, sealed[:n], sealed[n:], []byte("coffer-trustee/resource/v1\x00"+name))
	if err != nil {
		return secret.Bytes{}, errors.New("sealed content was changed, or belongs to another key or name")
	}
	return secret.New(plain), nil
}

// setAside makes room for the tables that keep their names.
func (l *legacy) setAside(ctx context.Context) error {
	if err := l.exec(ctx, "DROP TABLE sessions", "DROP TABLE meta", "ALTER TABLE resources RENAME TO legacy_resources",
		"ALTER TABLE policies RENAME TO legacy_policies", "ALTER TABLE bindings RENAME TO legacy_bindings"); err != nil {
		return err
	}
	return l.s.create(ctx, l.c)
}

// newKey makes the first data key. The store's own box gets it from the
// database, once it is there.
func (l *legacy) newKey(ctx context.Context) error {
	k, err := seal.Generate(ctx, l.s.o.KEK, 1, l.s.o.Rand, l.s.o.Now())
	if err != nil {
		return err
	}
	if _, err := l.c.exec(ctx, insertKey, k.ID, k.KEK, k.Wrapped, millis(k.Created)); err != nil {
		return err
	}
	return l.box.Add(ctx, l.s.o.KEK, k)
}

func (l *legacy) copyRows(ctx context.Context) error {
	return l.exec(ctx, `INSERT INTO policies (tenant, kind, id, version, deleted, author, created, text)
		SELECT 'default', kind, CASE WHEN kind = '`+ResourcePolicy+`' AND id = '`+legacyResourcePolicy+`' THEN '' ELSE id END,
			version, 0, '', created, text FROM legacy_policies`,
		`INSERT INTO bindings (tenant, resource, initdata, description, created)
		SELECT 'default', resource, initdata, description, created FROM legacy_bindings`)
}

func (l *legacy) references(ctx context.Context) error {
	var refs []refvalues.Reference
	if err := l.each(ctx, "SELECT name, scalar, value, description, inputs, expires, created FROM reference_values ORDER BY name, seq",
		func(scan func(...any) error) error {
			var name, value, inputs string
			var scalar int
			var expires, created int64
			var e refvalues.Entry
			if err := scan(&name, &scalar, &value, &e.Description, &inputs, &expires, &created); err != nil {
				return err
			}
			e.Value, e.Expires, e.Created = json.RawMessage(value), fromMillis(expires), fromMillis(created)
			if inputs != "" {
				e.Inputs = json.RawMessage(inputs)
			}
			if len(refs) == 0 || refs[len(refs)-1].Name != name {
				refs = append(refs, refvalues.Reference{Name: name, Scalar: scalar != 0})
			}
			last := &refs[len(refs)-1]
			last.Entries = append(last.Entries, e)
			return nil
		}); err != nil {
		return err
	}
	for _, r := range refs {
		if err := l.c.putReference(ctx, tenant.Default, r.Name, &r); err != nil {
			return fmt.Errorf("reference value %q: %w", r.Name, err)
		}
	}
	return nil
}

func (l *legacy) resources(ctx context.Context) error {
	return l.each(ctx, "SELECT path, content, size, updated FROM legacy_resources ORDER BY path", func(scan func(...any) error) error {
		var path string
		var sealed []byte
		var size, updated int64
		if err := scan(&path, &sealed, &size, &updated); err != nil {
			return err
		}
		plain, err := l.unseal(path, sealed)
		if err != nil {
			return fmt.Errorf("resource %q: %w", path, err)
		}
		defer plain.Clear()
		if sealed, err = l.box.Seal(resourceName(tenant.Default, path, 1), plain.Expose()); err != nil {
			return err
		}
		if _, err := l.c.exec(ctx, "INSERT INTO resources (tenant, path, version, deleted, size, created) VALUES (?, ?, 1, 0, ?, ?)",
			string(tenant.Default), path, size, updated); err != nil {
			return err
		}
		_, err = l.c.exec(ctx, insertVersion, string(tenant.Default), path, 1, stateReadable, size, updated, sealed)
		return err
	})
}

// legacyVerdict is what schema 1 and 2 logged of a decision.
type legacyVerdict struct {
	At             time.Time       `json:"at"`
	Kind           string          `json:"kind"`
	TEE            string          `json:"tee"`
	Session        string          `json:"session"`
	Resource       string          `json:"resource"`
	Granted        bool            `json:"granted"`
	Status         int             `json:"status"`
	EARStatus      string          `json:"ear_status"`
	Reason         *kbs.Reason     `json:"reason"`
	Detail         string          `json:"detail"`
	Claims         json.RawMessage `json:"claims"`
	InitData       string          `json:"initdata"`
	Simulated      bool            `json:"simulated"`
	AllowSimulated bool            `json:"allow_simulated"`
	PolicyID       string          `json:"policy"`
}

func (v legacyVerdict) record() audit.Record {
	r := audit.Record{
		At: v.At, Kind: v.Kind, TEE: v.TEE, Session: v.Session, Granted: v.Granted, Status: v.Status, EARStatus: v.EARStatus, Detail: v.Detail,
		Claims: v.Claims, InitData: v.InitData, Simulated: v.Simulated, AllowSimulated: v.AllowSimulated, Policy: v.PolicyID, Action: migratedAction,
	}
	if v.Reason != nil {
		r.Reasons = []kbs.Reason{*v.Reason}
	}
	if v.Resource != "" {
		r.Resource = "kbs:///" + v.Resource
	}
	return r
}

func (l *legacy) verdicts(ctx context.Context) error {
	var batch []*op
	flush := func() error {
		_, err := l.c.append(ctx, batch)
		batch = batch[:0]
		return err
	}
	if err := l.each(ctx, "SELECT id, body FROM verdicts ORDER BY id", func(scan func(...any) error) error {
		var id int64
		var body []byte
		var v legacyVerdict
		if err := scan(&id, &body); err != nil {
			return err
		}
		if err := json.Unmarshal(body, &v); err != nil {
			return fmt.Errorf("verdict %d: %w", id, err)
		}
		o, err := l.s.newOp(tenant.Default, v.record(), nil)
		if err != nil {
			return fmt.Errorf("verdict %d: %w", id, err)
		}
		if batch = append(batch, o); len(batch) < maxBatch {
			return nil
		}
		return flush()
	}); err != nil {
		return err
	}
	return flush()
}

func (l *legacy) drop(ctx context.Context) error {
	return l.exec(ctx, "DROP TABLE legacy_resources", "DROP TABLE legacy_policies", "DROP TABLE legacy_bindings",
		"DROP TABLE reference_values", "DROP TABLE verdicts")
}
