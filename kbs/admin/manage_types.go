package admin

import "time"

// Administrator is a key that may sign administrators' tokens.
type Administrator struct {
	// ID is made of the key: the first 16 bytes of its SHA-256 in hexadecimal.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Tenant the key is for; "*" is every tenant.
	Tenant string `json:"tenant"`
	// Roles the key may claim; [RoleAdmin] includes the others.
	Roles []string `json:"roles"`
	// PublicKey is the Ed25519 key in PEM (PKIX).
	PublicKey string `json:"public_key"`
	// Configured: the key stands in the trustee's configuration file and can
	// only be removed there.
	Configured bool      `json:"configured,omitempty"`
	Created    time.Time `json:"created,omitzero"`
}

// NewAdministrator adds a key.
type NewAdministrator struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles"`
	// PublicKey is an Ed25519 key in PEM (PKIX).
	PublicKey string `json:"public_key"`
	// Tenant is empty for the tenant of the URL, or "*" for every tenant,
	// which only administrators of every tenant may give.
	Tenant string `json:"tenant,omitempty"`
}

// Tenant is one owner among those that share the trustee.
type Tenant struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Enabled     bool      `json:"enabled"`
	Created     time.Time `json:"created,omitzero"`
}

// NewTenant makes a tenant.
type NewTenant struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
}

// TenantChange changes a tenant.
type TenantChange struct {
	// Enabled: a tenant that is not is as good as absent, for its guests and
	// its administrators; nothing of it is lost.
	Enabled bool `json:"enabled"`
}

// TokenKey is a key that signs attestation tokens, or did.
type TokenKey struct {
	KeyID string `json:"kid"`
	// Algorithm is ES256 or ES384.
	Algorithm string    `json:"alg"`
	Created   time.Time `json:"created,omitzero"`
	// Retired is since when the key only verifies; zero: it signs.
	Retired time.Time `json:"retired,omitzero"`
}

// Rotation makes a new token key.
type Rotation struct {
	// Algorithm is ES256 or ES384; empty: that of the key that signs now.
	Algorithm string `json:"alg,omitempty"`
}

// WhoAmI says how the trustee sees the caller.
type WhoAmI struct {
	Subject string `json:"subject"`
	// Method is "key" or "oidc".
	Method string `json:"method"`
	// KeyID is the id of the administrator's key, for the method "key".
	KeyID string   `json:"key_id,omitempty"`
	Roles []string `json:"roles"`
	// Tenants the caller may administer; "*" is every tenant.
	Tenants []string `json:"tenants"`
	// Tenant is that of the URL, and Permissions what the caller may do there.
	Tenant      string   `json:"tenant"`
	Permissions []string `json:"permissions"`
}

// Status describes the running trustee.
type Status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// UptimeSeconds counts from Started.
	UptimeSeconds int64 `json:"uptime_seconds"`
	// Database is "sqlite" or "postgresql"; Schema its version.
	Database string `json:"database"`
	Schema   int    `json:"schema"`
	// ResourceBackend is where resources are kept: "database", "vault" and so on.
	ResourceBackend string `json:"resource_backend,omitempty"`
	// Tenant is that of the URL, and Counts what it has, by name: resources,
	// policies, reference_values, bindings, records.
	Tenant string           `json:"tenant"`
	Counts map[string]int64 `json:"counts,omitempty"`
}
