// Package seal encrypts what the trustee keeps. It is envelope encryption:
// contents are sealed under data keys (AES-256-GCM, NIST SP 800-38D), and data
// keys are wrapped by a key-encryption key that may never leave a token or a
// Vault. Several replicas share one set of data keys through the database; the
// newest seals, all of them open, so that a key is replaced without touching
// what was sealed before.
package seal

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/coffer-project/coffer/secret"
)

// KeySize is the length of key-encryption keys and data keys, in bytes.
const KeySize = 32

// MaxWrapped bounds a wrapped data key, in bytes: Vault answers with some 100,
// a token with at most KeySize and a header.
const MaxWrapped = 4 << 10

// Errors that callers branch on.
var (
	// ErrUnknownKey: the content was sealed under a data key that the box does
	// not hold. Another replica may have made one since.
	ErrUnknownKey = errors.New("unknown data key")
	// ErrAltered: the content was changed or cut, or belongs to another name.
	ErrAltered = errors.New("sealed content was changed, or belongs to another key or name")
	// ErrWrongKEK: the data key was wrapped by another key-encryption key.
	ErrWrongKEK = errors.New("not the key-encryption key that this was wrapped with")
)

// KEK is a key-encryption key. Implementations are safe for concurrent use and
// bound their waits by ctx.
type KEK interface {
	// ID names the key. It is kept beside what the key wrapped, and is no secret.
	ID() string
	// Wrap encrypts and authenticates a data key.
	Wrap(ctx context.Context, key secret.Bytes) ([]byte, error)
	// Unwrap is the reverse. What was altered or wrapped by another key is an error.
	Unwrap(ctx context.Context, wrapped []byte) (secret.Bytes, error)
}

// DataKey is a data key as it is stored.
type DataKey struct {
	// ID counts from 1; the highest is the newest.
	ID int64
	// KEK is the ID of the key that wrapped it.
	KEK     string
	Wrapped []byte
	Created time.Time
}

// Generate makes a data key and wraps it.
func Generate(ctx context.Context, kek KEK, id int64, rand io.Reader, now time.Time) (DataKey, error) {
	if id <= 0 {
		return DataKey{}, fmt.Errorf("seal: data key id: expected a positive number, got %d", id)
	}
	key := make([]byte, KeySize)
	defer clear(key)
	if _, err := io.ReadFull(rand, key); err != nil {
		return DataKey{}, fmt.Errorf("seal: random data key: %w", err)
	}
	return wrap(ctx, kek, DataKey{ID: id, Created: now}, secret.New(key))
}

// Rewrap hands a data key over from one key-encryption key to another. What
// it has sealed stays readable, so that a key-encryption key is replaced
// without touching any content.
func Rewrap(ctx context.Context, from, to KEK, k DataKey) (DataKey, error) {
	key, err := unwrap(ctx, from, k)
	if err != nil {
		return DataKey{}, err
	}
	defer key.Clear()
	return wrap(ctx, to, k, key)
}

func wrap(ctx context.Context, kek KEK, k DataKey, key secret.Bytes) (DataKey, error) {
	wrapped, err := kek.Wrap(ctx, key)
	if err != nil {
		return DataKey{}, fmt.Errorf("seal: wrap data key %d with %s: %w", k.ID, kek.ID(), err)
	}
	if len(wrapped) > MaxWrapped {
		return DataKey{}, fmt.Errorf("seal: wrap data key %d with %s: expected at most %d bytes, got %d", k.ID, kek.ID(), MaxWrapped, len(wrapped))
	}
	k.KEK, k.Wrapped = kek.ID(), wrapped
	return k, nil
}

func unwrap(ctx context.Context, kek KEK, k DataKey) (secret.Bytes, error) {
	if k.KEK != kek.ID() {
		return secret.Bytes{}, fmt.Errorf("seal: data key %d: %w: expected %s, got %s: restore that key", k.ID, ErrWrongKEK, k.KEK, kek.ID())
	}
	if len(k.Wrapped) > MaxWrapped {
		return secret.Bytes{}, fmt.Errorf("seal: data key %d: wrapped: expected at most %d bytes, got %d", k.ID, MaxWrapped, len(k.Wrapped))
	}
	key, err := kek.Unwrap(ctx, k.Wrapped)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("seal: unwrap data key %d with %s: %w", k.ID, kek.ID(), err)
	}
	if key.Len() != KeySize {
		return secret.Bytes{}, fmt.Errorf("seal: unwrap data key %d with %s: expected %d bytes, got %d", k.ID, kek.ID(), KeySize, key.Len())
	}
	return key, nil
}

// File makes a key-encryption key of [KeySize] bytes that the process holds
// itself. It copies them. Its ID is "file:" and 8 hex digits of a SHA-256 over
// the key: enough to name a key file, and nothing to search the key by.
//
// Wrapped form: 12 bytes of nonce, then AES-256-GCM ciphertext and tag.
func File(key secret.Bytes) (KEK, error) {
	aead, err := gcmRandom(key.Expose())
	if err != nil {
		return nil, fmt.Errorf("seal: key-encryption key: %w", err)
	}
	h := sha256.New()
	h.Write([]byte("coffer-trustee/kek-id/v1\x00"))
	h.Write(key.Expose())
	return &fileKEK{id: "file:" + hex.EncodeToString(h.Sum(nil)[:4]), aead: aead}, nil
}

type fileKEK struct {
	id   string
	aead cipher.AEAD
}

// kekDomain keeps a wrapped key from being taken for sealed content, even
// where one key were used for both.
const kekDomain = "coffer-trustee/kek/v1\x00"

func (k *fileKEK) ID() string { return k.id }

func (k *fileKEK) Wrap(_ context.Context, key secret.Bytes) ([]byte, error) {
	return k.aead.Seal(nil, nil, key.Expose(), []byte(kekDomain)), nil
}

func (k *fileKEK) Unwrap(_ context.Context, wrapped []byte) (secret.Bytes, error) {
	key, err := k.aead.Open(nil, nil, wrapped, []byte(kekDomain))
	if err != nil {
		return secret.Bytes{}, ErrWrongKEK // the library's error says no more
	}
	return secret.New(key), nil
}

func newBlock(key []byte) (cipher.Block, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("expected %d bytes, got %d", KeySize, len(key))
	}
	return aes.NewCipher(key)
}

// gcmRandom draws its nonces from the system: wrapping a key is rare, and
// must be right even where a test has replaced the randomness of the rest.
func gcmRandom(key []byte) (cipher.AEAD, error) {
	b, err := newBlock(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}
