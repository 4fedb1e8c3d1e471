package policy

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReferenceUses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, body string
		want       []Use
	}{
		{"in", `a if input.x in query_reference_value("r")`, []Use{{"r", List, 3}}},
		{"not in", `a if not input.x in query_reference_value("r")`, []Use{{"r", List, 3}}},
		{"some in", `a if { some x in query_reference_value("r"); x == input.x }`, []Use{{"r", List, 3}}},
		{"some key in", "a if {\n some i, x in query_reference_value(\"r\")\n x == i }", []Use{{"r", List, 4}}},
		{"every", `a if every x in query_reference_value("r") { x != input.x }`, []Use{{"r", List, 3}}},
		{"index", `a if query_reference_value("r")[_] == input.x`, []Use{{"r", List, 3}}},
		{"equal", `a if input.x == query_reference_value("r")`, []Use{{"r", Scalar, 3}}},
		{"equal, other side", `a if query_reference_value("r") == 5`, []Use{{"r", Scalar, 3}}},
		{"at least", `a if input.x >= query_reference_value("r")`, []Use{{"r", Scalar, 3}}},
		{"sum", `a if input.x == query_reference_value("r") + 1`, []Use{{"r", Scalar, 3}}},
		{"unified", `a if input.x = query_reference_value("r")`, []Use{{"r", Scalar, 3}}},
		{"variable in", "a if {\n v := query_reference_value(\"r\")\n input.x in v\n}", []Use{{"r", List, 5}}},
		{"variable equal", "a if {\n v := query_reference_value(\"r\")\n input.x == v\n}", []Use{{"r", Scalar, 5}}},
		{"variable index", "a if {\n v := query_reference_value(\"r\")\n input.x == v[_]\n}", []Use{{"r", List, 5}}},
		{"rule", "v := query_reference_value(\"r\")\na if input.x in v", []Use{{"r", List, 4}}},
		{"comprehension", `a := [x | x := input.y[_]; x in query_reference_value("r")]`, []Use{{"r", List, 3}}},
		{"both", "a if input.x in query_reference_value(\"r\")\nb if input.x == query_reference_value(\"s\")", []Use{{"r", List, 3}, {"s", Scalar, 4}}},
		{"else", "a := 1 if input.x in query_reference_value(\"r\")\nelse := 2 if input.y == query_reference_value(\"s\")", []Use{{"r", List, 3}, {"s", Scalar, 4}}},
		{"null", `a if query_reference_value("r") != null`, nil},
		{"type asked", "a if {\n v := query_reference_value(\"r\")\n is_array(v)\n input.x in v\n}", nil},
		{"name unknown", `a if input.x in query_reference_value(input.name)`, nil},
		{"handed on", `a if count(query_reference_value("r")) > 0`, nil},
		{"contains", `a if reference_value_contains("r", input.x)`, nil},
		{"list compared", `a if query_reference_value("r") == [1]`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := ReferenceUses("p.rego", "package policy\nimport rego.v1\n"+tc.body)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := ReferenceUses("p.rego", "package other"); err == nil {
		t.Error("other package: want an error")
	} else if _, ok := errors.AsType[*CompileError](err); !ok {
		t.Errorf("got %v, want a *CompileError", err)
	}
}

func FuzzReferenceUses(f *testing.F) {
	f.Add("package policy\na if input.x in query_reference_value(\"r\")")
	f.Add("package policy\na if { v := query_reference_value(\"r\"); every x in v { x == v[_] } }")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ReferenceUses("f.rego", text)
		if err != nil && list != nil {
			t.Errorf("uses %v beside error %v", list, err)
		}
	})
}
