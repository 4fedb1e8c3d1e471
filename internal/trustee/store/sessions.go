package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Session states. A session's nonce serves one attestation: Take moves the
// session from open to taken, a good attestation moves it on to attested.
const (
	sessionOpen     = "open"
	sessionTaken    = "taken"
	sessionAttested = "attested"
)

// Session is one RCAR handshake. Its cookie value is a credential: the
// database holds only a digest of it, [SessionID].
type Session struct {
	// ID is [SessionID] of the cookie value.
	ID string
	// Protocol is the KBS protocol version the client asked for.
	Protocol string
	TEE      string
	// Request is the client's request as JSON, for what later stages need of it.
	Request json.RawMessage
	// Nonce is the challenge as it was sent.
	Nonce string
	// Token is the attestation token once attested, else empty.
	Token            string
	Created, Expires time.Time
}

// SessionID names a session in the database, in logs and in verdicts: the
// first 16 bytes of the cookie value's SHA-256 in hex. It is no credential.
func SessionID(cookie string) string {
	sum := sha256.Sum256([]byte("coffer-session\x00" + cookie))
	return hex.EncodeToString(sum[:16])
}

// CreateSession stores a new open session. It returns [ErrFull] when too many
// sessions are unexpired.
func (s *Store) CreateSession(ctx context.Context, x Session) error {
	now := millis(s.o.Now())
	err := s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM sessions WHERE expires <= ?", now); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM sessions").Scan(&n); err != nil {
			return err
		}
		if n >= s.o.MaxSessions {
			return ErrFull
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO sessions (id, protocol, tee, request, nonce, state, token, created, expires)
			VALUES (?, ?, ?, ?, ?, ?, '', ?, ?)`,
			x.ID, x.Protocol, x.TEE, string(x.Request), x.Nonce, sessionOpen, millis(x.Created), millis(x.Expires))
		return err
	})
	return wrap("create session", err)
}

const sessionColumns = "id, protocol, tee, request, nonce, token, created, expires"

// OpenSession returns a session that can still attest, without taking it.
// Unknown, expired and taken sessions are [ErrNotFound].
func (s *Store) OpenSession(ctx context.Context, id string) (Session, error) {
	return scanSession("find session", s.read.QueryRowContext(ctx, "SELECT "+sessionColumns+
		" FROM sessions WHERE id = ? AND state = ? AND expires > ?", id, sessionOpen, millis(s.o.Now())))
}

// TakeSession consumes the session's nonce: of any number of concurrent
// calls one succeeds, ever. The others get [ErrNotFound].
func (s *Store) TakeSession(ctx context.Context, id string) (Session, error) {
	return scanSession("take session", s.write.QueryRowContext(ctx, "UPDATE sessions SET state = ? WHERE id = ? AND state = ? AND expires > ? RETURNING "+
		sessionColumns, sessionTaken, id, sessionOpen, millis(s.o.Now())))
}

// AttestedSession returns an unexpired session that has a token.
func (s *Store) AttestedSession(ctx context.Context, id string) (Session, error) {
	return scanSession("find attested session", s.read.QueryRowContext(ctx, "SELECT "+sessionColumns+
		" FROM sessions WHERE id = ? AND state = ? AND expires > ?", id, sessionAttested, millis(s.o.Now())))
}

// FinishSession gives a taken session its token and records the verdict, both
// or neither.
func (s *Store) FinishSession(ctx context.Context, id, token string, v Verdict) error {
	return wrap("finish session", s.tx(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, "UPDATE sessions SET state = ?, token = ? WHERE id = ? AND state = ?", sessionAttested, token, id, sessionTaken)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n != 1 {
			return errors.Join(ErrNotFound, err)
		}
		return s.addVerdict(ctx, tx, v)
	}))
}

func scanSession(what string, row *sql.Row) (Session, error) {
	var x Session
	var request string
	var created, expires int64
	err := row.Scan(&x.ID, &x.Protocol, &x.TEE, &request, &x.Nonce, &x.Token, &created, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Session{}, wrap(what, err)
	}
	x.Request, x.Created, x.Expires = json.RawMessage(request), fromMillis(created), fromMillis(expires)
	return x, nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("store: %s: %w", what, err)
}
