package store

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/resource"
)

// Binding registers an initdata digest for a resource or a prefix of
// resources: pods with that initdata may, as far as their initdata goes, read it.
type Binding struct {
	// Resource is "repository", "repository/type" or "repository/type/tag".
	Resource string
	// InitData is the whole digest in lower-case hex.
	InitData    string
	Description string
	Created     time.Time
}

// Bind stores a binding; an equal one gets the new description.
func (s *Store) Bind(ctx context.Context, b Binding) error {
	_, err := s.write.ExecContext(ctx, `INSERT INTO bindings (resource, initdata, description, created) VALUES (?, ?, ?, ?)
		ON CONFLICT (resource, initdata) DO UPDATE SET description = excluded.description`,
		b.Resource, b.InitData, b.Description, millis(s.o.Now()))
	return wrap("bind "+b.Resource, err)
}

// Unbind removes a binding, or all of a resource when initdata is empty, and
// returns how many there were.
func (s *Store) Unbind(ctx context.Context, res, initdata string) (int, error) {
	var r sql.Result
	var err error
	if initdata == "" {
		r, err = s.write.ExecContext(ctx, "DELETE FROM bindings WHERE resource = ?", res)
	} else {
		r, err = s.write.ExecContext(ctx, "DELETE FROM bindings WHERE resource = ? AND initdata = ?", res, initdata)
	}
	if err != nil {
		return 0, wrap("unbind "+res, err)
	}
	n, err := r.RowsAffected()
	return int(n), err
}

// Bindings lists all bindings.
func (s *Store) Bindings(ctx context.Context) ([]Binding, error) {
	return s.bindings(ctx, "")
}

// BindingsFor lists the bindings that cover a resource: its own and those of
// its prefixes.
func (s *Store) BindingsFor(ctx context.Context, p resource.Path) ([]Binding, error) {
	prefixes := p.Prefixes()
	args := make([]any, len(prefixes))
	for i, x := range prefixes {
		args[i] = x
	}
	return s.bindings(ctx, " WHERE resource IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
}

func (s *Store) bindings(ctx context.Context, where string, args ...any) ([]Binding, error) {
	return query(ctx, s, "bindings", "SELECT resource, initdata, description, created FROM bindings"+where+" ORDER BY resource, initdata", args,
		func(scan func(...any) error) (b Binding, err error) {
			var created int64
			err = scan(&b.Resource, &b.InitData, &b.Description, &created)
			b.Created = fromMillis(created)
			return b, err
		})
}
