package adminapi

import (
	"context"
	"io"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Store is what the administration works on, beside resources. Its errors are
// those of package store, which implements it and documents the methods.
type Store interface {
	Generation(ctx context.Context, t tenant.Name) (int64, error)

	SetPolicy(ctx context.Context, t tenant.Name, kind, id, text, author string) (store.Policy, error)
	DeletePolicy(ctx context.Context, t tenant.Name, kind, id, author string) (bool, error)
	Policy(ctx context.Context, t tenant.Name, kind, id string, version int64) (store.Policy, error)
	PolicyVersions(ctx context.Context, t tenant.Name, kind, id string) ([]store.Policy, error)
	Policies(ctx context.Context, t tenant.Name, kind, after string, limit int) ([]store.Policy, error)

	SetReferences(ctx context.Context, t tenant.Name, refs ...refvalues.Reference) error
	AddReference(ctx context.Context, t tenant.Name, r refvalues.Reference) error
	DeleteReference(ctx context.Context, t tenant.Name, name string) (bool, error)
	Reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, error)
	References(ctx context.Context, t tenant.Name, after string, limit int) ([]refvalues.Reference, error)
	ReferenceHistory(ctx context.Context, t tenant.Name, name string) ([]store.ReferenceVersion, error)

	Bind(ctx context.Context, t tenant.Name, b store.Binding) error
	Unbind(ctx context.Context, t tenant.Name, resource, initdata string) (int, error)
	Bindings(ctx context.Context, t tenant.Name, after store.Binding, limit int) ([]store.Binding, error)

	Append(ctx context.Context, t tenant.Name, r audit.Record) (audit.Entry, error)
	Entries(ctx context.Context, t tenant.Name, q audit.Query) ([]audit.Entry, error)
	EntryByID(ctx context.Context, t tenant.Name, id string) (audit.Entry, error)
	Checkpoints(ctx context.Context, t tenant.Name, after int64, limit int) ([]store.Checkpoint, error)

	Admins(ctx context.Context, t tenant.Name) ([]store.Admin, error)
	AddAdmin(ctx context.Context, x store.Admin) (store.Admin, error)
	RemoveAdmin(ctx context.Context, t tenant.Name, id string) (bool, error)

	Tenants(ctx context.Context) ([]store.Tenant, error)
	CreateTenant(ctx context.Context, name tenant.Name, description string) error
	SetTenantEnabled(ctx context.Context, name tenant.Name, enabled bool) error

	Backup(ctx context.Context, w io.Writer) error
}
