package policytest

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/coffer-project/coffer/internal/trustee/policy"
)

// Coverage says which lines of the policy some case has reached. A rule's head
// counts as reached where the rule held, a condition where it was evaluated.
type Coverage struct {
	// Percent is of the lines that can be evaluated.
	Percent float64 `json:"percent"`
	// Missed are the lines that none reached, from and to, in order.
	Missed []Lines `json:"missed,omitempty"`
}

// Lines are a range, both included, counted from 1.
type Lines struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// coverage evaluates beside the engine, which traces nothing. The text has
// passed the engine's compiler and its allow-list of functions.
type coverage struct {
	cover   *cover.Cover
	modules map[string]*ast.Module
	name    string
	opts    []func(*rego.Rego)
}

func newCoverage(_ context.Context, p *policy.Policy, rules []string, functions map[string]policy.Function) (*coverage, error) {
	c := &coverage{cover: cover.New(), modules: map[string]*ast.Module{}}
	for _, m := range p.Modules() {
		c.name = m.Package.Location.File
		c.modules[c.name] = m
		c.opts = append(c.opts, rego.ParsedModule(m.Copy()))
	}
	for name, f := range functions {
		args := make([]types.Type, f.Args)
		for i := range args {
			args[i] = types.A
		}
		decl := &rego.Function{Name: name, Decl: types.NewFunction(types.Args(args...), types.A)}
		c.opts = append(c.opts, rego.FunctionDyn(decl, func(bc rego.BuiltinContext, terms []*ast.Term) (*ast.Term, error) {
			values := make([]ast.Value, len(terms))
			for i, t := range terms {
				values[i] = t.Value
			}
			v, err := f.Call(bc.Context, values)
			if err != nil || v == nil {
				return ast.NullTerm(), err
			}
			return ast.NewTerm(v), nil
		}))
	}
	parts := make([]string, len(rules))
	for i, r := range rules {
		parts[i] = "[v | v := data.policy." + r + "]"
	}
	c.opts = append(c.opts, rego.SetRegoVersion(ast.RegoV1), rego.Query("["+strings.Join(parts, ", ")+"]"))
	return c, nil
}

// add traces one case. What goes wrong here has failed the case before.
func (c *coverage) add(ctx context.Context, one Case, in, data json.RawMessage) {
	ctx, cancel := context.WithTimeout(ctx, policy.DefaultTimeout)
	defer cancel()
	ctx, err := withReferences(ctx, one.ReferenceValues)
	if err != nil {
		return
	}
	input, err := ast.ValueFromReader(strings.NewReader(string(in)))
	if err != nil {
		return
	}
	doc := map[string]any{}
	if data != nil && json.Unmarshal(data, &doc) != nil {
		return
	}
	opts := append(c.opts[:len(c.opts):len(c.opts)], rego.Store(inmem.NewFromObject(doc)))
	q, err := rego.New(opts...).PrepareForEval(ctx)
	if err != nil {
		return
	}
	// Without the index and early exits, as a reader of the text would go.
	_, _ = q.Eval(ctx, rego.EvalParsedInput(input), rego.EvalQueryTracer(c.cover), rego.EvalRuleIndexing(false), rego.EvalEarlyExit(false))
}

func (c *coverage) report() Coverage {
	r := c.cover.Report(c.modules)
	out := Coverage{Percent: r.Coverage}
	if f := r.Files[c.name]; f != nil {
		for _, x := range f.NotCovered {
			out.Missed = append(out.Missed, Lines{x.Start.Row, x.End.Row})
		}
	}
	out.Missed = merge(out.Missed)
	return out
}

// merge joins what overlaps: several expressions of one line.
func merge(all []Lines) []Lines {
	slices.SortFunc(all, func(a, b Lines) int { return cmp.Or(a.From-b.From, a.To-b.To) })
	var out []Lines
	for _, l := range all {
		if n := len(out); n > 0 && l.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, l.To)
			continue
		}
		out = append(out, l)
	}
	return out
}
