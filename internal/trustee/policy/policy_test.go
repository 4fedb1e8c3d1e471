package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

func compile(t *testing.T, text string, functions map[string]Function) *Policy {
	t.Helper()
	p, err := Compile(t.Context(), Options{Name: "test.rego", Text: text, Rules: []string{"allow", "list"}, Functions: functions})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func input(t *testing.T, doc string) Input {
	t.Helper()
	in, err := NewInput(json.RawMessage(doc))
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestEval(t *testing.T) {
	t.Parallel()
	p := compile(t, `package policy
import rego.v1
default allow := false
allow if {
	data["resource-path"][0] == input.repo
	data.plugin == "resource"
	"x" in lookup("known")
	not lookup("unknown")
}
`, map[string]Function{"lookup": {Args: 1, Call: func(_ context.Context, args []ast.Value) (ast.Value, error) {
		if args[0] == ast.String("known") {
			return ast.NewArray(ast.StringTerm("x")), nil
		}
		return ast.Boolean(false), nil
	}}})
	// The same prepared policy with different data at once.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			repo := fmt.Sprintf("repo%d", i%2)
			var got bool
			ok, err := p.Eval(t.Context(), "allow", input(t, `{"repo":"repo0"}`), map[string]any{
				"plugin": "resource", "resource-path": []any{repo, "t", "g"},
			}, &got)
			if err != nil || !ok || got != (i%2 == 0) {
				t.Errorf("%s: %v, %v, %v", repo, got, ok, err)
			}
		})
	}
	wg.Wait()
	if ok, err := p.Eval(t.Context(), "list", input(t, `{}`), nil, new(any)); ok || err != nil {
		t.Errorf("undefined rule: %v, %v", ok, err)
	}
	if _, err := p.Eval(t.Context(), "other", input(t, `{}`), nil, new(any)); err == nil {
		t.Error("a rule that was not prepared: want an error")
	}
	if _, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, new([]string)); err == nil {
		t.Error("wrong type: want an error")
	}
}

func TestFailuresAreErrors(t *testing.T) {
	t.Parallel()
	boom := map[string]Function{"lookup": {Args: 1, Call: func(context.Context, []ast.Value) (ast.Value, error) { return nil, errors.New("store is down") }}}
	// A negation must not turn the failure into a yes.
	p := compile(t, "package policy\nallow if not lookup(\"a\")", boom)
	var got bool
	if _, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, &got); err == nil || !strings.Contains(err.Error(), "store is down") || got {
		t.Errorf("got %v, %v", got, err)
	}
	p = compile(t, "package policy\nallow if not to_number(\"x\")", nil)
	if _, err := p.Eval(t.Context(), "allow", input(t, `{}`), nil, &got); err == nil || got {
		t.Errorf("builtin error: got %v, %v", got, err)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	p, err := Compile(t.Context(), Options{Name: "slow.rego", Rules: []string{"allow"}, Timeout: 50 * time.Millisecond, Text: `package policy
allow if count([1 | some a in input.n; some b in input.n; some c in input.n; some d in input.n; some e in input.n; a+b+c+d+e < 0]) == 1
`})
	if err != nil {
		t.Fatal(err)
	}
	n, _ := json.Marshal(make([]int, 200))
	start := time.Now()
	_, err = p.Eval(t.Context(), "allow", input(t, `{"n":`+string(n)+`}`), nil, new(bool))
	if err == nil || !strings.Contains(err.Error(), "did not end within 50ms") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty":        "",
		"package":      "package other\nallow := true",
		"syntax":       "package policy\nallow := ",
		"unsafe":       "package policy\nallow if x",
		"http.send":    "package policy\nallow if http.send({\"method\":\"get\",\"url\":\"http://127.0.0.1\"})",
		"clock":        "package policy\nallow if time.now_ns() > 0",
		"net":          "package policy\nallow if net.lookup_ip_addr(\"a\")",
		"runtime":      "package policy\nallow if opa.runtime().env.HOME",
		"random":       "package policy\nallow if rand.intn(\"a\", 2) == 1",
		"memory":       "package policy\nallow if numbers.range(1, 1000000000)",
		"shift":        "package policy\nallow if bits.lsh(1, 1000000000000) > 0",
		"jwt":          "package policy\nallow if io.jwt.decode(\"a\")",
		"recursion":    "package policy\nallow if deny\ndeny if allow",
		"too long":     "package policy\n#" + strings.Repeat("x", MaxText),
		"type error":   "package policy\nallow if 1 + \"a\" == 2",
		"unknown call": "package policy\nallow if nothing(1)",
	} {
		_, err := Compile(t.Context(), Options{Name: "p.rego", Text: text, Rules: []string{"allow"}})
		if _, ok := errors.AsType[*CompileError](err); !ok {
			t.Errorf("%s: got %v, want a *CompileError", name, err)
		}
	}
}

func TestAllowedNamesExist(t *testing.T) {
	t.Parallel()
	have := map[string]bool{}
	for _, b := range capabilities().Builtins {
		have[b.Name] = true
	}
	for _, name := range allowed {
		if !have[name] {
			t.Logf("allowed builtin %s is not in this OPA", name)
		}
	}
	if !have["internal.member_2"] || !have["sprintf"] {
		t.Error("the list lost functions every policy needs")
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("package policy\nallow := true")
	f.Add("package policy\nimport rego.v1\ndefault allow = false\nallow if { some x in input.a; x == 1 }")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Compile(t.Context(), Options{Name: "f.rego", Text: text, Rules: []string{"allow"}, Timeout: time.Second})
		if (p == nil) == (err == nil) {
			t.Errorf("policy %v, error %v", p, err)
		}
	})
}
