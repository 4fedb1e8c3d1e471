package store

import (
	"context"
	"errors"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// GetCursor is how far a reader of the tenant's audit chain has come: the
// last sequence number it is done with, 0 at first.
func (s *Store) GetCursor(ctx context.Context, t tenant.Name, name string) (int64, error) {
	var seq int64
	err := s.get(ctx, "cursor "+name, "SELECT seq FROM webhook_cursors WHERE tenant = ? AND name = ?", []any{string(t), name}, &seq)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return seq, err
}

// SetCursor moves a reader forward, never back: of two replicas the one behind
// does not undo the other's.
func (s *Store) SetCursor(ctx context.Context, t tenant.Name, name string, seq int64) error {
	_, err := s.exec(ctx, "cursor "+name, `INSERT INTO webhook_cursors (tenant, name, seq) VALUES (?, ?, ?)
		ON CONFLICT (tenant, name) DO UPDATE SET seq = excluded.seq WHERE webhook_cursors.seq < excluded.seq`, string(t), name, seq)
	return err
}
