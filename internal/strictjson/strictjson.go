// Package strictjson decodes JSON documents that security depends on.
//
// encoding/json is lenient in ways that let two readers of one document see
// two different things: it takes the last of duplicate names, matches names
// without regard to case, ignores unknown ones, replaces broken text by
// U+FFFD, and pads or cuts fixed-size arrays. [Decode] refuses all of that,
// and says where in the document the problem is.
package strictjson

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// What a zero field of [Limits] stands for.
const (
	DefaultBytes = 1 << 20
	DefaultDepth = 32
)

// Limits bound a document. A zero or negative field means its default, never
// "no limit".
type Limits struct {
	// Bytes is the greatest length of the document.
	Bytes int
	// Depth is how deep arrays and objects may nest; a scalar has depth 0.
	Depth int
}

// Error is a document that was refused. It never holds a value of the
// document, only names: values may be secret.
type Error struct {
	// Path is where the problem is, for example containers[0].env.MODE; it is
	// empty for the document as a whole.
	Path string
	// Offset is the byte at which reading stopped.
	Offset int
	// Problem is what is wrong there.
	Problem string

	elems []string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("JSON document, byte %d: %s", e.Offset, e.Problem)
	}
	return fmt.Sprintf("JSON %s, byte %d: %s", e.Path, e.Offset, e.Problem)
}

// Decode parses exactly one JSON value (RFC 8259) from data and replaces *v by
// it. v must be a non-nil pointer; when an error is returned, *v is unchanged.
//
// Refused with an [*Error] that names the path: names that occur twice, names
// that are not a field of the Go struct (letter case matters), text that is
// not UTF-8 or has unpaired surrogate escapes, null for anything but a
// pointer, slice, map or interface, a JSON type that does not fit the Go type,
// a fixed-size array of another length, anything after the value, and a
// document beyond limits.
//
// A type with its own UnmarshalJSON is handed its part of the document after
// that part has been checked for everything but the names and types it
// expects; it must use Decode again for those. Its error gets the path of that
// part, and it is called more than once for one value.
func Decode(data []byte, v any, limits Limits) error {
	target := reflect.ValueOf(v)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return fmt.Errorf("strictjson: Decode needs a non-nil pointer, got %T", v)
	}
	if limits.Bytes <= 0 {
		limits.Bytes = DefaultBytes
	}
	if limits.Depth <= 0 {
		limits.Depth = DefaultDepth
	}
	if len(data) > limits.Bytes {
		return &Error{Offset: limits.Bytes, Problem: fmt.Sprintf("longer than the limit of %d bytes", limits.Bytes)}
	}
	w := walker{data: data, maxDepth: limits.Depth, fields: map[reflect.Type]map[string]reflect.Type{}}
	if err := w.document(target.Type().Elem()); err != nil {
		return err
	}
	fresh := reflect.New(target.Type().Elem())
	if err := json.Unmarshal(data, fresh.Interface()); err != nil {
		// Hardly anything is left for encoding/json to refuse: bad base64,
		// and strings that should hold a number.
		return unmarshalError(err)
	}
	target.Elem().Set(fresh.Elem())
	return nil
}
