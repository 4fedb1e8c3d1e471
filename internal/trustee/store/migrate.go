package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// SchemaVersion is the schema this program works with.
const SchemaVersion = 3

// migrationLock is the key of PostgreSQL's advisory lock that one replica
// holds while it creates or changes tables: "coffer-s" in ASCII.
const migrationLock = 0x636f666665722d73

// migrate creates the tables or brings them up to date. Of several replicas
// that start at once, one does it and the others wait.
func (s *Store) migrate(ctx context.Context) error {
	var have int
	err := s.reading(ctx, "schema version", func(ctx context.Context) (err error) {
		have, err = s.schemaVersion(ctx, s.reader())
		return err
	})
	if err != nil || have == SchemaVersion {
		return err
	}
	return s.again(ctx, "schema migration", func(ctx context.Context, c conn) error {
		if s.pool != nil {
			if _, err := collect(ctx, c, "SELECT CAST(pg_advisory_xact_lock(?) AS TEXT)", []any{int64(migrationLock)}, scanString); err != nil {
				return err
			}
		}
		have, err := s.schemaVersion(ctx, c)
		if err != nil || have == SchemaVersion {
			return err
		}
		if have == 0 {
			err = s.create(ctx, c)
		} else {
			err = s.upgrade(ctx, c, have)
		}
		if err != nil {
			return err
		}
		_, err = c.exec(ctx, "INSERT INTO schema_version (version) VALUES (?)", SchemaVersion)
		return err
	})
}

// schemaVersion is 0 for an empty database. A newer one than this program
// knows is an error.
func (s *Store) schemaVersion(ctx context.Context, c conn) (int, error) {
	there := "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
	if s.pool != nil {
		// Not to_regclass: it may remember that there was no such table.
		there = `SELECT COUNT(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relname = 'schema_version' AND n.nspname = ANY(current_schemas(false))`
	}
	var have int
	if err := c.row(ctx, there, nil, &have); err != nil || have == 0 {
		return 0, err
	}
	// The version lives in a table, not in a SQLite pragma.
	if err := c.row(ctx, "SELECT COALESCE(MAX(version), 0) FROM schema_version", nil, &have); err != nil {
		return 0, err
	}
	if have > SchemaVersion {
		return 0, fmt.Errorf("schema version %d is newer than this program, which knows %d: use a newer coffer-trustee", have, SchemaVersion)
	}
	return have, nil
}

// create makes all tables of the current version, and the default tenant.
func (s *Store) create(ctx context.Context, c conn) error {
	for stmt := range strings.SplitSeq("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL);"+schema, ";") {
		if strings.TrimSpace(stmt) == "" {
			continue
		}
		if _, err := c.tx.ExecContext(ctx, s.ddl(stmt)); err != nil {
			return err
		}
	}
	return c.createTenant(ctx, Tenant{Name: tenant.Default, Description: "the default tenant", Enabled: true, Created: s.o.Now()})
}

func (c conn) createTenant(ctx context.Context, t Tenant) error {
	if _, err := c.exec(ctx, "INSERT INTO tenants (name, description, enabled, generation, created) VALUES (?, ?, ?, 1, ?)",
		string(t.Name), t.Description, flag(t.Enabled), millis(t.Created)); err != nil {
		return err
	}
	_, err := c.exec(ctx, "INSERT INTO audit_heads (tenant, seq, hash) VALUES (?, 0, ?)", string(t.Name), audit.Genesis)
	return err
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
