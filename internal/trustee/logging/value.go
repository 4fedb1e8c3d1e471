package logging

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/coffer-project/coffer/secret"
)

// maxDocument is the longest JSON rendering of a value that is looked at.
const maxDocument = 64 << 10

// redactAny makes text, or a JSON document, of a value of any type, redacted.
func redactAny(v any) slog.Value {
	switch v := v.(type) {
	case nil:
		return slog.AnyValue(nil)
	case *slog.Source:
		return slog.AnyValue(v)
	case error:
		return slog.StringValue(Redact(v.Error()))
	case []byte:
		// Bytes are keys or ciphertexts more often than text.
		return slog.StringValue("[" + strconv.Itoa(len(v)) + " bytes]")
	case json.RawMessage:
		return redactJSON(v)
	case json.Marshaler:
		return marshalled(v)
	case encoding.TextMarshaler:
		b, err := v.MarshalText()
		if err != nil {
			return slog.StringValue("[cannot be shown: " + Redact(err.Error()) + "]")
		}
		return slog.StringValue(Redact(string(b)))
	case fmt.Stringer:
		return slog.StringValue(Redact(v.String()))
	}
	return marshalled(v)
}

func marshalled(v any) slog.Value {
	b, err := json.Marshal(v)
	if err != nil {
		// A channel, a function, a cycle: only its type is safe to show.
		return slog.StringValue(fmt.Sprintf("[%T]", v))
	}
	return redactJSON(b)
}

func redactJSON(b []byte) slog.Value {
	if len(b) > maxDocument {
		return slog.StringValue("[JSON, " + strconv.Itoa(len(b)) + " bytes]")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var doc any
	if err := d.Decode(&doc); err != nil {
		return slog.StringValue("[no JSON, " + strconv.Itoa(len(b)) + " bytes]")
	}
	switch doc := redactDocument(doc, 0).(type) {
	case string:
		return slog.StringValue(doc)
	default:
		out, err := json.Marshal(doc)
		if err != nil {
			return slog.StringValue("[cannot be shown]")
		}
		if len(out) > MaxText {
			return slog.StringValue(clip(string(out)))
		}
		return slog.AnyValue(document(out))
	}
}

func redactDocument(v any, depth int) any {
	if depth > maxDepth {
		return secret.Redacted
	}
	switch v := v.(type) {
	case string:
		return Redact(v)
	case []any:
		for i := range v {
			v[i] = redactDocument(v[i], depth+1)
		}
	case map[string]any:
		_, jwk := v["kty"]
		for k, x := range v {
			_, isBool := x.(bool)
			switch {
			case isBool:
			case sensitiveKey(k), jwk && privateMember(k):
				v[k] = secret.Redacted
			default:
				v[k] = redactDocument(x, depth+1)
			}
		}
	}
	return v
}

// privateMember names the private members of a JSON Web Key (RFC 7518 §6,
// RFC 8037 §2).
func privateMember(name string) bool {
	switch name {
	case "d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv", "seed":
		return true
	}
	return false
}

// document is JSON text that prints as itself with every handler.
type document []byte

// MarshalJSON implements json.Marshaler.
func (d document) MarshalJSON() ([]byte, error) { return d, nil }

// MarshalText implements encoding.TextMarshaler.
func (d document) MarshalText() ([]byte, error) { return d, nil }

// String implements fmt.Stringer.
func (d document) String() string { return string(d) }
