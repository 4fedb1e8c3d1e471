package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

const (
	// MaxContent bounds a resource, in bytes, whatever the caller's own limit.
	MaxContent = 16 << 20
	// MaxReadable is how many versions of a resource stay readable. The
	// contents of older ones are erased when a new one is stored.
	MaxReadable = 100
	// MaxPage bounds what one listing returns.
	MaxPage = 1000
)

// Resources is the database as a backend of resources. Its contents are
// sealed, each under its tenant, path and version. Unlike other changes, those
// of resources do not move the tenant's generation on: nothing is cached of
// them, and a tenant's writers would wait for each other.
func (s *Store) Resources() resource.Backend { return resources{s} }

type resources struct{ s *Store }

var _ resource.Backend = resources{}

// resourceName is what a version's content is sealed under.
func resourceName(t tenant.Name, path string, version int64) string {
	return "resource/" + string(t) + "/" + path + "/" + strconv.FormatInt(version, 10)
}

// Put implements [resource.Backend].
func (r resources) Put(ctx context.Context, t tenant.Name, p resource.Path, content secret.Bytes) (version int64, err error) {
	what := "set resource " + p.String()
	if err := checkResource(t, p); err != nil {
		return 0, wrap("set resource", err)
	}
	if content.Len() > MaxContent {
		return 0, wrap(what, fmt.Errorf("%w: expected at most %d bytes, got %d", ErrFull, MaxContent, content.Len()))
	}
	now := millis(r.s.o.Now())
	err = r.s.tx(ctx, what, func(ctx context.Context, c conn) error {
		if err := c.enabled(ctx, t); err != nil {
			return err
		}
		// The row is locked from here on, and with it the number.
		if err := c.row(ctx, `INSERT INTO resources (tenant, path, version, deleted, size, created) VALUES (?, ?, 1, 0, ?, ?)
			ON CONFLICT (tenant, path) DO UPDATE SET version = resources.version + 1, deleted = 0, size = excluded.size, created = excluded.created
			RETURNING version`, []any{string(t), p.String(), content.Len(), now}, &version); err != nil {
			return err
		}
		sealed, err := r.s.seal(resourceName(t, p.String(), version), content.Expose())
		if err != nil {
			return err
		}
		if _, err := c.exec(ctx, insertVersion, string(t), p.String(), version, stateReadable, content.Len(), now, sealed); err != nil {
			return err
		}
		_, err = c.exec(ctx, "UPDATE resource_versions SET state = ?, content = ? WHERE tenant = ? AND path = ? AND version = ? AND state = ?",
			stateErased, []byte{}, string(t), p.String(), version-MaxReadable, stateReadable)
		return err
	})
	return version, unavailable(err)
}

const insertVersion = "INSERT INTO resource_versions (tenant, path, version, state, size, created, content) VALUES (?, ?, ?, ?, ?, ?, ?)"

// A read goes by the one index that resource_versions has: a deletion is the
// newest version too, so that the table of the newest is not asked.
const (
	selectNewest  = "SELECT version, state, content FROM resource_versions WHERE tenant = ? AND path = ? ORDER BY version DESC LIMIT 1"
	selectVersion = "SELECT version, state, content FROM resource_versions WHERE tenant = ? AND path = ? AND version = ?"
)

// Get implements [resource.Backend].
func (r resources) Get(ctx context.Context, t tenant.Name, p resource.Path, version int64) (secret.Bytes, int64, error) {
	if err := checkResource(t, p); err != nil {
		return secret.Bytes{}, 0, wrap("resource", err)
	}
	what := "resource " + p.String()
	stmt, args := selectNewest, []any{string(t), p.String()}
	if version != 0 {
		stmt, args = selectVersion, append(args, version)
	}
	var state int64
	var sealed []byte
	err := r.s.get(ctx, what, stmt, args, &version, &state, &sealed)
	if err == nil && state != stateReadable {
		err = wrap(what, ErrNotFound)
	}
	if err != nil {
		return secret.Bytes{}, 0, unavailable(err)
	}
	content, err := r.s.open(ctx, resourceName(t, p.String(), version), sealed)
	if err != nil {
		return secret.Bytes{}, 0, wrap(what+", version "+strconv.FormatInt(version, 10), unavailable(err))
	}
	return content, version, nil
}

// Delete implements [resource.Backend]. It erases the contents of all
// versions; their numbers are not used again.
func (r resources) Delete(ctx context.Context, t tenant.Name, p resource.Path) (was bool, err error) {
	if err := checkResource(t, p); err != nil {
		return false, wrap("delete resource", err)
	}
	now := millis(r.s.o.Now())
	err = r.s.tx(ctx, "delete resource "+p.String(), func(ctx context.Context, c conn) error {
		was = false
		if err := c.enabled(ctx, t); err != nil {
			return err
		}
		var version int64
		err := c.row(ctx, `UPDATE resources SET version = version + 1, deleted = 1, size = 0, created = ? WHERE tenant = ? AND path = ? AND deleted = 0
			RETURNING version`, []any{now, string(t), p.String()}, &version)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		was = true
		if _, err := c.exec(ctx, "UPDATE resource_versions SET state = ?, content = ? WHERE tenant = ? AND path = ? AND state = ?",
			stateErased, []byte{}, string(t), p.String(), stateReadable); err != nil {
			return err
		}
		_, err = c.exec(ctx, insertVersion, string(t), p.String(), version, stateTombstone, 0, now, []byte{})
		return err
	})
	return was, unavailable(err)
}

// List implements [resource.Backend]. It returns at most [MaxPage] entries.
func (r resources) List(ctx context.Context, t tenant.Name, prefix, after string, limit int) ([]resource.Info, error) {
	if _, err := tenant.Parse(string(t)); err != nil {
		return nil, wrap("list resources", err)
	}
	from, to := "", "\x7f" // paths are ASCII without it
	if prefix != "" {
		if _, err := resource.ParsePrefix(prefix); err != nil {
			return nil, wrap("list resources", err)
		}
		from, to = prefix+"/", prefix+"0" // "0" is the character after "/"
	}
	list, err := query(ctx, r.s, "list resources", `SELECT path, version, size, created FROM resources
		WHERE tenant = ? AND path > ? AND path < ? AND deleted = 0 ORDER BY path LIMIT ?`,
		[]any{string(t), max(from, clean(after)), to, page(limit)},
		func(scan func(...any) error) (x resource.Info, err error) {
			var created int64
			err = scan(&x.Path, &x.Version, &x.Size, &created)
			x.Created = fromMillis(created)
			return x, err
		})
	return list, unavailable(err)
}

// Versions implements [resource.Backend]. Versions whose content was erased
// are marked as deleted; it returns the newest [MaxPage].
func (r resources) Versions(ctx context.Context, t tenant.Name, p resource.Path) ([]resource.Info, error) {
	if err := checkResource(t, p); err != nil {
		return nil, wrap("versions", err)
	}
	list, err := query(ctx, r.s, "versions of "+p.String(), `SELECT version, state, size, created FROM resource_versions
		WHERE tenant = ? AND path = ? ORDER BY version DESC LIMIT ?`, []any{string(t), p.String(), MaxPage},
		func(scan func(...any) error) (resource.Info, error) {
			x := resource.Info{Path: p.String()}
			var state, created int64
			err := scan(&x.Version, &state, &x.Size, &created)
			x.Deleted, x.Created = state != stateReadable, fromMillis(created)
			return x, err
		})
	return list, unavailable(err)
}

// checkResource refuses names that were not parsed: a path that spells another
// one, or text that a database refuses.
func checkResource(t tenant.Name, p resource.Path) error {
	if _, err := tenant.Parse(string(t)); err != nil {
		return err
	}
	q, err := resource.Parse(p.String())
	if err == nil && p != q {
		err = errors.New("resource path: a segment holds a slash")
	}
	return err
}

// enabled returns [ErrNoTenant] for tenants that may not change anything.
func (c conn) enabled(ctx context.Context, t tenant.Name) error {
	err := c.row(ctx, "SELECT 1 FROM tenants WHERE name = ? AND enabled = 1", []any{string(t)}, new(int))
	return noTenant(t, err)
}

// page is a listing's limit; 0 and less stand for the most.
func page(limit int) int {
	if limit <= 0 {
		return MaxPage
	}
	return min(limit, MaxPage)
}

// unavailable lets callers of a backend, who do not know about databases, see
// that trying again may help.
func unavailable(err error) error {
	if errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("%w: %w", resource.ErrUnavailable, err)
	}
	return err
}

// checkText refuses what PostgreSQL does not store. Other than [clean] it is
// for text that has to stay as it is.
func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%s: expected at most %d bytes, got %d", what, limit, len(s))
	}
	if clean(s) != s {
		return fmt.Errorf("%s: expected UTF-8 without NUL characters", what)
	}
	return nil
}
