package store

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// maxID bounds a record's, a session's and a subject's name, in bytes.
const maxID = 1 << 10

// Append puts a record at the end of the tenant's chain and returns it in its
// place. It fills in ID, At and Tenant where they are missing. A record whose
// ID is in the chain already is not appended again: its entry is returned.
func (s *Store) Append(ctx context.Context, t tenant.Name, r audit.Record) (audit.Entry, error) {
	o, err := s.newOp(t, r, nil)
	if err != nil {
		return audit.Entry{}, wrap("audit record", err)
	}
	e, err := s.group.submit(ctx, o)
	return e, wrap("audit record", err)
}

// newOp makes the record's JSON and what goes beside it, so that the one
// goroutine that writes has little left to do.
func (s *Store) newOp(t tenant.Name, r audit.Record, f *Finished) (*op, error) {
	o := &op{tenant: t, finish: f, again: r.ID != "", done: make(chan result, 1)}
	if r.ID == "" {
		var id [16]byte
		if _, err := io.ReadFull(s.o.Rand, id[:]); err != nil {
			return nil, fmt.Errorf("random id: %w", err)
		}
		r.ID = hex.EncodeToString(id[:])
	}
	if r.At.IsZero() {
		r.At = s.o.Now()
	}
	r.At, r.Tenant = r.At.UTC(), t
	if r.Kind == "" {
		return nil, errors.New("kind: expected attestation, resource or admin, got none")
	}
	for name, v := range map[string]string{"id": r.ID, "kind": r.Kind, "session": r.Session, "subject": r.Subject, "resource": r.Resource, "initdata": r.InitData} {
		if len(v) > maxID {
			return nil, fmt.Errorf("%s: expected at most %d bytes, got %d", name, maxID, len(v))
		}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	// What was put in as raw JSON may hold anything within its strings.
	o.body = bytes.ToValidUTF8(body, []byte("\ufffd"))
	// After that: a chain with a record beyond the limit would not verify.
	if len(o.body) > audit.MaxBody {
		return nil, fmt.Errorf("expected at most %d bytes of JSON, got %d: leave out claims", audit.MaxBody, len(o.body))
	}
	o.columns = columns{
		record: clean(r.ID), at: millis(r.At), kind: clean(r.Kind), resource: clean(r.Resource), initdata: strings.ToLower(clean(r.InitData)),
		session: clean(r.Session), subject: clean(r.Subject), granted: flag(r.Granted),
	}
	return o, nil
}

const entryColumns = "seq, previous, hash, body"

func scanEntry(scan func(...any) error) (e audit.Entry, err error) {
	var body []byte
	err = scan(&e.Seq, &e.Previous, &e.Hash, &body)
	e.Body = body
	return e, err
}

// EntryByID returns the entry of the record with an ID, or [ErrNotFound].
func (s *Store) EntryByID(ctx context.Context, t tenant.Name, id string) (e audit.Entry, err error) {
	err = s.reading(ctx, "audit record", func(ctx context.Context) (err error) {
		e, err = s.reader().entry(ctx, t, clean(id))
		return err
	})
	return e, err
}

func (c conn) entry(ctx context.Context, t tenant.Name, record string) (audit.Entry, error) {
	return scanEntry(func(dest ...any) error {
		return c.row(ctx, "SELECT "+entryColumns+" FROM audit_entries WHERE tenant = ? AND record = ?", []any{string(t), record}, dest...)
	})
}

// Entries lists what a query matches; see [audit.Query] for the order. A
// negative After lists oldest first from the chain's beginning.
func (s *Store) Entries(ctx context.Context, t tenant.Name, q audit.Query) ([]audit.Entry, error) {
	where, args, err := conditions(t, q)
	if err != nil {
		return nil, wrap("audit query", err)
	}
	order := " DESC"
	if q.After != 0 {
		order = ""
	}
	limit := q.Limit
	if limit == 0 {
		limit = audit.DefaultLimit
	}
	return query(ctx, s, "audit query", "SELECT "+entryColumns+" FROM audit_entries WHERE "+where+" ORDER BY seq"+order+" LIMIT ?",
		append(args, limit), scanEntry)
}

// conditions makes the WHERE clause. Comparisons with the empty string are
// always true, and let both databases use the index that leaves it out.
func conditions(t tenant.Name, q audit.Query) (string, []any, error) {
	switch {
	case q.Before != 0 && q.After != 0:
		return "", nil, errors.New("expected before or after, got both")
	case q.Before < 0:
		return "", nil, fmt.Errorf("before: expected no negative number, got %d", q.Before)
	case q.Limit < 0 || q.Limit > audit.MaxLimit:
		return "", nil, fmt.Errorf("limit: expected 0 to %d, got %d", audit.MaxLimit, q.Limit)
	}
	where, args := "tenant = ?", []any{string(t)}
	and := func(cond string, a ...any) {
		where += " AND " + cond
		args = append(args, a...)
	}
	if q.Kind != "" {
		and("kind = ?", clean(q.Kind))
	}
	if q.Resource != "" {
		// "0" follows "/" in ASCII, as the first character beyond those below the prefix.
		exact := clean(q.Resource)
		below := strings.TrimSuffix(exact, "/")
		and("resource <> '' AND (resource = ? OR (resource >= ? AND resource < ?))", exact, below+"/", below+"0")
	}
	if q.InitData != "" {
		// "g" follows the last hex digit.
		from := strings.ToLower(clean(q.InitData))
		and("initdata <> '' AND initdata >= ? AND initdata < ?", from, from+"g")
	}
	if q.Session != "" {
		and("session <> '' AND session = ?", clean(q.Session))
	}
	if q.Subject != "" {
		and("subject <> '' AND subject = ?", clean(q.Subject))
	}
	if q.Granted != nil {
		and("granted = ?", flag(*q.Granted))
	}
	if !q.From.IsZero() {
		and("at >= ?", millis(q.From))
	}
	if !q.To.IsZero() {
		and("at < ?", millis(q.To))
	}
	if q.Before > 0 {
		and("seq < ?", q.Before)
	}
	if q.After > 0 {
		and("seq > ?", q.After)
	}
	return where, args, nil
}

// Head is the chain's newest entry: its sequence number and hash, 0 and
// [audit.Genesis] for a chain without entries.
func (s *Store) Head(ctx context.Context, t tenant.Name) (seq int64, hash string, err error) {
	err = s.get(ctx, "audit head", "SELECT seq, hash FROM audit_heads WHERE tenant = ?", []any{string(t)}, &seq, &hash)
	return seq, hash, noTenant(t, err)
}

// Checkpoint is a signed statement of the chain's head.
type Checkpoint struct {
	Seq int64     `json:"seq"`
	At  time.Time `json:"at"`
	JWS string    `json:"jws"`
}

// maxJWS bounds a checkpoint, in bytes.
const maxJWS = 8 << 10

// SaveCheckpoint keeps a checkpoint. Of two for one sequence number the first
// stays. One beyond the head is an error.
func (s *Store) SaveCheckpoint(ctx context.Context, t tenant.Name, seq int64, jws string, at time.Time) error {
	if len(jws) > maxJWS {
		return fmt.Errorf("store: checkpoint: expected at most %d bytes, got %d", maxJWS, len(jws))
	}
	head, _, err := s.Head(ctx, t)
	if err != nil {
		return err
	}
	if seq < 1 || seq > head {
		return fmt.Errorf("store: checkpoint: sequence number: expected 1 to %d, got %d", head, seq)
	}
	_, err = s.exec(ctx, "checkpoint", "INSERT INTO audit_checkpoints (tenant, seq, at, jws) VALUES (?, ?, ?, ?) ON CONFLICT (tenant, seq) DO NOTHING",
		string(t), seq, millis(at), jws)
	return err
}

// Checkpoints lists checkpoints after a sequence number, oldest first. Limits
// are those of [audit.Query].
func (s *Store) Checkpoints(ctx context.Context, t tenant.Name, after int64, limit int) ([]Checkpoint, error) {
	if limit == 0 {
		limit = audit.DefaultLimit
	}
	if limit < 0 || limit > audit.MaxLimit {
		return nil, fmt.Errorf("store: checkpoints: limit: expected 0 to %d, got %d", audit.MaxLimit, limit)
	}
	return query(ctx, s, "checkpoints", "SELECT seq, at, jws FROM audit_checkpoints WHERE tenant = ? AND seq > ? ORDER BY seq LIMIT ?",
		[]any{string(t), after, limit}, func(scan func(...any) error) (c Checkpoint, err error) {
			var at int64
			err = scan(&c.Seq, &at, &c.JWS)
			c.At = fromMillis(at)
			return c, err
		})
}
