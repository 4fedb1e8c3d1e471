package config

import (
	"reflect"
	"testing"
)

// keys lists every key of the configuration with its tables.
func keys(t *testing.T) []string {
	t.Helper()
	var out []string
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for f := range typ.Fields() {
			name := prefix + f.Tag.Get("toml")
			switch k := f.Type.Kind(); {
			case f.Anonymous:
				walk(prefix, f.Type)
			case k == reflect.Struct:
				walk(name+".", f.Type)
			case k == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				walk(name+"[].", f.Type.Elem())
			case k == reflect.Map && f.Type.Elem() == reflect.TypeFor[PKIRole]():
				walk(name+".NAME.", f.Type.Elem())
			default:
				out = append(out, name)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	if len(out) < 100 {
		t.Fatalf("only %d keys", len(out))
	}
	return out
}
