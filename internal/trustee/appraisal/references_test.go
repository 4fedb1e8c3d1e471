package appraisal

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// counted counts what is asked of it.
type counted struct {
	fakeReferences
	asked atomic.Int32
}

func (c *counted) Reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, bool, error) {
	c.asked.Add(1)
	return c.fakeReferences.Reference(ctx, t, name)
}

func value(t *testing.T, doc string) ast.Value {
	t.Helper()
	v, err := ast.ValueFromReader(strings.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestReferenceFunctions(t *testing.T) {
	t.Parallel()
	later := now.Add(time.Hour)
	mixed := list(`"AbC"`, `23`, `true`, `[1,"x"]`, `"gone"`, `"soon"`, `1e2`)
	mixed.Entries[4].Expires, mixed.Entries[5].Expires = now, later
	source := &counted{fakeReferences: fakeReferences{"mixed": mixed, "scalar": scalar(`5`), "expired": expired(list(`"x"`))}}
	r := newReferences(source)
	call := func(ctx context.Context, f string, args ...string) string {
		t.Helper()
		var values []ast.Value
		for _, a := range args {
			values = append(values, value(t, a))
		}
		v, err := functions()[f].Call(ctx, values)
		if err != nil {
			t.Fatal(err)
		}
		return v.String()
	}
	ctx := r.in(t.Context(), "acme", 1, now)
	for _, tc := range []struct{ f, name, arg, want string }{
		{"query_reference_value", `"mixed"`, "", `["AbC", 23, true, [1, "x"], "soon", 1e2]`},
		{"query_reference_value", `"scalar"`, "", `5`},
		{"query_reference_value", `"expired"`, "", `null`},
		{"query_reference_value", `"none"`, "", `null`},
		{"reference_value_registered", `"expired"`, "", `true`},
		{"reference_value_registered", `"none"`, "", `false`},
		{"describe_reference_value", `"scalar"`, "", `"[5]"`},
		{"reference_value_contains", `"mixed"`, `"aBc"`, `true`},
		{"reference_value_contains", `"mixed"`, `23`, `true`},
		{"reference_value_contains", `"mixed"`, `100`, `true`},
		{"reference_value_contains", `"mixed"`, `"23"`, `false`},
		{"reference_value_contains", `"mixed"`, `[1,"x"]`, `true`},
		{"reference_value_contains", `"mixed"`, `[1,"X"]`, `false`},
		{"reference_value_contains", `"mixed"`, `true`, `true`},
		{"reference_value_contains", `"mixed"`, `false`, `false`},
		{"reference_value_contains", `"mixed"`, `null`, `false`},
		{"reference_value_contains", `"mixed"`, `"gone"`, `false`},
		{"reference_value_contains", `"mixed"`, `"soon"`, `true`},
		{"reference_value_contains", `"scalar"`, `5`, `true`},
		{"reference_value_contains", `"none"`, `null`, `false`},
	} {
		args := []string{tc.name}
		if tc.arg != "" {
			args = append(args, tc.arg)
		}
		if got := call(ctx, tc.f, args...); got != tc.want {
			t.Errorf("%s(%s, %s): got %s, want %s", tc.f, tc.name, tc.arg, got, tc.want)
		}
	}
	if n := source.asked.Load(); n != 4 {
		t.Errorf("asked %d times for 4 names", n)
	}
	// The same generation at a later time: nothing is asked, and what has
	// expired is gone.
	ctx = r.in(t.Context(), "acme", 1, later)
	if got := call(ctx, "reference_value_contains", `"mixed"`, `"soon"`); got != "false" {
		t.Errorf("expired: got %s", got)
	}
	if got := call(ctx, "query_reference_value", `"mixed"`); got != `["AbC", 23, true, [1, "x"], 1e2]` {
		t.Errorf("expired: got %s", got)
	}
	if n := source.asked.Load(); n != 4 {
		t.Errorf("asked again: %d", n)
	}
	// Another generation and another tenant are asked for.
	source.fakeReferences["scalar"] = scalar(`6`)
	if got := call(r.in(t.Context(), "acme", 2, now), "query_reference_value", `"scalar"`); got != "6" {
		t.Errorf("next generation: got %s", got)
	}
	call(r.in(t.Context(), "other", 2, now), "query_reference_value", `"scalar"`)
	if n := source.asked.Load(); n != 6 {
		t.Errorf("asked %d times, want 6", n)
	}
	// An appraisal that began before the change does not bring the old value back.
	call(ctx, "query_reference_value", `"scalar"`)
	if got := call(r.in(t.Context(), "acme", 2, now), "query_reference_value", `"scalar"`); got != "6" {
		t.Errorf("after an older one: got %s", got)
	}
	if _, err := functions()["query_reference_value"].Call(t.Context(), []ast.Value{ast.String("x")}); err == nil {
		t.Error("outside an appraisal: want an error")
	}
	if _, err := functions()["query_reference_value"].Call(ctx, []ast.Value{ast.String("broken")}); err == nil {
		t.Error("store is down: want an error")
	}
}

// What is kept ready is bounded by the number of values, and gives way to
// what is used.
func TestReferencesBounded(t *testing.T) {
	t.Parallel()
	source := fakeReferences{}
	r := newReferences(source)
	ctx := r.in(t.Context(), "acme", 1, now)
	for i := range 20 {
		name := string(rune('a' + i))
		source[name] = manyValues(5000)
		v, err := functions()["reference_value_contains"].Call(ctx, []ast.Value{ast.String(name), ast.String("aabb")})
		if err != nil || v != ast.Boolean(true) {
			t.Fatalf("%s: %v, %v", name, v, err)
		}
		if sum := len(r.cached) * 5001; r.size != sum || sum > maxCached {
			t.Errorf("size %d, %d references", r.size, len(r.cached))
		}
	}
}
