package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	connectTimeout = 5 * time.Second
	// resetEvery bounds how often all idle connections are given up.
	resetEvery = 250 * time.Millisecond
)

func newPool(ctx context.Context, o Options) (*pool, error) {
	c, err := pgxpool.ParseConfig(o.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("store: database URL: %w", err) // pgx leaves the password out
	}
	c.MaxConns = int32(min(o.MaxConns, 10_000))
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = connectTimeout
	}
	c.AfterConnect = prepareConnection
	p, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("store: PostgreSQL: %w", err)
	}
	return &pool{Pool: p}, nil
}

// prepareConnection sets what a connection needs. A server that acknowledges
// commits before they are on disk would lose audit records, so at least its
// local disk is waited for; stricter settings stay. A transaction whose
// trustee has fallen silent must not hold up the others for long; one that
// hands its rows to a slow reader lifts that for itself (SET LOCAL).
func prepareConnection(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `SELECT set_config('synchronous_commit',
		CASE current_setting('synchronous_commit') WHEN 'off' THEN 'local' ELSE current_setting('synchronous_commit') END, false),
		set_config('idle_in_transaction_session_timeout', '10s', false)`)
	return err
}

// sql shares the connections with database/sql.
func (p *pool) sql() *sql.DB { return stdlib.OpenDBFromPool(p.Pool) }

// giveUp closes the connections after one of them broke: after a restart of
// the server all are dead, and each would cost an operation one more try.
func (p *pool) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.reset) > resetEvery {
		p.reset = now
		p.Reset()
	}
}

func (p *pool) close() { p.Close() }
