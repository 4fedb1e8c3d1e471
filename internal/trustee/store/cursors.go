package store

import (
	"context"
	"errors"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Cursor is how far a reader of the tenant's audit chain has come: the last
// sequence number it is done with. found is false where it has not begun.
func (s *Store) Cursor(ctx context.Context, t tenant.Name, name string) (seq int64, found bool, err error) {
	err = s.get(ctx, "cursor "+name, "SELECT seq FROM webhook_cursors WHERE tenant = ? AND name = ?", []any{string(t), name}, &seq)
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil
	}
	return seq, err == nil, err
}

// SetCursor moves a reader forward, never back: of two replicas the one behind
// does not undo the other's.
func (s *Store) SetCursor(ctx context.Context, t tenant.Name, name string, seq int64) error {
	_, err := s.exec(ctx, "cursor "+name, `INSERT INTO webhook_cursors (tenant, name, seq) VALUES (?, ?, ?)
		ON CONFLICT (tenant, name) DO UPDATE SET seq = excluded.seq WHERE webhook_cursors.seq < excluded.seq`, string(t), name, seq)
	return err
}
