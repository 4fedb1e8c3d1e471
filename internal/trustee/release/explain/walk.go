package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Bounds of what is followed.
const (
	maxDepth    = 8
	maxElements = 4
	maxText     = 200
)

// everyPrefix begins the name of what stands for one element of an every.
const everyPrefix = "every "

// explainer follows conditions down.
type explainer struct{ e *evaluator }

// rules explains every rule of a name. Of a function, args are the arguments
// of the call, which are evaluated where the body holds.
func (x explainer) rules(ctx context.Context, name string, body ast.Body, args []*ast.Term, depth int) []Rule {
	if depth > maxDepth {
		return nil
	}
	values := make([]*ast.Term, len(args))
	for i, a := range args {
		v, err := x.e.value(ctx, body, a)
		if err != nil || v == nil {
			return nil
		}
		values[i] = ast.NewTerm(v)
	}
	var fit, other []Rule
	for _, r := range x.e.rules[name] {
		if len(r.Head.Args) != len(values) {
			continue
		}
		if one, ok := x.rule(ctx, name, r, values, depth); ok {
			fit = append(fit, one)
		} else {
			other = append(other, one)
		}
	}
	if len(fit) > 0 {
		return fit
	}
	return other
}

// rule reports false where the rule is for other arguments.
func (x explainer) rule(ctx context.Context, name string, r *ast.Rule, args []*ast.Term, depth int) (Rule, bool) {
	out := Rule{Name: name, Line: line(r.Location)}
	prefix := ast.Body{}
	for i, param := range r.Head.Args {
		prefix = with(prefix, ast.Equality.Expr(param, args[i]))
		if ok, err := x.e.holds(ctx, prefix); err != nil || !ok {
			out.Conditions = []Condition{{Line: out.Line, Text: fmt.Sprintf("argument %d is %s", i+1, param), State: Fails,
				Values: []Value{{fmt.Sprintf("argument %d", i+1), show(args[i].Value)}}}}
			return out, false
		}
	}
	out.Conditions, prefix = x.body(ctx, prefix, r.Body, depth)
	out.Holds = !slices.ContainsFunc(out.Conditions, func(c Condition) bool { return c.State != Holds })
	// "allow := condition": the value is a condition too.
	if v := r.Head.Value; v != nil && out.Holds {
		if _, constant := v.Value.(ast.Boolean); !constant {
			c := x.condition(ctx, prefix, ast.NewExpr(v).SetLocation(location(v.Location, r.Location)), depth)
			c.Text = name + " is " + clip(v.String())
			out.Conditions = append(out.Conditions, c)
			out.Holds = c.State == Holds
		} else if v.Value == ast.Value(ast.Boolean(false)) {
			out.Holds = false
		}
	}
	return out, true
}

// body explains the expressions of a body one by one, each together with those
// before it that hold. It returns those.
func (x explainer) body(ctx context.Context, prefix, body ast.Body, depth int) ([]Condition, ast.Body) {
	var out []Condition
	for _, expr := range body {
		if t, ok := expr.Terms.(*ast.Term); ok && t.Value == ast.Value(ast.Boolean(true)) {
			continue // the body of a rule without one
		}
		c := x.condition(ctx, prefix, expr, depth)
		if c.State == Holds {
			prefix = with(prefix, expr)
		}
		out = append(out, c)
	}
	return out, prefix
}

func (x explainer) condition(ctx context.Context, prefix ast.Body, expr *ast.Expr, depth int) Condition {
	c := Condition{Line: line(expr.Location), Text: text(expr)}
	ok, err := x.e.holds(ctx, with(prefix, expr))
	switch {
	case err != nil:
		c.State = Unknown
		return c
	case ok:
		c.State = Holds
		return c
	}
	c.State = Fails
	if every, ok := expr.Terms.(*ast.Every); ok {
		c.Because = x.every(ctx, prefix, every, depth)
		return c
	}
	seen := map[string]bool{}
	for _, t := range referred(expr, x.e.rules) {
		name := t.String()
		if seen[name] {
			continue
		}
		seen[name] = true
		v, err := x.e.value(ctx, prefix, t)
		if err != nil {
			continue // a variable that only the failed condition binds
		}
		rule, args := x.called(t)
		// What rests on a rule that says no is explained by that rule. One that is
		// negated must not hold, and its bodies say why it does.
		undecided := v == nil || v == ast.Value(ast.Boolean(false))
		if rule != "" && (undecided || expr.Negated) {
			c.Because = append(c.Because, x.relevant(x.rules(ctx, rule, prefix, args, depth+1), expr.Negated)...)
		}
		c.Values = append(c.Values, Value{clip(name), show(v)})
	}
	return c
}

// relevant keeps, of a negated rule, the bodies that hold.
func (x explainer) relevant(rules []Rule, negated bool) []Rule {
	if !negated {
		return rules
	}
	return slices.DeleteFunc(rules, func(r Rule) bool { return !r.Holds })
}

// every explains the first elements that the body does not hold for.
func (x explainer) every(ctx context.Context, prefix ast.Body, every *ast.Every, depth int) []Rule {
	domain, err := x.e.value(ctx, prefix, every.Domain)
	if err != nil || domain == nil {
		return nil
	}
	var out []Rule
	element := func(key, value *ast.Term) {
		if len(out) == maxElements {
			return
		}
		bound := prefix
		if every.Key != nil {
			bound = with(bound, ast.Equality.Expr(every.Key, key))
		}
		bound = with(bound, ast.Equality.Expr(every.Value, value))
		if ok, err := x.e.holds(ctx, with(bound, every.Body...)); err == nil && ok {
			return
		}
		r := Rule{Name: fmt.Sprintf(everyPrefix+"%s, for %s", clip(every.Domain.String()), clip(key.String())), Line: line(every.Location)}
		r.Conditions, _ = x.body(ctx, bound, every.Body, depth+1)
		out = append(out, r)
	}
	switch d := domain.(type) {
	case ast.Object:
		d.Foreach(element)
	case *ast.Array:
		i := 0
		d.Foreach(func(v *ast.Term) { element(ast.IntNumberTerm(i), v); i++ })
	case ast.Set:
		d.Foreach(func(v *ast.Term) { element(v, v) })
	}
	return out
}

// called is the rule a term names or calls, "" where it is none.
func (x explainer) called(t *ast.Term) (string, []*ast.Term) {
	switch v := t.Value.(type) {
	case ast.Var:
		if _, ok := x.e.rules[string(v)]; ok {
			return string(v), nil
		}
	case ast.Call:
		if name, ok := ruleName(v[0], x.e.rules); ok {
			return name, v[1:]
		}
	case ast.Ref:
		return x.called(v[0])
	}
	return "", nil
}

// referred lists what an expression's outcome rests on: references, and calls
// of the policy's own functions, outermost first.
func referred(expr *ast.Expr, rules map[string][]*ast.Rule) []*ast.Term {
	var out []*ast.Term
	var walk func(*ast.Term)
	walk = func(t *ast.Term) {
		switch v := t.Value.(type) {
		case ast.Var:
			if !v.IsGenerated() && !v.IsWildcard() {
				out = append(out, t)
			}
		case ast.Ref:
			out = append(out, t)
		case ast.Call:
			if _, ok := ruleName(v[0], rules); ok {
				out = append(out, t)
				return
			}
			for _, a := range v[1:] {
				walk(a)
			}
		case *ast.Array:
			v.Foreach(walk)
		}
	}
	switch terms := expr.Terms.(type) {
	case *ast.Term:
		walk(terms)
	case []*ast.Term:
		if expr.IsAssignment() {
			walk(terms[2]) // not the variable that it declares
			break
		}
		walk(ast.CallTerm(terms...))
	case *ast.SomeDecl:
		for _, s := range terms.Symbols {
			walk(s)
		}
	}
	return out
}

func ruleName(operator *ast.Term, rules map[string][]*ast.Rule) (string, bool) {
	ref, ok := operator.Value.(ast.Ref)
	if !ok || len(ref) != 1 {
		return "", false
	}
	name, ok := ref[0].Value.(ast.Var)
	if !ok {
		return "", false
	}
	_, ok = rules[string(name)]
	return string(name), ok
}

func line(l *ast.Location) int {
	if l == nil {
		return 0
	}
	return l.Row
}

func location(l, otherwise *ast.Location) *ast.Location {
	if l != nil {
		return l
	}
	return otherwise
}

// text is the expression as it stands in the policy.
func text(expr *ast.Expr) string {
	if expr.Location != nil && len(expr.Location.Text) > 0 {
		return clip(strings.Join(strings.Fields(string(expr.Location.Text)), " "))
	}
	return clip(expr.String())
}

func clip(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
