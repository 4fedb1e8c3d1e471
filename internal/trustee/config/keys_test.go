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
			if f.Type.Kind() == reflect.Struct {
				walk(name+".", f.Type)
				continue
			}
			out = append(out, name)
		}
	}
	walk("", reflect.TypeFor[Config]())
	if len(out) < 30 {
		t.Fatalf("only %d keys", len(out))
	}
	return out
}
