package explain

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/release"
)

const claims = `{"submods":{
"cpu0":{"ear.status":"warning","ear.appraisal-policy-id":"default","ear.trustworthiness-vector":{"hardware":32,"executables":33},
 "ear.veraison.annotated-evidence":{"simulated":true,"init_data":"abab"},
 "ear.coffer.findings":[{"affects":"executables","rule":"snp.launch-measurement","claim":"measurement","expected":"[A]","got":"X"}]},
"gpu0":{"ear.status":"affirming","ear.appraisal-policy-id":"lenient","ear.trustworthiness-vector":{"hardware":2},"ear.veraison.annotated-evidence":{"simulated":false}}}}`

const data = `{"plugin":"resource","resource-path":["demo","key","1"],"query":{},
"coffer":{"tenant":"default","registered_initdata":["cdcd"],"registered_description":"[cdcd]","allow_simulated":true}}`

func explained(t *testing.T, text string) Report {
	t.Helper()
	r, err := Explain(t.Context(), Input{Label: "p@1", Text: text, Claims: json.RawMessage(claims), Data: json.RawMessage(data)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// at is the line of the built-in policy that holds a text.
func at(t *testing.T, text string) string {
	t.Helper()
	before, _, ok := strings.Cut(release.DefaultPolicy(), text)
	if !ok {
		t.Fatalf("the built-in policy has no %q", text)
	}
	b, _ := json.Marshal(1 + strings.Count(before, "\n"))
	return "line " + string(b) + ": "
}

func TestBuiltInPolicy(t *testing.T) {
	t.Parallel()
	r := explained(t, release.DefaultPolicy())
	want := []string{
		at(t, `value <= 31`) + `value <= 31: but value is 33 (every vector(submod), for "executables") (every input.submods, for "cpu0")`,
		at(t, `submod["ear.appraisal-policy-id"] == "default"`) + `submod["ear.appraisal-policy-id"] == "default": but submod["ear.appraisal-policy-id"] is "lenient" (every input.submods, for "gpu0")`,
		at(t, `own_initdata in data`) + `own_initdata in data.coffer.registered_initdata: but own_initdata is "abab", data.coffer.registered_initdata is ["cdcd"]`,
	}
	if diff := cmp.Diff(want, r.Needed); diff != "" {
		t.Error(diff)
	}
	if r.Granted || len(r.Reasons) == 0 || r.Reasons[0].Rule != "appraisal.policy" || len(r.Allow) != 1 || r.Allow[0].Holds || r.Allow[0].Conditions[0].State != Holds {
		t.Errorf("%+v", r)
	}
}

func TestConditions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		needed     []string
	}{
		{"granted", "allow if input.submods.cpu0", nil},
		{"no rule", "other := 1", nil},
		{"value", `allow := input.submods.cpu0["ear.status"] == "affirming"`,
			[]string{`line 2: allow is equal(input.submods.cpu0["ear.status"], "affirming"): but input.submods.cpu0["ear.status"] is "warning"`}},
		{"undefined", "allow if input.submods.dpu0.ok", []string{`line 2: input.submods.dpu0.ok: but input.submods.dpu0.ok is undefined`}},
		{"negation", "allow if not bad\nbad if input.submods.cpu0", []string{`line 2: not bad: but bad is true`}},
		{"the nearest of two", "allow if {\n1 == 2\n2 == 3\n}\nallow if data.query.a == \"b\"", []string{`line 6: data.query.a == "b": but data.query.a is undefined`}},
		{"a variable", "allow if {\nx := input.submods.cpu0\nx.n == 1\n}", []string{`line 4: x.n == 1: but x.n is undefined`}},
		{"a variable of a failed condition", "allow if {\nx := input.submods.dpu0\nx.n == 1\n}", []string{`line 3: x := input.submods.dpu0: but input.submods.dpu0 is undefined`}},
		{"some", "allow if {\nsome n, m in input.submods\nm[\"ear.status\"] == \"none\"\n}", []string{`line 4: m["ear.status"] == "none": but m["ear.status"] is "warning"`}},
		{"set and array", "s := {\"a\"}\nallow if {\nevery x in s { x == \"b\" }\nevery x in [1, 2] { x > 1 }\n}",
			[]string{`line 4: x == "b": but x is "a" (every s, for "a")`, `line 5: x > 1: but x is 1 (every [1, 2], for 0)`}},
		{"by another rule", "allow if ok(1)\nok(x) if x == input.n\nok(\"a\")", []string{`line 3: x == input.n: but x is 1, input.n is undefined`}},
		{"else", "allow if kind == \"b\"\nkind := \"a\" if input.submods.cpu0\nelse := \"b\"", []string{`line 2: kind == "b": but kind is "a"`}},
		{"a rule that is false", "allow if ok\ndefault ok := false\nok if data.plugin == \"pki\"", []string{`line 4: data.plugin == "pki": but data.plugin is "resource"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := explained(t, "package policy\n"+tc.text)
			if diff := cmp.Diff(tc.needed, r.Needed); diff != "" {
				t.Error(diff)
			}
			if r.Granted != (tc.name == "granted") {
				t.Errorf("%+v", r)
			}
			for _, rule := range r.Allow {
				if rule.Holds && !r.Granted {
					t.Errorf("a rule holds, and nothing is granted: %+v", rule)
				}
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	_, err := Explain(t.Context(), Input{Label: "p", Text: "package policy\nallow if http.send({})", Claims: json.RawMessage(claims), Data: json.RawMessage(data)})
	if _, ok := errors.AsType[*policy.CompileError](err); !ok {
		t.Errorf("got %v, want a *policy.CompileError", err)
	}
	slow := "package policy\nallow if count([1 | some a in n; some b in n; some c in n; some d in n; a+b+c+d < 0]) == 1\nn := [" + strings.Repeat("1,", 300) + "1]"
	start := time.Now()
	if r, err := Explain(t.Context(), Input{Label: "p", Text: slow, Claims: json.RawMessage(claims), Data: json.RawMessage(data), Timeout: 100 * time.Millisecond}); err == nil {
		t.Errorf("slow: got %+v, want an error", r)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	for _, in := range []Input{{Text: "package policy"}, {Text: "package policy", Claims: json.RawMessage(claims)}, {Text: "package policy", Claims: json.RawMessage(claims), Data: json.RawMessage(`[]`)}} {
		if r, err := Explain(t.Context(), in); err == nil {
			t.Errorf("%s: got %+v, want an error", in.Data, r)
		}
	}
}

func FuzzExplain(f *testing.F) {
	f.Add("allow if input.submods.cpu0", claims, data)
	f.Add("allow if every x in input { x == 1 }\ndeny := 1", `{"a":1}`, `{}`)
	f.Add("allow := f(input)\nf(x) := x.a if x", `{"a":1}`, `{"plugin":"x"}`)
	f.Add(strings.TrimPrefix(release.DefaultPolicy(), "package policy"), claims, data)
	f.Fuzz(func(t *testing.T, text, claims, data string) {
		r, err := Explain(t.Context(), Input{Label: "f", Text: "package policy\n" + text, Claims: json.RawMessage(claims), Data: json.RawMessage(data), Timeout: time.Second})
		if err == nil && r.Granted && len(r.Needed) > 0 {
			t.Errorf("%+v", r)
		}
	})
}

// A condition that the decision itself never came to is as bounded as the rest.
func TestBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 60_000)
	r := explained(t, "package policy\ndefault allow := false\nallow if {\n\tinput.nothing\n\tconcat(\""+long+"\", split(\""+long+"\", \"\")) == \"\"\n\thuge\n}\nhuge if concat(\""+
		long+"\", split(\""+long+"\", \"\")) == \"\"\n")
	for _, c := range r.Allow[0].Conditions[1:] {
		if c.State != Unknown {
			t.Errorf("line %d: %s", c.Line, c.State)
		}
	}
}

// A rule with the name of a builtin is the policy's own.
func TestOwnBuiltin(t *testing.T) {
	t.Parallel()
	r := explained(t, "package policy\ndefault allow := false\nallow if {\n\tinput.nothing\n\treplace(1, 2, 3)\n}\nreplace(_, _, c) if c == 3\n")
	if got := r.Allow[0].Conditions[1].State; got != Holds {
		t.Errorf("got %s", got)
	}
}
