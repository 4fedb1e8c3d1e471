package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Key is one signing key.
type Key struct {
	// Private is on P-256 (ES256) or P-384 (ES384).
	Private *ecdsa.PrivateKey
	Created time.Time
	// Retired is when another key took its place; zero for the one that signs.
	Retired time.Time
}

// KeySource is where the keys are kept, the one that signs first. version
// changes whenever the keys do.
type KeySource interface {
	TokenKeys(ctx context.Context) (keys []Key, version int64, err error)
}

// Versioner is a [KeySource] that can say at little cost which version its
// keys have. It is asked for every token that is signed, so that a key which
// any replica has made signs from then on, on all of them.
type Versioner interface {
	TokenKeyVersion(ctx context.Context) (int64, error)
}

// Static is a source of keys that never change.
func Static(keys ...*ecdsa.PrivateKey) KeySource {
	var s static
	for _, k := range keys {
		s = append(s, Key{Private: k})
	}
	return s
}

type static []Key

func (s static) TokenKeys(context.Context) ([]Key, int64, error) { return s, 1, nil }

// keys is one version of the keys, ready for use.
type keys struct {
	version int64
	signer  jose.Signer
	byID    map[string]verifyKey
	// public are the same in order, as they are published.
	public []verifyKey
}

// verifyKey is a public key and when it stopped signing, zero for the one that
// signs.
type verifyKey struct {
	jose.JSONWebKey

	retired time.Time
}

// KeyID is the RFC 7638 thumbprint of a public key: the kid of its tokens.
func KeyID(pub *ecdsa.PublicKey) (string, error) {
	thumb, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(thumb), nil
}

func algorithm(c elliptic.Curve) (jose.SignatureAlgorithm, error) {
	switch c {
	case elliptic.P256():
		return jose.ES256, nil
	case elliptic.P384():
		return jose.ES384, nil
	case nil:
		return "", errors.New("has no curve")
	}
	return "", fmt.Errorf("expected curve P-256 or P-384, got %s", c.Params().Name)
}

func prepare(list []Key, version int64) (*keys, error) {
	if len(list) == 0 {
		return nil, errors.New("token: expected at least one signing key")
	}
	out := &keys{version: version, byID: map[string]verifyKey{}}
	for i, k := range list {
		alg, err := algorithm(k.Private.Curve)
		if err != nil {
			return nil, fmt.Errorf("token: key %d: %w", i, err)
		}
		id, err := KeyID(&k.Private.PublicKey)
		if err != nil {
			return nil, err
		}
		pub := verifyKey{JSONWebKey: jose.JSONWebKey{Key: &k.Private.PublicKey, KeyID: id, Algorithm: string(alg), Use: "sig"}}
		if i > 0 {
			pub.retired = k.Retired
		}
		if _, dup := out.byID[id]; dup {
			return nil, fmt.Errorf("token: key %d: occurs twice", i)
		}
		out.byID[id] = pub
		out.public = append(out.public, pub)
		if i > 0 {
			continue
		}
		private := jose.JSONWebKey{Key: k.Private, KeyID: id, Algorithm: string(alg)}
		out.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: private}, (&jose.SignerOptions{}).WithType("JWT"))
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
	}
	return out, nil
}

const (
	// refresh is how old the keys may be that sign and verify. A key that was
	// taken away is trusted for this long.
	refresh = 3 * time.Second
	// unknownWait is the least time between two looks for a key that is not
	// there, where a look reads all keys: anyone can name one.
	unknownWait = 200 * time.Millisecond
	// stale is how long keys are used that cannot be read again.
	stale = 5 * time.Minute
)

// ring keeps the newest version of the keys.
type ring struct {
	source KeySource
	now    func() time.Time
	// keep is how long a retired key verifies.
	keep time.Duration
	// turn is held by whoever asks the source.
	turn chan struct{}

	mu   sync.RWMutex
	keys *keys
	read time.Time
}

// newRing keeps the keys for tokens that live as long as lifetime. A replica
// that cannot read the keys signs with a retired one until they are stale, and
// no token lives longer than that: whoever has stolen a retired key can make
// nothing with it afterwards.
func newRing(source KeySource, now func() time.Time, lifetime time.Duration) *ring {
	return &ring{source: source, now: now, keep: lifetime + stale + skew, turn: make(chan struct{}, 1)}
}

// verifies reports whether a key's tokens may still be good.
func (r *ring) verifies(k verifyKey) bool {
	return k.retired.IsZero() || r.now().Sub(k.retired) <= r.keep
}

// set is the keys that verify.
func (r *ring) set(k *keys) (out jose.JSONWebKeySet) {
	for _, p := range k.public {
		if r.verifies(p) {
			out.Keys = append(out.Keys, p.JSONWebKey)
		}
	}
	return out
}

func (r *ring) have() (*keys, time.Duration) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	age := r.now().Sub(r.read)
	if age < 0 { // the clock was set back
		age = stale
	}
	return r.keys, age
}

// current returns keys that are at most [refresh] old, or at most [stale]
// where the source fails.
func (r *ring) current(ctx context.Context) (*keys, error) {
	return r.newer(ctx, refresh)
}

func (r *ring) newer(ctx context.Context, than time.Duration) (*keys, error) {
	if k, age := r.have(); k != nil && age < than {
		return k, nil
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	have, age := r.have()
	if have != nil && age < than {
		return have, nil
	}
	list, version, err := r.source.TokenKeys(ctx)
	if err != nil {
		if have != nil && age < stale {
			return have, nil
		}
		return nil, fmt.Errorf("token: signing keys: %w", err)
	}
	if have == nil || have.version != version {
		if have, err = prepare(list, version); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys, r.read = have, r.now()
	return have, nil
}

// newest returns the keys as they are now, where the source can tell that it
// has others; otherwise at most [refresh] old.
func (r *ring) newest(ctx context.Context) (*keys, error) {
	source, ok := r.source.(Versioner)
	if have, age := r.have(); ok && have != nil {
		version, err := source.TokenKeyVersion(ctx)
		switch {
		case err == nil && version == have.version:
			return have, nil
		case err == nil:
			return r.newer(ctx, 0)
		case age >= stale:
			return nil, fmt.Errorf("token: signing keys: %w", err)
		}
		return have, nil
	}
	return r.current(ctx)
}

// find looks a key up by its id, and looks again for one that another replica
// may have made just now.
func (r *ring) find(ctx context.Context, id string) (jose.JSONWebKey, bool, error) {
	k, err := r.current(ctx)
	if err != nil {
		return jose.JSONWebKey{}, false, err
	}
	key, ok := k.byID[id]
	if ok || len(id) != base64.RawURLEncoding.EncodedLen(crypto.SHA256.Size()) {
		return key.JSONWebKey, ok && r.verifies(key), nil
	}
	if _, ok := r.source.(Versioner); ok {
		k, err = r.newest(ctx)
	} else {
		k, err = r.newer(ctx, unknownWait)
	}
	if err != nil {
		return jose.JSONWebKey{}, false, err
	}
	key, ok = k.byID[id]
	return key.JSONWebKey, ok && r.verifies(key), nil
}

// Limits of [DecodeKeys].
const (
	maxKeys   = 16
	maxBundle = 64 << 10
)

const (
	pemType       = "EC PRIVATE KEY"
	headerCreated = "Created"
	headerRetired = "Retired"
)

// EncodeKeys writes a bundle: SEC 1 keys in PEM, in order, with the times in
// headers. It holds private keys: it is to be sealed where it is kept.
func EncodeKeys(list []Key) ([]byte, error) {
	if len(list) == 0 || len(list) > maxKeys {
		return nil, fmt.Errorf("token: expected 1 to %d keys, got %d", maxKeys, len(list))
	}
	var out bytes.Buffer
	for i, k := range list {
		der, err := x509.MarshalECPrivateKey(k.Private)
		if err != nil {
			return nil, fmt.Errorf("token: key %d: %w", i, err)
		}
		b := &pem.Block{Type: pemType, Bytes: der, Headers: map[string]string{}}
		for name, at := range map[string]time.Time{headerCreated: k.Created, headerRetired: k.Retired} {
			if !at.IsZero() {
				b.Headers[name] = at.UTC().Format(time.RFC3339Nano)
			}
		}
		if err := pem.Encode(&out, b); err != nil {
			return nil, fmt.Errorf("token: key %d: %w", i, err)
		}
		clear(der)
	}
	return out.Bytes(), nil
}

// DecodeKeys reads what [EncodeKeys] wrote, and PEM without headers too.
func DecodeKeys(bundle []byte) ([]Key, error) {
	if len(bundle) > maxBundle {
		return nil, fmt.Errorf("token: key bundle: expected at most %d bytes, got %d", maxBundle, len(bundle))
	}
	var out []Key
	for {
		var b *pem.Block
		b, bundle = pem.Decode(bundle)
		if b == nil {
			break
		}
		k, err := decodeKey(b)
		if err != nil {
			return nil, fmt.Errorf("token: key bundle: key %d: %w", len(out), err)
		}
		if out = append(out, k); len(out) > maxKeys {
			return nil, fmt.Errorf("token: key bundle: expected at most %d keys", maxKeys)
		}
	}
	if rest := bytes.TrimSpace(bundle); len(rest) > 0 {
		return nil, errors.New("token: key bundle: something that is no PEM follows the last key")
	}
	if len(out) == 0 {
		return nil, errors.New("token: key bundle: holds no key")
	}
	return out, nil
}

func decodeKey(b *pem.Block) (Key, error) {
	if b.Type != pemType {
		return Key{}, fmt.Errorf("expected %s, got %.32q", pemType, b.Type)
	}
	private, err := x509.ParseECPrivateKey(b.Bytes)
	if err != nil {
		return Key{}, errors.New("is no SEC 1 private key")
	}
	if _, err := algorithm(private.Curve); err != nil {
		return Key{}, err
	}
	k := Key{Private: private}
	for name, at := range map[string]*time.Time{headerCreated: &k.Created, headerRetired: &k.Retired} {
		text, ok := b.Headers[name]
		if !ok {
			continue
		}
		if *at, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return Key{}, fmt.Errorf("%s: expected a time of RFC 3339, got %.40q", name, text)
		}
	}
	return k, nil
}

// Generate makes a key for "ES256" or "ES384".
func Generate(random io.Reader, alg string, now time.Time) (Key, error) {
	var curve elliptic.Curve
	switch jose.SignatureAlgorithm(alg) {
	case jose.ES256, "":
		curve = elliptic.P256()
	case jose.ES384:
		curve = elliptic.P384()
	default:
		return Key{}, fmt.Errorf("token: algorithm: expected ES256 or ES384, got %.16q", alg)
	}
	private, err := ecdsa.GenerateKey(curve, random)
	if err != nil {
		return Key{}, fmt.Errorf("token: %w", err)
	}
	return Key{Private: private, Created: now}, nil
}

// Rotate puts a new key of an algorithm (ES256, ES384) first and keeps the
// others for verification until they have been retired for longer than keep,
// which has to be no less than a token's lifetime.
func Rotate(random io.Reader, list []Key, alg string, now time.Time, keep time.Duration) ([]Key, error) {
	fresh, err := Generate(random, alg, now)
	if err != nil {
		return nil, err
	}
	out := []Key{fresh}
	for _, k := range list {
		if k.Retired.IsZero() {
			k.Retired = now
		}
		if now.Sub(k.Retired) <= keep {
			out = append(out, k)
		}
	}
	if len(out) > maxKeys {
		return nil, fmt.Errorf("token: %d retired keys are still needed: rotate again when some have expired", len(out)-1)
	}
	return slices.Clip(out), nil
}
