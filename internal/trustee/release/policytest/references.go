package policytest

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

type referencesKey struct{}

// withReferences gives an evaluation the reference values of its case.
func withReferences(ctx context.Context, values map[string]Value) (context.Context, error) {
	refs := map[string]refvalues.Reference{}
	for name, d := range values {
		r, err := refvalues.FromJSON(name, d.JSON)
		if err != nil {
			return nil, err
		}
		refs[name] = r
	}
	return context.WithValue(ctx, referencesKey{}, refs), nil
}

// referenceFunctions are the builtins of attestation policies, over what
// [withReferences] put into the context. Nothing expires in a test.
func referenceFunctions() map[string]policy.Function {
	with := func(args int, f func(r refvalues.Reference, found bool, args []ast.Value) (ast.Value, error)) policy.Function {
		return policy.Function{Args: args, Call: func(ctx context.Context, args []ast.Value) (ast.Value, error) {
			refs, ok := ctx.Value(referencesKey{}).(map[string]refvalues.Reference)
			if !ok {
				return nil, errors.New("there are no reference values outside a case")
			}
			name, _ := args[0].(ast.String)
			r, found := refs[string(name)]
			return f(r, found, args)
		}}
	}
	current := func(r refvalues.Reference) (ast.Value, error) {
		return ast.ValueFromReader(strings.NewReader(string(r.Current(time.Time{}))))
	}
	return map[string]policy.Function{
		"query_reference_value": with(1, func(r refvalues.Reference, found bool, _ []ast.Value) (ast.Value, error) {
			if !found {
				return nil, nil
			}
			return current(r)
		}),
		"reference_value_registered": with(1, func(_ refvalues.Reference, found bool, _ []ast.Value) (ast.Value, error) {
			return ast.Boolean(found), nil
		}),
		"describe_reference_value": with(1, func(r refvalues.Reference, _ bool, _ []ast.Value) (ast.Value, error) {
			return ast.String(r.Describe(time.Time{})), nil
		}),
		"reference_value_contains": with(2, func(r refvalues.Reference, _ bool, args []ast.Value) (ast.Value, error) {
			for _, e := range r.Entries {
				v, err := ast.ValueFromReader(strings.NewReader(string(e.Value)))
				if err != nil {
					return nil, err
				}
				if same(v, args[1]) {
					return ast.Boolean(true), nil
				}
			}
			return ast.Boolean(false), nil
		}),
	}
}

// same compares as the trustee does: lists and scalars alike, and strings
// whatever their letter case, since digests are written in either.
func same(a, b ast.Value) bool {
	x, ok := a.(ast.String)
	y, both := b.(ast.String)
	if ok && both {
		return strings.EqualFold(string(x), string(y))
	}
	return a.Compare(b) == 0
}
