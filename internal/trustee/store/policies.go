package store

import (
	"context"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Kinds of policy.
const (
	// ResourcePolicy decides on releases. Its id is its scope: "" (everything),
	// "repo", "repo/type", "repo/type/tag", "+plugin" or "+plugin/segment/…".
	ResourcePolicy = "resource"
	// AttestationPolicy appraises evidence. Its id is name_class.
	AttestationPolicy = "attestation"
)

// Limits of policies.
const (
	MaxPolicy   = 1 << 20 // bytes of text
	maxPolicyID = 4 << 10
	maxAuthor   = 1 << 10
	// maxPolicies bounds the ids of one kind and tenant.
	maxPolicies = 10_000
)

// Policy is one version of a policy text. Versions count from 1 and all are
// kept: a decision can be replayed with the policy it was made by.
type Policy struct {
	Kind, ID string
	Version  int64
	// Deleted: from this version on no text is in force under the id. Only
	// listings of versions show it.
	Deleted bool
	// Author is the administrator who stored it.
	Author  string
	Created time.Time
	// Text is empty in listings.
	Text string
}

// SetPolicy stores a new version, which is in force at once, and returns it.
// The text must have been checked.
func (s *Store) SetPolicy(ctx context.Context, t tenant.Name, kind, id, text, author string) (Policy, error) {
	p := Policy{Kind: kind, ID: id, Text: text, Author: clean(author), Created: s.o.Now()}
	what := fmt.Sprintf("set %s policy %.200q", kind, id)
	if err := checkPolicy(p); err != nil {
		return Policy{}, wrap(what, err)
	}
	err := s.change(ctx, t, what, func(ctx context.Context, c conn) error {
		newest, err := c.newestPolicy(ctx, t, kind, id)
		if err != nil {
			return err
		}
		if newest.Version == 0 {
			var n int
			if err := c.row(ctx, "SELECT COUNT(DISTINCT id) FROM policies WHERE tenant = ? AND kind = ?", []any{string(t), kind}, &n); err != nil {
				return err
			}
			if n >= maxPolicies {
				return fmt.Errorf("%w: %d %s policies", ErrFull, maxPolicies, kind)
			}
		}
		p.Version = newest.Version + 1
		return c.insertPolicy(ctx, t, p)
	})
	if err != nil {
		return Policy{}, err
	}
	p.Created = fromMillis(millis(p.Created))
	return p, nil
}

// DeletePolicy puts what is less specific, or built in, back in force. It
// reports whether there was a policy; its versions stay.
func (s *Store) DeletePolicy(ctx context.Context, t tenant.Name, kind, id, author string) (was bool, err error) {
	p := Policy{Kind: kind, ID: id, Deleted: true, Author: clean(author), Created: s.o.Now()}
	what := fmt.Sprintf("delete %s policy %.200q", kind, id)
	if err := checkPolicy(p); err != nil {
		return false, wrap(what, err)
	}
	err = s.change(ctx, t, what, func(ctx context.Context, c conn) error {
		newest, err := c.newestPolicy(ctx, t, kind, id)
		if was = err == nil && newest.Version > 0 && !newest.Deleted; !was {
			return err
		}
		p.Version = newest.Version + 1
		return c.insertPolicy(ctx, t, p)
	})
	return was, err
}

func checkPolicy(p Policy) error {
	if p.Kind != ResourcePolicy && p.Kind != AttestationPolicy {
		return fmt.Errorf("kind: expected %q or %q, got %.80q", ResourcePolicy, AttestationPolicy, p.Kind)
	}
	for _, x := range []struct {
		what, text string
		limit      int
	}{{"id", p.ID, maxPolicyID}, {"author", p.Author, maxAuthor}, {"text", p.Text, MaxPolicy}} {
		if err := checkText(x.what, x.text, x.limit); err != nil {
			return err
		}
	}
	return nil
}

// newestPolicy has version 0 where there never was one.
func (c conn) newestPolicy(ctx context.Context, t tenant.Name, kind, id string) (p Policy, err error) {
	var deleted int64
	err = c.row(ctx, "SELECT version, deleted FROM policies WHERE tenant = ? AND kind = ? AND id = ? ORDER BY version DESC LIMIT 1",
		[]any{string(t), kind, id}, &p.Version, &deleted)
	if isNotFound(err) {
		err = nil
	}
	p.Deleted = deleted != 0
	return p, err
}

func (c conn) insertPolicy(ctx context.Context, t tenant.Name, p Policy) error {
	_, err := c.exec(ctx, "INSERT INTO policies (tenant, kind, id, version, deleted, author, created, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		string(t), p.Kind, p.ID, p.Version, flag(p.Deleted), p.Author, millis(p.Created), p.Text)
	return err
}

// Policy returns one version with its text; version 0 is the one in force.
// Where it does not exist or marks a deletion, it is [ErrNotFound].
func (s *Store) Policy(ctx context.Context, t tenant.Name, kind, id string, version int64) (Policy, error) {
	p := Policy{Kind: kind, ID: id}
	what := fmt.Sprintf("%s policy %.200q", kind, id)
	stmt, args := "SELECT version, deleted, author, created, text FROM policies WHERE tenant = ? AND kind = ? AND id = ?", []any{string(t), kind, clean(id)}
	if version != 0 {
		stmt, args = stmt+" AND version = ?", append(args, version)
	}
	var deleted, created int64
	err := s.get(ctx, what, stmt+" ORDER BY version DESC LIMIT 1", args, &p.Version, &deleted, &p.Author, &created, &p.Text)
	if err == nil && deleted != 0 {
		err = wrap(what, ErrNotFound)
	}
	if err != nil {
		return Policy{}, err
	}
	p.Created = fromMillis(created)
	return p, nil
}

// PolicyHeads are the versions in force by id. It is what caches ask for once
// per generation.
func (s *Store) PolicyHeads(ctx context.Context, t tenant.Name, kind string) (map[string]int64, error) {
	out := make(map[string]int64)
	for after := ""; ; {
		list, err := s.Policies(ctx, t, kind, after, MaxPage)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			out[p.ID] = p.Version
			after = p.ID
		}
		if len(list) < MaxPage {
			return out, nil
		}
	}
}

// Policies lists the versions in force of a kind without their texts, by id,
// after the given id. The policy with the empty id, the one of every resource,
// comes first and beyond the limit: no page could begin after it. A limit of 0
// and more than [MaxPage] stand for that.
func (s *Store) Policies(ctx context.Context, t tenant.Name, kind, after string, limit int) ([]Policy, error) {
	limit = page(limit)
	op, n := ">", limit
	if after == "" {
		op, n = ">=", limit+1
	}
	list, err := s.listPolicies(ctx, kind, `SELECT p.id, p.version, p.deleted, p.author, p.created FROM policies p
		WHERE p.tenant = ? AND p.kind = ? AND p.id `+op+` ? AND p.deleted = 0 AND p.version =
		(SELECT MAX(q.version) FROM policies q WHERE q.tenant = p.tenant AND q.kind = p.kind AND q.id = p.id) ORDER BY p.id LIMIT ?`,
		string(t), kind, clean(after), n)
	if len(list) > limit && list[0].ID != "" {
		list = list[:limit]
	}
	return list, err
}

// PolicyVersions lists a policy's versions without their texts, the newest
// first, deletions too; at most [MaxPage].
func (s *Store) PolicyVersions(ctx context.Context, t tenant.Name, kind, id string) ([]Policy, error) {
	return s.listPolicies(ctx, kind, `SELECT id, version, deleted, author, created FROM policies
		WHERE tenant = ? AND kind = ? AND id = ? ORDER BY version DESC LIMIT ?`, string(t), kind, clean(id), MaxPage)
}

func (s *Store) listPolicies(ctx context.Context, kind, stmt string, args ...any) ([]Policy, error) {
	return query(ctx, s, "list policies", stmt, args, func(scan func(...any) error) (Policy, error) {
		p := Policy{Kind: kind}
		var deleted, created int64
		err := scan(&p.ID, &p.Version, &deleted, &p.Author, &created)
		p.Deleted, p.Created = deleted != 0, fromMillis(created)
		return p, err
	})
}
