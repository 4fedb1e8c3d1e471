// Package store keeps the trustee's state in SQL: tenants, finished handshakes,
// the audit chain, resources and secrets (sealed), policies, reference values,
// bindings and administrators. The database is embedded SQLite or PostgreSQL,
// which several trustees may share; both run the same statements.
//
// Everything here is idempotent towards the database: a statement or
// transaction whose outcome is unknown, because the connection broke, is run
// again without doing its work twice. So a restart or a failover of PostgreSQL
// is ridden out ([Options.RetryFor]) instead of handed to clients.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/secret"
)

// Errors that callers branch on; test with errors.Is.
var (
	// ErrNotFound is the same value as resource.ErrNotFound.
	ErrNotFound = resource.ErrNotFound
	ErrFull     = errors.New("limit reached")
	// ErrUsed: the handshake was finished before.
	ErrUsed   = errors.New("used already")
	ErrExists = errors.New("exists already")
	// ErrConflict: somebody else has changed it since it was read.
	ErrConflict = errors.New("changed in the meantime")
	// ErrNoTenant: there is no such tenant, or it is disabled.
	ErrNoTenant = errors.New("no such tenant")
	// ErrUnavailable: the database cannot be reached, or cannot write. Nothing
	// was done, or where the connection was lost at the very end, all of it.
	ErrUnavailable = errors.New("the database is unavailable")
)

// Options of [Open].
type Options struct {
	// Path is the SQLite database file; its directory must exist. It is used
	// where DatabaseURL is empty.
	Path string
	// DatabaseURL is a PostgreSQL connection string, postgres://….
	DatabaseURL string
	// KEK wraps the data keys that contents are sealed with.
	KEK seal.KEK
	// LegacyKEK is the raw key file of a SQLite database of schema 2 or older,
	// whose resources were sealed with it directly. Empty otherwise.
	LegacyKEK secret.Bytes
	Now       func() time.Time
	Rand      io.Reader
	Logger    *slog.Logger
	// MaxConns bounds the connections to PostgreSQL; 0 means 16.
	MaxConns int
	// RetryFor is how long an operation rides out a lost database; 0 means 20
	// seconds. The caller's context bounds it too.
	RetryFor time.Duration
	// AuditRetention is how long audit entries are kept at least; 0: for ever.
	// What is older goes up to the last signed checkpoint before it.
	AuditRetention time.Duration
	// Observer is told what the database is asked for and how that goes; may be nil.
	Observer Observer
}

// Observer counts. Its methods are called by many at once and must not block.
type Observer interface {
	// Operation is one "read", "write" or "append", retries included.
	Operation(kind string, took time.Duration, err error)
	// Retry is a try that failed and will be made again.
	Retry()
	// Batch is how many records one commit held.
	Batch(records int)
}

type nobody struct{}

func (nobody) Operation(string, time.Duration, error) {}
func (nobody) Retry()                                 {}
func (nobody) Batch(int)                              {}

const (
	defaultConns = 16
	defaultRetry = 20 * time.Second
)

func (o *Options) defaults() error {
	if o.Observer == nil {
		o.Observer = nobody{}
	}
	switch {
	case o.KEK == nil:
		return errors.New("store: Options.KEK is required")
	case o.Now == nil || o.Rand == nil || o.Logger == nil:
		return errors.New("store: Options.Now, Rand and Logger are required")
	case o.Path == "" && o.DatabaseURL == "":
		return errors.New("store: expected a database file or a PostgreSQL URL, got neither")
	case o.MaxConns < 0 || o.RetryFor < 0 || o.AuditRetention < 0:
		return errors.New("store: MaxConns, RetryFor and AuditRetention must not be negative")
	}
	if o.MaxConns == 0 {
		o.MaxConns = defaultConns
	}
	o.MaxConns = max(o.MaxConns, 2) // the batching writer holds one while others read
	if o.RetryFor == 0 {
		o.RetryFor = defaultRetry
	}
	return nil
}

// Store is the database. It is safe for concurrent use.
type Store struct {
	o   Options
	box *seal.Box
	// SQLite has one writer at a time: a pool of one connection queues writers
	// here instead of letting them fail with "database is locked". With
	// PostgreSQL, write and read are the same pool.
	write, read *sql.DB
	// pool is PostgreSQL's, nil with SQLite.
	pool *pool
	// statements are SQLite's, prepared; pgx prepares PostgreSQL's by itself.
	statements statements
	group      group
	keysMu     sync.Mutex // held while data keys are loaded
}

// Open opens the database, creates its tables where there are none, and brings
// its schema up to date. A key-encryption key that is not the one the database
// was made with is an error, and so is a schema newer than this program.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	s := &Store{o: o, box: seal.NewBox(o.Rand)}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, s.disconnect())
	}
	if err := s.loadKeys(ctx); err != nil {
		return nil, errors.Join(err, s.disconnect())
	}
	s.group.start(s)
	return s, nil
}

func (s *Store) connect(ctx context.Context) (err error) {
	if s.o.DatabaseURL != "" {
		if s.pool, err = newPool(ctx, s.o); err != nil {
			return err
		}
		s.write = s.pool.sql()
		s.read = s.write
		return nil
	}
	if err := private(s.o.Path); err != nil {
		return err
	}
	if s.write, err = openSQLite(s.o.Path, 1, "immediate", nil); err != nil {
		return err
	}
	if s.read, err = openSQLite(s.o.Path, 4, "deferred", []string{"query_only(1)"}); err != nil {
		return errors.Join(err, s.write.Close())
	}
	return nil
}

func openSQLite(path string, conns int, lock string, pragmas []string) (*sql.DB, error) {
	q := url.Values{
		// WAL lets readers go on beside the writer; FULL makes a commit survive a power cut.
		"_pragma": append([]string{"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "secure_delete(1)"}, pragmas...),
		"_txlock": {lock},
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
		return fmt.Errorf("store: %s: expected a file of mode 0600, got %v: others could read tokens and the audit log (chmod 600)", path, mode)
	}
	return nil
}

// Close ends the writer after what it is committing, fails what is still
// queued, and closes the database.
func (s *Store) Close() error {
	s.group.stop()
	return s.disconnect()
}

func (s *Store) disconnect() error {
	err := s.statements.close()
	if s.pool != nil {
		err = errors.Join(err, s.write.Close())
		s.pool.close()
		return err
	}
	return errors.Join(err, s.read.Close(), s.write.Close())
}

// Ping reports whether the database answers. It does not retry.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.read.QueryRowContext(ctx, "SELECT 1").Scan(new(int)); err != nil {
		return fmt.Errorf("store: ping: %w: %w", ErrUnavailable, err)
	}
	return nil
}

// Kind is "sqlite" or "postgresql".
func (s *Store) Kind() string {
	if s.pool != nil {
		return "postgresql"
	}
	return "sqlite"
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

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("store: %s: %w", what, err)
}

// pool is PostgreSQL's connections. The batching writer uses them directly, to
// send several statements in one round trip; everything else goes through
// database/sql.
type pool struct {
	*pgxpool.Pool
	mu    sync.Mutex
	reset time.Time // when the connections were last given up
}
