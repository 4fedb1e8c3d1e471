package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Limits of bindings.
const (
	maxBound   = 4 << 10 // bytes of a resource or a plugin's path
	maxDigest  = 128     // hex digits of SHA-512
	maxScopes  = 64      // prefixes of one path
	maxBinding = 1 << 10 // bytes of a description
	// MaxBindings bounds the digests of one resource or prefix: every decision
	// on what is below it reads them all.
	MaxBindings = 4096
)

// Binding registers an initdata digest for a resource or a prefix of
// resources: pods with that initdata may, as far as their initdata goes, read it.
type Binding struct {
	// Resource is "repository[/type[/tag]]", or "+plugin[/segment…]".
	Resource string
	// InitData is the whole digest in lower-case hex.
	InitData    string
	Description string
	Created     time.Time
}

// Bind stores a binding; an equal one gets the new description. One more than
// [MaxBindings] of a resource is [ErrFull].
func (s *Store) Bind(ctx context.Context, t tenant.Name, b Binding) error {
	return s.bind(ctx, t, b, MaxBindings)
}

func (s *Store) bind(ctx context.Context, t tenant.Name, b Binding, limit int) error {
	what := fmt.Sprintf("bind %.200q", b.Resource)
	for _, x := range []struct {
		what, text string
		limit      int
	}{{"resource", b.Resource, maxBound}, {"initdata", b.InitData, maxDigest}} {
		if x.text == "" {
			return wrap(what, fmt.Errorf("%s: is empty", x.what))
		}
		if err := checkText(x.what, x.text, x.limit); err != nil {
			return wrap(what, err)
		}
	}
	b.Description = clean(b.Description)
	if err := checkText("description", b.Description, maxBinding); err != nil {
		return wrap(what, err)
	}
	now := millis(s.o.Now())
	return s.change(ctx, t, what, func(ctx context.Context, c conn) error {
		if _, err := c.exec(ctx, `INSERT INTO bindings (tenant, resource, initdata, description, created) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (tenant, resource, initdata) DO UPDATE SET description = excluded.description`,
			string(t), b.Resource, b.InitData, b.Description, now); err != nil {
			return err
		}
		var n int
		err := c.row(ctx, "SELECT COUNT(*) FROM bindings WHERE tenant = ? AND resource = ?", []any{string(t), b.Resource}, &n)
		if err == nil && n > limit {
			err = fmt.Errorf("%w: %d digests: unbind those of pods that are gone", ErrFull, limit)
		}
		return err
	})
}

// Unbind removes a binding, or all of a resource when initdata is empty, and
// returns how many there were.
func (s *Store) Unbind(ctx context.Context, t tenant.Name, res, initdata string) (n int, err error) {
	what := fmt.Sprintf("unbind %.200q", res)
	stmt, args := "DELETE FROM bindings WHERE tenant = ? AND resource = ?", []any{string(t), clean(res)}
	if initdata != "" {
		stmt, args = stmt+" AND initdata = ?", append(args, clean(initdata))
	}
	err = s.change(ctx, t, what, func(ctx context.Context, c conn) error {
		rows, err := c.exec(ctx, stmt, args...)
		n = int(rows)
		return err
	})
	return n, err
}

// Bindings lists bindings by resource and digest, after those two of the given
// one. A limit of 0 and more than [MaxPage] stand for that.
func (s *Store) Bindings(ctx context.Context, t tenant.Name, after Binding, limit int) ([]Binding, error) {
	return s.bindings(ctx, "(resource, initdata) > (?, ?) ORDER BY resource, initdata LIMIT ?",
		string(t), clean(after.Resource), clean(after.InitData), page(limit))
}

// BindingsFor lists the bindings of exactly these names: a path and its
// prefixes.
func (s *Store) BindingsFor(ctx context.Context, t tenant.Name, names []string) ([]Binding, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if len(names) > maxScopes {
		return nil, wrap("bindings", fmt.Errorf("expected at most %d prefixes, got %d", maxScopes, len(names)))
	}
	args := []any{string(t)}
	for _, n := range names {
		args = append(args, clean(n))
	}
	return s.bindings(s.brief(ctx), "resource IN (?"+strings.Repeat(", ?", len(names)-1)+") ORDER BY resource, initdata", args...)
}

func (s *Store) bindings(ctx context.Context, where string, args ...any) ([]Binding, error) {
	return query(ctx, s, "bindings", "SELECT resource, initdata, description, created FROM bindings WHERE tenant = ? AND "+where, args,
		func(scan func(...any) error) (b Binding, err error) {
			var created int64
			err = scan(&b.Resource, &b.InitData, &b.Description, &created)
			b.Created = fromMillis(created)
			return b, err
		})
}
