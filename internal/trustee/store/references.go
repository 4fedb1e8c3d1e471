package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

const (
	// maxReferences bounds a tenant's reference names.
	maxReferences = 100_000
	// MaxReferenceVersions is how many versions of a reference are kept.
	MaxReferenceVersions = 100
	// maxReferenceBody bounds a reference as JSON, in bytes.
	maxReferenceBody = 8 << 20
	// maxReferencesRead bounds those that are read at once but for the first.
	maxReferencesRead = 4 << 20
)

// ReferenceVersion is a reference as it was.
type ReferenceVersion struct {
	// Version counts from 1.
	Version int64
	Created time.Time
	// Deleted: the reference was deleted by this version.
	Deleted   bool
	Reference refvalues.Reference
}

// SetReferences replaces the named references, all or none.
func (s *Store) SetReferences(ctx context.Context, t tenant.Name, refs ...refvalues.Reference) error {
	return s.setReferences(ctx, t, maxReferences, refs)
}

func (s *Store) setReferences(ctx context.Context, t tenant.Name, limit int, refs []refvalues.Reference) error {
	refs, err := s.checkReferences(refs)
	if err != nil {
		return wrap("set reference values", err)
	}
	return s.change(ctx, t, "set reference values", func(ctx context.Context, c conn) error {
		for _, r := range refs {
			if err := c.putReference(ctx, t, r.Name, &r); err != nil {
				return err
			}
		}
		return c.countReferences(ctx, t, limit)
	})
}

// AddReference adds the reference's values to what is there under its name;
// an equal value is replaced, with its description, source and expiry. Adding
// to or with a scalar is [ErrConflict].
func (s *Store) AddReference(ctx context.Context, t tenant.Name, r refvalues.Reference) error {
	what := fmt.Sprintf("add reference value %.256q", r.Name)
	refs, err := s.checkReferences([]refvalues.Reference{r})
	if err != nil {
		return wrap(what, err)
	}
	r = refs[0]
	return s.change(ctx, t, what, func(ctx context.Context, c conn) error {
		have, err := c.reference(ctx, t, r.Name)
		if err != nil && !isNotFound(err) {
			return err
		}
		if r.Scalar || have.Scalar {
			return fmt.Errorf("%w: is a scalar: replace it instead", ErrConflict)
		}
		added := make(map[string]bool, len(r.Entries))
		for _, e := range r.Entries {
			added[string(e.Value)] = true
		}
		all := refvalues.Reference{Name: r.Name, Entries: slices.DeleteFunc(have.Entries, func(e refvalues.Entry) bool { return added[string(e.Value)] })}
		all.Entries = append(all.Entries, r.Entries...)
		if len(all.Entries) > refvalues.MaxEntries {
			return fmt.Errorf("%w: %d values", ErrFull, refvalues.MaxEntries)
		}
		if err := c.putReference(ctx, t, r.Name, &all); err != nil {
			return err
		}
		return c.countReferences(ctx, t, maxReferences)
	})
}

// DeleteReference deletes a reference and reports whether it was there. Its
// versions stay.
func (s *Store) DeleteReference(ctx context.Context, t tenant.Name, name string) (was bool, err error) {
	err = s.change(ctx, t, fmt.Sprintf("delete reference value %.256q", name), func(ctx context.Context, c conn) error {
		_, err := c.reference(ctx, t, name)
		if was = err == nil; !was {
			if isNotFound(err) {
				return nil
			}
			return err
		}
		return c.putReference(ctx, t, name, nil)
	})
	return was, err
}

// checkReferences validates copies and dates their values.
func (s *Store) checkReferences(refs []refvalues.Reference) ([]refvalues.Reference, error) {
	now := fromMillis(millis(s.o.Now()))
	refs = slices.Clone(refs)
	for i := range refs {
		refs[i].Entries = slices.Clone(refs[i].Entries)
		if err := refs[i].Validate(); err != nil {
			return nil, err
		}
		for j := range refs[i].Entries {
			e := &refs[i].Entries[j]
			e.Created, e.Expires = now, fromMillis(millis(e.Expires))
		}
	}
	// In one order, so that a name that stands twice has a defined outcome.
	slices.SortStableFunc(refs, func(a, b refvalues.Reference) int { return strings.Compare(a.Name, b.Name) })
	return refs, nil
}

// putReference stores a new version; nil is a deletion. The tenant's row is
// locked, see change.
func (c conn) putReference(ctx context.Context, t tenant.Name, name string, r *refvalues.Reference) error {
	body := ""
	if r != nil {
		var err error
		if body, err = encodeReference(*r); err != nil {
			return err
		}
	}
	gone := flag(r == nil)
	var version int64
	if err := c.row(ctx, `INSERT INTO reference_names (tenant, name, version, deleted) VALUES (?, ?, 1, ?)
		ON CONFLICT (tenant, name) DO UPDATE SET version = reference_names.version + 1, deleted = excluded.deleted RETURNING version`,
		[]any{string(t), name, gone}, &version); err != nil {
		return err
	}
	if _, err := c.exec(ctx, "INSERT INTO reference_versions (tenant, name, version, deleted, created, body) VALUES (?, ?, ?, ?, ?, ?)",
		string(t), name, version, gone, millis(c.s.o.Now()), body); err != nil {
		return err
	}
	_, err := c.exec(ctx, "DELETE FROM reference_versions WHERE tenant = ? AND name = ? AND version <= ?", string(t), name, version-MaxReferenceVersions)
	return err
}

func (c conn) countReferences(ctx context.Context, t tenant.Name, limit int) error {
	var n int
	if err := c.row(ctx, "SELECT COUNT(*) FROM reference_names WHERE tenant = ? AND deleted = 0", []any{string(t)}, &n); err != nil {
		return err
	}
	if n > limit {
		return fmt.Errorf("%w: %d reference values", ErrFull, limit)
	}
	return nil
}

// encodeReference keeps values byte for byte: equal ones must stay equal.
func encodeReference(r refvalues.Reference) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return "", fmt.Errorf("reference value %.256q: %w", r.Name, err)
	}
	if b.Len() > maxReferenceBody {
		return "", fmt.Errorf("reference value %.256q: %w: expected at most %d bytes with descriptions and inputs, got %d", r.Name, ErrFull, maxReferenceBody, b.Len())
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

func decodeReference(name, body string) (r refvalues.Reference, err error) {
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		return refvalues.Reference{}, fmt.Errorf("reference value %.256q: %w", name, err)
	}
	if r.Name != name || len(r.Entries) == 0 {
		return refvalues.Reference{}, fmt.Errorf("reference value %.256q: expected its name and values, got %.256q with %d", name, r.Name, len(r.Entries))
	}
	return r, nil
}

const selectReference = `SELECT n.name, v.body FROM reference_names n
	JOIN reference_versions v ON v.tenant = n.tenant AND v.name = n.name AND v.version = n.version WHERE n.tenant = ? AND n.deleted = 0 AND n.name `

func (c conn) reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, error) {
	// Nothing else can be stored, and PostgreSQL refuses some of it.
	if refvalues.CheckName(name) != nil {
		return refvalues.Reference{}, ErrNotFound
	}
	var body string
	if err := c.row(ctx, selectReference+"= ?", []any{string(t), name}, &name, &body); err != nil {
		return refvalues.Reference{}, err
	}
	return decodeReference(name, body)
}

// Reference returns one reference with its expired values, or [ErrNotFound].
func (s *Store) Reference(ctx context.Context, t tenant.Name, name string) (r refvalues.Reference, err error) {
	err = s.reading(ctx, fmt.Sprintf("reference value %.256q", name), func(ctx context.Context) (err error) {
		r, err = s.reader().reference(ctx, t, name)
		return err
	})
	return r, err
}

// References lists references by name, after the given one. A limit of 0 and
// more than [MaxPage] stand for that. Large ones make a list shorter than the
// limit: only an empty one is the end.
func (s *Store) References(ctx context.Context, t tenant.Name, after string, limit int) (out []refvalues.Reference, err error) {
	err = s.reading(ctx, "reference values", func(ctx context.Context) (err error) {
		enough := upTo(maxReferencesRead)
		out, err = collect(ctx, s.reader(), selectReference+"> ? ORDER BY n.name LIMIT ?", []any{string(t), clean(after), page(limit)},
			func(scan func(...any) error) (refvalues.Reference, error) {
				var name, body string
				if err := scan(&name, &body); err != nil {
					return refvalues.Reference{}, err
				}
				if err := enough(len(body)); err != nil {
					return refvalues.Reference{}, err
				}
				return decodeReference(name, body)
			})
		return err
	})
	return out, err
}

// errEnough ends a listing before its end.
var errEnough = errors.New("enough was read")

// upTo counts bytes and returns [errEnough] for those beyond a limit, but never
// for the first.
func upTo(limit int) func(n int) error {
	total := 0
	return func(n int) error {
		if total += n; total > limit && total > n {
			return errEnough
		}
		return nil
	}
}

// ReferenceNames lists the names of references after the given one. Limits are
// those of [Store.References].
func (s *Store) ReferenceNames(ctx context.Context, t tenant.Name, after string, limit int) ([]string, error) {
	return query(ctx, s, "names of reference values", "SELECT name FROM reference_names WHERE tenant = ? AND deleted = 0 AND name > ? ORDER BY name LIMIT ?",
		[]any{string(t), clean(after), page(limit)}, scanString)
}

// maxHistoryRead bounds a history but for its newest version, in bytes.
const maxHistoryRead = 16 << 20

// ReferenceHistory lists the versions of a reference, the newest first; none
// for a name that was never registered. Where they are large, the oldest are
// left out.
func (s *Store) ReferenceHistory(ctx context.Context, t tenant.Name, name string) ([]ReferenceVersion, error) {
	if err := refvalues.CheckName(name); err != nil {
		return nil, wrap("history", errors.Join(ErrNotFound, err))
	}
	var out []ReferenceVersion
	err := s.reading(ctx, fmt.Sprintf("history of reference value %q", name), func(ctx context.Context) (err error) {
		enough := upTo(maxHistoryRead)
		out, err = collect(ctx, s.reader(), `SELECT version, created, deleted, body FROM reference_versions
			WHERE tenant = ? AND name = ? ORDER BY version DESC LIMIT ?`, []any{string(t), name, MaxReferenceVersions},
			func(scan func(...any) error) (v ReferenceVersion, err error) {
				var created, deleted int64
				var body string
				if err := scan(&v.Version, &created, &deleted, &body); err != nil {
					return v, err
				}
				if err := enough(len(body)); err != nil {
					return v, err
				}
				v.Created, v.Deleted = fromMillis(created), deleted != 0
				if !v.Deleted {
					v.Reference, err = decodeReference(name, body)
				}
				return v, err
			})
		return err
	})
	return out, err
}
