package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Kinds of policy.
const (
	ResourcePolicy    = "resource"
	AttestationPolicy = "attestation"
)

// Policy is one version of a policy text. Versions count from 1 and all are
// kept: a verdict can be explained with the policy it was made by.
type Policy struct {
	Kind, ID string
	Version  int64
	Text     string
	Created  time.Time
}

// SetPolicy stores a new version and returns it.
func (s *Store) SetPolicy(ctx context.Context, kind, id, text string) (Policy, error) {
	p := Policy{Kind: kind, ID: id, Text: text, Created: s.o.Now()}
	err := s.write.QueryRowContext(ctx, `INSERT INTO policies (kind, id, version, text, created)
		SELECT ?, ?, COALESCE(MAX(version), 0) + 1, ?, ? FROM policies WHERE kind = ? AND id = ? RETURNING version`,
		kind, id, text, millis(p.Created), kind, id).Scan(&p.Version)
	return p, wrap("set policy "+id, err)
}

// PolicyVersion is the newest version's number, 0 when there is none. It is
// cheap: callers ask before every use of a prepared policy.
func (s *Store) PolicyVersion(ctx context.Context, kind, id string) (int64, error) {
	var v int64
	err := s.read.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM policies WHERE kind = ? AND id = ?", kind, id).Scan(&v)
	return v, wrap("policy "+id, err)
}

// Policy returns one version, or [ErrNotFound].
func (s *Store) Policy(ctx context.Context, kind, id string, version int64) (Policy, error) {
	p := Policy{Kind: kind, ID: id, Version: version}
	var created int64
	err := s.read.QueryRowContext(ctx, "SELECT text, created FROM policies WHERE kind = ? AND id = ? AND version = ?", kind, id, version).
		Scan(&p.Text, &created)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	p.Created = fromMillis(created)
	return p, wrap("policy "+id, err)
}

// Policies lists the newest version of every policy of a kind, by id.
func (s *Store) Policies(ctx context.Context, kind string) ([]Policy, error) {
	return query(ctx, s, "list policies", `SELECT p.id, p.version, p.text, p.created FROM policies p WHERE p.kind = ? AND p.version =
		(SELECT MAX(q.version) FROM policies q WHERE q.kind = p.kind AND q.id = p.id) ORDER BY p.id`, []any{kind},
		func(scan func(...any) error) (Policy, error) {
			p := Policy{Kind: kind}
			var created int64
			err := scan(&p.ID, &p.Version, &p.Text, &created)
			p.Created = fromMillis(created)
			return p, err
		})
}
