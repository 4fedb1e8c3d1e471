package tenant

import "context"

type contextKey struct{}

// With returns a context that carries a request's tenant.
func With(ctx context.Context, n Name) context.Context {
	return context.WithValue(ctx, contextKey{}, n)
}

// Of is the tenant that ctx carries, [Default] where it carries none.
func Of(ctx context.Context) Name {
	if n, ok := ctx.Value(contextKey{}).(Name); ok {
		return n
	}
	return Default
}
