package policy

import (
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// lineKey is the member of an element that says where its rule stands.
const lineKey = "line"

// addLines makes every element of the partial set rules of that name, which are
// objects, say which line of which file put it there: "snp.rego:42". It changes
// the syntax tree, so that an evaluation costs what it did.
func addLines(m *ast.Module, file, rule string) {
	for _, r := range m.Rules {
		ref := r.Head.Ref()
		if len(ref) == 0 || r.Head.Key == nil || r.Head.Value != nil {
			continue
		}
		if name, ok := ref[0].Value.(ast.Var); !ok || string(name) != rule {
			continue
		}
		line := [2]*ast.Term{ast.StringTerm(lineKey), ast.StringTerm(fmt.Sprintf("%s:%d", file, r.Location.Row))}
		switch key := r.Head.Key.Value.(type) {
		case ast.Object:
			if key.Get(line[0]) == nil {
				key.Insert(line[0], line[1])
			}
		case ast.Var, ast.Ref, ast.Call:
			r.Head.Key = ast.CallTerm(ast.NewTerm(ast.ObjectUnion.Ref()), ast.ObjectTerm(line), ast.NewTerm(key)).SetLocation(r.Head.Key.Location)
			if n := len(r.Head.Reference); n > 1 {
				r.Head.Reference[n-1] = r.Head.Key
			}
		}
	}
}

// Clause is one place of a policy that can give a rule its value.
type Clause struct {
	File string
	Line int
	// Text is the source line.
	Text string
	// Default is true for the value that holds where no other clause does.
	Default bool
	// Value is the JSON of a literal value, empty where it is computed.
	Value string
}

// Clauses lists the places where the modules give the rule a value, in the order
// of the texts. Texts that do not parse have none.
func Clauses(modules []Module, rule string) []Clause {
	var out []Clause
	for _, source := range modules {
		m, err := parse(source)
		if err != nil {
			continue
		}
		lines := strings.Split(source.Text, "\n")
		for _, r := range m.Rules {
			ref := r.Head.Ref()
			if len(ref) != 1 || r.Head.Key != nil || r.Head.Value == nil {
				continue
			}
			if name, ok := ref[0].Value.(ast.Var); !ok || string(name) != rule {
				continue
			}
			for x := r; x != nil; x = x.Else {
				c := Clause{File: source.Name, Line: x.Location.Row, Default: x.Default}
				if i := c.Line - 1; i >= 0 && i < len(lines) {
					c.Text = strings.TrimSpace(lines[i])
				}
				if ast.IsConstant(x.Head.Value.Value) {
					c.Value = x.Head.Value.String()
				}
				out = append(out, c)
			}
		}
	}
	return out
}
