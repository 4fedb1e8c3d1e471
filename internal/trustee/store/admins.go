package store

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Limits of administrators.
const (
	maxAdmins    = 1000 // of one tenant
	maxAdminName = 256  // bytes
	maxRoles     = 16
	maxRole      = 64 // bytes
)

// Admin is an administrator's key.
type Admin struct {
	// ID is [AdminID] of the key.
	ID string
	// Tenant is whom the key may administer; tenant.All is everybody.
	Tenant tenant.Name
	// Name is for people.
	Name      string
	Roles     []string
	PublicKey ed25519.PublicKey
	Created   time.Time
}

// AdminID names a key: the first 16 bytes of its SHA-256 in hex.
func AdminID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

// AddAdmin stores an administrator's key and returns it with ID and Created.
// A key that the tenant has already is [ErrExists].
func (s *Store) AddAdmin(ctx context.Context, a Admin) (Admin, error) {
	what := fmt.Sprintf("add administrator %.200q", a.Name)
	if err := checkAdmin(a); err != nil {
		return Admin{}, wrap(what, err)
	}
	roles, err := json.Marshal(a.Roles)
	if err != nil {
		return Admin{}, wrap(what, err)
	}
	created := millis(s.o.Now())
	a.ID, a.Created = AdminID(a.PublicKey), fromMillis(created)
	err = s.change(ctx, a.Tenant, what, func(ctx context.Context, c conn) error {
		var n int
		if err := c.row(ctx, "SELECT COUNT(*) FROM admins WHERE tenant = ?", []any{string(a.Tenant)}, &n); err != nil {
			return err
		}
		if n >= maxAdmins {
			return fmt.Errorf("%w: %d administrators", ErrFull, maxAdmins)
		}
		rows, err := c.exec(ctx, `INSERT INTO admins (tenant, id, name, roles, public_key, created) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (tenant, id) DO NOTHING`, string(a.Tenant), a.ID, a.Name, string(roles), []byte(a.PublicKey), created)
		if err == nil && rows == 0 {
			err = fmt.Errorf("%w: key %s", ErrExists, a.ID)
		}
		return err
	})
	if err != nil {
		return Admin{}, err
	}
	return a, nil
}

func checkAdmin(a Admin) error {
	if a.Tenant != tenant.All {
		if _, err := tenant.Parse(string(a.Tenant)); err != nil {
			return err
		}
	}
	if len(a.PublicKey) != ed25519.PublicKeySize {
		return fmt.Errorf("key: expected an Ed25519 public key of %d bytes, got %d", ed25519.PublicKeySize, len(a.PublicKey))
	}
	if err := checkText("name", a.Name, maxAdminName); err != nil {
		return err
	}
	if len(a.Roles) == 0 || len(a.Roles) > maxRoles {
		return fmt.Errorf("roles: expected 1 to %d, got %d", maxRoles, len(a.Roles))
	}
	for _, r := range a.Roles {
		if err := checkText("role", r, maxRole); err != nil {
			return err
		}
	}
	return nil
}

// RemoveAdmin revokes a key of exactly this tenant, or of tenant.All, and
// reports whether it was there.
func (s *Store) RemoveAdmin(ctx context.Context, t tenant.Name, id string) (was bool, err error) {
	err = s.change(ctx, t, fmt.Sprintf("remove administrator %.80q", id), func(ctx context.Context, c conn) error {
		n, err := c.exec(ctx, "DELETE FROM admins WHERE tenant = ? AND id = ?", string(t), clean(id))
		was = n > 0
		return err
	})
	return was, err
}

// Admins lists the keys that may administer a tenant: its own and those of
// tenant.All. For tenant.All it lists only the latter.
func (s *Store) Admins(ctx context.Context, t tenant.Name) ([]Admin, error) {
	return query(ctx, s, "administrators", "SELECT tenant, id, name, roles, public_key, created FROM admins WHERE tenant IN (?, ?) ORDER BY tenant, id",
		[]any{string(t), string(tenant.All)},
		func(scan func(...any) error) (a Admin, err error) {
			var name, roles string
			var key []byte
			var created int64
			if err := scan(&name, &a.ID, &a.Name, &roles, &key, &created); err != nil {
				return a, err
			}
			a.Tenant, a.PublicKey, a.Created = tenant.Name(name), ed25519.PublicKey(key), fromMillis(created)
			if err := json.Unmarshal([]byte(roles), &a.Roles); err != nil {
				return a, fmt.Errorf("administrator %s: roles: %w", a.ID, err)
			}
			// The database is not sealed here: a key under another key's name would
			// hide in listings.
			if AdminID(a.PublicKey) != a.ID {
				return a, fmt.Errorf("administrator %s: the key is another one, %s: the database was changed", a.ID, AdminID(a.PublicKey))
			}
			return a, nil
		})
}
