package kbs

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/secret"
)

const (
	// clockSkew is how far the guest's clock may be behind the broker's before
	// a token counts as not valid yet.
	clockSkew = time.Minute
	// renewPause is how long the client leaves a broker alone that could not
	// renew a token which is still good.
	renewPause = 15 * time.Second
	// maxLifetime is the longest life of a token that is believed.
	maxLifetime = 30 * 24 * time.Hour
)

// Token is what a handshake leaves a guest with: the broker's word about the
// guest, and the key that the word names.
type Token struct {
	// JWT is the token, a compact JWS. Whoever relies on it checks it; the
	// guest does not.
	JWT string
	// Key is the private half of the token's key, in PEM: PKCS #8 for elliptic
	// curves, PKCS #1 for RSA. What the broker encrypts to this guest opens
	// with it.
	Key secret.Bytes
	// NotBefore and Expires are the token's own words, zero where it says
	// nothing.
	NotBefore, Expires time.Time
}

// Document is the token as the guest components of Confidential Containers
// give it to a workload: {"token":"<JWT>","tee_keypair":"<PEM>"}.
func (t Token) Document() (secret.Bytes, error) {
	doc, err := marshal(struct {
		Token string `json:"token"`
		Key   string `json:"tee_keypair"`
	}{t.JWT, string(t.Key.Expose())})
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("kbs: token: %w", err)
	}
	return secret.New(doc), nil
}

// Token returns the token that all requests of this client share, attesting
// where none is held or the one held is about to expire. A token that the
// guest's clock says is not valid yet, or no longer, is an error that says so:
// those whom it is shown to would refuse it.
func (c *Client) Token(ctx context.Context) (Token, error) {
	s, err := c.fresh(ctx)
	if err != nil {
		return Token{}, err
	}
	now := c.now()
	switch {
	case !s.notBefore.IsZero() && s.notBefore.After(now.Add(clockSkew)):
		return Token{}, fmt.Errorf("kbs: token: not valid before %s, but this guest's clock says %s: one of the two clocks is wrong, and the guest has its time from the host",
			stamp(s.notBefore), stamp(now))
	case !s.expires.IsZero() && !s.expires.After(now):
		return Token{}, fmt.Errorf("kbs: token: new, but expired at %s by this guest's clock, which says %s: one of the two clocks is wrong, and the guest has its time from the host",
			stamp(s.expires), stamp(now))
	}
	key, err := s.key.PEM()
	if err != nil {
		return Token{}, err
	}
	return Token{JWT: s.token, Key: key, NotBefore: s.notBefore, Expires: s.expires}, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// fresh returns the session that is held, or a new one where there is none or
// its token is about to expire. A broker that does not answer is no reason to
// give up a token that is still good; one that refuses is.
func (c *Client) fresh(ctx context.Context) (*session, error) {
	s := c.held()
	if s == nil {
		return c.attest(ctx, nil)
	}
	now := c.now()
	if s.renew.IsZero() || now.Before(s.renew) || c.paused(now) && now.Before(s.dead) {
		return s, nil
	}
	renewed, err := c.attest(ctx, s)
	switch {
	case err == nil:
		return renewed, nil
	case Refused(err) || ctx.Err() != nil || !c.now().Before(s.dead):
		return nil, err
	}
	c.mu.Lock()
	c.pause = c.now().Add(renewPause)
	c.mu.Unlock()
	c.log.WarnContext(ctx, "the token could not be renewed, the old one is still good", "error", err.Error())
	return s, nil
}

func (c *Client) paused(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.pause)
}

// newSession is a session whose token came just now.
func newSession(token string, key *TEEKey, now time.Time) *session {
	s := &session{token: token, key: key}
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	doc, err := decode64(payload)
	if err != nil {
		return s
	}
	// To the guest a token is a word to pass on. One whose times cannot be
	// read is used until the broker refuses it.
	o, err := parseObject("token", doc, MaxTokenBytes)
	if err != nil {
		return s
	}
	s.notBefore, s.expires = o.date("nbf"), o.date("exp")
	if s.expires.IsZero() {
		return s
	}
	// The lifetime counts from the token's arrival, so that a clock that is
	// wrong changes nothing about when it is renewed.
	start := o.date("iat")
	if start.IsZero() {
		start = s.notBefore
	}
	if start.IsZero() {
		start = now
	}
	life := min(s.expires.Sub(start), maxLifetime)
	if life <= 0 {
		return s
	}
	// Pods that started together shall not come back together: between a tenth
	// and a fifth of the lifetime is left.
	s.renew = now.Add(life - life/10 - rand.N(life/10+1))
	s.dead = now.Add(life)
	return s
}

// date reads a NumericDate (RFC 7519 §2), zero where it is none.
func (o object) date(name string) time.Time {
	raw, ok := o.members[name]
	if !ok || kind(raw) != "number" {
		return time.Time{}
	}
	var f float64
	// The last second of the year 9999.
	if json.Unmarshal(raw, &f) != nil || f < 0 || f > 253402300799 {
		return time.Time{}
	}
	return time.Unix(int64(f), 0)
}

// PEM is the private key: PKCS #8 for elliptic curves, PKCS #1 for RSA, as the
// guest components write them. ML-KEM keys have no form that is agreed on, and
// are an error.
func (k *TEEKey) PEM() (secret.Bytes, error) {
	block := &pem.Block{Type: "PRIVATE KEY"}
	switch {
	case k.ec != nil:
		der, err := x509.MarshalPKCS8PrivateKey(k.ec)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("kbs: TEE key: %w", err)
		}
		block.Bytes = der
	case k.rsa != nil:
		block.Type, block.Bytes = "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k.rsa)
	default:
		return secret.Bytes{}, errors.New("kbs: TEE key: a key for " + AlgMLKEM + " has no PEM form: use a key on a curve, or RSA")
	}
	defer clear(block.Bytes)
	return secret.New(pem.EncodeToMemory(block)), nil
}

// AttestationError is a handshake that failed. Its text begins with
// "attestation", and it wraps the reason.
type AttestationError struct{ err error }

func (e *AttestationError) Error() string { return "kbs: attestation: " + e.err.Error() }

// Unwrap returns the reason.
func (e *AttestationError) Unwrap() error { return e.err }

// Refused tells whether err is a broker's refusal to attest this guest, as
// opposed to a broker that cannot be reached, is busy, or refuses a single
// resource. Whoever keeps what the broker gave should forget it then.
func Refused(err error) bool {
	if _, ok := errors.AsType[*AttestationError](err); !ok {
		return false
	}
	se, ok := errors.AsType[*StatusError](err)
	return ok && (se.Status == http.StatusUnauthorized || se.Status == http.StatusForbidden)
}
