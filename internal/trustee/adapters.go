package trustee

import (
	"context"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// The engines see the store through the narrow interfaces they declare.

// attestationPolicies is the policy.Source of the appraisal.
type attestationPolicies struct{ *store.Store }

func (p attestationPolicies) PolicyVersions(ctx context.Context, t tenant.Name) (map[string]int64, error) {
	return p.PolicyHeads(ctx, t, store.AttestationPolicy)
}

func (p attestationPolicies) PolicyText(ctx context.Context, t tenant.Name, id string, version int64) (string, error) {
	x, err := p.Policy(ctx, t, store.AttestationPolicy, id, version)
	return x.Text, err
}

// resourcePolicies is the release.Source.
type resourcePolicies struct{ *store.Store }

func (p resourcePolicies) ResourcePolicies(ctx context.Context, t tenant.Name) (map[string]int64, error) {
	return p.PolicyHeads(ctx, t, store.ResourcePolicy)
}

func (p resourcePolicies) ResourcePolicy(ctx context.Context, t tenant.Name, scope string, version int64) (string, error) {
	x, err := p.Policy(ctx, t, store.ResourcePolicy, scope, version)
	return x.Text, err
}

// references are the appraisal's.
type references struct{ *store.Store }

func (r references) Reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, bool, error) {
	ref, err := r.Store.Reference(ctx, t, name)
	if errors.Is(err, store.ErrNotFound) {
		return refvalues.Reference{}, false, nil
	}
	return ref, err == nil, err
}

// bindings are the release's.
type bindings struct{ *store.Store }

func (b bindings) BindingsFor(ctx context.Context, t tenant.Name, scopes []string) ([]release.Binding, error) {
	list, err := b.Store.BindingsFor(ctx, t, scopes)
	out := make([]release.Binding, len(list))
	for i, x := range list {
		out[i] = release.Binding{InitData: x.InitData, Description: x.Description}
	}
	return out, err
}

// tenants lists the names of all tenants.
func (t *Trustee) tenants(ctx context.Context) ([]tenant.Name, error) {
	list, err := t.store.Tenants(ctx)
	if err != nil {
		return nil, fmt.Errorf("tenants: %w", err)
	}
	out := make([]tenant.Name, len(list))
	for i, x := range list {
		out[i] = x.Name
	}
	return out, nil
}
