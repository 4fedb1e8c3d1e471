package store

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

type head struct {
	seq  int64
	hash string
}

type sessionKey struct {
	tenant tenant.Name
	id     string
}

// lead is what a transaction learns before it appends.
type lead struct {
	// heads are the chains' ends, locked; unknown tenants have none.
	heads map[tenant.Name]head
	// written are the entries that are there already.
	written map[*op]audit.Entry
	// claimed are the sessions this transaction uses up.
	claimed map[sessionKey]bool
}

// appended is what a transaction writes.
type appended struct {
	ops     []*op
	entries []audit.Entry // of ops
	heads   map[tenant.Name]head
}

// append writes a batch in one transaction. An error is that of the
// transaction; what is wrong with one operation is in its result.
func (s *Store) append(ctx context.Context, batch []*op) ([]result, error) {
	if s.pool != nil {
		return s.appendPostgres(ctx, batch)
	}
	return s.appendSQLite(ctx, batch)
}

// claims are the sessions to use up, each with the first operation that wants
// it: the others of the batch come too late.
func claims(batch []*op) map[sessionKey]*op {
	out := make(map[sessionKey]*op)
	for _, o := range batch {
		if o.finish == nil {
			continue
		}
		if key := (sessionKey{o.tenant, o.finish.Session}); out[key] == nil {
			out[key] = o
		}
	}
	return out
}

func tenantsOf(batch []*op) []string {
	set := make(map[string]bool)
	for _, o := range batch {
		set[string(o.tenant)] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// link puts a batch's records into their places.
func link(batch []*op, l lead, first map[sessionKey]*op) ([]result, appended) {
	results := make([]result, len(batch))
	a := appended{heads: make(map[tenant.Name]head)}
	for i, o := range batch {
		h, ok := l.heads[o.tenant]
		e, written := l.written[o]
		key := sessionKey{o.tenant, ""}
		if o.finish != nil {
			key.id = o.finish.Session
		}
		switch {
		case !ok:
			results[i].err = fmt.Errorf("%w: %.80q", ErrNoTenant, string(o.tenant))
		case written:
			results[i].entry = e
		case o.finish != nil && (first[key] != o || !l.claimed[key]):
			results[i].err = ErrUsed
		default:
			e := audit.Entry{Seq: h.seq + 1, Previous: h.hash, Body: o.body}
			e.Hash = audit.Hash(o.tenant, e.Seq, e.Previous, o.body)
			l.heads[o.tenant] = head{e.Seq, e.Hash}
			a.heads[o.tenant] = l.heads[o.tenant]
			a.ops, a.entries = append(a.ops, o), append(a.entries, e)
			results[i].entry = e
		}
	}
	return results, a
}

// appendSQLite has the database for itself from the beginning of the
// transaction.
func (s *Store) appendSQLite(ctx context.Context, batch []*op) (results []result, err error) {
	ctx = s.brief(ctx)
	s.statements.prepareWanted(ctx, s.write)
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	results, err = conn{s: s, tx: tx}.append(ctx, batch)
	if err != nil {
		return nil, rollback(tx, err)
	}
	return results, tx.Commit()
}

func (c conn) append(ctx context.Context, batch []*op) ([]result, error) {
	first := claims(batch)
	l, err := c.lead(ctx, batch, first)
	if err != nil {
		return nil, err
	}
	results, a := link(batch, l, first)
	for i, o := range a.ops {
		e := a.entries[i]
		if _, err := c.exec(ctx, `INSERT INTO audit_entries (tenant, seq, record, at, kind, resource, initdata, session, subject, granted, previous, hash, body)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, string(o.tenant), e.Seq, o.record, o.at, o.kind, o.resource, o.initdata, o.session,
			o.subject, o.granted, e.Previous, e.Hash, o.body); err != nil {
			return nil, err
		}
	}
	for t, h := range a.heads {
		if _, err := c.exec(ctx, "UPDATE audit_heads SET seq = ?, hash = ? WHERE tenant = ?", h.seq, h.hash, string(t)); err != nil {
			return nil, err
		}
	}
	return results, nil
}

func (c conn) lead(ctx context.Context, batch []*op, first map[sessionKey]*op) (lead, error) {
	l := lead{heads: make(map[tenant.Name]head), written: make(map[*op]audit.Entry), claimed: make(map[sessionKey]bool)}
	for _, t := range tenantsOf(batch) {
		var h head
		err := c.row(ctx, "SELECT seq, hash FROM audit_heads WHERE tenant = ?", []any{t}, &h.seq, &h.hash)
		switch {
		case err == nil:
			l.heads[tenant.Name(t)] = h
		case !isNotFound(err):
			return lead{}, err
		}
	}
	for _, o := range batch {
		if !o.again {
			continue
		}
		e, err := c.entry(ctx, o.tenant, o.record)
		switch {
		case err == nil:
			l.written[o] = e
		case !isNotFound(err):
			return lead{}, err
		}
	}
	for key, o := range first {
		if _, ok := l.heads[key.tenant]; !ok {
			continue
		}
		n, err := c.exec(ctx, "INSERT INTO sessions (tenant, id, token, expires) VALUES (?, ?, ?, ?) ON CONFLICT (tenant, id) DO NOTHING",
			string(o.tenant), o.finish.Session, o.finish.Token, millis(o.finish.Expires))
		if err != nil {
			return lead{}, err
		}
		l.claimed[key] = n == 1
	}
	return l, nil
}
