package config

// Roles of administrators: docs/trustee.md says what each may do.
var roles = []string{"admin", "policy-author", "secret-writer", "auditor"}

// Admin configures who may administer.
type Admin struct {
	// PublicKeys are PEM files of Ed25519 keys that may do everything. None,
	// and no Keys or OIDC either: the trustee makes a key pair in the state
	// directory.
	PublicKeys []string `toml:"public_keys"`
	Issuer     string   `toml:"issuer"`
	Audience   string   `toml:"audience"`
	// MaxTokenLifetime bounds exp − iat of an administrator's token.
	MaxTokenLifetime Duration `toml:"max_token_lifetime"`
	// ClientCA is a PEM file: administrators must present a certificate that
	// it vouches for, besides their token.
	ClientCA string `toml:"client_ca"`
	// Keys are further keys, bounded in what they may do.
	Keys []AdminKey `toml:"key"`
	// OIDC are identity providers whose tokens administrators may use.
	OIDC []OIDC `toml:"oidc"`
}

// AdminKey is an Ed25519 key with roles.
type AdminKey struct {
	Name string `toml:"name"`
	// File is the public key in PEM.
	File string `toml:"file"`
	// Roles are admin, policy-author, secret-writer, auditor.
	Roles []string `toml:"roles"`
	// Tenant is a tenant, or "*" for all.
	Tenant string `toml:"tenant"`
}

// OIDC is an OpenID Connect identity provider.
type OIDC struct {
	// Issuer is its URL: iss of its tokens, and where its keys are found by
	// discovery unless JWKS says otherwise.
	Issuer   string `toml:"issuer"`
	Audience string `toml:"audience"`
	// JWKS is a file or https URL with its keys; empty: by discovery.
	JWKS string `toml:"jwks"`
	// Roots is a PEM file of the certificates that vouch for it; empty: the system's.
	Roots string `toml:"roots"`
	// RoleClaim names the claim that holds a role or a list of them, with dots
	// between members: "realm_access.roles".
	RoleClaim string `toml:"role_claim"`
	// Roles map values of that claim to roles of the trustee.
	Roles map[string]string `toml:"roles"`
	// TenantClaim names the claim that holds the tenant; empty: Tenant is it.
	TenantClaim string `toml:"tenant_claim"`
	Tenant      string `toml:"tenant"`
}

// Plugins configures the resources that are made, not stored.
type Plugins struct {
	PKI     PKI     `toml:"pki"`
	Keyless Keyless `toml:"keyless"`
}

// Keyless verifies keyless image signatures for attested pods.
type Keyless struct {
	Enabled bool `toml:"enabled"`
	// Authorities are PEM files with the certificates that pods' policies may
	// trust; none: those that they name.
	Authorities []string `toml:"authorities"`
	// Logs are PEM files with public keys of transparency logs, likewise.
	Logs []string `toml:"logs"`
}

// PKI issues certificates to attested pods.
type PKI struct {
	Enabled bool `toml:"enabled"`
	// TrustDomain is that of the SPIFFE ids in the certificates.
	TrustDomain string `toml:"trust_domain"`
	// Roles by name.
	Roles map[string]PKIRole `toml:"roles"`
}

// PKIRole says what certificates of a role may hold.
type PKIRole struct {
	// DNS are exact names, or "*.suffix" for any one label before it.
	DNS []string `toml:"dns"`
	// Usages are server and client.
	Usages []string `toml:"usages"`
	// Lifetime of a certificate, at most a day; 0: an hour.
	Lifetime Duration `toml:"lifetime"`
}
