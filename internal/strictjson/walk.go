package strictjson

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// walker goes through a document once, the Go type that is to receive each
// value beside it. A nil type takes everything.
type walker struct {
	data     []byte
	pos      int
	depth    int
	maxDepth int
	path     []step
	fields   map[reflect.Type]map[string]reflect.Type
}

// step leads into a container: to the member of a name, or, where index is not
// negative, to an element. It becomes text only in an error: evidence has
// thousands of array elements.
type step struct {
	name  string
	index int
}

func (w *walker) fail(format string, args ...any) error {
	elems := w.elems()
	return &Error{Path: joinPath(elems), Offset: w.pos, Problem: fmt.Sprintf(format, args...), elems: elems}
}

// elems is the path in the form that joinPath takes.
func (w *walker) elems() []string {
	var out []string
	for _, s := range w.path {
		if s.index < 0 {
			out = append(out, s.name)
		} else {
			out = append(out, "["+strconv.Itoa(s.index)+"]")
		}
	}
	return out
}

func (w *walker) document(t reflect.Type) error {
	if err := w.value(t); err != nil {
		return err
	}
	w.space()
	if w.pos < len(w.data) {
		return w.fail("there is data after the end of the document")
	}
	return nil
}

func (w *walker) space() {
	for w.pos < len(w.data) {
		switch w.data[w.pos] {
		case ' ', '\t', '\n', '\r':
			w.pos++
		default:
			return
		}
	}
}

func (w *walker) peek() byte {
	if w.pos < len(w.data) {
		return w.data[w.pos]
	}
	return 0
}

func (w *walker) value(t reflect.Type) error {
	w.space()
	t, nullable := receiver(t)
	if t != nil && opaque(t) {
		return w.self(t)
	}
	switch c := w.peek(); {
	case c == '{':
		return w.object(t)
	case c == '[':
		return w.array(t)
	case c == '"':
		return w.scalarText(t)
	case c == '-' || c >= '0' && c <= '9':
		start := w.pos
		if err := w.fits(t, "a number", isNumber); err != nil {
			return err
		}
		if err := w.number(); err != nil {
			return err
		}
		if t != nil && !inRange(t, string(w.data[start:w.pos])) {
			return w.fail("the number does not fit in %s", t.Kind())
		}
		return nil
	case c == 't':
		return w.literal(t, "true")
	case c == 'f':
		return w.literal(t, "false")
	case c == 'n':
		if !nullable {
			return w.fail("null is not allowed here")
		}
		return w.literal(nil, "null")
	case w.pos >= len(w.data):
		return w.fail("the document ends where a value should be")
	default:
		return w.fail("a value cannot begin with %q", rune(c))
	}
}

// self lets a type with its own UnmarshalJSON judge its part, so that what it
// finds gets the path of that part.
func (w *walker) self(t reflect.Type) error {
	start := w.pos
	if err := w.value(nil); err != nil {
		return err
	}
	u, ok := reflect.New(t).Interface().(json.Unmarshaler)
	if !ok {
		return w.fail("%s cannot be decoded", t)
	}
	err := u.UnmarshalJSON(w.data[start:w.pos])
	if e, ok := errors.AsType[*Error](err); ok {
		elems := append(w.elems(), e.elems...)
		return &Error{Path: joinPath(elems), Offset: start + e.Offset, Problem: e.Problem, elems: elems}
	}
	if err != nil {
		return w.fail("%s", err)
	}
	return nil
}

func (w *walker) scalarText(t reflect.Type) error {
	if err := w.fits(t, "a string", isStringLike); err != nil {
		return err
	}
	if t == nil || !isText(t) {
		_, err := w.skipText()
		return err
	}
	s, err := w.text()
	if err != nil {
		return err
	}
	if u, ok := reflect.New(t).Interface().(encoding.TextUnmarshaler); ok && u.UnmarshalText([]byte(s)) != nil {
		return w.fail("the text is not a valid %s", t)
	}
	return nil
}
func (w *walker) literal(t reflect.Type, word string) error {
	if !strings.HasPrefix(string(w.data[w.pos:min(len(w.data), w.pos+len(word))]), word) {
		return w.fail("not a JSON value")
	}
	if err := w.fits(t, word, func(t reflect.Type) bool { return t.Kind() == reflect.Bool }); err != nil {
		return err
	}
	w.pos += len(word)
	return nil
}

func (w *walker) enter() error {
	w.depth++
	if w.depth > w.maxDepth {
		return w.fail("nested deeper than the limit of %d", w.maxDepth)
	}
	w.pos++
	return nil
}

func (w *walker) leave() {
	w.depth--
	w.pos++
}

func (w *walker) object(t reflect.Type) error {
	var names map[string]reflect.Type
	var elem reflect.Type
	switch {
	case t == nil:
	case t.Kind() == reflect.Struct:
		names = w.structFields(t)
	case t.Kind() == reflect.Map:
		elem = t.Elem()
	default:
		return w.fail("an object is not allowed here, expected %s", describe(t))
	}
	if err := w.enter(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for w.space(); w.peek() != '}'; w.space() {
		if len(seen) > 0 {
			if w.peek() != ',' {
				return w.fail("expected , or } in the object")
			}
			w.pos++
			w.space()
		}
		if w.peek() != '"' {
			return w.fail("expected a name in the object")
		}
		name, err := w.text()
		if err != nil {
			return err
		}
		w.path = append(w.path, step{name: name, index: -1})
		if seen[name] {
			return w.fail("the name occurs twice in its object")
		}
		seen[name] = true
		if names != nil {
			field, ok := names[name]
			if !ok {
				return w.fail("unknown field%s", suggestion(name, names))
			}
			elem = field
		}
		w.space()
		if w.peek() != ':' {
			return w.fail("expected : after the name")
		}
		w.pos++
		if err := w.value(elem); err != nil {
			return err
		}
		w.path = w.path[:len(w.path)-1]
	}
	w.leave()
	return nil
}

func (w *walker) array(t reflect.Type) error {
	var elem reflect.Type
	length := -1
	switch {
	case t == nil:
	case t.Kind() == reflect.Slice:
		elem = t.Elem()
	case t.Kind() == reflect.Array:
		elem, length = t.Elem(), t.Len()
	default:
		return w.fail("an array is not allowed here, expected %s", describe(t))
	}
	if err := w.enter(); err != nil {
		return err
	}
	n := 0
	for w.space(); w.peek() != ']'; w.space() {
		if n > 0 {
			if w.peek() != ',' {
				return w.fail("expected , or ] in the array")
			}
			w.pos++
		}
		if length >= 0 && n >= length {
			return w.fail("the array has more than %d elements", length)
		}
		w.path = append(w.path, step{index: n})
		if err := w.value(elem); err != nil {
			return err
		}
		w.path = w.path[:len(w.path)-1]
		n++
	}
	if length >= 0 && n != length {
		return w.fail("the array has %d elements, expected %d", n, length)
	}
	w.leave()
	return nil
}

// number checks the grammar of RFC 8259 section 6.
func (w *walker) number() error {
	digits := func() bool {
		start := w.pos
		for c := w.peek(); c >= '0' && c <= '9'; c = w.peek() {
			w.pos++
		}
		return w.pos > start
	}
	if w.peek() == '-' {
		w.pos++
	}
	if w.peek() == '0' {
		w.pos++
	} else if !digits() {
		return w.fail("not a number")
	}
	if w.peek() == '.' {
		w.pos++
		if !digits() {
			return w.fail("not a number")
		}
	}
	if c := w.peek(); c == 'e' || c == 'E' {
		w.pos++
		if c := w.peek(); c == '+' || c == '-' {
			w.pos++
		}
		if !digits() {
			return w.fail("not a number")
		}
	}
	return nil
}

// text reads a string and returns what it means.
func (w *walker) text() (string, error) {
	start := w.pos
	escaped, err := w.skipText()
	if err != nil {
		return "", err
	}
	if !escaped { // every byte was looked at and stands for itself
		return string(w.data[start+1 : w.pos-1]), nil
	}
	var s string
	if err := json.Unmarshal(w.data[start:w.pos], &s); err != nil {
		return "", w.fail("not a JSON string")
	}
	return s, nil
}

// skipText checks a string, and says whether it has escapes. Evidence is mostly
// long strings whose meaning only the decoder needs.
func (w *walker) skipText() (escaped bool, err error) {
	w.pos++
	for w.pos < len(w.data) {
		switch c := w.data[w.pos]; {
		case c == '"':
			w.pos++
			return escaped, nil
		case c == '\\':
			escaped = true
			if err := w.escape(); err != nil {
				return false, err
			}
		case c < 0x20:
			return false, w.fail("control character in a string")
		case c < utf8.RuneSelf:
			w.pos++
		default:
			r, size := utf8.DecodeRune(w.data[w.pos:])
			if r == utf8.RuneError && size == 1 {
				return false, w.fail("the text is not UTF-8")
			}
			w.pos += size
		}
	}
	return false, w.fail("the document ends inside a string")
}

func (w *walker) escape() error {
	if w.pos+1 >= len(w.data) {
		return w.fail("the document ends inside a string")
	}
	if !strings.ContainsRune(`"\/bfnrtu`, rune(w.data[w.pos+1])) {
		return w.fail("unknown escape in a string")
	}
	if w.data[w.pos+1] != 'u' {
		w.pos += 2
		return nil
	}
	switch hi := w.unit(w.pos); {
	case hi < 0:
		return w.fail(`\u needs four hexadecimal digits`)
	case hi >= 0xdc00 && hi < 0xe000:
		return w.fail("unpaired surrogate escape")
	case hi >= 0xd800 && hi < 0xdc00:
		if lo := w.unit(w.pos + 6); lo < 0xdc00 || lo >= 0xe000 {
			return w.fail("unpaired surrogate escape")
		}
		w.pos += 12
	default:
		w.pos += 6
	}
	return nil
}

// unit is the UTF-16 unit of a \uXXXX escape at byte at, or -1.
func (w *walker) unit(at int) int64 {
	if at+6 > len(w.data) || w.data[at] != '\\' || w.data[at+1] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(w.data[at+2:at+6]), 16, 16)
	if err != nil {
		return -1
	}
	return int64(n)
}

func (w *walker) fits(t reflect.Type, what string, ok func(reflect.Type) bool) error {
	if t == nil || ok(t) {
		return nil
	}
	return w.fail("%s is not allowed here, expected %s", what, describe(t))
}

// suggestion names the field that was probably meant.
func suggestion(name string, names map[string]reflect.Type) string {
	for known := range names {
		if strings.EqualFold(known, name) {
			return fmt.Sprintf("; letter case matters: %q", known)
		}
	}
	known := make([]string, 0, len(names))
	for n := range names {
		known = append(known, n)
	}
	slices.Sort(known)
	if len(known) > 24 {
		return ""
	}
	return "; known here: " + strings.Join(known, ", ")
}

func joinPath(elems []string) string {
	var b strings.Builder
	for _, e := range elems {
		switch {
		case strings.HasPrefix(e, "[") && isIndex(e):
			b.WriteString(e)
		case isPlain(e):
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(e)
		default:
			if len(e) > 64 {
				e = e[:64]
			}
			b.WriteString("[" + strconv.QuoteToASCII(e) + "]")
		}
	}
	return b.String()
}

func isIndex(s string) bool {
	s, ok := strings.CutSuffix(strings.TrimPrefix(s, "["), "]")
	_, err := strconv.ParseUint(s, 10, 32)
	return ok && err == nil
}

func isPlain(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func unmarshalError(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		// The error's own text would quote the value.
		return &Error{Path: e.Field, Offset: int(e.Offset), Problem: fmt.Sprintf("the %s does not fit in %s", kindOfValue(e.Value), describe(e.Type))}
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return fmt.Errorf("JSON document: %w", err)
}

func kindOfValue(v string) string {
	kind, _, _ := strings.Cut(v, " ")
	return kind
}
