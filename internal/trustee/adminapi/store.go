package adminapi

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// TEMPORARY: aliases of the store's types once they exist.
var (
	ErrNotFound    = errors.New("not found")
	ErrFull        = errors.New("limit reached")
	ErrExists      = errors.New("exists")
	ErrNoTenant    = errors.New("no such tenant")
	ErrUnavailable = errors.New("unavailable")
)

type Policy struct {
	Kind, ID string
	Version  int64
	Text     string
	Author   string
	Created  time.Time
	Deleted  bool
}

type Binding struct {
	Resource, InitData, Description string
	Created                         time.Time
}

type Admin struct {
	ID        string
	Tenant    string
	Name      string
	Roles     []string
	PublicKey ed25519.PublicKey
	Created   time.Time
}

type Tenant struct {
	Name        tenant.Name
	Description string
	Enabled     bool
	Created     time.Time
}

type Checkpoint struct {
	Seq int64
	At  time.Time
	JWS string
}

type ReferenceVersion struct {
	refvalues.Reference
	Version int64
	Created time.Time
	Deleted bool
}

// Store is what the administration works on.
type Store interface {
	Generation(ctx context.Context, t tenant.Name) (int64, error)

	SetPolicy(ctx context.Context, t tenant.Name, kind, id, text, author string) (Policy, error)
	DeletePolicy(ctx context.Context, t tenant.Name, kind, id, author string) (Policy, error)
	Policy(ctx context.Context, t tenant.Name, kind, id string, version int64) (Policy, error)
	PolicyVersions(ctx context.Context, t tenant.Name, kind, id string) ([]Policy, error)
	Policies(ctx context.Context, t tenant.Name, kind string) ([]Policy, error)

	SetReferences(ctx context.Context, t tenant.Name, refs ...refvalues.Reference) error
	AddReference(ctx context.Context, t tenant.Name, r refvalues.Reference) error
	DeleteReference(ctx context.Context, t tenant.Name, name string) (bool, error)
	Reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, error)
	References(ctx context.Context, t tenant.Name, after string, limit int) ([]refvalues.Reference, error)
	ReferenceHistory(ctx context.Context, t tenant.Name, name string) ([]ReferenceVersion, error)

	Bind(ctx context.Context, t tenant.Name, b Binding) error
	Unbind(ctx context.Context, t tenant.Name, resource, initdata string) (int, error)
	Bindings(ctx context.Context, t tenant.Name) ([]Binding, error)

	Append(ctx context.Context, t tenant.Name, r audit.Record) (audit.Entry, error)
	Entries(ctx context.Context, t tenant.Name, q audit.Query) ([]audit.Entry, error)
	Checkpoints(ctx context.Context, t tenant.Name, after int64, limit int) ([]Checkpoint, error)

	Admins(ctx context.Context, t tenant.Name) ([]Admin, error)
	AddAdmin(ctx context.Context, x Admin) error
	RemoveAdmin(ctx context.Context, t tenant.Name, id string) (bool, error)

	Tenants(ctx context.Context) ([]Tenant, error)
	CreateTenant(ctx context.Context, name tenant.Name, description string) error
	SetTenantEnabled(ctx context.Context, name tenant.Name, enabled bool) error

	Backup(ctx context.Context, w io.Writer) error
}
