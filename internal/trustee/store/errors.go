package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// class says what is to be done about a failure.
type class int

const (
	permanent class = iota // the caller is told
	transient              // try again
	broken                 // try again with another connection
	unable                 // the database cannot do its work, and will not soon
)

// classify sorts errors of both databases.
func classify(err error) class {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return classifyPostgres(e)
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return classifySQLite(e)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return broken
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return permanent // the caller of classify knows whose deadline it was
	}
	if _, ok := errors.AsType[net.Error](err); ok || pgconn.SafeToRetry(err) {
		return broken
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, driver.ErrBadConn, sql.ErrConnDone, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return broken
		}
	}
	return permanent
}

// classifyPostgres goes by the SQLSTATE (PostgreSQL 15, appendix A).
func classifyPostgres(e *pgconn.PgError) class {
	switch e.Code {
	case "40001", "40P01", // serialization failure, deadlock
		"55P03",          // lock not available
		"57014", "53300": // cancelled, too many connections
		return transient
	case "57P01", "57P02", "57P03", "57P05", // shut down, crashed, starting up, idle for too long
		"25006", "25P03": // a standby, or a primary that was demoted; idle in a transaction
		return broken
	case "0A000":
		// A prepared statement from before another replica's migration.
		if strings.Contains(e.Message, "cached plan") {
			return broken
		}
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "08": // connection exception
		return broken
	case "53", "58", "XX": // no disk, memory or file; input and output; corrupted
		return unable
	}
	return permanent
}

// classifySQLite goes by the primary result code.
func classifySQLite(e *sqlite.Error) class {
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return transient
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT,
		sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM:
		return unable
	}
	return permanent
}

// unique reports whether err is a row that is there already.
func unique(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "23505" // unique_violation
	}
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_CONSTRAINT
}
