// Package memo remembers what was verified once and does not change:
// that a chip's certificate chains to a root, that a key signed a blob. Only
// successes are remembered, for as long as every certificate involved is valid.
//
// A key is the digest of everything that the verdict rests on, the root and the
// revocation lists among it: with another root or a newer list the question is
// another one, and is asked anew.
package memo

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// Key identifies a question.
type Key [sha256.Size]byte

// KeyOf is the digest of the parts; where one ends and the next begins counts.
func KeyOf(parts ...[]byte) Key {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return Key(h.Sum(nil))
}

// Memo holds verdicts. It is safe for concurrent use.
type Memo[V any] struct {
	limit int
	mu    sync.RWMutex
	known map[Key]entry[V]
}

type entry[V any] struct {
	value    V
	from, to time.Time
}

// New returns a memo of at most limit verdicts.
func New[V any](limit int) *Memo[V] { return &Memo[V]{limit: limit, known: map[Key]entry[V]{}} }

// Get returns the verdict that is valid now.
func (m *Memo[V]) Get(k Key, now time.Time) (V, bool) {
	m.mu.RLock()
	e, ok := m.known[k]
	m.mu.RUnlock()
	if !ok || now.Before(e.from) || now.After(e.to) {
		var zero V
		return zero, false
	}
	return e.value, true
}

// Put remembers a verdict that holds between from and to. When the memo is full
// another verdict is forgotten.
func (m *Memo[V]) Put(k Key, from, to time.Time, v V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.known[k]; !ok && len(m.known) >= m.limit {
		for other := range m.known {
			delete(m.known, other)
			break
		}
	}
	m.known[k] = entry[V]{v, from, to}
}
