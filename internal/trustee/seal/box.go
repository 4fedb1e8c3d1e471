package seal

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coffer-project/coffer/secret"
)

// Sealed form, version 1: one byte of version, eight of data key id
// (big-endian), twelve of random nonce, then ciphertext and 16 bytes of tag of
// AES-256-GCM. Authenticated with it are a domain and the name.
const (
	version   = 1
	nonceSize = 12
	tagSize   = 16
	header    = 1 + 8 + nonceSize
	boxDomain = "coffer-trustee/seal/v1\x00"

	// Overhead is how much longer sealed content is than plain, in bytes.
	Overhead = header + tagSize
)

// MaxPlain bounds what is sealed at once, in bytes. It is far above any
// resource, and keeps a length from overflowing.
const MaxPlain = 1 << 30

// Box is a ring of unwrapped data keys: the newest seals, all of them open. It
// is safe for concurrent use, and neither sealing nor opening waits for a lock.
//
// With random nonces one data key should seal no more than 2^32 times (NIST SP
// 800-38D, 8.3); make a new one well before.
type Box struct {
	rand io.Reader
	mu   sync.Mutex // held while the ring is replaced
	ring atomic.Pointer[ring]
}

// ring is never changed once it is in a box.
type ring struct {
	newest int64
	keys   map[int64]cipher.AEAD
}

// NewBox makes a box without keys. rand gives the nonces and must be safe for
// concurrent use, as crypto/rand's is.
func NewBox(rand io.Reader) *Box {
	b := &Box{rand: rand}
	b.ring.Store(&ring{})
	return b
}

// Add unwraps a data key and adds it to the ring. A key that is there already
// is not unwrapped again.
func (b *Box) Add(ctx context.Context, kek KEK, k DataKey) error {
	if k.ID <= 0 {
		return fmt.Errorf("seal: data key id: expected a positive number, got %d", k.ID)
	}
	if b.Has(k.ID) {
		return nil
	}
	key, err := unwrap(ctx, kek, k)
	if err != nil {
		return err
	}
	defer key.Clear()
	block, err := newBlock(key.Expose())
	if err != nil {
		return fmt.Errorf("seal: data key %d: %w", k.ID, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return fmt.Errorf("seal: data key %d: %w", k.ID, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.ring.Load()
	next := &ring{newest: max(old.newest, k.ID), keys: maps.Clone(old.keys)}
	if next.keys == nil {
		next.keys = make(map[int64]cipher.AEAD, 1)
	}
	next.keys[k.ID] = aead
	b.ring.Store(next)
	return nil
}

// Has reports whether the box holds a data key.
func (b *Box) Has(id int64) bool { return b.ring.Load().keys[id] != nil }

// Newest is the id of the data key that seals, 0 when the box is empty.
func (b *Box) Newest() int64 { return b.ring.Load().newest }

// Keys lists the ids that the box holds, in ascending order.
func (b *Box) Keys() []int64 { return slices.Sorted(maps.Keys(b.ring.Load().keys)) }

// KeyOf is the id of the data key that sealed content names. It is not
// authenticated.
func KeyOf(sealed []byte) (int64, error) {
	if len(sealed) < Overhead {
		return 0, fmt.Errorf("seal: expected at least %d bytes, got %d: %w", Overhead, len(sealed), ErrAltered)
	}
	if sealed[0] != version {
		return 0, fmt.Errorf("seal: version: expected %d, got %d: %w", version, sealed[0], ErrAltered)
	}
	id := int64(binary.BigEndian.Uint64(sealed[1:9])) // an id beyond int64 becomes negative and is refused below
	if id <= 0 {
		return 0, fmt.Errorf("seal: data key id: expected a positive number, got %d: %w", id, ErrAltered)
	}
	return id, nil
}

// Seal encrypts plain under the newest data key. The name is authenticated and
// not stored: content opens only under the name it was sealed with, so that
// nobody who can write to the database can move it to another.
func (b *Box) Seal(name string, plain []byte) ([]byte, error) {
	if len(plain) > MaxPlain {
		return nil, fmt.Errorf("seal: %.200q: expected at most %d bytes, got %d", name, MaxPlain, len(plain))
	}
	r := b.ring.Load()
	aead := r.keys[r.newest]
	if aead == nil {
		return nil, errors.New("seal: the box holds no data key")
	}
	out := make([]byte, header, Overhead+len(plain))
	out[0] = version
	binary.BigEndian.PutUint64(out[1:9], uint64(r.newest)) // ids are positive, see Add
	nonce := out[9:header]
	if _, err := io.ReadFull(b.rand, nonce); err != nil {
		return nil, fmt.Errorf("seal: random nonce: %w", err)
	}
	return aead.Seal(out, nonce, plain, []byte(boxDomain+name)), nil
}

// Open decrypts sealed content. It returns [ErrUnknownKey] when the box lacks
// the key, and [ErrAltered] for everything that was not sealed under name.
func (b *Box) Open(name string, sealed []byte) (secret.Bytes, error) {
	id, err := KeyOf(sealed)
	if err != nil {
		return secret.Bytes{}, err
	}
	aead := b.ring.Load().keys[id]
	if aead == nil {
		return secret.Bytes{}, fmt.Errorf("seal: %w %d", ErrUnknownKey, id)
	}
	plain, err := aead.Open(nil, sealed[9:header], sealed[header:], []byte(boxDomain+name))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("seal: %w", ErrAltered)
	}
	return secret.New(plain), nil
}
