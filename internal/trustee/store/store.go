// Package store keeps the trustee's state in SQL: sessions, resources
// (encrypted), policies, reference values, bindings and the verdict log. The
// database is embedded SQLite; statements keep to what PostgreSQL takes too,
// but for the placeholder's spelling.
package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the "sqlite" driver

	"github.com/coffer-project/coffer/secret"
)

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("not found")
	ErrFull     = errors.New("limit reached")
)

// KEKSize is the length of the key-encryption key, in bytes (AES-256).
const KEKSize = 32

// Options of [Open].
type Options struct {
	// Path of the database file; its directory must exist.
	Path string
	// KEK encrypts resources; [KEKSize] bytes.
	KEK  secret.Bytes
	Now  func() time.Time
	Rand io.Reader
	// MaxSessions bounds unexpired sessions, MaxVerdicts the verdicts of each
	// class (attestation or resource, granted or refused): beyond it the oldest
	// of the class are dropped.
	MaxSessions, MaxVerdicts int
}

// Store is the database. It is safe for concurrent use.
type Store struct {
	o    Options
	aead cipher.AEAD
	// SQLite has one writer at a time: a pool of one connection queues writers
	// here instead of letting them fail with "database is locked".
	write *sql.DB
	read  *sql.DB
}

// Open opens the database, creates it where it does not exist, and brings its
// schema up to date. A KEK that is not the one the database was made with is
// an error.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.KEK.Len() != KEKSize {
		return nil, fmt.Errorf("store: key-encryption key: expected %d bytes, got %d", KEKSize, o.KEK.Len())
	}
	if o.MaxSessions <= 0 || o.MaxVerdicts <= 0 {
		return nil, fmt.Errorf("store: MaxSessions and MaxVerdicts must be positive")
	}
	block, err := aes.NewCipher(o.KEK.Expose())
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s := &Store{o: o}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := private(o.Path); err != nil {
		return nil, err
	}
	if s.write, err = open(o.Path, 1); err != nil {
		return nil, err
	}
	if s.read, err = open(o.Path, 4); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("store: %s: %w", o.Path, err), s.Close())
	}
	return s, nil
}

func open(path string, conns int) (*sql.DB, error) {
	q := url.Values{
		// WAL lets readers go on beside the writer; FULL makes a commit survive a power cut.
		"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "secure_delete(1)"},
		"_txlock": {"immediate"},
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: url.PathEscape(path), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("store: %s: %w", path, err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// private creates the file for its owner only before SQLite would create it
// with the process's umask, and refuses one that others may read, for example
// after it was restored from a backup. WAL files take over the database's mode.
func private(path string) error {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return fmt.Errorf("store: %s: expected a file of mode 0600, got %v: others could read tokens and verdicts (chmod 600)", path, mode)
	}
	return nil
}

// Close closes the database.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	return s.read.QueryRowContext(ctx, "SELECT 1").Scan(new(int))
}

// migrations are applied in order; schema version n is the state after n of
// them. Never edit one that was released.
var migrations = [...]string{`
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE sessions (
	id TEXT PRIMARY KEY, protocol TEXT NOT NULL, tee TEXT NOT NULL, request TEXT NOT NULL, nonce TEXT NOT NULL,
	state TEXT NOT NULL, token TEXT NOT NULL, created BIGINT NOT NULL, expires BIGINT NOT NULL);
CREATE INDEX sessions_expires ON sessions (expires);
CREATE TABLE resources (path TEXT PRIMARY KEY, content BLOB NOT NULL, size BIGINT NOT NULL, created BIGINT NOT NULL, updated BIGINT NOT NULL);
CREATE TABLE policies (kind TEXT NOT NULL, id TEXT NOT NULL, version BIGINT NOT NULL, text TEXT NOT NULL, created BIGINT NOT NULL,
	PRIMARY KEY (kind, id, version));
CREATE TABLE reference_values (name TEXT NOT NULL, seq BIGINT NOT NULL, scalar BIGINT NOT NULL, value TEXT NOT NULL,
	description TEXT NOT NULL, inputs TEXT NOT NULL, expires BIGINT NOT NULL, created BIGINT NOT NULL, PRIMARY KEY (name, seq));
CREATE TABLE bindings (resource TEXT NOT NULL, initdata TEXT NOT NULL, description TEXT NOT NULL, created BIGINT NOT NULL,
	PRIMARY KEY (resource, initdata));
CREATE TABLE verdicts (id INTEGER PRIMARY KEY, at BIGINT NOT NULL, session TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX verdicts_session ON verdicts (session);
`, `
ALTER TABLE verdicts ADD COLUMN class TEXT NOT NULL DEFAULT '';
CREATE INDEX verdicts_class ON verdicts (class, id);
`}

func (s *Store) prepare(ctx context.Context) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		// The version lives in a table, not in a SQLite pragma.
		if _, err := tx.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)"); err != nil {
			return err
		}
		var have int
		if err := tx.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM schema_version").Scan(&have); err != nil {
			return err
		}
		if have > len(migrations) {
			return fmt.Errorf("schema version %d is newer than this program, which knows %d: use a newer coffer-trustee", have, len(migrations))
		}
		for i, m := range migrations[have:] {
			if _, err := tx.ExecContext(ctx, m); err != nil {
				return fmt.Errorf("schema migration %d: %w", have+i+1, err)
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO schema_version (version) VALUES (?)", have+i+1); err != nil {
				return err
			}
		}
		return s.checkKEK(ctx, tx)
	})
}

const kekCheck = "kek-check"

// checkKEK stores a sealed constant once and opens it ever after, so that a
// lost or swapped key file is found at start and not at the first release.
func (s *Store) checkKEK(ctx context.Context, tx *sql.Tx) error {
	var sealed []byte
	err := tx.QueryRowContext(ctx, "SELECT value FROM meta WHERE key = ?", kekCheck).Scan(&sealed)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		if sealed, err = s.seal(kekCheck, []byte(kekCheck)); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO meta (key, value) VALUES (?, ?)", kekCheck, sealed)
		return err
	case err != nil:
		return err
	}
	if _, err := s.unseal(kekCheck, sealed); err != nil {
		return errors.New("the key-encryption key is not the one this database was made with: restore the key file")
	}
	return nil
}

// seal encrypts with AES-256-GCM under a random 96-bit nonce, which it puts
// in front. The name is authenticated: content cannot be moved between names.
func (s *Store) seal(name string, plain []byte) ([]byte, error) {
	nonce := make([]byte, s.aead.NonceSize())
	if _, err := io.ReadFull(s.o.Rand, nonce); err != nil {
		return nil, fmt.Errorf("store: random nonce: %w", err)
	}
	return s.aead.Seal(nonce, nonce, plain, aad(name)), nil
}

func (s *Store) unseal(name string, sealed []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n {
		return nil, errors.New("store: sealed content is cut short")
	}
	plain, err := s.aead.Open(nil, sealed[:n], sealed[n:], aad(name))
	if err != nil {
		return nil, errors.New("store: sealed content was changed, or belongs to another key or name")
	}
	return plain, nil
}

func aad(name string) []byte { return []byte("coffer-trustee/resource/v1\x00" + name) }

// tx runs f in a write transaction.
func (s *Store) tx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	return tx.Commit()
}

// ignoreDone: a cancelled context has rolled back already.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// Times are kept as Unix milliseconds; 0 is the zero time.

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
