package store

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

const (
	sweepEvery = time.Minute
	// sessionGrace is how long a finished session is remembered beyond its
	// expiry: a replica whose clock is behind, or was set back, could still take
	// its challenge for a good one.
	sessionGrace = time.Hour
	// transactionGrace is how long the name of a transaction is kept at least:
	// longer than anyone tries to commit it.
	transactionGrace = time.Hour
	// sweepRows bounds one deletion, so that none holds others up for long.
	sweepRows = 1000
)

// Run forgets what has expired, until ctx ends. Every replica may run it.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.o.Logger.LogAttrs(ctx, slog.LevelWarn, "could not delete what has expired", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Store) sweep(ctx context.Context) error {
	tenants, err := s.Tenants(ctx)
	if err != nil {
		return err
	}
	all := s.sweepTransactions(ctx)
	for _, t := range tenants {
		all = errors.Join(all, s.sweepSessions(ctx, t.Name), s.sweepAudit(ctx, t.Name))
	}
	return all
}

func (s *Store) sweepSessions(ctx context.Context, t tenant.Name) error {
	before := millis(s.o.Now().Add(-sessionGrace))
	return s.sweepAll(ctx, "expired sessions", `DELETE FROM sessions WHERE tenant = ? AND id IN
		(SELECT id FROM sessions WHERE tenant = ? AND expires <= ? ORDER BY expires LIMIT ?)`, string(t), string(t), before, sweepRows)
}

func (s *Store) sweepTransactions(ctx context.Context) error {
	if s.pool == nil {
		return nil // there are none
	}
	before := millis(s.o.Now().Add(-max(transactionGrace, 2*s.o.RetryFor)))
	return s.sweepAll(ctx, "names of transactions", "DELETE FROM transactions WHERE id IN (SELECT id FROM transactions WHERE at <= ? ORDER BY at LIMIT ?)",
		before, sweepRows)
}

// sweepAudit deletes entries that are older than the retention, up to and
// without the newest of them that a checkpoint was signed for: a chain that
// does not begin at its beginning begins at a checkpoint.
func (s *Store) sweepAudit(ctx context.Context, t tenant.Name) error {
	if s.o.AuditRetention <= 0 {
		return nil
	}
	// A clock that is ahead must not empty the log: time does not go on beyond
	// the newest entry.
	var newest int64
	err := s.get(ctx, "newest audit entry", "SELECT COALESCE(MAX(at), 0) FROM audit_entries WHERE tenant = ?", []any{string(t)}, &newest)
	if err != nil {
		return err
	}
	cut := min(newest, millis(s.o.Now())) - s.o.AuditRetention.Milliseconds()
	var keep, anchor int64
	err = s.get(ctx, "oldest audit entry to keep", "SELECT COALESCE((SELECT seq FROM audit_entries WHERE tenant = ? AND +at >= ? ORDER BY seq LIMIT 1), 0)", []any{string(t), cut}, &keep)
	if err != nil || keep == 0 {
		return err
	}
	err = s.get(ctx, "checkpoint to begin at", "SELECT COALESCE(MAX(seq), 0) FROM audit_checkpoints WHERE tenant = ? AND seq <= ?", []any{string(t), keep}, &anchor)
	if err != nil || anchor == 0 {
		return err
	}
	return s.sweepAll(ctx, "old audit entries", `DELETE FROM audit_entries WHERE tenant = ? AND seq IN
		(SELECT seq FROM audit_entries WHERE tenant = ? AND seq < ? ORDER BY seq LIMIT ?)`, string(t), string(t), anchor, sweepRows)
}

// sweepAll repeats a deletion until it finds less than it may take.
func (s *Store) sweepAll(ctx context.Context, what, stmt string, args ...any) error {
	for {
		n, err := s.exec(ctx, what, stmt, args...)
		if err != nil || n < sweepRows {
			return err
		}
	}
}
