package policy

import (
	"fmt"
	"strings"
	"testing"
)

// squares multiplies a number with itself n times, or divides it by its inverse.
func squares(n int, operator string) string {
	var s strings.Builder
	s.WriteString("x0 := 1e300")
	for i := range n {
		if operator == "*" {
			fmt.Fprintf(&s, "; x%d := x%d * x%d", i+1, i, i)
		} else {
			fmt.Fprintf(&s, "; x%d := x%d / (1 / x%d)", i+1, i, i)
		}
	}
	return s.String()
}

// A single call that would take all memory is refused before it is made.
func TestBound(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 60_000)
	for name, expr := range map[string]string{
		"concat":         `concat("` + long + `", split("` + long + `", "")) == ""`,
		"concat a set":   `concat("` + long + `", {sprintf("%d", [i]) | some i, _ in split("` + long + `", "")}) == ""`,
		"width":          `sprintf("` + strings.Repeat("%[1]999999d", 5000) + `", [1]) == ""`,
		"precision":      `sprintf("` + strings.Repeat("%[1].999999f", 5000) + `", [1.5]) == ""`,
		"width by value": `sprintf("` + strings.Repeat("%[1]*[2]d", 5000) + `", [999999, 1]) == ""`,
		"verbs":          `sprintf("` + strings.Repeat("%[1]s", 10_000) + `", ["` + long + `"]) == ""`,
		"a mocked call":  `count(["` + long + `", split("` + long + `", "")]) > 1 with count as f`,
		"a function":     `g("` + long + `", split("` + long + `", "")) == "" with g as concat`,
		"an array":       `count([[y | y := concat("` + long + `", split("` + long + `", ""))]]) == 0`,
		"replace":        `replace("` + long + `", "", "` + long + `") == ""`,
		"replace_n":      `strings.replace_n({"x": "` + long + `"}, "` + long + `") == ""`,
		"regex.replace":  `regex.replace("` + long + `", ".*", "` + strings.Repeat("$0", 30_000) + `") == ""`,
		"split":          `split(concat("", [x | some _ in numbers; x := "` + long + `"]), "") == []`,
		"product":        `product([` + strings.Repeat("1e29999,", 25_000) + `1]) == 0`,
		"squares":        squares(30, "*"),
		"roots":          squares(30, "/"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := "package policy\nf(x) := concat(x[0], x[1])\ng(_, _) := \"\"\nnumbers := [1 | some _ in split(\"" + long[:100] + "\", \"\")]\nallow if { " + expr + " }\n"
			p, err := Compile(t.Context(), Options{Name: "m.rego", Text: text, Rules: []string{"allow"}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, new(bool)); err == nil || !strings.Contains(err.Error(), "characters of text or digits") {
				t.Errorf("got %v", err)
			}
		})
	}
	// It may be written of a function that has the same shape.
	p := compile(t, `package policy
allow if { trim(concat("a", ["b", "c"]), "x") == "bac"; concat(",", ["1"]) == "mock" with concat as g; sprintf("%s-%05d", ["a", 7]) == "a-00007" }
g(_, _) := "mock"`, nil)
	var ok bool
	if _, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, &ok); err != nil || !ok {
		t.Errorf("%v, %v", ok, err)
	}
	if _, err := Compile(t.Context(), Options{Name: "m.rego", Text: "package policy\nallow if bits.lsh(1, 1000) > 0\n", Rules: []string{"allow"}}); err == nil {
		t.Error("a shift that takes all memory was accepted")
	}
}

// The name of a builtin is the policy's own where it defines it.
func TestBoundShadowed(t *testing.T) {
	t.Parallel()
	p := compile(t, `package policy
allow if f("x")
f(concat) if replace(concat, 2, 3) == "x"
replace(x, _, _) := x`, nil)
	var ok bool
	if _, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, &ok); err != nil || !ok {
		t.Errorf("%v, %v", ok, err)
	}
}
