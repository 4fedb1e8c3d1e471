package store

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"
	"sync"
)

// Statements are written once, for both databases: "?" for parameters, and in
// table definitions TEXT, BIGINT and BLOB. The word FORUPDATE at the end of a
// SELECT locks its rows with PostgreSQL; with SQLite a writer is alone anyway.
// Text compares by bytes with both.

// ddl spells a table definition.
func (s *Store) ddl(stmt string) string {
	if s.pool == nil {
		return stmt
	}
	return strings.NewReplacer(" TEXT", ` TEXT COLLATE "C"`, " BLOB", " BYTEA").Replace(stmt)
}

const forUpdate = "FORUPDATE"

// rebind spells a statement. No literal in one holds a question mark.
func rebind(postgres bool, stmt string) string {
	if !postgres {
		return strings.TrimSuffix(stmt, forUpdate)
	}
	stmt = strings.ReplaceAll(stmt, forUpdate, "FOR UPDATE")
	var b strings.Builder
	b.Grow(len(stmt) + 16)
	n := 0
	for {
		i := strings.IndexByte(stmt, '?')
		if i < 0 {
			b.WriteString(stmt)
			return b.String()
		}
		n++
		b.WriteString(stmt[:i] + "$" + strconv.Itoa(n))
		stmt = stmt[i+1:]
	}
}

// maxStatements bounds the cache: the parts of a few statements vary.
const maxStatements = 512

// statements caches what is costly about a statement's text: with SQLite its
// preparation (pgx keeps PostgreSQL's per connection), with PostgreSQL its
// spelling.
type statements struct {
	mu       sync.RWMutex
	prepared map[statementKey]*sql.Stmt
	wanted   map[statementKey]bool
	spelt    map[string]string
}

type statementKey struct {
	db   *sql.DB
	text string
}

// spell returns PostgreSQL's spelling.
func (c *statements) spell(stmt string) string {
	c.mu.RLock()
	out, ok := c.spelt[stmt]
	c.mu.RUnlock()
	if ok {
		return out
	}
	out = rebind(true, stmt)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spelt == nil {
		c.spelt = make(map[string]string)
	}
	if len(c.spelt) < maxStatements {
		c.spelt[stmt] = out
	}
	return out
}

// known returns a statement that is prepared already, or nil; it is then
// wanted next time.
func (c *statements) known(db *sql.DB, stmt string) *sql.Stmt {
	key := statementKey{db, stmt}
	c.mu.RLock()
	st, full := c.prepared[key], len(c.prepared) >= maxStatements
	c.mu.RUnlock()
	if st != nil || full {
		return st
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wanted == nil {
		c.wanted = make(map[statementKey]bool)
	}
	c.wanted[key] = true
	return c.prepared[key]
}

// prepareWanted prepares what was missed. A transaction cannot do so itself:
// it holds SQLite's only writing connection.
func (c *statements) prepareWanted(ctx context.Context, db *sql.DB) {
	c.mu.RLock()
	n := len(c.wanted)
	c.mu.RUnlock()
	if n == 0 {
		return
	}
	c.mu.Lock()
	var keys []statementKey
	for key := range c.wanted {
		if key.db == db {
			keys = append(keys, key)
			delete(c.wanted, key)
		}
	}
	c.mu.Unlock()
	for _, key := range keys {
		// Not under the lock: this waits for a connection whose holder may want it.
		st, err := db.PrepareContext(ctx, rebind(false, key.text))
		if err != nil {
			continue // whoever uses it gets the error
		}
		c.keep(key, st)
	}
}

func (c *statements) keep(key statementKey, st *sql.Stmt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.prepared == nil {
		c.prepared = make(map[statementKey]*sql.Stmt)
	}
	if old := c.prepared[key]; old != nil {
		_ = old.Close() // readers that hold it finish first
	}
	c.prepared[key] = st
}

func (c *statements) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, st := range c.prepared {
		err = errors.Join(err, st.Close())
	}
	c.prepared = nil
	return err
}
