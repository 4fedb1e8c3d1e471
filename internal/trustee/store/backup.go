package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/seal"
)

// tables are all tables of the schema but the schema's version itself and the
// names of transactions, which say nothing elsewhere, in the order of a backup.
func tables() []string {
	return []string{"data_keys", "tenants", "secrets", "admins", "policies", "reference_names", "reference_versions", "bindings",
		"resources", "resource_versions", "sessions", "audit_heads", "audit_entries", "audit_checkpoints", "webhook_cursors"}
}

// Backup writes a backup of everything to w: one consistent snapshot, while
// reading and writing go on. Resources and secrets stay sealed in it; the rest
// is readable by whoever has the file. What was written before an error is of
// no use. Backups hold no trace of which database they come from: [Restore]
// takes them into either.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	out := &destination{w: w}
	err := s.backup(ctx, out)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case out.err == nil && classify(err) != permanent:
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return wrap("backup", err)
}

// destination remembers whether it was what failed: a reader's broken
// connection looks like a database's.
type destination struct {
	w   io.Writer
	err error
}

func (d *destination) Write(p []byte) (n int, err error) {
	n, d.err = d.w.Write(p)
	return n, d.err
}

func (s *Store) backup(ctx context.Context, w io.Writer) (err error) {
	tx, err := s.snapshot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = rollback(tx, err) }()
	h := backupHeader{Format: backupFormat, Version: backupVersion, Created: s.o.Now().UTC()}
	if err := tx.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM schema_version").Scan(&h.Schema); err != nil {
		return err
	}
	// The key may have been handed over to another key-encryption key since
	// this process began.
	var newest int64
	if err := tx.QueryRowContext(ctx, "SELECT id, kek FROM data_keys ORDER BY id DESC LIMIT 1").Scan(&newest, &h.KEK); err != nil {
		return err
	}
	out, err := newBackupWriter(w, h)
	if err != nil {
		return err
	}
	for _, name := range tables() {
		if err := backupRows(ctx, tx, out, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return out.finish(func(digest []byte) ([]byte, error) {
		sealed, err := s.seal(backupSeal, digest)
		if err != nil {
			return nil, err
		}
		if id, err := seal.KeyOf(sealed); err != nil || id > newest {
			return nil, errors.Join(err, fmt.Errorf("data key %d was made while the backup was: try again", id))
		}
		return sealed, nil
	})
}

// snapshot begins a transaction that sees one state throughout. With SQLite in
// WAL mode every reading transaction does.
func (s *Store) snapshot(ctx context.Context) (*sql.Tx, error) {
	if s.pool == nil {
		return s.read.BeginTx(ctx, nil)
	}
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	return tx, s.patient(ctx, tx)
}

// patient lets a transaction wait for whoever takes or gives the backup. It
// rolls back on error.
func (s *Store) patient(ctx context.Context, tx *sql.Tx) error {
	if s.pool == nil {
		return nil
	}
	if _, err := tx.ExecContext(ctx, "SET LOCAL idle_in_transaction_session_timeout = 0"); err != nil {
		return rollback(tx, err)
	}
	return nil
}

func backupRows(ctx context.Context, tx *sql.Tx, out *backupWriter, name string) (err error) {
	rows, err := tx.QueryContext(ctx, "SELECT * FROM "+name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	t, err := describeTable(rows, name)
	if err != nil {
		return err
	}
	if err := out.table(t); err != nil {
		return err
	}
	values := make([]any, len(t.Columns))
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		if err := out.row(values); err != nil {
			return err
		}
	}
	return rows.Err()
}

func describeTable(rows *sql.Rows, name string) (backupTable, error) {
	t := backupTable{Name: name}
	types, err := rows.ColumnTypes()
	if err != nil {
		return t, err
	}
	for _, c := range types {
		var kind string
		switch c.DatabaseTypeName() {
		case "TEXT":
			kind = kindText
		case "BIGINT", "INT8":
			kind = kindInt
		case "BLOB", "BYTEA":
			kind = kindBytes
		default:
			return t, fmt.Errorf("column %s: unknown type %q", c.Name(), c.DatabaseTypeName())
		}
		t.Columns = append(t.Columns, backupColumn{Name: c.Name(), Kind: kind})
	}
	return t, nil
}

// inserter adds rows to one table, some at a time.
type inserter struct {
	ctx    context.Context
	c      conn
	prefix string
	cols   int
	args   []any
	bytes  int
}

// Limits of one statement.
const (
	insertRows  = 100
	insertBytes = 1 << 20
)

func newInserter(ctx context.Context, c conn, t backupTable) *inserter {
	names := make([]string, len(t.Columns))
	for i, col := range t.Columns {
		names[i] = col.Name
	}
	return &inserter{ctx: ctx, c: c, prefix: "INSERT INTO " + t.Name + " (" + strings.Join(names, ", ") + ") VALUES ", cols: len(names)}
}

func (i *inserter) add(values []any) error {
	i.args = append(i.args, values...)
	for _, v := range values {
		switch v := v.(type) {
		case string:
			i.bytes += len(v)
		case []byte:
			i.bytes += len(v)
		}
	}
	if len(i.args) >= insertRows*i.cols || i.bytes >= insertBytes {
		return i.flush()
	}
	return nil
}

func (i *inserter) flush() error {
	if len(i.args) == 0 {
		return nil
	}
	row := "(?" + strings.Repeat(", ?", i.cols-1) + ")"
	stmt := i.prefix + row + strings.Repeat(", "+row, len(i.args)/i.cols-1)
	// Not conn.exec: these statements are of no use to anybody later.
	_, err := i.c.tx.ExecContext(i.ctx, rebind(i.c.s.pool != nil, stmt), i.args...)
	clear(i.args)
	i.args, i.bytes = i.args[:0], 0
	return err
}
