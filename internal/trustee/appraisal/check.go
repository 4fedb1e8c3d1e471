package appraisal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// TypeError is a policy and a reference value that do not fit: a membership
// test of a scalar, or a comparison with a list, which are never true.
type TypeError struct {
	// Policy is the id of the policy, ID the reference value's name.
	Policy, ID string
	// Line is where the policy reads the value.
	Line int
	// Expected is what the policy takes the value for, Got what it is.
	Expected, Got policy.Kind
}

func (e *TypeError) Error() string {
	idiom := `"in" needs a list`
	if e.Expected == policy.Scalar {
		idiom = "a comparison needs a scalar"
	}
	return fmt.Sprintf("line %d: reference value %q: the policy %s expects a %s, got a %s: %s; change one of them, or use reference_value_contains(%q, …), which takes both",
		e.Line, e.ID, e.Policy, e.Expected, e.Got, idiom, e.ID)
}

// kindOf is what a policy sees of a reference. A scalar that is an array or
// an object can be searched like a list.
func kindOf(r refvalues.Reference) policy.Kind {
	if r.Scalar && len(r.Entries) == 1 && !strings.HasPrefix(string(r.Entries[0].Value), "[") && !strings.HasPrefix(string(r.Entries[0].Value), "{") {
		return policy.Scalar
	}
	return policy.List
}

// CheckPolicy reports whether a text can be stored as the tenant's attestation
// policy of that id ("default_cpu"). It compiles the text, computes what can
// be computed of trust_claims, and compares how it reads reference values with
// those that are registered. Every error about the text is a
// *[policy.CompileError]; others say that it could not be checked.
func (e *Engine) CheckPolicy(ctx context.Context, t tenant.Name, id, text string) error {
	if err := e.set.Check(ctx, id, text); err != nil {
		return err
	}
	name := id + ".rego"
	module, err := policy.Parse(name, text)
	if err != nil {
		return err
	}
	if err := checkTrustClaims(module); err != nil {
		return &policy.CompileError{Name: name, Err: err}
	}
	uses, err := policy.ReferenceUses(name, text)
	if err != nil {
		return err
	}
	for _, u := range uses {
		ref, found, err := e.o.References.Reference(ctx, t, u.ID)
		if err != nil {
			return fmt.Errorf("reference value %q: %w", u.ID, err)
		}
		if got := kindOf(ref); found && got != u.Kind {
			return &policy.CompileError{Name: name, Err: &TypeError{Policy: id, ID: u.ID, Line: u.Line, Expected: u.Kind, Got: got}}
		}
	}
	return nil
}

// CheckReference reports whether a reference value can be registered: a
// *[policy.CompileError] around a *[TypeError] says that a policy of the tenant's reads it as something else.
func (e *Engine) CheckReference(ctx context.Context, t tenant.Name, ref refvalues.Reference) error {
	view, err := e.set.View(ctx, t)
	if err != nil {
		return err
	}
	for _, id := range view.IDs() {
		p, _, ok, err := view.Get(ctx, id)
		if _, broken := errors.AsType[*policy.CompileError](err); broken || err == nil && !ok {
			// A policy that does not compile judges nothing.
			continue
		}
		if err != nil {
			return err
		}
		for _, u := range p.Uses() {
			if got := kindOf(ref); u.ID == ref.Name && u.Kind != got {
				return &policy.CompileError{Name: id, Err: &TypeError{Policy: id, ID: u.ID, Line: u.Line, Expected: u.Kind, Got: got}}
			}
		}
	}
	return nil
}

// checkTrustClaims finds what is wrong with trust_claims without evidence:
// names that are not in the vector, values that are no signed byte.
func checkTrustClaims(m *ast.Module) error {
	byName := map[ast.Var][]*ast.Rule{}
	for _, r := range m.Rules {
		name := r.Head.Name
		if ref := r.Head.Ref(); len(ref) > 0 {
			if v, ok := ref[0].Value.(ast.Var); ok {
				name = v
			}
		}
		for x := r; x != nil; x = x.Else {
			byName[name] = append(byName[name], x)
		}
	}
	for _, r := range byName[ruleClaims] {
		if err := checkClaimsRule(r, byName); err != nil {
			return err
		}
	}
	return nil
}

func checkClaimsRule(r *ast.Rule, byName map[ast.Var][]*ast.Rule) error {
	h := r.Head
	switch ref := h.Ref(); {
	case len(h.Args) > 0:
		return fmt.Errorf("line %d: trust_claims: expected an object, got a function", line(h.Location))
	case len(ref) > 2:
		return fmt.Errorf("line %d: trust_claims: expected numbers by name, got deeper objects", line(h.Location))
	case len(ref) == 2 && h.Value != nil: // trust_claims.hardware := 2
		if err := checkName(ref[1]); err != nil {
			return err
		}
		return checkValue(ref[1], h.Value, byName)
	case h.Value == nil || h.Key != nil && h.Value == nil:
		return fmt.Errorf("line %d: trust_claims: expected an object, got a set", line(h.Location))
	}
	claims, ok := h.Value.Value.(ast.Object)
	if !ok {
		return checkNoConstant(h.Value)
	}
	return claims.Iter(func(k, v *ast.Term) error {
		if err := checkName(k); err != nil {
			return err
		}
		return checkValue(k, v, byName)
	})
}

// checkNoConstant refuses what can be no object; what is computed may be one.
func checkNoConstant(t *ast.Term) error {
	switch t.Value.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String, *ast.Array, ast.Set:
		return fmt.Errorf("line %d: trust_claims: expected an object, got %s", line(t.Location), ast.ValueName(t.Value))
	}
	return nil
}

func checkName(k *ast.Term) error {
	switch name := k.Value.(type) {
	case ast.String:
		if !slices.Contains(ear.Names(), string(name)) {
			return fmt.Errorf("line %d: trust_claims: expected one of %s, got %q", line(k.Location), strings.Join(ear.Names(), ", "), string(name))
		}
	case ast.Null, ast.Boolean, ast.Number, *ast.Array, ast.Object, ast.Set:
		return fmt.Errorf("line %d: trust_claims: expected one of %s, got %s", line(k.Location), strings.Join(ear.Names(), ", "), k)
	}
	return nil
}

// checkValue looks at a constant, and at the constants of a rule that the
// value names.
func checkValue(k, v *ast.Term, byName map[ast.Var][]*ast.Rule) error {
	if err := checkByte(k, v); err != nil {
		return err
	}
	name, ok := v.Value.(ast.Var)
	if !ok {
		return nil
	}
	for _, r := range byName[name] {
		if len(r.Head.Args) == 0 && r.Head.Value != nil && len(r.Head.Ref()) == 1 {
			if err := checkByte(k, r.Head.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkByte(k, v *ast.Term) error {
	switch n := v.Value.(type) {
	case ast.Number:
		i, err := json.Number(n).Int64()
		if err == nil && i >= -128 && i <= 127 {
			return nil
		}
	case ast.Null, ast.Boolean, ast.String, *ast.Array, ast.Object, ast.Set:
	default:
		return nil
	}
	return fmt.Errorf("line %d: trust_claims: %s: expected an integer from -128 to 127, got %s", line(v.Location), k, v)
}

func line(l *ast.Location) int {
	if l == nil {
		return 0
	}
	return l.Row
}
