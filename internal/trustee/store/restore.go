package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/seal"
)

// Restore reads a backup into an empty database, of SQLite or PostgreSQL,
// whichever it came from. It refuses a database that has any table, a backup
// that is cut off or altered, one of a newer schema, and one made under another
// key-encryption key than Options.KEK; nothing is kept then. A trustee is
// moved from one kind of database to the other in this way.
func Restore(ctx context.Context, o Options, r io.Reader) error {
	if err := o.defaults(); err != nil {
		return err
	}
	in, err := newBackupReader(r)
	if err != nil {
		return wrap("restore", err)
	}
	switch h := in.header; {
	case h.Schema > SchemaVersion:
		return fmt.Errorf("store: restore: schema version %d is newer than this program, which knows %d: use a newer coffer-trustee", h.Schema, SchemaVersion)
	case h.Schema != SchemaVersion:
		return fmt.Errorf("store: restore: schema version: expected %d, got %d", SchemaVersion, h.Schema)
	case h.KEK != o.KEK.ID():
		return fmt.Errorf("store: restore: %w: expected %.200s, got %s: restore that key first", seal.ErrWrongKEK, h.KEK, o.KEK.ID())
	}
	created := false
	if o.DatabaseURL == "" {
		_, err := os.Lstat(o.Path)
		created = errors.Is(err, os.ErrNotExist)
	}
	s := &Store{o: o, box: seal.NewBox(o.Rand)}
	if err := s.connect(ctx); err != nil {
		return err
	}
	err = errors.Join(s.restore(ctx, in), s.disconnect())
	if err != nil && created {
		// An empty database that starts well would look like a restored one.
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if e := os.Remove(o.Path + suffix); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	return wrap("restore", err)
}

func (s *Store) restore(ctx context.Context, in *backupReader) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := s.patient(ctx, tx); err != nil {
		return err
	}
	c := conn{s: s, tx: tx}
	if err := s.fill(ctx, c, in); err != nil {
		return rollback(tx, err)
	}
	return tx.Commit()
}

// fill creates the tables, fills them, and says whether they may stay.
func (s *Store) fill(ctx context.Context, c conn, in *backupReader) error {
	if err := s.empty(ctx, c); err != nil {
		return err
	}
	if err := s.create(ctx, c); err != nil {
		return err
	}
	for _, name := range tables() {
		if _, err := c.tx.ExecContext(ctx, "DELETE FROM "+name); err != nil {
			return err
		}
	}
	if _, err := c.exec(ctx, "INSERT INTO schema_version (version) VALUES (?)", SchemaVersion); err != nil {
		return err
	}
	missing := tables()
	var into *inserter
	err := in.each(func(t backupTable) error {
		if into != nil {
			if err := into.flush(); err != nil {
				return err
			}
		}
		i := slices.Index(missing, t.Name)
		if i < 0 {
			return fmt.Errorf("backup: table %.64q: expected one of %s", t.Name, strings.Join(missing, ", "))
		}
		missing = slices.Delete(missing, i, i+1)
		// The names go into statements: they have to be the database's own.
		if err := s.sameTable(ctx, c, t); err != nil {
			return err
		}
		into = newInserter(ctx, c, t)
		return nil
	}, func(values []any) error { return into.add(values) }, func(digest, sealed []byte) error {
		if len(missing) > 0 {
			return fmt.Errorf("expected the tables %s too", strings.Join(missing, ", "))
		}
		if err := into.flush(); err != nil {
			return err
		}
		return s.verifyBackup(ctx, c, digest, sealed)
	})
	return err
}

// empty refuses a database that holds anything, and keeps others from filling
// it at the same time.
func (s *Store) empty(ctx context.Context, c conn) error {
	stmt := "SELECT COUNT(*) FROM sqlite_master"
	if s.pool != nil {
		if _, err := c.tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(migrationLock)); err != nil {
			return err
		}
		stmt = "SELECT COUNT(*) FROM pg_catalog.pg_class WHERE relnamespace = to_regnamespace(current_schema()) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"
	}
	var n int
	if err := c.row(ctx, stmt, nil, &n); err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%w: expected an empty database, got one with %d tables and indexes: restore into a new one", ErrExists, n)
	}
	return nil
}

func (s *Store) sameTable(ctx context.Context, c conn, t backupTable) (err error) {
	rows, err := c.tx.QueryContext(ctx, "SELECT * FROM "+t.Name+" WHERE 1 = 0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	want, err := describeTable(rows, t.Name)
	if err != nil {
		return err
	}
	byName := func(a, b backupColumn) int { return cmp.Compare(a.Name, b.Name) }
	if got := slices.SortedFunc(slices.Values(t.Columns), byName); !slices.Equal(got, slices.SortedFunc(slices.Values(want.Columns), byName)) {
		return fmt.Errorf("backup: table %s: expected the columns %.500v, got %.500v", t.Name, want.Columns, t.Columns)
	}
	return rows.Err()
}

// verifyBackup opens the sealed digest with the data keys that were just
// restored: the key-encryption key vouches for them, and they for the rest.
func (s *Store) verifyBackup(ctx context.Context, c conn, digest, sealed []byte) error {
	keys, err := collect(ctx, c, "SELECT id, kek, wrapped FROM data_keys ORDER BY id LIMIT ?", []any{maxDataKeys},
		func(scan func(...any) error) (k seal.DataKey, err error) {
			err = scan(&k.ID, &k.KEK, &k.Wrapped)
			return k, err
		})
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := s.box.Add(ctx, s.o.KEK, k); err != nil {
			return err
		}
	}
	was, err := s.box.Open(backupSeal, sealed)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if !bytes.Equal(was.Expose(), digest) {
		return errors.New("seal: belongs to another backup")
	}
	return nil
}
