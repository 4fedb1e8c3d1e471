// Package policy compiles and evaluates Rego (OPA, Rego v1). A policy is
// prepared once and evaluated any number of times concurrently, each time
// with its own input and its own data document. What a policy can reach is an
// allow-list: pure functions only, no network, clock, randomness or process
// environment; an evaluation has a time limit.
package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
)

// MaxText is the longest policy text, in bytes.
const MaxText = 256 << 10

// DefaultTimeout bounds one evaluation where [Options] say nothing.
const DefaultTimeout = 2 * time.Second

// ErrLimit is wrapped by errors of evaluations that were ended because they
// took too long or too much memory.
var ErrLimit = errors.New("limit of an evaluation")

// Function is a builtin that a policy may call. Its first argument is always
// a string.
type Function struct {
	// Args is the number of arguments, 1 or more.
	Args int
	// Call computes the value; nil stands for null. An error ends the
	// evaluation: it never makes the call merely undefined.
	Call func(ctx context.Context, args []ast.Value) (ast.Value, error)
}

// Module is one source file of a policy.
type Module struct {
	// Name stands in error messages as the file name.
	Name string
	// Text is Rego; its package must be "policy".
	Text string
}

// Options of [Compile].
type Options struct {
	// Name is the policy's in error messages, and the file name of Text.
	Name string
	// Text is the module of a policy that is one file.
	Text string
	// Modules are the files of a policy that is several; Text is empty then.
	Modules []Module
	// Rules are the rules of package policy that will be evaluated.
	Rules []string
	// Lines is a partial set rule of objects, each of which will say in its
	// member "line" which line put it there; empty: none.
	Lines string
	// Functions are extra builtins by name.
	Functions map[string]Function
	// Timeout bounds one evaluation; zero means [DefaultTimeout].
	Timeout time.Duration
}

// Policy is a prepared policy, safe for concurrent use.
type Policy struct {
	name    string
	timeout time.Duration
	modules []*ast.Module
	names   []string
	all     rego.PreparedEvalQuery
	rules   map[string]rego.PreparedEvalQuery
}

// CompileError is a policy text that cannot be used. Its message holds the
// place (line and column).
type CompileError struct {
	Name string
	Err  error
}

func (e *CompileError) Error() string { return fmt.Sprintf("policy %s: %v", e.Name, e.Err) }

// Unwrap returns the cause.
func (e *CompileError) Unwrap() error { return e.Err }

// parse reads one module of package policy.
func parse(m Module) (*ast.Module, error) {
	if len(m.Text) > MaxText {
		return nil, &CompileError{m.Name, fmt.Errorf("expected at most %d bytes, got %d", MaxText, len(m.Text))}
	}
	module, err := ast.ParseModuleWithOpts(m.Name, m.Text, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: capabilities()})
	if err != nil {
		return nil, &CompileError{m.Name, err}
	}
	if module == nil {
		return nil, &CompileError{m.Name, errors.New("is empty: expected a module of package policy")}
	}
	if got := module.Package.Path.String(); got != "data.policy" {
		return nil, &CompileError{m.Name, fmt.Errorf("expected package policy, got package %s", strings.TrimPrefix(got, "data."))}
	}
	return module, nil
}

// Compile checks and prepares a policy. Every error about the text is a
// *[CompileError].
func Compile(ctx context.Context, o Options) (*Policy, error) {
	sources := o.Modules
	if len(sources) == 0 {
		sources = []Module{{o.Name, o.Text}}
	}
	p := &Policy{name: o.Name, timeout: o.Timeout, names: o.Rules, rules: map[string]rego.PreparedEvalQuery{}}
	if p.timeout <= 0 {
		p.timeout = DefaultTimeout
	}
	modules := map[string]*ast.Module{}
	for _, m := range sources {
		module, err := parse(m)
		if err != nil {
			return nil, err
		}
		modules[m.Name] = module
		// The compiler rewrites what it is given.
		p.modules = append(p.modules, module.Copy())
		if o.Lines != "" {
			addLines(module, m.Name, o.Lines)
		}
	}
	caps := capabilities()
	functions := BoundFunctions()
	for name, f := range o.Functions {
		decl, opt := function(name, f)
		caps.Builtins = append(caps.Builtins, &ast.Builtin{Name: name, Decl: decl})
		functions = append(functions, opt)
	}
	compiler := Bound(caps)
	if compiler.Compile(modules); compiler.Failed() {
		return nil, &CompileError{o.Name, compiler.Errors}
	}
	prepare := func(query string) (rego.PreparedEvalQuery, error) {
		opts := append([]func(*rego.Rego){
			rego.Compiler(compiler),
			rego.SetRegoVersion(ast.RegoV1),
			rego.Capabilities(caps),
			rego.Store(requestStore{}),
			rego.StrictBuiltinErrors(true),
			rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t.Value, nil }),
			rego.Query(query),
		}, functions...)
		q, err := rego.New(opts...).PrepareForEval(ctx)
		if err != nil {
			return q, &CompileError{o.Name, err}
		}
		return q, nil
	}
	var err error
	for _, rule := range o.Rules {
		if p.rules[rule], err = prepare("data.policy." + rule); err != nil {
			return nil, err
		}
	}
	p.all, err = prepare(everything(o.Rules))
	return p, err
}

// everything is a query for all rules at once: an array of an array for each,
// which is empty where the rule is undefined.
func everything(rules []string) string {
	parts := make([]string, len(rules))
	for i, rule := range rules {
		parts[i] = fmt.Sprintf("[v | v := data.policy.%s]", rule)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// Modules returns the policy's syntax trees, which must not be changed.
func (p *Policy) Modules() []*ast.Module { return p.modules }

func function(name string, f Function) (*types.Function, func(*rego.Rego)) {
	args := make([]types.Type, f.Args)
	for i := range args {
		args[i] = types.A
	}
	args[0] = types.S
	decl := types.NewFunction(types.Args(args...), types.A)
	call := func(bc rego.BuiltinContext, terms []*ast.Term) (*ast.Term, error) {
		values := make([]ast.Value, len(terms))
		for i, t := range terms {
			values[i] = t.Value
		}
		if _, ok := values[0].(ast.String); !ok {
			return nil, fmt.Errorf("%s: expected a string, got %s", name, terms[0])
		}
		v, err := f.Call(bc.Context, values)
		if err != nil {
			// Not "undefined": a policy must never be decided without the value.
			return nil, rego.NewHaltError(fmt.Errorf("%s(%s): %w", name, terms[0], err))
		}
		if v == nil {
			return ast.NullTerm(), nil
		}
		return ast.NewTerm(v), nil
	}
	return decl, rego.FunctionDyn(&rego.Function{Name: name, Decl: decl, Memoize: true}, call)
}

// InputOf prepares a value that is made of what encoding/json decodes to
// (with json.Number for numbers) or of anything that it can encode.
func InputOf(doc any) (Input, error) {
	v, err := ast.InterfaceToValue(doc)
	if err != nil {
		return Input{}, fmt.Errorf("policy input: %w", err)
	}
	return Input{v}, nil
}

// Result holds what the rules of one evaluation came to.
type Result struct {
	policy string
	values map[string]ast.Value
}

// Value is a rule's value; false where the rule is undefined.
func (r Result) Value(rule string) (ast.Value, bool) {
	v, ok := r.values[rule]
	return v, ok
}

// Decode writes a rule's value into out, as by json.Unmarshal. It reports
// false, and leaves out alone, where the rule is undefined.
func (r Result) Decode(rule string, out any) (bool, error) {
	v, ok := r.values[rule]
	if !ok {
		return false, nil
	}
	if err := decode(v, out); err != nil {
		return false, fmt.Errorf("policy %s: rule %s has a value of the wrong type: %w", r.policy, rule, err)
	}
	return true, nil
}

func decode(v ast.Value, out any) error {
	plain, err := ast.JSON(v)
	if err != nil {
		return err
	}
	doc, err := json.Marshal(plain)
	if err != nil {
		return err
	}
	return json.Unmarshal(doc, out)
}

// EvalAll evaluates every rule named at [Compile] in one go. An evaluation
// that fails or does not end in time is an error.
func (p *Policy) EvalAll(ctx context.Context, in Input, data map[string]any) (Result, error) {
	r := Result{policy: p.name, values: make(map[string]ast.Value, len(p.names))}
	v, err := p.eval(ctx, "", p.all, in, data)
	if err != nil {
		return r, err
	}
	list, ok := v.(*ast.Array)
	if !ok || list.Len() != len(p.names) {
		return r, fmt.Errorf("policy %s: the evaluation came to nothing", p.name)
	}
	for i, name := range p.names {
		if one, ok := list.Elem(i).Value.(*ast.Array); ok && one.Len() == 1 {
			r.values[name] = one.Elem(0).Value
		}
	}
	return r, nil
}

// Eval evaluates one rule named at [Compile] into out, as by json.Unmarshal.
// It reports false, and leaves out alone, where the rule is undefined. An
// evaluation that fails or does not end in time is an error.
func (p *Policy) Eval(ctx context.Context, rule string, in Input, data map[string]any, out any) (bool, error) {
	if !slices.Contains(p.names, rule) {
		return false, fmt.Errorf("policy %s: rule %s was not prepared", p.name, rule)
	}
	v, err := p.eval(ctx, "rule "+rule+" ", p.rules[rule], in, data)
	if err != nil || v == nil {
		return false, err
	}
	return Result{p.name, map[string]ast.Value{rule: v}}.Decode(rule, out)
}

// eval returns nil for a query that is undefined.
func (p *Policy) eval(ctx context.Context, what string, q rego.PreparedEvalQuery, in Input, data map[string]any) (ast.Value, error) {
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	ctx, stop := Watch(ctx)
	defer stop()
	txn, err := newTxn(data)
	if err != nil {
		return nil, fmt.Errorf("policy %s: data: %w", p.name, err)
	}
	// OPA's own way to notice the end of a context is a goroutine for each evaluation.
	ended := topdown.NewCancel()
	defer context.AfterFunc(ctx, ended.Cancel)()
	rs, err := q.Eval(ctx, rego.EvalParsedInput(in.value), rego.EvalTransaction(txn), rego.EvalExternalCancel(ended))
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errMemory) {
			return nil, fmt.Errorf("policy %s: %s%w (%w)", p.name, what, cause, ErrLimit)
		}
		if ctx.Err() != nil && asked.Err() == nil {
			return nil, fmt.Errorf("policy %s: %sdid not end within %v: %w (%w)", p.name, what, p.timeout, ctx.Err(), ErrLimit)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("policy %s: %sdid not end within %v: %w", p.name, what, p.timeout, ctx.Err())
		}
		return nil, fmt.Errorf("policy %s: %s%w", p.name, what, err)
	}
	if len(rs) == 0 || len(rs[0].Expressions) == 0 {
		return nil, nil
	}
	v, ok := rs[0].Expressions[0].Value.(ast.Value)
	if !ok {
		return nil, fmt.Errorf("policy %s: %sexpected a value of Rego, got %T", p.name, what, rs[0].Expressions[0].Value)
	}
	return v, nil
}
