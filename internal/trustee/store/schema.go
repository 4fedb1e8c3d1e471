package store

// schema is the whole of version 3, where PostgreSQL and new SQLite databases
// begin. Times are Unix milliseconds, 0 for none; flags are 0 and 1.
//
// The statements are separated by semicolons; none holds one in itself.
const schema = `
CREATE TABLE data_keys (id BIGINT NOT NULL PRIMARY KEY, kek TEXT NOT NULL, wrapped BLOB NOT NULL, created BIGINT NOT NULL);

CREATE TABLE tenants (name TEXT NOT NULL PRIMARY KEY, description TEXT NOT NULL, enabled BIGINT NOT NULL,
	generation BIGINT NOT NULL, created BIGINT NOT NULL);

CREATE TABLE sessions (tenant TEXT NOT NULL, id TEXT NOT NULL, token TEXT NOT NULL, expires BIGINT NOT NULL, PRIMARY KEY (tenant, id));
CREATE INDEX sessions_expires ON sessions (tenant, expires);

CREATE TABLE audit_heads (tenant TEXT NOT NULL PRIMARY KEY, seq BIGINT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE audit_entries (tenant TEXT NOT NULL, seq BIGINT NOT NULL, record TEXT NOT NULL, at BIGINT NOT NULL, kind TEXT NOT NULL,
	resource TEXT NOT NULL, initdata TEXT NOT NULL, session TEXT NOT NULL, subject TEXT NOT NULL, granted BIGINT NOT NULL,
	previous TEXT NOT NULL, hash TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (tenant, seq));
CREATE UNIQUE INDEX audit_record ON audit_entries (tenant, record);
CREATE INDEX audit_at ON audit_entries (tenant, at);
CREATE INDEX audit_resource ON audit_entries (tenant, resource, seq) WHERE resource <> '';
CREATE INDEX audit_initdata ON audit_entries (tenant, initdata, seq) WHERE initdata <> '';
CREATE INDEX audit_session ON audit_entries (tenant, session, seq) WHERE session <> '';
CREATE INDEX audit_subject ON audit_entries (tenant, subject, seq) WHERE subject <> '';
CREATE TABLE audit_checkpoints (tenant TEXT NOT NULL, seq BIGINT NOT NULL, at BIGINT NOT NULL, jws TEXT NOT NULL, PRIMARY KEY (tenant, seq));

CREATE TABLE transactions (id TEXT NOT NULL PRIMARY KEY, at BIGINT NOT NULL);
CREATE INDEX transactions_at ON transactions (at);

CREATE TABLE secrets (name TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, content BLOB NOT NULL, updated BIGINT NOT NULL);

CREATE TABLE webhook_cursors (tenant TEXT NOT NULL, name TEXT NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (tenant, name));

CREATE TABLE resources (tenant TEXT NOT NULL, path TEXT NOT NULL, version BIGINT NOT NULL, deleted BIGINT NOT NULL, size BIGINT NOT NULL,
	created BIGINT NOT NULL, PRIMARY KEY (tenant, path));
CREATE TABLE resource_versions (tenant TEXT NOT NULL, path TEXT NOT NULL, version BIGINT NOT NULL, state BIGINT NOT NULL, size BIGINT NOT NULL,
	created BIGINT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (tenant, path, version));

CREATE TABLE policies (tenant TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, version BIGINT NOT NULL, deleted BIGINT NOT NULL,
	author TEXT NOT NULL, created BIGINT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (tenant, kind, id, version));

CREATE TABLE reference_names (tenant TEXT NOT NULL, name TEXT NOT NULL, version BIGINT NOT NULL, deleted BIGINT NOT NULL,
	PRIMARY KEY (tenant, name));
CREATE TABLE reference_versions (tenant TEXT NOT NULL, name TEXT NOT NULL, version BIGINT NOT NULL, deleted BIGINT NOT NULL,
	created BIGINT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (tenant, name, version));

CREATE TABLE bindings (tenant TEXT NOT NULL, resource TEXT NOT NULL, initdata TEXT NOT NULL, description TEXT NOT NULL,
	created BIGINT NOT NULL, PRIMARY KEY (tenant, resource, initdata));

CREATE TABLE admins (tenant TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, roles TEXT NOT NULL, public_key BLOB NOT NULL,
	created BIGINT NOT NULL, PRIMARY KEY (tenant, id));
`

// Notes on the tables.
//
//   - audit_heads has one row per tenant, made with it. Whoever appends locks
//     it.
//   - audit_entries: the columns beside body repeat what queries go by. body
//     is the record's JSON, byte for byte as it was hashed.
//   - transactions has a row for each recent one of PostgreSQL's (see Store.tx).
//   - resources holds the newest version of each path (deleted: it is a
//     tombstone), resource_versions every one of them.
//   - resource_versions.state is one of the constants below; content is sealed
//     under "resource/tenant/path/version" (see resourceName), empty where erased.
//   - reference_versions.body is refvalues.Reference as JSON, empty where
//     deleted; reference_names points to the newest.
//   - admins.tenant may be "*"; roles is a JSON array.
const (
	stateReadable  = 0
	stateErased    = 1
	stateTombstone = 2
)
