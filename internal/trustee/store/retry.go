package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

const (
	firstPause = 20 * time.Millisecond
	maxPause   = time.Second
)

// retry runs f until it succeeds, fails for good, or [Options.RetryFor] is
// over. With PostgreSQL f gets half of that time for one try: a connection
// that answers nothing leaves time for another. A file always answers, and
// what it takes long for, as a migration, is not begun again. kind is for
// counting, what for people.
func (s *Store) retry(ctx context.Context, kind, what string, f func(context.Context) error) (err error) {
	start := time.Now()
	defer func() { s.o.Observer.Operation(kind, time.Since(start), err) }()
	all, cancel := context.WithTimeout(ctx, s.o.RetryFor)
	defer cancel()
	pause := firstPause
	for {
		one, cancel := ctx, func() {}
		if s.o.DatabaseURL != "" {
			one, cancel = context.WithTimeout(all, s.o.RetryFor/2)
		}
		err := f(one)
		timedOut := one.Err() != nil
		cancel()
		if err == nil {
			return nil
		}
		err, again := s.judge(ctx, err, timedOut)
		if !again {
			return wrap(what, err)
		}
		s.o.Observer.Retry()
		if !sleep(all, jitter(pause)) {
			if ctx.Err() != nil {
				return wrap(what, ctx.Err())
			}
			return wrap(what, fmt.Errorf("%w: for %v: %w", ErrUnavailable, s.o.RetryFor, err))
		}
		pause = min(2*pause, maxPause)
	}
}

// judge sorts an error: what the caller gets, and whether to try again.
func (s *Store) judge(ctx context.Context, err error, timedOut bool) (error, bool) {
	if ctx.Err() != nil {
		return ctx.Err(), false
	}
	switch classify(err) {
	case broken:
		if s.pool != nil {
			s.pool.giveUp()
		}
		return err, true
	case transient:
		return err, true
	case unable:
		return fmt.Errorf("%w: %w", ErrUnavailable, err), false
	}
	// A deadline of ours looks like any other interruption.
	return err, timedOut && !domain(err)
}

// domain reports whether err is an answer and no failure.
func domain(err error) bool {
	for _, e := range []error{ErrNotFound, ErrFull, ErrUsed, ErrExists, ErrConflict, ErrNoTenant} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

// sleep reports whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// conn runs statements: in a transaction, or where tx is nil on the readers.
type conn struct {
	s  *Store
	tx *sql.Tx
}

func (s *Store) reader() conn { return conn{s: s} }

// brief is the context of a statement about a few rows. With SQLite it cannot
// be cancelled: database/sql and the driver would each start a goroutine that
// waits for it, which costs more than the statement.
func (s *Store) brief(ctx context.Context) context.Context {
	if s.pool == nil && ctx.Err() == nil {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// exec returns how many rows were changed.
func (c conn) exec(ctx context.Context, stmt string, args ...any) (int64, error) {
	var r sql.Result
	var err error
	st, text := c.resolve(stmt)
	switch {
	case c.tx == nil:
		return 0, errors.New("store: a change outside of a transaction")
	case st != nil:
		r, err = c.tx.StmtContext(ctx, st).ExecContext(ctx, args...) //nolint:sqlclosecheck // the transaction closes it
	default:
		r, err = c.tx.ExecContext(ctx, text, args...)
	}
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// row scans one row; where there is none it returns [ErrNotFound].
func (c conn) row(ctx context.Context, stmt string, args []any, dest ...any) error {
	ctx = c.s.brief(ctx)
	var row *sql.Row
	st, text := c.resolve(stmt) //nolint:sqlclosecheck // the cache closes it
	switch {
	case st != nil && c.tx != nil:
		row = c.tx.StmtContext(ctx, st).QueryRowContext(ctx, args...) //nolint:sqlclosecheck // the transaction closes it
	case st != nil:
		row = st.QueryRowContext(ctx, args...)
	case c.tx != nil:
		row = c.tx.QueryRowContext(ctx, text, args...)
	default:
		row = c.s.read.QueryRowContext(ctx, text, args...)
	}
	err := row.Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}

func (c conn) rows(ctx context.Context, stmt string, args []any) (*sql.Rows, error) {
	st, text := c.resolve(stmt) //nolint:sqlclosecheck // the cache closes it
	switch {
	case st != nil && c.tx != nil:
		return c.tx.StmtContext(ctx, st).QueryContext(ctx, args...) //nolint:sqlclosecheck // the transaction closes it
	case st != nil:
		return st.QueryContext(ctx, args...)
	case c.tx != nil:
		return c.tx.QueryContext(ctx, text, args...)
	}
	return c.s.read.QueryContext(ctx, text, args...)
}

// resolve returns the prepared statement, or the text to send.
func (c conn) resolve(stmt string) (*sql.Stmt, string) {
	if c.s.pool != nil {
		return nil, c.s.statements.spell(stmt)
	}
	db := c.s.read
	if c.tx != nil {
		db = c.s.write
	}
	return c.s.statements.known(db, stmt), rebind(false, stmt)
}

// collect returns the rows of a statement.
func collect[T any](ctx context.Context, c conn, stmt string, args []any, row func(scan func(...any) error) (T, error)) (out []T, err error) {
	rows, err := c.rows(ctx, stmt, args)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		x, err := row(rows.Scan)
		if errors.Is(err, errEnough) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, rows.Err()
}

// query is [collect] on the readers, tried again where the database is lost.
func query[T any](ctx context.Context, s *Store, what, stmt string, args []any, row func(scan func(...any) error) (T, error)) (out []T, err error) {
	err = s.reading(ctx, what, func(ctx context.Context) error {
		out, err = collect(ctx, s.reader(), stmt, args, row)
		return err
	})
	return out, err
}

// get scans one row with the readers, or returns [ErrNotFound]; it is tried
// again where the database is lost.
func (s *Store) get(ctx context.Context, what, stmt string, args []any, dest ...any) error {
	return s.reading(ctx, what, func(ctx context.Context) error { return s.reader().row(ctx, stmt, args, dest...) })
}

func (s *Store) reading(ctx context.Context, what string, f func(context.Context) error) error {
	return s.retry(ctx, "read", what, func(ctx context.Context) error {
		s.statements.prepareWanted(ctx, s.read)
		return f(ctx)
	})
}

// tx runs f in a write transaction and commits it. Where the database is lost
// f is run again, also when the answer to a commit was lost and the commit did
// not happen; what it tells its caller must come from its last run. An error
// of f rolls back.
//
// With PostgreSQL each transaction leaves a row under a name of its own, by
// which another try learns that an earlier one was committed after all. One
// that is still being decided holds the row's name, and the other try waits for
// it. PostgreSQL's own name for it, the transaction id, would not do: after a
// crash an id that had not reached the disk is given out again, and
// pg_xact_status tells of the wrong transaction.
func (s *Store) tx(ctx context.Context, what string, f func(context.Context, conn) error) error {
	if s.pool == nil {
		return s.again(ctx, what, f)
	}
	var id [16]byte
	if _, err := io.ReadFull(s.o.Rand, id[:]); err != nil {
		return wrap(what, fmt.Errorf("random id: %w", err))
	}
	name := hex.EncodeToString(id[:])
	return s.again(ctx, what, func(ctx context.Context, c conn) error {
		n, err := c.exec(ctx, "INSERT INTO transactions (id, at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING", name, millis(s.o.Now()))
		if err != nil || n == 0 {
			return err
		}
		return f(ctx, c)
	})
}

// again is [Store.tx] for what does no harm when it is done twice.
func (s *Store) again(ctx context.Context, what string, f func(context.Context, conn) error) error {
	return s.retry(ctx, "write", what, func(ctx context.Context) error {
		s.statements.prepareWanted(ctx, s.write)
		tx, err := s.write.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := f(ctx, conn{s: s, tx: tx}); err != nil {
			return rollback(tx, err)
		}
		return tx.Commit()
	})
}

// rollback joins what went wrong with it to err, but for a transaction that
// has ended already: of a cancelled context or a full disk.
func rollback(tx *sql.Tx, err error) error {
	if e := tx.Rollback(); e != nil && !errors.Is(e, sql.ErrTxDone) && classify(err) == permanent {
		return errors.Join(err, e)
	}
	return err
}

// exec is a transaction of one statement.
func (s *Store) exec(ctx context.Context, what, stmt string, args ...any) (n int64, err error) {
	err = s.tx(ctx, what, func(ctx context.Context, c conn) error {
		n, err = c.exec(ctx, stmt, args...)
		return err
	})
	return n, err
}

// change is a transaction that changes what a tenant's decisions depend on:
// it moves the tenant's generation on. It holds the tenant's row from its
// start, so that changes to one tenant happen one after the other and may read
// what they replace. Unknown and disabled tenants are [ErrNoTenant]; the name
// tenant.All moves all generations on.
func (s *Store) change(ctx context.Context, t tenant.Name, what string, f func(context.Context, conn) error) error {
	return s.tx(ctx, what, func(ctx context.Context, c conn) error {
		if err := c.bump(ctx, t); err != nil {
			return err
		}
		return f(ctx, c)
	})
}

func (c conn) bump(ctx context.Context, t tenant.Name) error {
	if t == tenant.All {
		// In one order, whoever does it: two of them do not wait for each other.
		if _, err := collect(ctx, c, "SELECT name FROM tenants ORDER BY name "+forUpdate, nil, scanString); err != nil {
			return err
		}
		_, err := c.exec(ctx, "UPDATE tenants SET generation = generation + 1")
		return err
	}
	n, err := c.exec(ctx, "UPDATE tenants SET generation = generation + 1 WHERE name = ? AND enabled = 1", string(t))
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: %s", ErrNoTenant, t)
	}
	return err
}

func scanString(scan func(...any) error) (v string, err error) {
	err = scan(&v)
	return v, err
}
