package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// MaxToken bounds an attestation token, in bytes: one with eight GPUs has some
// hundred thousand.
const MaxToken = 1 << 20

// Finished is a handshake that came to a verdict. Challenges are not stored:
// what a challenge's session needs is in its cookie, and only that it was used
// is kept here.
type Finished struct {
	// Session names the handshake; it is no credential.
	Session string
	// Token is the attestation token, empty where it was refused.
	Token string
	// Expires is the first moment at which neither the challenge nor the token
	// counts any longer.
	Expires time.Time
}

// Finish uses up a handshake's challenge and appends the verdict, in one
// commit. Of any number of calls for one session, on any replica, one
// succeeds; the others get [ErrUsed], and nothing of them is recorded. A
// record with an ID that was appended before is a repeated call and succeeds.
func (s *Store) Finish(ctx context.Context, t tenant.Name, f Finished, r audit.Record) error {
	switch {
	case f.Session == "" || len(f.Session) > maxID || clean(f.Session) != f.Session:
		return fmt.Errorf("store: finish: session: expected 1 to %d bytes of text, got %.80q", maxID, f.Session)
	case len(f.Token) > MaxToken || clean(f.Token) != f.Token:
		return fmt.Errorf("store: finish: token: expected at most %d bytes of text, got %d", MaxToken, len(f.Token))
	case f.Expires.IsZero():
		return errors.New("store: finish: expiry: expected a time, got none")
	}
	var err error
	if f.Token, err = s.sealToken(t, f); err != nil {
		return wrap("finish", err)
	}
	o, err := s.newOp(t, r, &f)
	if err != nil {
		return wrap("finish", err)
	}
	_, err = s.group.submit(ctx, o)
	return wrap("finish", err)
}

// SessionUsed reports whether a handshake was finished. It saves the work of
// verifying evidence for nothing; [Store.Finish] decides.
func (s *Store) SessionUsed(ctx context.Context, t tenant.Name, id string) (bool, error) {
	var n int
	err := s.get(ctx, "session", "SELECT 1 FROM sessions WHERE tenant = ? AND id = ?", []any{string(t), clean(id)}, &n)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return n == 1, err
}

// SessionToken returns the token of a finished handshake, or [ErrNotFound]
// where there is none, it was refused or has expired.
func (s *Store) SessionToken(ctx context.Context, t tenant.Name, id string) (string, error) {
	var token string
	err := s.get(ctx, "session", "SELECT token FROM sessions WHERE tenant = ? AND id = ? AND expires > ? AND token <> ''",
		[]any{string(t), clean(id), millis(s.o.Now())}, &token)
	if err != nil || strings.Contains(token, ".") { // of an earlier version, for as long as it lives
		return token, err
	}
	sealed, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return "", wrap("session", err)
	}
	plain, err := s.open(ctx, tokenName(t, id), sealed)
	if err != nil {
		return "", wrap("session", err)
	}
	defer plain.Clear()
	return string(plain.Expose()), nil
}

// sealToken is what is kept of a token: it is a credential, and whoever reads
// the database or a backup is not to have it.
func (s *Store) sealToken(t tenant.Name, f Finished) (string, error) {
	if f.Token == "" {
		return "", nil
	}
	sealed, err := s.seal(tokenName(t, f.Session), []byte(f.Token))
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

func tokenName(t tenant.Name, session string) string {
	return "session/" + string(t) + "/" + session + "/token"
}
