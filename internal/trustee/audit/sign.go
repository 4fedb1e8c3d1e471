package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// SecretName is the name under which a [Signer]'s seed is kept.
const SecretName = "audit-checkpoint-key"

// Limits of a signed checkpoint and of a key set, in bytes.
const (
	maxCheckpoint = 2 << 10
	maxKeys       = 64 << 10
)

// checkpointType is the typ of a checkpoint's header, so that no other
// signature of this key's can pass for one.
const checkpointType = "coffer-audit-checkpoint+jws"

// Checkpoint pins a tenant's chain: at the time At its head was the entry Seq
// with this hash.
type Checkpoint struct {
	Tenant tenant.Name `json:"tenant"`
	Seq    int64       `json:"seq"`
	Hash   string      `json:"hash"`
	At     time.Time   `json:"at"`
}

func (c Checkpoint) validate() error {
	if _, err := tenant.Parse(string(c.Tenant)); err != nil {
		return fmt.Errorf("audit checkpoint: %w", err)
	}
	if c.Seq < 1 || !isHash(c.Hash) || c.At.IsZero() {
		return fmt.Errorf("audit checkpoint: expected seq from 1, a hash of 64 hex digits and a time, got %d, %.80q, %v", c.Seq, c.Hash, c.At)
	}
	return nil
}

// Secrets keeps what must survive a restart and be one on all replicas. Secret
// returns what is kept under a name; where there is nothing it keeps what
// create returns, or, of a race, the winner's.
type Secrets interface {
	Secret(ctx context.Context, name string, create func() ([]byte, error)) (secret.Bytes, error)
}

// Signer signs checkpoints with Ed25519 (RFC 8032).
type Signer struct {
	key ed25519.PrivateKey
	kid string
}

// NewSigner takes the key from secrets, where it is made of rand at the first
// time.
func NewSigner(ctx context.Context, secrets Secrets, rand io.Reader) (*Signer, error) {
	seed, err := secrets.Secret(ctx, SecretName, func() ([]byte, error) {
		b := make([]byte, ed25519.SeedSize)
		_, err := io.ReadFull(rand, b)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("audit checkpoint key: %w", err)
	}
	if seed.Len() != ed25519.SeedSize {
		return nil, fmt.Errorf("audit checkpoint key: expected a seed of %d bytes, got %d", ed25519.SeedSize, seed.Len())
	}
	key := ed25519.NewKeyFromSeed(seed.Expose())
	return &Signer{key: key, kid: keyID(publicKey(key))}, nil
}

func publicKey(k ed25519.PrivateKey) ed25519.PublicKey {
	return ed25519.PublicKey(k[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
}

// keyID is the key's JWK thumbprint (RFC 7638, RFC 8037 appendix A.3).
func keyID(k ed25519.PublicKey) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + b64(k) + `"}`))
	return b64(sum[:])
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Keys are what verifies the signer's checkpoints.
func (s *Signer) Keys() Keys { return Keys{s.kid: publicKey(s.key)} }

// header is a checkpoint's protected header.
type header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

// Sign returns the checkpoint as a compact JWS (RFC 7515) with alg EdDSA (RFC
// 8037). Its payload is the checkpoint's JSON.
func (s *Signer) Sign(c Checkpoint) (string, error) {
	c.At = c.At.UTC().Truncate(time.Second)
	if err := c.validate(); err != nil {
		return "", err
	}
	head, err := json.Marshal(header{"EdDSA", s.kid, checkpointType})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	signed := b64(head) + "." + b64(payload)
	return signed + "." + b64(ed25519.Sign(s.key, []byte(signed))), nil
}

// Keys are public keys of checkpoints by key id.
type Keys map[string]ed25519.PublicKey

// ErrUnknownKey means that a checkpoint is signed by a key that is not known.
var ErrUnknownKey = errors.New("signed by an unknown key")

// Checkpoint verifies a signed checkpoint and returns what it pins.
func (k Keys) Checkpoint(jws string) (Checkpoint, error) {
	if len(jws) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("audit checkpoint: expected at most %d bytes, got %d", maxCheckpoint, len(jws))
	}
	parts := strings.Split(strings.TrimSpace(jws), ".")
	if len(parts) != 3 {
		return Checkpoint{}, fmt.Errorf("audit checkpoint: expected a compact JWS of three parts, got %d", len(parts))
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil {
			return Checkpoint{}, fmt.Errorf("audit checkpoint: part %d: %w", i+1, err)
		}
	}
	var h header
	if err := strictjson.Decode(raw[0], &h, strictjson.Limits{Bytes: maxCheckpoint}); err != nil {
		return Checkpoint{}, fmt.Errorf("audit checkpoint: header: %w", err)
	}
	if h.Algorithm != "EdDSA" || h.Type != checkpointType {
		return Checkpoint{}, fmt.Errorf("audit checkpoint: header: expected alg EdDSA and typ %s, got %.40q and %.40q", checkpointType, h.Algorithm, h.Type)
	}
	key, ok := k[h.KeyID]
	if !ok {
		return Checkpoint{}, fmt.Errorf("audit checkpoint: %w: kid %.80q is none of the keys given", ErrUnknownKey, h.KeyID)
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, []byte(parts[0]+"."+parts[1]), raw[2]) {
		return Checkpoint{}, errors.New("audit checkpoint: the signature does not match")
	}
	var c Checkpoint
	if err := strictjson.Decode(raw[1], &c, strictjson.Limits{Bytes: maxCheckpoint}); err != nil {
		return Checkpoint{}, fmt.Errorf("audit checkpoint: payload: %w", err)
	}
	return c, c.validate()
}

// jwk is an Ed25519 key (RFC 8037).
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	KeyID     string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
}

type jwkSet struct {
	Keys []jwk `json:"keys"`
}

// MarshalJSON is a JWK set (RFC 7517).
func (k Keys) MarshalJSON() ([]byte, error) {
	set := jwkSet{Keys: []jwk{}}
	for _, kid := range sortedKeys(k) {
		set.Keys = append(set.Keys, jwk{"OKP", "Ed25519", b64(k[kid]), kid, "EdDSA", "sig"})
	}
	return json.Marshal(set)
}

// ParseKeys reads a JWK set that [Keys] wrote. A key id that is not its key's
// thumbprint is an error.
func ParseKeys(doc []byte) (Keys, error) {
	var set jwkSet
	if err := strictjson.Decode(doc, &set, strictjson.Limits{Bytes: maxKeys}); err != nil {
		return nil, fmt.Errorf("audit checkpoint keys: %w", err)
	}
	out := Keys{}
	for i, j := range set.Keys {
		x, err := base64.RawURLEncoding.Strict().DecodeString(j.X)
		if err != nil || len(x) != ed25519.PublicKeySize || j.KeyType != "OKP" || j.Curve != "Ed25519" || j.Algorithm != "EdDSA" || j.Use != "sig" {
			return nil, fmt.Errorf("audit checkpoint keys: key %d: expected an Ed25519 signature key of kty OKP with an x of %d bytes", i, ed25519.PublicKeySize)
		}
		if id := keyID(x); j.KeyID != id {
			return nil, fmt.Errorf("audit checkpoint keys: key %d: expected kid %s (its thumbprint), got %.80q", i, id, j.KeyID)
		}
		out[j.KeyID] = x
	}
	if len(out) == 0 {
		return nil, errors.New("audit checkpoint keys: the set is empty")
	}
	return out, nil
}
