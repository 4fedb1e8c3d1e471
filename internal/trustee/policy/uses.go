package policy

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// queryFunction is the builtin whose results [ReferenceUses] looks at.
const queryFunction = "query_reference_value"

// Kind is how a policy reads a reference value.
type Kind string

// Kinds. A membership test of what is no list, and a comparison with what is
// one, are never true: the policy would refuse everyone and say nothing.
const (
	List   Kind = "list"
	Scalar Kind = "scalar"
)

// Use is one place where a policy reads a reference value by a constant name.
type Use struct {
	ID   string
	Kind Kind
	Line int
}

// ReferenceUses finds the places where a text takes a reference value for a
// list (`in`, `some … in`, `every`, an index) or for a scalar (a comparison,
// arithmetic). What it cannot tell, and rules that ask for the value's type
// themselves, it leaves out. The error is a *[CompileError].
func ReferenceUses(name, text string) ([]Use, error) {
	m, err := parse(Module{name, text})
	if err != nil {
		return nil, err
	}
	return uses(m), nil
}

// Uses is [ReferenceUses] for a policy that is compiled already.
func (p *Policy) Uses() []Use {
	var out []Use
	for _, m := range p.modules {
		out = append(out, uses(m)...)
	}
	return out
}

// Parse checks the form of a text, as [Compile] does first.
func Parse(name, text string) (*ast.Module, error) { return parse(Module{name, text}) }

func uses(m *ast.Module) []Use {
	// Rules that are nothing but a reference value can be read like variables.
	aliases := map[ast.Var]string{}
	for _, r := range m.Rules {
		if id, ok := queried(r.Head.Value); ok && len(r.Head.Args) == 0 {
			aliases[r.Head.Name] = id
		}
	}
	var out []Use
	for _, r := range m.Rules {
		f := finder{ids: map[ast.Var]string{}, open: map[string]bool{}}
		for v, id := range aliases {
			f.ids[v] = id
		}
		f.assignments(r)
		f.walk(r)
		for _, u := range f.uses {
			if !f.open[u.ID] && !slices.Contains(out, u) {
				out = append(out, u)
			}
		}
	}
	return out
}

// queried returns the name in query_reference_value("name").
func queried(t *ast.Term) (string, bool) {
	if t == nil {
		return "", false
	}
	call, ok := t.Value.(ast.Call)
	if !ok || len(call) != 2 || operator(call[0]) != queryFunction {
		return "", false
	}
	id, ok := call[1].Value.(ast.String)
	return string(id), ok
}

func operator(t *ast.Term) string {
	if ref, ok := t.Value.(ast.Ref); ok {
		return ref.String()
	}
	return ""
}

// finder looks at one rule.
type finder struct {
	// ids are the reference values that variables hold.
	ids map[ast.Var]string
	// open are those whose type the rule looks at before it uses them.
	open map[string]bool
	uses []Use
}

func (f *finder) assignments(r *ast.Rule) {
	ast.WalkExprs(r, func(e *ast.Expr) bool {
		if !e.IsCall() || len(e.Operands()) != 2 {
			return false
		}
		switch operator(e.OperatorTerm()) {
		case ast.Assign.Name, ast.Equality.Name:
			for i, side := range e.Operands() {
				if id, ok := queried(e.Operand(1 - i)); ok {
					if v, ok := side.Value.(ast.Var); ok {
						f.ids[v] = id
					}
				}
			}
		}
		return false
	})
}

// id is the reference value that a term stands for.
func (f *finder) id(t *ast.Term) (string, bool) {
	if id, ok := queried(t); ok {
		return id, true
	}
	v, ok := t.Value.(ast.Var)
	if !ok {
		return "", false
	}
	id, ok := f.ids[v]
	return id, ok
}

func (f *finder) add(t *ast.Term, k Kind) {
	id, ok := f.id(t)
	if !ok {
		return
	}
	u := Use{ID: id, Kind: k}
	if t.Location != nil {
		u.Line = t.Location.Row
	}
	f.uses = append(f.uses, u)
}

func (f *finder) walk(r *ast.Rule) {
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.Expr:
			if x.IsCall() {
				f.call(operator(x.OperatorTerm()), x.Operands())
			}
		case *ast.Every:
			f.add(x.Domain, List)
		case *ast.Term:
			switch v := x.Value.(type) {
			case ast.Call:
				f.call(operator(v[0]), v[1:])
			case ast.Ref:
				if len(v) > 1 {
					f.add(v[0], List)
				}
			}
		}
		return false
	}).Walk(r)
}

func (f *finder) call(op string, args []*ast.Term) {
	switch op {
	case ast.Member.Name, ast.MemberWithKey.Name:
		f.add(args[len(args)-1], List)
	case ast.Equal.Name, ast.NotEqual.Name, ast.Equality.Name,
		ast.LessThan.Name, ast.LessThanEq.Name, ast.GreaterThan.Name, ast.GreaterThanEq.Name:
		f.compared(args)
	case ast.Plus.Name, ast.Multiply.Name, ast.Divide.Name, ast.Rem.Name, ast.Minus.Name:
		for _, t := range args {
			f.add(t, Scalar)
		}
	case ast.IsArray.Name, ast.IsString.Name, ast.IsNumber.Name, ast.IsBoolean.Name, ast.IsObject.Name, ast.TypeNameBuiltin.Name:
		for _, t := range args {
			if id, ok := f.id(t); ok {
				f.open[id] = true
			}
		}
	}
}

// compared looks at the two sides of a comparison. One with null or with a
// composite value says nothing; `x = query…` with a new variable assigns.
func (f *finder) compared(args []*ast.Term) {
	if len(args) != 2 {
		return
	}
	for i, t := range args {
		switch other := args[1-i].Value.(type) {
		case ast.Null, *ast.Array, ast.Object, ast.Set:
			continue
		case ast.Var:
			if _, assigned := f.ids[other]; assigned || other.IsWildcard() {
				continue
			}
		}
		f.add(t, Scalar)
	}
}
