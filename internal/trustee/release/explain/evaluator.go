package explain

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/coffer-project/coffer/internal/trustee/policy"
)

// maxEvaluations bounds one explanation.
const maxEvaluations = 2000

// maxValue bounds a value that is shown, in bytes.
const maxValue = 512

// evaluator evaluates pieces of a policy by themselves. The policy was
// compiled under package policy's allow-list of functions before.
type evaluator struct {
	compiler *ast.Compiler
	module   *ast.Module
	rules    map[string][]*ast.Rule // by name, without the default
	input    ast.Value
	store    storage.Store
	left     int
}

func newEvaluator(ctx context.Context, in Input) (*evaluator, error) {
	p, err := policy.Compile(ctx, policy.Options{Name: in.Label, Text: in.Text, Rules: []string{"allow"}})
	if err != nil {
		return nil, err
	}
	if len(p.Modules()) != 1 {
		return nil, errors.New("explain: expected a policy of one module")
	}
	e := &evaluator{module: p.Modules()[0], rules: map[string][]*ast.Rule{}, left: maxEvaluations}
	e.compiler = policy.Bound(ast.CapabilitiesForThisVersion())
	if e.compiler.Compile(map[string]*ast.Module{in.Label: e.module.Copy()}); e.compiler.Failed() {
		return nil, &policy.CompileError{Name: in.Label, Err: e.compiler.Errors}
	}
	for _, r := range e.module.Rules {
		name := string(r.Head.Name)
		if name == "" && len(r.Head.Reference) > 0 {
			name = strings.Trim(r.Head.Reference[0].Value.String(), `"`)
		}
		for ; r != nil; r = r.Else {
			if !r.Default {
				e.rules[name] = append(e.rules[name], r)
			}
		}
	}
	if e.input, err = ast.ValueFromReader(strings.NewReader(string(in.Claims))); err != nil {
		return nil, fmt.Errorf("recorded claims: %w", err)
	}
	data, err := ast.ValueFromReader(strings.NewReader(string(in.Data)))
	if err != nil {
		return nil, fmt.Errorf("recorded data: %w", err)
	}
	plain, err := ast.JSON(data)
	if err != nil {
		return nil, fmt.Errorf("recorded data: %w", err)
	}
	doc, ok := plain.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("recorded data: expected an object, got %T", plain)
	}
	e.store = inmem.NewFromObject(doc)
	return e, nil
}

// errUnsafe: an expression uses a variable that nothing before it binds.
var errUnsafe = errors.New("cannot be evaluated by itself")

// answer is the name that no policy's variable has.
const answer = "coffer_explained_value"

// holds reports whether all of the body holds at once.
func (e *evaluator) holds(ctx context.Context, body ast.Body) (bool, error) {
	rs, err := e.run(ctx, body)
	if err != nil || len(rs) == 0 {
		return false, err
	}
	// An expression that is the value false comes back as a result.
	for _, x := range rs[0].Expressions {
		if x.Value == ast.Value(ast.Boolean(false)) {
			return false, nil
		}
	}
	return true, nil
}

// value is what a term stands for where the body holds, or nil.
func (e *evaluator) value(ctx context.Context, body ast.Body, t *ast.Term) (ast.Value, error) {
	rs, err := e.run(ctx, with(body, ast.Equality.Expr(ast.VarTerm(answer), t)))
	if err != nil || len(rs) == 0 {
		return nil, err
	}
	v, _ := rs[0].Bindings[answer].(ast.Value)
	return v, nil
}

// with appends without writing into the body's array.
func with(body ast.Body, more ...*ast.Expr) ast.Body {
	return append(body[:len(body):len(body)], more...)
}

func (e *evaluator) run(ctx context.Context, body ast.Body) (rego.ResultSet, error) {
	if e.left--; e.left < 0 {
		return nil, errUnsafe
	}
	query := ast.NewBody()
	for _, x := range body {
		query.Append(x.Copy())
	}
	policy.BoundBody(query, func(name string) bool { return e.rules[name] != nil })
	rs, err := rego.New(append(policy.BoundFunctions(),
		rego.Compiler(e.compiler),
		rego.SetRegoVersion(ast.RegoV1),
		rego.ParsedQuery(query),
		rego.ParsedPackage(e.module.Package),
		rego.ParsedImports(e.module.Imports),
		rego.ParsedInput(e.input),
		rego.Store(e.store),
		rego.StrictBuiltinErrors(true),
		rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t.Value, nil }),
	)...).Eval(ctx)
	if err != nil {
		return nil, errors.Join(errUnsafe, err)
	}
	return rs, nil
}

// show is a value for people.
func show(v ast.Value) string {
	if v == nil {
		return "undefined"
	}
	s := v.String()
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "") + "…"
	}
	return s
}
