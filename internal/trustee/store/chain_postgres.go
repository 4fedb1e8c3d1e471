package store

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// With PostgreSQL a batch costs two round trips whatever its size: statements
// take arrays, and are sent together.
const (
	// Rows are locked in the order of tenants, by all replicas: none waits for
	// one that waits for it.
	pgHeads   = `SELECT tenant, seq, hash FROM audit_heads WHERE tenant = ANY($1::text[]) ORDER BY tenant FOR UPDATE`
	pgWritten = `SELECT e.tenant, e.record, e.seq, e.previous, e.hash, e.body FROM audit_entries e
		JOIN unnest($1::text[], $2::text[]) AS u(tenant, record) ON e.tenant = u.tenant AND e.record = u.record`
	pgClaim = `INSERT INTO sessions (tenant, id, token, expires)
		SELECT u.tenant, u.id, u.token, u.expires FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS u(tenant, id, token, expires)
		JOIN audit_heads h ON h.tenant = u.tenant ON CONFLICT (tenant, id) DO NOTHING RETURNING tenant, id`
	pgEntries = `INSERT INTO audit_entries (tenant, seq, record, at, kind, resource, initdata, session, subject, granted, previous, hash, body)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
			$10::bigint[], $11::text[], $12::text[], $13::bytea[])`
	pgNewHeads = `UPDATE audit_heads h SET seq = u.seq, hash = u.hash FROM unnest($1::text[], $2::bigint[], $3::text[]) AS u(tenant, seq, hash)
		WHERE h.tenant = u.tenant`
)

func (s *Store) appendPostgres(ctx context.Context, batch []*op) ([]result, error) {
	c, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	// The pool drops a connection that is given back within a transaction, and
	// the server rolls back then.
	defer c.Release()
	first := claims(batch)
	l, err := pgLead(ctx, c.Conn(), batch, first)
	if err != nil {
		return nil, err
	}
	results, a := link(batch, l, first)
	return results, pgAppend(ctx, c.Conn(), a)
}

// pgLead begins the transaction, locks the chains and uses up the sessions.
func pgLead(ctx context.Context, c *pgx.Conn, batch []*op, first map[sessionKey]*op) (l lead, err error) {
	l = lead{heads: make(map[tenant.Name]head), written: make(map[*op]audit.Entry), claimed: make(map[sessionKey]bool)}
	var b pgx.Batch
	b.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	b.Queue(pgHeads, tenantsOf(batch)).Query(func(rows pgx.Rows) error {
		var t string
		var h head
		_, err := pgx.ForEachRow(rows, []any{&t, &h.seq, &h.hash}, func() error {
			l.heads[tenant.Name(t)] = h
			return nil
		})
		return err
	})
	again := make(map[[2]string][]*op)
	var tenants, records []string
	for _, o := range batch {
		if o.again {
			key := [2]string{string(o.tenant), o.record}
			again[key] = append(again[key], o)
			tenants, records = append(tenants, key[0]), append(records, key[1])
		}
	}
	if len(again) > 0 {
		b.Queue(pgWritten, tenants, records).Query(func(rows pgx.Rows) error {
			var key [2]string
			var e audit.Entry
			var body []byte
			_, err := pgx.ForEachRow(rows, []any{&key[0], &key[1], &e.Seq, &e.Previous, &e.Hash, &body}, func() error {
				e.Body = append([]byte(nil), body...)
				for _, o := range again[key] {
					l.written[o] = e
				}
				return nil
			})
			return err
		})
	}
	if len(first) > 0 {
		b.Queue(pgClaim, claimColumns(first)...).Query(func(rows pgx.Rows) error {
			var t, id string
			_, err := pgx.ForEachRow(rows, []any{&t, &id}, func() error {
				l.claimed[sessionKey{tenant.Name(t), id}] = true
				return nil
			})
			return err
		})
	}
	return l, c.SendBatch(ctx, &b).Close()
}

func claimColumns(first map[sessionKey]*op) []any {
	var tenants, ids, tokens []string
	var expires []int64
	for key, o := range first {
		tenants, ids = append(tenants, string(key.tenant)), append(ids, key.id)
		tokens, expires = append(tokens, o.finish.Token), append(expires, millis(o.finish.Expires))
	}
	return []any{tenants, ids, tokens, expires}
}

// pgAppend writes the entries and commits.
func pgAppend(ctx context.Context, c *pgx.Conn, a appended) error {
	var b pgx.Batch
	if len(a.ops) > 0 {
		b.Queue(pgEntries, entryArrays(a)...)
		var tenants, hashes []string
		var seqs []int64
		for t, h := range a.heads {
			tenants, seqs, hashes = append(tenants, string(t)), append(seqs, h.seq), append(hashes, h.hash)
		}
		b.Queue(pgNewHeads, tenants, seqs, hashes)
	}
	b.Queue("COMMIT")
	if err := c.SendBatch(ctx, &b).Close(); err != nil {
		return err
	}
	if c.PgConn().TxStatus() != 'I' {
		return errors.New("the transaction did not end")
	}
	return nil
}

func entryArrays(a appended) []any {
	n := len(a.ops)
	text := make([][]string, 8)
	for i := range text {
		text[i] = make([]string, n)
	}
	tenants, seqs, ats, granted, bodies := make([]string, n), make([]int64, n), make([]int64, n), make([]int64, n), make([][]byte, n)
	for i, o := range a.ops {
		e := a.entries[i]
		tenants[i], seqs[i], ats[i], granted[i], bodies[i] = string(o.tenant), e.Seq, o.at, o.granted, o.body
		for j, v := range []string{o.record, o.kind, o.resource, o.initdata, o.session, o.subject, e.Previous, e.Hash} {
			text[j][i] = v
		}
	}
	return []any{tenants, seqs, text[0], ats, text[1], text[2], text[3], text[4], text[5], granted, text[6], text[7], bodies}
}
