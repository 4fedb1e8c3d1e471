package appraisal

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

func scalar(v string) refvalues.Reference {
	return refvalues.Reference{Scalar: true, Entries: []refvalues.Entry{{Value: json.RawMessage(v)}}}
}

func TestCheckPolicy(t *testing.T) {
	t.Parallel()
	e := New(Options{Policies: fakePolicies{}, Now: func() time.Time { return now }, References: fakeReferences{
		"list": list(`"a"`), "scalar": scalar(`5`), "array": scalar(`[1]`),
	}})
	for _, tc := range []struct {
		name, body string
		// want are parts of the error; none means that the text is good.
		want []string
	}{
		{name: "good", body: "default hardware := 97\nhardware := 2 if input.x in query_reference_value(\"list\")\ntrust_claims := {\"hardware\": hardware, \"executables\": 3}"},
		{name: "computed", body: "trust_claims := object.union({\"hardware\": 2}, input.more)"},
		{name: "computed names", body: "trust_claims[k] := v if some k, v in input.vector"},
		{name: "one by one", body: "trust_claims.hardware := 2\ntrust_claims[\"file-system\"] := -1"},
		{name: "unknown name", body: "trust_claims := {\"hardwear\": 2}", want: []string{"line 2", "hardware, instance-identity", `got "hardwear"`}},
		{name: "unknown name, one by one", body: "trust_claims.hardwear := 2", want: []string{"line 2", "hardwear"}},
		{name: "name is no string", body: "trust_claims := {1: 2}", want: []string{"expected one of"}},
		{name: "string", body: "trust_claims := {\"hardware\": \"2\"}", want: []string{"line 2", `"hardware"`, "integer from -128 to 127", `got "2"`}},
		{name: "fraction", body: "trust_claims := {\"hardware\": 2.5}", want: []string{"2.5"}},
		{name: "too large", body: "trust_claims := {\"hardware\": 128}", want: []string{"128"}},
		{name: "boolean, one by one", body: "trust_claims.hardware := true if input.x", want: []string{"true"}},
		{name: "by a rule", body: "default hardware := \"x\"\ntrust_claims := {\"hardware\": hardware}", want: []string{"line 2", `"x"`}},
		{name: "else", body: "hardware := 2 if input.x\nelse := 300\ntrust_claims := {\"hardware\": hardware}", want: []string{"line 3", "300"}},
		{name: "array", body: "trust_claims := [2]", want: []string{"expected an object, got array"}},
		{name: "set", body: "trust_claims contains \"hardware\"", want: []string{"expected an object, got a set"}},
		{name: "function", body: "trust_claims(x) := {\"hardware\": x}", want: []string{"function"}},
		{name: "deep", body: "trust_claims.hardware.x := 1", want: []string{"deeper"}},
		{name: "syntax", body: "trust_claims := ", want: []string{"default_cpu.rego"}},
		{name: "list as scalar", body: "a if input.x == query_reference_value(\"list\")", want: []string{"line 2", `"list"`, "expects a scalar, got a list"}},
		{name: "scalar as list", body: "a if input.x in query_reference_value(\"scalar\")", want: []string{"line 2", `"scalar"`, "expects a list, got a scalar"}},
		{name: "scalar as scalar", body: "a if input.x >= query_reference_value(\"scalar\")"},
		{name: "scalar that is an array", body: "a if input.x in query_reference_value(\"array\")"},
		{name: "nothing registered", body: "a if input.x in query_reference_value(\"new\")"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := e.CheckPolicy(t.Context(), "acme", "default_cpu", "package policy\n"+tc.body)
			if len(tc.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*policy.CompileError](err); !ok {
				t.Fatalf("got %v, want a *policy.CompileError", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
		})
	}
	err := e.CheckPolicy(t.Context(), "acme", "x_cpu", "package policy\na if input.x in query_reference_value(\"broken\")")
	if _, ok := errors.AsType[*policy.CompileError](err); ok || err == nil {
		t.Errorf("store is down: got %v, want an error that is not the text's", err)
	}
}

func TestCheckReference(t *testing.T) {
	t.Parallel()
	e := New(Options{Now: func() time.Time { return now }, References: fakeReferences{}, Policies: fakePolicies{
		"default_cpu": "package policy\na if input.x in query_reference_value(\"r\")\nb if input.y == query_reference_value(\"s\")",
		"broken_cpu":  "package policy\na if",
	}})
	for _, tc := range []struct {
		name string
		ref  refvalues.Reference
		want string
	}{
		{"r", list(`"a"`), ""},
		{"r", scalar(`"a"`), "line 2"},
		{"s", scalar(`"a"`), ""},
		{"s", list(`"a"`), "line 3"},
		{"other", list(`"a"`), ""},
	} {
		tc.ref.Name = tc.name
		err := e.CheckReference(t.Context(), "acme", tc.ref)
		bad, ok := errors.AsType[*TypeError](err)
		if ok != (tc.want != "") || ok && (!strings.Contains(bad.Error(), tc.want) || bad.Policy != "default_cpu") {
			t.Errorf("%s, %s: got %v, want %q", tc.name, kindOf(tc.ref), err, tc.want)
		}
	}
}
