package store

import (
	"context"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// MaxDescription bounds a tenant's description, in bytes.
const MaxDescription = 1 << 10

// Tenant is one owner.
type Tenant struct {
	Name        tenant.Name
	Description string
	// Enabled: a disabled tenant keeps everything and is served nothing.
	Enabled bool
	Created time.Time
}

// Generation counts the changes to what the tenant's decisions depend on:
// policies, reference values, administrators, and whether it is enabled. What
// was cached under another generation is out of date. It costs one indexed
// read. Unknown and disabled tenants are [ErrNoTenant].
func (s *Store) Generation(ctx context.Context, t tenant.Name) (int64, error) {
	var g, enabled int64
	err := s.reading(ctx, "tenant "+string(t), func(ctx context.Context) error {
		err := s.reader().row(ctx, "SELECT generation, enabled FROM tenants WHERE name = ?", []any{string(t)}, &g, &enabled)
		if err == nil && enabled == 0 {
			return ErrNotFound
		}
		return err
	})
	return g, noTenant(t, err)
}

// noTenant turns "not found" into [ErrNoTenant].
func noTenant(t tenant.Name, err error) error {
	if err != nil && isNotFound(err) {
		return fmt.Errorf("store: %w: %.80q", ErrNoTenant, string(t))
	}
	return err
}

// Tenants lists all tenants by name, disabled ones too.
func (s *Store) Tenants(ctx context.Context) ([]Tenant, error) {
	return query(ctx, s, "tenants", "SELECT name, description, enabled, created FROM tenants ORDER BY name", nil,
		func(scan func(...any) error) (t Tenant, err error) {
			var name string
			var enabled, created int64
			err = scan(&name, &t.Description, &enabled, &created)
			t.Name, t.Enabled, t.Created = tenant.Name(name), enabled != 0, fromMillis(created)
			return t, err
		})
}

// CreateTenant makes a tenant with an empty audit chain, or returns [ErrExists].
func (s *Store) CreateTenant(ctx context.Context, name tenant.Name, description string) error {
	if _, err := tenant.Parse(string(name)); err != nil {
		return wrap("create tenant", err)
	}
	if len(description) > MaxDescription {
		return fmt.Errorf("store: create tenant %s: description: expected at most %d bytes, got %d", name, MaxDescription, len(description))
	}
	t := Tenant{Name: name, Description: clean(description), Enabled: true, Created: s.o.Now()}
	err := s.tx(ctx, "create tenant "+string(name), func(ctx context.Context, c conn) error { return c.createTenant(ctx, t) })
	if err != nil && unique(err) {
		return fmt.Errorf("store: create tenant %s: %w", name, ErrExists)
	}
	return err
}

// SetTenantEnabled enables or disables a tenant. The default tenant cannot be
// disabled; unknown ones are [ErrNoTenant].
func (s *Store) SetTenantEnabled(ctx context.Context, name tenant.Name, enabled bool) error {
	if name == tenant.Default && !enabled {
		return fmt.Errorf("store: the tenant %q cannot be disabled", name)
	}
	n, err := s.exec(ctx, "set tenant "+string(name), "UPDATE tenants SET enabled = ?, generation = generation + 1 WHERE name = ?", flag(enabled), string(name))
	if err == nil && n == 0 {
		err = noTenant(name, ErrNotFound)
	}
	return err
}
