package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/secret"
)

// ResourceInfo describes a resource without its content.
type ResourceInfo struct {
	Path             string
	Size             int
	Created, Updated time.Time
}

// SetResource creates a resource or replaces its content at once.
func (s *Store) SetResource(ctx context.Context, p resource.Path, content secret.Bytes) error {
	sealed, err := s.seal(p.String(), content.Expose())
	if err != nil {
		return err
	}
	now := millis(s.o.Now())
	_, err = s.write.ExecContext(ctx, `INSERT INTO resources (path, content, size, created, updated) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (path) DO UPDATE SET content = excluded.content, size = excluded.size, updated = excluded.updated`,
		p.String(), sealed, content.Len(), now, now)
	return wrap("set resource "+p.String(), err)
}

// Resource returns a resource's content, or [ErrNotFound].
func (s *Store) Resource(ctx context.Context, p resource.Path) (secret.Bytes, error) {
	var sealed []byte
	err := s.read.QueryRowContext(ctx, "SELECT content FROM resources WHERE path = ?", p.String()).Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return secret.Bytes{}, wrap("resource "+p.String(), err)
	}
	plain, err := s.unseal(p.String(), sealed)
	if err != nil {
		return secret.Bytes{}, wrap("resource "+p.String(), err)
	}
	return secret.New(plain), nil
}

// DeleteResource deletes a resource and reports whether it was there.
func (s *Store) DeleteResource(ctx context.Context, p resource.Path) (bool, error) {
	r, err := s.write.ExecContext(ctx, "DELETE FROM resources WHERE path = ?", p.String())
	if err != nil {
		return false, wrap("delete resource "+p.String(), err)
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// Resources lists all resources by path.
func (s *Store) Resources(ctx context.Context) ([]ResourceInfo, error) {
	return query(ctx, s, "list resources", "SELECT path, size, created, updated FROM resources ORDER BY path", nil,
		func(scan func(...any) error) (x ResourceInfo, err error) {
			var created, updated int64
			err = scan(&x.Path, &x.Size, &created, &updated)
			x.Created, x.Updated = fromMillis(created), fromMillis(updated)
			return x, err
		})
}

// query collects the rows of a statement.
func query[T any](ctx context.Context, s *Store, what, stmt string, args []any, row func(scan func(...any) error) (T, error)) (out []T, err error) {
	rows, err := s.read.QueryContext(ctx, stmt, args...)
	if err != nil {
		return nil, wrap(what, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		x, err := row(rows.Scan)
		if err != nil {
			return nil, wrap(what, err)
		}
		out = append(out, x)
	}
	return out, wrap(what, rows.Err())
}
