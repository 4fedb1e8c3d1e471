package config

// Storage configures the database and the key it is encrypted under.
type Storage struct {
	KEK      KEK      `toml:"kek"`
	Database Database `toml:"database"`
}

// KEK is the key-encryption key, which wraps the data keys.
type KEK struct {
	// Kind is file, pkcs11 or transit.
	Kind string `toml:"kind"`
	// File holds 32 bytes in hex. Empty: a key in the state directory.
	File    string    `toml:"file"`
	PKCS11  PKCS11Key `toml:"pkcs11"`
	Transit Transit   `toml:"transit"`
}

// Database is SQLite in the state directory, or PostgreSQL.
type Database struct {
	// URLFile holds a PostgreSQL connection URL (it has a password). Empty: SQLite.
	URLFile string `toml:"url_file"`
	// MaxConnections to PostgreSQL.
	MaxConnections int `toml:"max_connections"`
	// RetryFor is how long an operation waits for a database that is gone.
	RetryFor Duration `toml:"retry_for"`
}

// PKCS11 names a token of a hardware security module.
type PKCS11 struct {
	// Module is the vendor's shared library.
	Module string `toml:"module"`
	// Token is the token's label.
	Token string `toml:"token"`
	// PINFile holds the user PIN.
	PINFile string `toml:"pin_file"`
}

// PKCS11Key is an AES key in a token.
type PKCS11Key struct {
	PKCS11
	KeyLabel string `toml:"key_label"`
}

// Vault is how HashiCorp Vault or OpenBao is reached.
type Vault struct {
	Address   string `toml:"address"`
	Namespace string `toml:"namespace"`
	// Roots is a PEM file of the certificates that vouch for it; empty: the system's.
	Roots string `toml:"roots"`
	// TokenFile holds a token, read anew when it is refused; or
	TokenFile string `toml:"token_file"`
	// RoleID and SecretIDFile log in by the approle method.
	RoleID       string   `toml:"role_id"`
	SecretIDFile string   `toml:"secret_id_file"`
	Timeout      Duration `toml:"timeout"`
}

// Transit is a key of a transit engine.
type Transit struct {
	Vault
	Mount string `toml:"mount"`
	Key   string `toml:"key"`
}

// VaultKV is a KV version 2 engine.
type VaultKV struct {
	Vault
	Mount string `toml:"mount"`
	// Prefix stands before tenant/repository/type/tag.
	Prefix string `toml:"prefix"`
	// Field of the secret that holds the content, as base64 or text says Encoding.
	Field    string `toml:"field"`
	Encoding string `toml:"encoding"`
}

// Resources says where resources are kept.
type Resources struct {
	// Backend is database, directory, vault or pkcs11.
	Backend string `toml:"backend"`
	// Directory is where the directory backend keeps its files.
	Directory string  `toml:"directory"`
	Vault     VaultKV `toml:"vault"`
	PKCS11    PKCS11  `toml:"pkcs11"`
}
