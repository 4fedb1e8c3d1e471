// Package session keeps a handshake's state in its cookie. The challenge's
// answer is sealed there, so that POST /auth writes nothing anywhere and every
// replica that holds the key can take the evidence. That a nonce is good for
// one attestation only is for the store to see to: by [Session.ID], when the
// attestation is recorded.
//
// A cookie is unpadded base64url of
//
//	version (1 byte) ‖ id (16 bytes) ‖ AES-256-GCM(fields)
//
// Each is sealed under a key of its own, HMAC-SHA-256 of its id, with a nonce
// of zeros: ids are random and long enough that none is ever drawn twice,
// which GCM's own nonce would not be under the load that strangers can make.
// The tenant is authenticated with it and not written: a cookie opens for the
// tenant it was made for and for no other.
package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// KeySize is the size of a codec's key, in bytes.
const KeySize = 32

// MaxCookie is the longest cookie that is looked at, in characters.
const MaxCookie = 2048

const (
	version1 = 1
	idSize   = 16
	tagSize  = 16
	// skew is how far another replica's clock may be ahead.
	skew = time.Minute
	// domain separates the derived keys from other uses of the same key.
	domain = "coffer-session/v1"
)

// ErrInvalid is the one answer to a cookie that is forged, altered, expired,
// another tenant's or sealed under another key. Test with errors.Is.
var ErrInvalid = errors.New("the session is unknown or expired")

// Session is a handshake between its challenge and its end.
type Session struct {
	// ID is 16 random bytes in hex. Records and tokens (jti) carry it; it is
	// no credential. [Codec.Seal] draws it.
	ID       string
	Tenant   tenant.Name
	TEE      tee.Name
	Protocol kbs.Version
	// Nonce is the challenge as it was sent. It is "" in an opened session
	// whose challenge was too long to keep: see [Session.Challenge].
	Nonce string
	// digest is SHA-256 of a challenge that was too long to keep.
	digest []byte
	// Policy is the id of the selected attestation policy, "" for the default.
	Policy string
	// Hash is the negotiated hash of runtime data, "" for the default.
	Hash string
	// Created and Expires have millisecond precision.
	Created, Expires time.Time
}

// Challenge returns the challenge that evidence must answer, given what the
// guest repeats of it ("" where its protocol repeats nothing). It is false
// where that is another challenge, or where only the repeated one could tell.
func (s *Session) Challenge(repeated string) (string, bool) {
	if s.digest == nil {
		return s.Nonce, repeated == "" || subtle.ConstantTimeCompare([]byte(repeated), []byte(s.Nonce)) == 1
	}
	sum := sha256.Sum256([]byte(repeated))
	return repeated, subtle.ConstantTimeCompare(sum[:], s.digest) == 1
}

// Options of [New]. All are required.
type Options struct {
	// Key is [KeySize] bytes that all replicas share.
	Key secret.Bytes
	Now func() time.Time
	// Rand is the source of ids; safe for concurrent use.
	Rand io.Reader
}

// Codec seals sessions into cookies. It is safe for concurrent use.
type Codec struct{ o Options }

// New checks the options.
func New(o Options) (*Codec, error) {
	if o.Key.Len() != KeySize {
		return nil, fmt.Errorf("session: key: expected %d bytes, got %d", KeySize, o.Key.Len())
	}
	if o.Now == nil || o.Rand == nil {
		return nil, errors.New("session: a clock and a source of randomness are required")
	}
	return &Codec{o: o}, nil
}

// Seal draws the session's id and returns the session's cookie.
func (c *Codec) Seal(s *Session) (string, error) {
	fields, err := encode(s)
	if err != nil {
		return "", fmt.Errorf("session: %w", err)
	}
	head := make([]byte, 1+idSize, 1+idSize+len(fields)+tagSize)
	head[0] = version1
	id := head[1:]
	if _, err := io.ReadFull(c.o.Rand, id); err != nil {
		return "", fmt.Errorf("session: random id: %w", err)
	}
	gcm, err := c.aead(id)
	if err != nil {
		return "", err
	}
	s.ID = hex.EncodeToString(id)
	out := gcm.Seal(head, make([]byte, gcm.NonceSize()), fields, associated(s.Tenant, head))
	cookie := base64.RawURLEncoding.EncodeToString(out)
	if len(cookie) > MaxCookie {
		return "", fmt.Errorf("session: cookie: expected at most %d characters, got %d", MaxCookie, len(cookie))
	}
	return cookie, nil
}

// Open reads a tenant's cookie. Its error is [ErrInvalid] whatever is wrong.
func (c *Codec) Open(t tenant.Name, cookie string) (*Session, error) {
	if len(cookie) > MaxCookie || strings.ContainsAny(cookie, "\r\n") {
		return nil, ErrInvalid
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cookie)
	if err != nil || len(raw) < 1+idSize+tagSize || raw[0] != version1 {
		return nil, ErrInvalid
	}
	head, sealed := raw[:1+idSize], raw[1+idSize:]
	gcm, err := c.aead(head[1:])
	if err != nil {
		return nil, err
	}
	fields, err := gcm.Open(nil, make([]byte, gcm.NonceSize()), sealed, associated(t, head))
	if err != nil {
		return nil, ErrInvalid
	}
	s, err := decode(fields)
	if err != nil {
		return nil, ErrInvalid
	}
	s.ID, s.Tenant = hex.EncodeToString(head[1:]), t
	if now := c.o.Now(); !now.Before(s.Expires) || now.Add(skew).Before(s.Created) {
		return nil, ErrInvalid
	}
	return s, nil
}

// aead is the cipher of one session.
func (c *Codec) aead(id []byte) (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, c.o.Key.Expose())
	mac.Write([]byte(domain))
	mac.Write(id)
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	return cipher.NewGCM(block)
}

// associated is what is authenticated and not sealed: names hold no newline.
func associated(t tenant.Name, head []byte) []byte {
	return append([]byte(domain+"\n"+string(t)+"\n"), head...)
}
