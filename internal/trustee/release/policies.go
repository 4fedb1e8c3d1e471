package release

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

//go:embed default.rego
var defaultPolicy string

// DefaultPolicy is the text of the built-in policy.
func DefaultPolicy() string { return defaultPolicy }

// Source is where a tenant's resource policies are kept, by scope.
type Source interface {
	// Generation changes with every change to the tenant's policies. It is
	// asked once for each decision and must be cheap.
	Generation(ctx context.Context, t tenant.Name) (int64, error)
	// ResourcePolicies are the versions in force, by scope: every scope that has
	// a policy of its own. Versions count from 1. It is asked once per generation.
	ResourcePolicies(ctx context.Context, t tenant.Name) (map[string]int64, error)
	// ResourcePolicy is the text of one version.
	ResourcePolicy(ctx context.Context, t tenant.Name, scope string, version int64) (string, error)
}

// The rules of package policy that are evaluated: allow decides, deny explains.
const (
	ruleAllow = "allow"
	ruleDeny  = "deny"
)

func newSet(s Source, timeout time.Duration) *policy.Set {
	return policy.NewSet(policy.SetOptions{
		Source:   byID{s},
		Defaults: map[string][]policy.Module{PolicyID: {{Name: PolicyID + ".rego", Text: defaultPolicy}}},
		Rules:    []string{ruleAllow, ruleDeny},
		Timeout:  timeout,
	})
}

// id is what a set knows a scope's policy by; a label is made of it.
func id(scope string) string {
	if scope == "" {
		return PolicyID
	}
	return PolicyID + ":" + scope
}

// byID is a source by [id].
type byID struct{ Source }

func (b byID) PolicyVersions(ctx context.Context, t tenant.Name) (map[string]int64, error) {
	scopes, err := b.ResourcePolicies(ctx, t)
	if err != nil {
		return nil, err
	}
	out := make(map[string]int64, len(scopes))
	for scope, version := range scopes {
		out[id(scope)] = version
	}
	return out, nil
}

func (b byID) PolicyText(ctx context.Context, t tenant.Name, id string, version int64) (string, error) {
	return b.ResourcePolicy(ctx, t, strings.TrimPrefix(strings.TrimPrefix(id, PolicyID), ":"), version)
}

// inForce finds the most specific policy for scopes ([Scopes]), then the one
// for everything, then the built-in one.
func (e *Engine) inForce(ctx context.Context, t tenant.Name, scopes []string) (*prepared, error) {
	view, err := e.set.View(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("resource policies of tenant %s: %w", t, err)
	}
	for _, scope := range append(slices.Clip(scopes), "") {
		p, label, ok, err := view.Get(ctx, id(scope))
		if err != nil {
			return nil, fmt.Errorf("resource policies of tenant %s: %w", t, err)
		}
		if ok {
			return &prepared{label, p}, nil
		}
	}
	return nil, fmt.Errorf("resource policies of tenant %s: there is no built-in policy", t)
}

// prepare compiles a resource policy. Its error about the text is a
// *[policy.CompileError].
func prepare(ctx context.Context, label, text string, timeout time.Duration) (*prepared, error) {
	p, err := policy.Compile(ctx, policy.Options{Name: label, Text: text, Rules: []string{ruleAllow, ruleDeny}, Timeout: timeout})
	if err != nil {
		return nil, err
	}
	return &prepared{label, p}, nil
}
