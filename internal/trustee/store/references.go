package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

// maxReferences bounds the number of reference names.
const maxReferences = 100_000

// SetReferences replaces the named references, all or none. The values must
// have been validated.
func (s *Store) SetReferences(ctx context.Context, refs ...refvalues.Reference) error {
	return wrap("set reference values", s.tx(ctx, func(tx *sql.Tx) error {
		for _, r := range refs {
			if _, err := tx.ExecContext(ctx, "DELETE FROM reference_values WHERE name = ?", r.Name); err != nil {
				return err
			}
			if err := s.insertEntries(ctx, tx, r, 0); err != nil {
				return err
			}
		}
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(DISTINCT name) FROM reference_values").Scan(&n); err != nil {
			return err
		}
		if n > maxReferences {
			return fmt.Errorf("%w: %d reference values", ErrFull, maxReferences)
		}
		return nil
	}))
}

// AddReference adds the reference's values to what is there under its name;
// an equal value is replaced, with its description and expiry. Adding to or
// with a scalar is an error.
func (s *Store) AddReference(ctx context.Context, r refvalues.Reference) error {
	return wrap("add reference value "+r.Name, s.tx(ctx, func(tx *sql.Tx) error {
		var n, last int64
		var scalar int
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*), COALESCE(MAX(seq), 0), COALESCE(MAX(scalar), 0) FROM reference_values WHERE name = ?", r.Name).
			Scan(&n, &last, &scalar); err != nil {
			return err
		}
		if r.Scalar || scalar != 0 {
			return fmt.Errorf("is a scalar: replace it instead")
		}
		for _, e := range r.Entries {
			if _, err := tx.ExecContext(ctx, "DELETE FROM reference_values WHERE name = ? AND value = ?", r.Name, string(e.Value)); err != nil {
				return err
			}
		}
		if n+int64(len(r.Entries)) > refvalues.MaxEntries {
			return fmt.Errorf("%w: %d values", ErrFull, refvalues.MaxEntries)
		}
		return s.insertEntries(ctx, tx, r, last+1)
	}))
}

func (s *Store) insertEntries(ctx context.Context, tx *sql.Tx, r refvalues.Reference, seq int64) error {
	now := millis(s.o.Now())
	for i, e := range r.Entries {
		scalar := 0
		if r.Scalar {
			scalar = 1
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO reference_values (name, seq, scalar, value, description, inputs, expires, created)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, r.Name, seq+int64(i), scalar, string(e.Value), e.Description, string(e.Inputs), millis(e.Expires), now); err != nil {
			return err
		}
	}
	return nil
}

// DeleteReference deletes a reference and reports whether it was there.
func (s *Store) DeleteReference(ctx context.Context, name string) (bool, error) {
	r, err := s.write.ExecContext(ctx, "DELETE FROM reference_values WHERE name = ?", name)
	if err != nil {
		return false, wrap("delete reference value "+name, err)
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// Reference returns one reference with its expired values, or [ErrNotFound].
func (s *Store) Reference(ctx context.Context, name string) (refvalues.Reference, error) {
	refs, err := s.references(ctx, " WHERE name = ?", name)
	if err != nil {
		return refvalues.Reference{}, err
	}
	if len(refs) == 0 {
		return refvalues.Reference{}, wrap("reference value "+name, ErrNotFound)
	}
	return refs[0], nil
}

// References lists all references by name.
func (s *Store) References(ctx context.Context) ([]refvalues.Reference, error) {
	return s.references(ctx, "")
}

func (s *Store) references(ctx context.Context, where string, args ...any) ([]refvalues.Reference, error) {
	type row struct {
		name   string
		scalar bool
		refvalues.Entry
	}
	rows, err := query(ctx, s, "reference values",
		"SELECT name, scalar, value, description, inputs, expires, created FROM reference_values"+where+" ORDER BY name, seq", args,
		func(scan func(...any) error) (r row, err error) {
			var scalar int
			var value, inputs string
			var expires, created int64
			err = scan(&r.name, &scalar, &value, &r.Description, &inputs, &expires, &created)
			r.scalar, r.Value, r.Expires, r.Created = scalar != 0, json.RawMessage(value), fromMillis(expires), fromMillis(created)
			if inputs != "" {
				r.Inputs = json.RawMessage(inputs)
			}
			return r, err
		})
	if err != nil {
		return nil, err
	}
	var out []refvalues.Reference
	for _, r := range rows {
		if len(out) == 0 || out[len(out)-1].Name != r.name {
			out = append(out, refvalues.Reference{Name: r.name, Scalar: r.scalar})
		}
		last := &out[len(out)-1]
		last.Entries = append(last.Entries, r.Entry)
	}
	return out, nil
}
