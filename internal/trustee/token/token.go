// Package token signs attestation tokens and checks them on the way back.
// Keys are persistent, shared by all replicas, named by kid and published as
// a JWK set; the first signs, all verify, so that a key can be rotated while
// its tokens live. Tokens of other attestation services are accepted where
// their keys are trusted ([Trust]).
package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// MaxBytes bounds a compact token. Eight GPUs with verbose claims need about 170 KiB.
const MaxBytes = 512 << 10

// skew is how far another replica's clock may be ahead.
const skew = time.Minute

// Options of [New].
type Options struct {
	// Keys is where signing keys come from.
	Keys KeySource
	// Issuer and Audience are put into tokens and required of them.
	Issuer, Audience string
	Lifetime         time.Duration
	Now              func() time.Time
	// Trusted are other attestation services whose tokens are accepted.
	Trusted []*Trust
}

// Authority mints and verifies tokens. It is safe for concurrent use.
type Authority struct {
	o    Options
	ring *ring
}

// New loads the keys.
func New(ctx context.Context, o Options) (*Authority, error) {
	if o.Keys == nil {
		return nil, errors.New("token: expected a source of signing keys")
	}
	if o.Issuer == "" || o.Audience == "" || o.Lifetime <= 0 {
		return nil, errors.New("token: issuer, audience and lifetime are required")
	}
	for _, t := range o.Trusted {
		if t.o.Issuer == o.Issuer {
			return nil, fmt.Errorf("token: a trusted attestation service has the issuer %q, which is this trustee's own: give one of them another name", o.Issuer)
		}
	}
	a := &Authority{o: o, ring: newRing(o.Keys, o.Now, o.Lifetime)}
	if _, err := a.ring.current(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// JWKS is the public keys as a JWK set.
func (a *Authority) JWKS(ctx context.Context) (jose.JSONWebKeySet, error) {
	k, err := a.ring.newest(ctx)
	if err != nil {
		return jose.JSONWebKeySet{}, err
	}
	return a.ring.set(k), nil
}

// Issuer is the name in tokens.
func (a *Authority) Issuer() string { return a.o.Issuer }

// Mint signs the claims. It sets profile, issuer, tenant and times, and the
// audience where the claims name none.
func (a *Authority) Mint(ctx context.Context, t tenant.Name, c ear.Claims) (string, error) {
	compact, _, err := a.MintPayload(ctx, t, c)
	return compact, err
}

// MintPayload is [Authority.Mint] and returns the payload that was signed too.
func (a *Authority) MintPayload(ctx context.Context, t tenant.Name, c ear.Claims) (string, json.RawMessage, error) {
	k, err := a.ring.newest(ctx)
	if err != nil {
		return "", nil, err
	}
	now := a.o.Now()
	c.Profile, c.Issuer, c.Tenant = ear.Profile, a.o.Issuer, string(t)
	if len(c.Audience) == 0 {
		c.Audience = ear.Audience{a.o.Audience}
	}
	c.IssuedAt, c.NotBefore, c.Expires = now.Unix(), now.Unix(), now.Add(a.o.Lifetime).Unix()
	payload, err := json.Marshal(c)
	if err != nil {
		return "", nil, fmt.Errorf("token: %w", err)
	}
	sig, err := k.signer.Sign(payload)
	if err != nil {
		return "", nil, fmt.Errorf("token: %w", err)
	}
	compact, err := sig.CompactSerialize()
	if err != nil {
		return "", nil, fmt.Errorf("token: %w", err)
	}
	if len(compact) > MaxBytes {
		return "", nil, fmt.Errorf("token: expected at most %d bytes, got %d: set attestation.verbose_token = false", MaxBytes, len(compact))
	}
	return compact, payload, nil
}

// algorithms of tokens: ours, and those of other attestation services.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
}

// Verify checks a token's signature, issuer, audience, times and tenant. It
// returns the claims, and the payload as it was signed for policies to read.
func (a *Authority) Verify(ctx context.Context, t tenant.Name, compact string) (*ear.Claims, json.RawMessage, error) {
	if len(compact) > MaxBytes {
		return nil, nil, fmt.Errorf("token: expected at most %d bytes, got %d", MaxBytes, len(compact))
	}
	sig, err := jose.ParseSignedCompact(compact, algorithms())
	if err != nil {
		return nil, nil, fmt.Errorf("token: is no signed JWT of an algorithm that is accepted: %.256s", err.Error())
	}
	// Read before the signature is checked, and used for nothing but to find
	// out whose keys have to check it.
	var from struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(sig.UnsafePayloadWithoutVerification(), &from); err != nil {
		return nil, nil, fmt.Errorf("token: payload: %w", err)
	}
	for _, other := range a.o.Trusted {
		if from.Issuer == other.o.Issuer {
			return other.verify(ctx, t, sig, a.o.Now())
		}
	}
	return a.own(ctx, t, sig)
}

// own verifies a token that this trustee minted.
func (a *Authority) own(ctx context.Context, t tenant.Name, sig *jose.JSONWebSignature) (*ear.Claims, json.RawMessage, error) {
	// The key comes from our set by its id; a key inside the token is ignored.
	h := sig.Signatures[0].Protected
	key, ok, err := a.ring.find(ctx, h.KeyID)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, fmt.Errorf("token: kid: expected one of this trustee's keys, got %q", clip(h.KeyID))
	}
	if h.Algorithm != key.Algorithm {
		return nil, nil, fmt.Errorf("token: alg: expected %s, got %s", key.Algorithm, clip(h.Algorithm))
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
	case c.IssuedAt == 0 || now.Add(skew).Before(time.Unix(c.IssuedAt, 0)):
		return nil, nil, fmt.Errorf("token: iat: expected a time that has passed, got %s", time.Unix(c.IssuedAt, 0).UTC().Format(time.RFC3339))
	case c.ID == "":
		return nil, nil, errors.New("token: jti is missing")
	case c.Tenant != string(t):
		// Whose token it is, is nobody else's business.
		return nil, nil, fmt.Errorf("token: coffer.tenant: expected %q, got another", t)
	}
	return &c, payload, nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
