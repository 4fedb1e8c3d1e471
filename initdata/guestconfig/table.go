package guestconfig

import (
	"maps"
	"reflect"
	"slices"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// table reads a TOML table key by key. What is left at the end is unknown.
// A nil map stands for a table that is absent: every key of it is, too.
type table struct {
	r    *reader
	name string // file, or file and dotted path
	top  bool
	left map[string]any
}

// file decodes a whole file.
func (r *reader) file(name, text string) *table {
	t := &table{r: r, name: name, top: true}
	m, err := boundedtoml.Decode([]byte(text), initdata.MaxBytes)
	if err != nil {
		r.fail(name, "%v", err)
		return t
	}
	t.left = m
	return t
}

// where names a key for messages.
func (t *table) where(key string) string {
	key = clip(key)
	if t.top {
		return t.name + ": " + key
	}
	return t.name + "." + key
}

// take removes and returns a key.
func (t *table) take(key string) (any, bool) {
	v, ok := t.left[key]
	delete(t.left, key)
	return v, ok
}

// take1 removes a key that must have type T.
func take1[T any](t *table, key, want string) (T, bool) {
	v, ok := t.take(key)
	if !ok {
		var zero T
		return zero, false
	}
	x, ok := v.(T)
	if !ok {
		t.r.fail(t.where(key), "expected %s, got %s", want, kind(v))
	}
	return x, ok
}

func (t *table) str(key string) string {
	s, _ := take1[string](t, key, "a string")
	return s
}

func (t *table) sub(key string) *table {
	m, _ := take1[map[string]any](t, key, "a table")
	return &table{r: t.r, name: t.where(key), left: m}
}

// tables reads an array of tables in either of TOML's spellings.
func (t *table) tables(key string) []*table {
	v, ok := t.take(key)
	if !ok {
		return nil
	}
	var out []*table
	add := func(m map[string]any) { out = append(out, &table{r: t.r, name: t.where(key), left: m}) }
	switch v := v.(type) {
	case []map[string]any:
		for _, m := range v {
			add(m)
		}
		return out
	case []any:
		for _, e := range v {
			m, ok := e.(map[string]any)
			if !ok {
				t.r.fail(t.where(key), "expected an array of tables, got one with %s", kind(e))
				return nil
			}
			add(m)
		}
		return out
	}
	t.r.fail(t.where(key), "expected an array of tables, got %s", kind(v))
	return nil
}

// strs reads an array of strings.
func (t *table) strs(key string) []string {
	v, _ := take1[[]any](t, key, "an array of strings")
	var out []string
	for i, e := range v {
		s, ok := e.(string)
		if !ok {
			t.r.fail(t.where(key), "entry %d: expected a string, got %s", i+1, kind(e))
			continue
		}
		out = append(out, s)
	}
	return out
}

// notYet refuses a key that the guest components know and Coffer does not
// honour, unless its value is one that changes nothing.
func (t *table) notYet(key, why string, neutral ...any) {
	v, ok := t.take(key)
	if !ok {
		return
	}
	for _, n := range neutral {
		if reflect.DeepEqual(v, n) {
			return
		}
	}
	t.r.fail(t.where(key), "is not honoured by Coffer's guest (%s): remove it", why)
}

// done refuses what nobody took.
func (t *table) done() {
	for _, key := range slices.Sorted(maps.Keys(t.left)) {
		t.r.fail(t.where(key), "unknown key")
	}
}

// kind names the type of a TOML value.
func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64, float64:
		return "a number"
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "an array"
	}
	return "a date or time"
}
