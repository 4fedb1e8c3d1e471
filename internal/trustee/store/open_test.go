package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// each runs a test with the options of an empty database of either kind.
func each(t *testing.T, test func(t *testing.T, o Options)) {
	t.Parallel()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, dataOptions(t, kind, newTestClock().now))
		})
	}
}

func TestOpenAgain(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := openData(t, o)
		if _, err := s.Append(t.Context(), tenant.Default, attestation("")); err != nil {
			t.Fatal(err)
		}
		put(t, s, tenant.Default, "demo/key/1", "content")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openData(t, o)
		got, _, err := s.Resources().Get(t.Context(), tenant.Default, mustPath(t, "demo/key/1"), 0)
		if err != nil || string(got.Expose()) != "content" {
			t.Errorf("%q, %v", got.Expose(), err)
		}
		if n := len(checkChain(t, s, tenant.Default)); n != 1 {
			t.Errorf("%d records", n)
		}
		if err := s.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestWrongKEK(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := openData(t, o)
		other := o
		other.KEK = testKEK(t, 8)
		if _, err := Open(t.Context(), other); !errors.Is(err, seal.ErrWrongKEK) || !strings.Contains(err.Error(), "restore the key file") {
			t.Errorf("got %v", err)
		}
		// A key-encryption key that lies about its name.
		other.KEK = renamed{other.KEK, o.KEK.ID()}
		if _, err := Open(t.Context(), other); !errors.Is(err, seal.ErrWrongKEK) {
			t.Errorf("got %v", err)
		}
		put(t, s, tenant.Default, "demo/key/1", "content")
		if err := s.RewrapDataKeys(t.Context(), testKEK(t, 8)); err != nil {
			t.Fatal(err)
		}
		other.KEK = testKEK(t, 8)
		if got, _, err := openData(t, other).Resources().Get(t.Context(), tenant.Default, mustPath(t, "demo/key/1"), 0); err != nil || string(got.Expose()) != "content" {
			t.Errorf("rewrapped: %q, %v", got.Expose(), err)
		}
		if _, err := Open(t.Context(), o); !errors.Is(err, seal.ErrWrongKEK) {
			t.Errorf("the old key: %v", err)
		}
	})
}

type renamed struct {
	seal.KEK
	id string
}

func (r renamed) ID() string { return r.id }

func TestNewerSchemaIsRefused(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := openData(t, o)
		if _, err := s.exec(t.Context(), "test", "INSERT INTO schema_version (version) VALUES (?)", 99); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "newer") {
			t.Errorf("got %v", err)
		}
	})
}

func TestOptions(t *testing.T) {
	t.Parallel()
	good := dataOptions(t, "sqlite", newTestClock().now)
	for name, change := range map[string]func(*Options){
		"no KEK":       func(o *Options) { o.KEK = nil },
		"no clock":     func(o *Options) { o.Now = nil },
		"no database":  func(o *Options) { o.Path = "" },
		"negative":     func(o *Options) { o.RetryFor = -1 },
		"bad URL":      func(o *Options) { o.DatabaseURL = "postgres://u:PASSWORD@%zz/" },
		"bad URL port": func(o *Options) { o.DatabaseURL = "postgres://u:PASSWORD@h:x/" },
		"no directory": func(o *Options) { o.Path = "/nonexistent/state.db" },
	} {
		o := good
		change(&o)
		if _, err := Open(t.Context(), o); err == nil || strings.Contains(err.Error(), "PASSWORD") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestReadableDatabaseIsRefused: tokens and the audit log are not encrypted.
func TestReadableDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	o := dataOptions(t, "sqlite", newTestClock().now)
	// A directory with characters that mean something in a URL.
	dir := filepath.Join(t.TempDir(), "a b?c#d%20e")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	o.Path = filepath.Join(dir, "state.db")
	s := openData(t, o)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 2 {
		t.Errorf("%v, %v: the database is not where it should be", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
	_ = s.Close()
	if err := os.Chmod(o.Path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "mode 0600") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(o.Path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil {
		t.Error("a directory: want an error")
	}
}

// legacyDatabase is what a program of schema 1 or 2 has left.
func legacyDatabase(t *testing.T, o Options, version int, key []byte) {
	t.Helper()
	db, err := openSQLite(o.Path, 1, "immediate", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	block, _ := aes.NewCipher(key)
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(name, plain string) []byte {
		nonce := make([]byte, aead.NonceSize())
		_, _ = rand.Read(nonce)
		return aead.Seal(nonce, nonce, []byte(plain), []byte("coffer-trustee/resource/v1\x00"+name))
	}
	for _, stmt := range []struct {
		text string
		args []any
	}{
		{"CREATE TABLE schema_version (version BIGINT NOT NULL)", nil},
		{legacySchema[0], nil},
		{"INSERT INTO schema_version (version) VALUES (1)", nil},
		{"INSERT INTO meta VALUES ('kek-check', ?)", []any{sealed("kek-check", "kek-check")}},
		{"INSERT INTO sessions VALUES ('s', '0.4.0', 'snp', '{}', 'n', 'attested', 'token', 1, 9000000000000)", nil},
		{"INSERT INTO resources VALUES ('demo/key/1', ?, 7, 1000, 2000)", []any{sealed("demo/key/1", "content")}},
		{"INSERT INTO policies VALUES ('resource', 'resource-policy', 1, 'old', 1000), ('resource', 'resource-policy', 2, 'new', 2000), ('attestation', 'default_cpu', 1, 'cpu', 3000)", nil},
		{`INSERT INTO reference_values VALUES ('m', 0, 0, '"aa"', 'first', '{"k":1}', 0, 1000), ('m', 1, 0, '"bb"', '', '', 9000000000000, 1000), ('n', 0, 1, '5', '', '', 0, 1000)`, nil},
		{"INSERT INTO bindings VALUES ('demo', 'aa', 'mine', 1000)", nil},
		{`INSERT INTO verdicts (at, session, body) VALUES (1000, 's', '{"at":"2027-01-02T03:04:05Z","kind":"attestation","session":"s","granted":true,"status":200,"simulated":false,"claims":{"x":1}}')`, nil},
		{`INSERT INTO verdicts (at, session, body) VALUES (2000, 's', '{"at":"2027-01-02T03:04:06Z","kind":"resource","resource":"demo/key/1","granted":false,"status":403,"reason":{"rule":"r"},"policy":"resource-policy@2"}')`, nil},
	} {
		if _, err := db.ExecContext(t.Context(), stmt.text, stmt.args...); err != nil {
			t.Fatalf("%s: %v", stmt.text, err)
		}
	}
	if version == 2 {
		if _, err := db.ExecContext(t.Context(), legacySchema[1]+"INSERT INTO schema_version (version) VALUES (2)"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(o.Path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// legacySchema is what schema 1 and 2 were made with.
var legacySchema = [2]string{`
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE sessions (
	id TEXT PRIMARY KEY, protocol TEXT NOT NULL, tee TEXT NOT NULL, request TEXT NOT NULL, nonce TEXT NOT NULL,
	state TEXT NOT NULL, token TEXT NOT NULL, created BIGINT NOT NULL, expires BIGINT NOT NULL);
CREATE INDEX sessions_expires ON sessions (expires);
CREATE TABLE resources (path TEXT PRIMARY KEY, content BLOB NOT NULL, size BIGINT NOT NULL, created BIGINT NOT NULL, updated BIGINT NOT NULL);
CREATE TABLE policies (kind TEXT NOT NULL, id TEXT NOT NULL, version BIGINT NOT NULL, text TEXT NOT NULL, created BIGINT NOT NULL,
	PRIMARY KEY (kind, id, version));
CREATE TABLE reference_values (name TEXT NOT NULL, seq BIGINT NOT NULL, scalar BIGINT NOT NULL, value TEXT NOT NULL,
	description TEXT NOT NULL, inputs TEXT NOT NULL, expires BIGINT NOT NULL, created BIGINT NOT NULL, PRIMARY KEY (name, seq));
CREATE TABLE bindings (resource TEXT NOT NULL, initdata TEXT NOT NULL, description TEXT NOT NULL, created BIGINT NOT NULL,
	PRIMARY KEY (resource, initdata));
CREATE TABLE verdicts (id INTEGER PRIMARY KEY, at BIGINT NOT NULL, session TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX verdicts_session ON verdicts (session);
`, `
ALTER TABLE verdicts ADD COLUMN class TEXT NOT NULL DEFAULT '';
CREATE INDEX verdicts_class ON verdicts (class, id);
`}

func TestMigration(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		key := bytes.Repeat([]byte{9}, seal.KeySize)
		o := dataOptions(t, "sqlite", newTestClock().now)
		legacyDatabase(t, o, version, key)
		// Without the right key nothing is touched.
		for _, wrong := range [][]byte{nil, bytes.Repeat([]byte{1}, seal.KeySize)} {
			o.LegacyKEK = secret.New(wrong)
			if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "key") {
				t.Fatalf("got %v", err)
			}
		}
		o.LegacyKEK = secret.New(key)
		_ = openData(t, o).Close()
		o.LegacyKEK = secret.Bytes{} // no longer needed
		s := openData(t, o)
		checkMigrated(t, s)
		put(t, s, tenant.Default, "demo/key/1", "next")
	}
	if _, err := os.Stat("state.db"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a database in the working directory")
	}
}

func checkMigrated(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	got, v, err := s.Resources().Get(ctx, tenant.Default, mustPath(t, "demo/key/1"), 0)
	if err != nil || v != 1 || string(got.Expose()) != "content" {
		t.Errorf("resource %q, version %d, %v", got.Expose(), v, err)
	}
	for _, want := range []Policy{{Kind: ResourcePolicy, ID: "", Version: 2, Text: "new"}, {Kind: ResourcePolicy, ID: "", Version: 1, Text: "old"},
		{Kind: AttestationPolicy, ID: "default_cpu", Version: 1, Text: "cpu"}} {
		if p, err := s.Policy(ctx, tenant.Default, want.Kind, want.ID, want.Version); err != nil || p.Text != want.Text {
			t.Errorf("policy %+v, %v", p, err)
		}
	}
	m, err := s.Reference(ctx, tenant.Default, "m")
	if err != nil || len(m.Entries) != 2 || string(m.Entries[0].Value) != `"aa"` || m.Entries[0].Description != "first" || m.Entries[1].Expires.IsZero() {
		t.Errorf("reference %+v, %v", m, err)
	}
	if n, err := s.Reference(ctx, tenant.Default, "n"); err != nil || !n.Scalar {
		t.Errorf("reference %+v, %v", n, err)
	}
	b, err := s.BindingsFor(ctx, tenant.Default, []string{"demo"})
	if err != nil || len(b) != 1 || b[0].Description != "mine" {
		t.Errorf("bindings %+v, %v", b, err)
	}
	records := checkChain(t, s, tenant.Default)
	if len(records) != 2 {
		t.Errorf("%d records", len(records))
	}
	for _, r := range records {
		if r.Action != migratedAction || r.Kind == "resource" && (r.Resource != "kbs:///demo/key/1" || r.Status != 403 || len(r.Reasons) != 1) {
			t.Errorf("record %+v", r)
		}
	}
}
