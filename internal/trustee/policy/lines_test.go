package policy

import (
	"testing"
)

const linesPolicy = `package policy

import rego.v1

default executables := 33

executables := 3 if input.good

executables := limit if {
	input.odd
} else := 4 if {
	input.else
}

limit := 7

findings contains {"rule": "a"} if input.bad

findings contains finding if {
	some finding in made
}

findings contains {"rule": "own", "line": "mine"} if input.bad

findings contains make("d") if input.bad

findings contains input.told if input.bad

make(rule) := {"rule": rule}

made := {{"rule": "b"}, {"rule": "c", "x": 1}} if input.bad

blamed contains finding.rule if some finding in findings
`

func TestLines(t *testing.T) {
	p, err := Compile(t.Context(), Options{Name: "p.rego", Text: linesPolicy, Rules: []string{"findings", "blamed"}, Lines: "findings"})
	if err != nil {
		t.Fatal(err)
	}
	in, err := NewInput([]byte(`{"bad": true, "told": {"rule": "e"}}`))
	if err != nil {
		t.Fatal(err)
	}
	var got []struct{ Rule, Line string }
	if _, err := p.Eval(t.Context(), "findings", in, nil, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "p.rego:17", "b": "p.rego:19", "c": "p.rego:19", "own": "mine", "d": "p.rego:25", "e": "p.rego:27"}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for _, f := range got {
		if want[f.Rule] != f.Line {
			t.Errorf("%s: expected line %s, got %s", f.Rule, want[f.Rule], f.Line)
		}
	}
	var blamed []string
	if _, err := p.Eval(t.Context(), "blamed", in, nil, &blamed); err != nil || len(blamed) != 6 {
		t.Errorf("rules that read findings: %v, %v", blamed, err)
	}
}

func TestClauses(t *testing.T) {
	got := Clauses([]Module{{"p.rego", linesPolicy}, {"broken.rego", "package"}}, "executables")
	want := []Clause{
		{"p.rego", 5, "default executables := 33", true, "33"},
		{"p.rego", 7, "executables := 3 if input.good", false, "3"},
		{"p.rego", 9, "executables := limit if {", false, ""},
		{"p.rego", 11, "} else := 4 if {", false, "4"},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("expected %+v, got %+v", want[i], got[i])
		}
	}
	if c := Clauses([]Module{{"p.rego", linesPolicy}}, "findings"); c != nil {
		t.Errorf("a set has no clauses: %+v", c)
	}
}
