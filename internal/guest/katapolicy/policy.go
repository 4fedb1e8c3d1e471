//go:build kata_policy

package katapolicy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/print"

	"github.com/coffer-project/coffer/podpolicy"
)

// Bounds of a policy: its text, the time of one evaluation, the state that it
// keeps (as JSON), and what it prints about one request.
const (
	MaxText      = 1 << 20
	evalTime     = 2 * time.Second
	maxState     = 1 << 20
	maxPrints    = 64
	maxPrintText = 256
	maxPrinted   = 1024
)

// Policy is a compiled policy with its state. It is for one guard, which asks
// one question at a time.
type Policy struct {
	compiler *ast.Compiler
	caps     *ast.Capabilities
	version  ast.RegoVersion
	state    map[string]any
}

var _ podpolicy.Decider = (*Policy)(nil)

// Compile reads a policy: one module of package agent_policy, in Rego v1 or in
// the v0 of older policies. Builtins that reach outside the guest, or a clock,
// do not exist.
func Compile(text string) (*Policy, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("kata policy: expected at most %d bytes, got %d", MaxText, len(text))
	}
	p, err := compile(text, ast.RegoV1)
	if err != nil {
		old, oldErr := compile(text, ast.RegoV0)
		if oldErr != nil {
			return nil, fmt.Errorf("kata policy: neither Rego v1 (%w) nor v0 (%w)", err, oldErr)
		}
		p = old
	}
	failing, _, err := p.eval("AllowRequestsFailingPolicy", ast.NewObject())
	if err != nil {
		return nil, err
	}
	if failing != nil && failing.Compare(ast.Boolean(false)) != 0 {
		return nil, errors.New("kata policy: AllowRequestsFailingPolicy lets everything through that the policy denies: remove it")
	}
	return p, nil
}

func compile(text string, version ast.RegoVersion) (*Policy, error) {
	caps := capabilities()
	module, err := ast.ParseModuleWithOpts("policy.rego", text, ast.ParserOptions{RegoVersion: version, Capabilities: caps})
	if err != nil {
		return nil, err
	}
	if module == nil {
		return nil, errors.New("the text is empty")
	}
	if got := module.Package.Path.String(); got != "data.agent_policy" {
		return nil, fmt.Errorf("expected package agent_policy, got package %s", strings.TrimPrefix(got, "data."))
	}
	compiler := ast.NewCompiler().WithCapabilities(caps).WithDefaultRegoVersion(version).WithEnablePrintStatements(true)
	if compiler.Compile(map[string]*ast.Module{"policy.rego": module}); compiler.Failed() {
		return nil, compiler.Errors
	}
	return &Policy{compiler: compiler, caps: caps, version: version, state: map[string]any{"pstate": map[string]any{}}}, nil
}

// Decide implements [podpolicy.Decider].
func (p *Policy) Decide(q podpolicy.Question) error {
	requests, err := translate(q)
	if err != nil {
		return err
	}
	// All of what one question comes to, or nothing: state changes last.
	before := p.state
	for _, r := range requests {
		if err := p.request(r); err != nil {
			p.state = before
			return err
		}
	}
	return nil
}

// request evaluates one request of Kata's protocol.
func (p *Policy) request(r request) error {
	input, err := ast.InterfaceToValue(r.input)
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	value, prints, err := p.eval(r.name, input)
	if err != nil {
		return err
	}
	allowed, ops, err := verdict(value)
	if err == nil && allowed && len(ops) > 0 {
		var next map[string]any
		if next, err = patch(p.state, ops); err == nil {
			p.state = next
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s is blocked by policy: %w", r.name, err)
	case value == nil:
		return fmt.Errorf("%s is blocked by policy: it has no rule for it%s", r.name, prints)
	case !allowed:
		return fmt.Errorf("%s is blocked by policy%s", r.name, prints)
	}
	return nil
}

// eval returns the value of a rule, nil if it is undefined, and what was
// printed.
func (p *Policy) eval(rule string, input ast.Value) (ast.Value, prints, error) {
	ctx, cancel := context.WithTimeout(context.Background(), evalTime)
	defer cancel()
	hook := &printer{}
	query := rego.New(
		rego.Compiler(p.compiler), rego.Capabilities(p.caps), rego.SetRegoVersion(p.version),
		rego.Store(inmem.NewFromObjectWithOpts(p.state, inmem.OptRoundTripOnWrite(false))),
		rego.Query("data.agent_policy."+rule), rego.ParsedInput(input),
		rego.EnablePrintStatements(true), rego.PrintHook(hook),
		rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t.Value, nil }),
	)
	results, err := query.Eval(ctx)
	switch {
	case topdown.IsCancel(err) || ctx.Err() != nil:
		return nil, nil, fmt.Errorf("%s is blocked by policy: the evaluation took more than %s", rule, evalTime)
	case err != nil:
		return nil, nil, fmt.Errorf("%s is blocked by policy: %w", rule, err)
	case len(results) == 0:
		return nil, hook.lines, nil
	case len(results) != 1 || len(results[0].Expressions) != 1:
		return nil, nil, fmt.Errorf("%s is blocked by policy: it has %d values", rule, len(results))
	}
	value, ok := results[0].Expressions[0].Value.(ast.Value)
	if !ok {
		return nil, nil, fmt.Errorf("%s is blocked by policy: no value", rule)
	}
	return value, hook.lines, nil
}

// prints is what a policy has printed, the last lines of it.
type prints []string

func (p prints) String() string {
	if len(p) == 0 {
		return ""
	}
	// What was printed last is nearest to why.
	first, length := len(p), 0
	for first > 0 && length+len(p[first-1]) <= maxPrinted {
		first--
		length += len(p[first]) + 2
	}
	text := strings.Join(p[first:], "; ")
	if first > 0 {
		text = "… " + text
	}
	return ": " + text
}

type printer struct{ lines prints }

// Print implements print.Hook.
func (p *printer) Print(_ print.Context, line string) error {
	if len(line) > maxPrintText {
		line = strings.ToValidUTF8(line[:maxPrintText], "") + "…"
	}
	if len(p.lines) == maxPrints {
		p.lines = p.lines[1:]
	}
	p.lines = append(p.lines, line)
	return nil
}
