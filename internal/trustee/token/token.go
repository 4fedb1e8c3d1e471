// Package token signs attestation tokens and checks them on the way back.
// Keys are persistent, named by kid and published as a JWK set; the first
// signs, all verify, so that a key can be rotated while its tokens live.
package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/ear"
)

// MaxBytes bounds a compact token. Eight GPUs with verbose claims need about 170 KiB.
const MaxBytes = 512 << 10

// skew is how far another replica's clock may be ahead.
const skew = time.Minute

// Options of [New].
type Options struct {
	// Keys are P-256 (ES256) or P-384 (ES384) keys; the first signs.
	Keys []*ecdsa.PrivateKey
	// Issuer and Audience are put into tokens and required of them.
	Issuer, Audience string
	Lifetime         time.Duration
	Now              func() time.Time
}

// Authority mints and verifies tokens. It is safe for concurrent use.
type Authority struct {
	o      Options
	signer jose.Signer
	keys   map[string]jose.JSONWebKey
	set    jose.JSONWebKeySet
}

// New prepares the keys.
func New(o Options) (*Authority, error) {
	if len(o.Keys) == 0 {
		return nil, errors.New("token: expected at least one signing key")
	}
	if o.Issuer == "" || o.Audience == "" || o.Lifetime <= 0 {
		return nil, errors.New("token: issuer, audience and lifetime are required")
	}
	a := &Authority{o: o, keys: map[string]jose.JSONWebKey{}}
	for i, k := range o.Keys {
		var alg jose.SignatureAlgorithm
		switch k.Curve {
		case elliptic.P256():
			alg = jose.ES256
		case elliptic.P384():
			alg = jose.ES384
		default:
			return nil, fmt.Errorf("token: key %d: expected curve P-256 or P-384, got %s", i, k.Curve.Params().Name)
		}
		pub := jose.JSONWebKey{Key: &k.PublicKey, Algorithm: string(alg), Use: "sig"}
		thumb, err := pub.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("token: key %d: %w", i, err)
		}
		pub.KeyID = base64.RawURLEncoding.EncodeToString(thumb)
		a.keys[pub.KeyID] = pub
		a.set.Keys = append(a.set.Keys, pub)
		if i > 0 {
			continue
		}
		private := jose.JSONWebKey{Key: k, KeyID: pub.KeyID, Algorithm: string(alg)}
		a.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: private}, (&jose.SignerOptions{}).WithType("JWT"))
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
	}
	return a, nil
}

// JWKS is the public keys as a JWK set.
func (a *Authority) JWKS() jose.JSONWebKeySet { return a.set }

// Issuer is the name in tokens.
func (a *Authority) Issuer() string { return a.o.Issuer }

// Mint signs the claims. It sets profile, issuer, audience and times.
func (a *Authority) Mint(c ear.Claims) (string, error) {
	now := a.o.Now()
	c.Profile, c.Issuer, c.Audience = ear.Profile, a.o.Issuer, []string{a.o.Audience}
	c.IssuedAt, c.NotBefore, c.Expires = now.Unix(), now.Unix(), now.Add(a.o.Lifetime).Unix()
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	sig, err := a.signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	compact, err := sig.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	if len(compact) > MaxBytes {
		return "", fmt.Errorf("token: expected at most %d bytes, got %d: set attestation.verbose_token = false", MaxBytes, len(compact))
	}
	return compact, nil
}

// Verify checks a token's signature, issuer, audience and times. It returns
// the claims, and the payload as it was signed for policies to read.
func (a *Authority) Verify(compact string) (*ear.Claims, json.RawMessage, error) {
	if len(compact) > MaxBytes {
		return nil, nil, fmt.Errorf("token: expected at most %d bytes, got %d", MaxBytes, len(compact))
	}
	sig, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.ES256, jose.ES384})
	if err != nil {
		return nil, nil, fmt.Errorf("token: is no signed JWT (ES256, ES384): %w", err)
	}
	// The key comes from our set by its id; a key inside the token is ignored.
	h := sig.Signatures[0].Protected
	key, ok := a.keys[h.KeyID]
	if !ok {
		return nil, nil, fmt.Errorf("token: kid: expected one of this trustee's keys, got %q", clip(h.KeyID))
	}
	if h.Algorithm != key.Algorithm {
		return nil, nil, fmt.Errorf("token: alg: expected %s, got %s", key.Algorithm, h.Algorithm)
	}
	payload, err := sig.Verify(key.Key)
	if err != nil {
		return nil, nil, errors.New("token: the signature does not verify")
	}
	var c ear.Claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, nil, fmt.Errorf("token: payload: %w", err)
	}
	now := a.o.Now()
	switch {
	case c.Issuer != a.o.Issuer:
		return nil, nil, fmt.Errorf("token: iss: expected %q, got %q", a.o.Issuer, clip(c.Issuer))
	case !slices.Contains(c.Audience, a.o.Audience):
		return nil, nil, fmt.Errorf("token: aud: expected %q, got %q", a.o.Audience, c.Audience)
	case c.Expires == 0 || !now.Before(time.Unix(c.Expires, 0)):
		return nil, nil, fmt.Errorf("token: expired at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	case c.NotBefore == 0 || now.Add(skew).Before(time.Unix(c.NotBefore, 0)):
		return nil, nil, fmt.Errorf("token: not valid before %s", time.Unix(c.NotBefore, 0).UTC().Format(time.RFC3339))
	case c.ID == "":
		return nil, nil, errors.New("token: jti is missing")
	}
	return &c, payload, nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
