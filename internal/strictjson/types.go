package strictjson

import (
	"encoding"
	"encoding/json"
	"iter"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// receiver follows pointers and returns the type that a value is checked
// against (nil: anything), and whether null may stand for it.
func receiver(t reflect.Type) (reflect.Type, bool) {
	nullable := false
	for t != nil {
		switch {
		case t.Kind() == reflect.Pointer:
			nullable = true
			t = t.Elem()
		case opaque(t):
			return t, true
		case t.Kind() == reflect.Interface:
			return nil, true
		case t.Kind() == reflect.Slice, t.Kind() == reflect.Map:
			return t, true
		default:
			return t, nullable
		}
	}
	return nil, true
}

// opaque types decode themselves.
func opaque(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// isStringLike: strings, byte slices (base64) and types that read themselves
// from text.
func isStringLike(t reflect.Type) bool {
	return t.Kind() == reflect.String || isText(t) ||
		t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
}

func isNumber(t reflect.Type) bool {
	if isText(t) {
		return false
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr,
		reflect.Float32, reflect.Float64:
		return true
	}
	// json.Number is a string kind that takes numbers.
	return t == reflect.TypeFor[json.Number]()
}

// inRange reports whether the number is one of type t.
func inRange(t reflect.Type, number string) bool {
	var err error
	switch {
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64:
		_, err = strconv.ParseInt(number, 10, t.Bits())
	case t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uintptr:
		_, err = strconv.ParseUint(number, 10, t.Bits())
	case t.Kind() == reflect.Float32, t.Kind() == reflect.Float64:
		_, err = strconv.ParseFloat(number, t.Bits())
	}
	return err == nil
}

func describe(t reflect.Type) string {
	switch {
	case isText(t) || t.Kind() == reflect.String:
		return "a string"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Struct || t.Kind() == reflect.Map:
		return "an object"
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return "a base64 string or an array of bytes"
	case t.Kind() == reflect.Slice || t.Kind() == reflect.Array:
		return "an array"
	case isNumber(t):
		return "a number (" + t.Kind().String() + ")"
	}
	return t.Kind().String()
}

// structFields lists the JSON names of a struct as encoding/json has them.
func (w *walker) structFields(t reflect.Type) map[string]reflect.Type {
	if known, ok := w.fields[t]; ok {
		return known
	}
	names := map[string]reflect.Type{}
	depth := map[string]int{}
	for f := range visibleFields(t) {
		tag, tagged := f.Tag.Lookup("json")
		name, options, _ := strings.Cut(tag, ",")
		if tag == "-" || !f.IsExported() && !f.Anonymous {
			continue
		}
		if f.Anonymous && name == "" && isStruct(f.Type) {
			continue // its fields are visible by themselves
		}
		if !f.IsExported() {
			continue
		}
		if !tagged || name == "" {
			name = f.Name
		}
		ft := f.Type
		if hasOption(options, "string") {
			ft = nil // a number or boolean inside a string; encoding/json checks it
		}
		// The shallowest field of a name wins.
		if d, ok := depth[name]; !ok || len(f.Index) < d {
			names[name], depth[name] = ft, len(f.Index)
		}
	}
	w.fields[t] = names
	return names
}

// visibleFields are those that reflect.VisibleFields returns, which takes much
// memory for what it does where nothing is embedded.
func visibleFields(t reflect.Type) iter.Seq[reflect.StructField] {
	for f := range t.Fields() {
		if f.Anonymous {
			return slices.Values(reflect.VisibleFields(t))
		}
	}
	return t.Fields()
}

func isStruct(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct
}

func hasOption(options, want string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == want {
			return true
		}
	}
	return false
}
