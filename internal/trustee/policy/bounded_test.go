package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A few lines of Rego must not take all memory.
func TestResultsAreBounded(t *testing.T) {
	t.Parallel()
	chain := func(first string, next func(x string) string) string {
		text := "a0 := " + first + "\n"
		name := "a0"
		for i := range 40 {
			to := "a" + strings.Repeat("x", i+1)
			text += to + " := " + next(name) + "\n"
			name = to
		}
		return text + "allow if count(" + name + ") > 0"
	}
	same := func(f string) func(string) string {
		return func(x string) string { return strings.ReplaceAll(f, "X", x) }
	}
	for name, text := range map[string]string{
		"replace":        chain(`"aaaaaaaaaaaaaaaa"`, same(`replace(X, "a", X)`)),
		"replace empty":  chain(`"aaaaaaaaaaaaaaaa"`, same(`replace(X, "", X)`)),
		"replace_n":      chain(`"aaaaaaaaaaaaaaaa"`, same(`strings.replace_n({"a": X}, X)`)),
		"regex":          chain(`"aaaaaaaaaaaaaaaa"`, same(`regex.replace(X, "a", X)`)),
		"regex groups":   chain(`"aaaaaaaaaaaaaaaa"`, same(`regex.replace(X, "a+", "$0$0$0$0")`)),
		"concat":         chain(`"aaaaaaaaaaaaaaaa"`, same(`concat(X, [X, X, X])`)),
		"delimiter":      chain(`"aaaaaaaaaaaaaaaa"`, same(`concat(X, split(X, ""))`)),
		"sprintf":        chain(`"aaaaaaaaaaaaaaaa"`, same(`sprintf("%s%[1]s%[1]s%[1]s", [X])`)),
		"sprintf quoted": chain(`"\u0001aaaaaaaaaa"`, same(`sprintf("%+q", [X])`)),
		"width":          `allow if sprintf("` + strings.Repeat("%999999d", 100) + `", [1]) != ""`,
		"precision":      `allow if sprintf("` + strings.Repeat("%.999999f", 100) + `", [1]) != ""`,
		"star":           `allow if sprintf("` + strings.Repeat("%[1]*[1]d", 100) + `", [999999]) != ""`,
		"array":          chain(`[1, 2, 3]`, same(`array.concat(X, X)`)),
		"flatten":        chain(`[1, 2, 3]`, same(`array.flatten([X, X, X])`)),
		"hex":            chain(`"aaaaaaaaaaaaaaaa"`, same(`hex.encode(X)`)),
		"query":          chain(`"%"`, same(`urlquery.encode(sprintf("%s%s", [X, X]))`)),
		"json":           chain(`"\""`, same(`json.marshal(X)`)),
		"template":       chain(`"aaaaaaaaaaaaaaaa"`, same("$\"{X}{X}\"")),
		"product":        `allow if product([` + strings.Repeat("1e29999,", 25_000) + `1]) == 0`,
		"squares":        chain(`[1e300]`, same(`[X[0] * X[0]]`)),
		"inverses":       chain(`[1e300]`, same(`[X[0] / (1 / X[0])]`)),
		"split":          chain(`"aaaaaaaaaaaaaaaa"`, same(`concat("", split(concat("", [X, X]), ""))`)),
		"nested":         `allow if count([1 | some x in ["` + strings.Repeat("a", 5000) + `"]; count(replace(x, "a", x)) > 0]) == 1`,
		"stand-in":       `allow if replace("` + strings.Repeat("a", 5000) + `", "", "b") != "" with replace as concat2` + "\n" + `concat2(x, _, _) := replace(x, "a", x)`,
	} {
		p, err := Compile(t.Context(), Options{Name: "p.rego", Text: "package policy\n" + text, Rules: []string{"allow"}, Timeout: 20 * time.Second})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got bool
		if _, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, &got); err == nil || !strings.Contains(err.Error(), "expected at most 16777216") || got {
			t.Errorf("%s: got %v, %.300v", name, got, err)
		}
	}
}

// Within the bound everything is as it was.
func TestBoundedFunctionsAreTheLibrarys(t *testing.T) {
	t.Parallel()
	p := compile(t, `package policy
import data.policy.shadow as concat_of
allow if {
	replace("abc", "b", "x") == "axc"
	strings.replace_n({"a": "1", "b": "2"}, "abc") == "12c"
	regex.replace("foo", "(o)", "$1$1") == "foooo"
	sprintf("%s %5d %v %%", ["a", 3, {"b": [1]}]) == "a     3 {\"b\": [1]} %"
	concat(", ", ["a", "b"]) == "a, b"
	concat("", {"a"}) == "a"
	array.concat([1], [2]) == [1, 2]
	hex.encode("a") == "61"
	json.marshal({"a": 1}) == "{\"a\":1}"
	urlquery.encode("a b") == "a+b"
	count(concat("", ["a", "b"])) == 2
	own_strings
	stand_in("x") == "mocked" with replace as mock
	format("x") == "own"
	concat_of == 7
	not sprintf("%d", [1]) == "2"
	[concat("", [x, y]) | some x in ["a"]; some y in ["b", "c"]] == ["ab", "ac"]
}
own_strings if { some strings in [{"replace_n": 1}]; strings.replace_n == 1 }
shadow := 7
mock(_, _, _) := "mocked"
stand_in(x) := replace(x, "a", "b")
format(x) := y if { hex := {"encode": "own"}; y := hex.encode; x }
`, nil)
	var got bool
	if ok, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, &got); err != nil || !ok || !got {
		t.Errorf("%v, %v, %v", got, ok, err)
	}
	// A mistake stays an error, or undefined, as it was.
	for _, text := range []string{`allow if concat(1, input.a)`, `allow if replace("a", input.a, "b")`, `allow if sprintf(input.a, 1)`} {
		p, err := Compile(t.Context(), Options{Name: "p.rego", Text: "package policy\n" + text, Rules: []string{"allow"}})
		if err != nil {
			continue
		}
		if _, err := p.Eval(t.Context(), "allow", input(t, `{"a": 1}`), nil, &got); err == nil {
			t.Errorf("%s: want an error", text)
		}
	}
	for name := range estimates() {
		if ast.BuiltinMap[name] == nil || topdown.GetBuiltin(name) == nil {
			t.Errorf("%s is not in this OPA", name)
		}
	}
}
