package trustee

import (
	"context"
	"errors"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
)

// The engines see the store through the narrow interfaces they declare.

type policies struct {
	store *store.Store
	kind  string
}

func (p policies) PolicyVersion(ctx context.Context, id string) (int64, error) {
	return p.store.PolicyVersion(ctx, p.kind, id)
}

func (p policies) PolicyText(ctx context.Context, id string, version int64) (string, error) {
	x, err := p.store.Policy(ctx, p.kind, id, version)
	return x.Text, err
}

type references struct{ store *store.Store }

func (r references) LookupReference(ctx context.Context, name string) (refvalues.Reference, bool, error) {
	ref, err := r.store.Reference(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return refvalues.Reference{}, false, nil
	}
	return ref, err == nil, err
}

type bindings struct{ store *store.Store }

func (b bindings) BindingsFor(ctx context.Context, p resource.Path) ([]release.Binding, error) {
	list, err := b.store.BindingsFor(ctx, p)
	out := make([]release.Binding, len(list))
	for i, x := range list {
		out[i] = release.Binding{InitData: x.InitData, Description: x.Description}
	}
	return out, err
}
