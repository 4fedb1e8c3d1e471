// Package secret holds values that must not be printed. A [Bytes] redacts
// itself in every formatting verb, in JSON and in logs; its content is reached
// only through [Bytes.Expose], which is easy to search for.
package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// Redacted is what a secret prints as.
const Redacted = "[redacted]"

// Bytes is a secret byte string. The zero value is an empty secret. It is not
// comparable with ==; use [Bytes.Equal].
type Bytes struct {
	_ [0]func()
	b []byte
}

// New takes ownership of b.
func New(b []byte) Bytes { return Bytes{b: b} }

// Expose returns the content, not a copy.
func (s Bytes) Expose() []byte { return s.b }

// Len is the content's length in bytes.
func (s Bytes) Len() int { return len(s.b) }

// Equal compares in constant time for equal lengths.
func (s Bytes) Equal(t Bytes) bool { return subtle.ConstantTimeCompare(s.b, t.b) == 1 }

// Clear overwrites the content with zeros.
func (s Bytes) Clear() { clear(s.b) }

// Format implements fmt.Formatter: every verb prints the redaction.
func (s Bytes) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// String implements fmt.Stringer.
func (s Bytes) String() string { return Redacted }

// MarshalText implements encoding.TextMarshaler, and so JSON.
func (s Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// LogValue implements slog.LogValuer.
func (s Bytes) LogValue() slog.Value { return slog.StringValue(Redacted) }
