package adminapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

const marker = "hunter2-marker"

// TestEveryChangeIsOnRecord makes every change there is, and wants a record
// of each with who, what, and no content.
func TestEveryChangeIsOnRecord(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	e := newEnv(t, func(o *Options) {
		o.Plugin = pluginOf(marker)
		o.RotateTokenKey = func(_ context.Context, alg string) (admin.TokenKey, error) {
			return admin.TokenKey{KeyID: "kid", Algorithm: alg}, nil
		}
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	digest := strings.Repeat("ab", 32)
	quoted, _ := json.Marshal(string(pemOf(t, "new")))
	id := store.AdminID(public("new"))
	changes := []struct{ request, body, action, resource, detail string }{
		{"POST /kbs/v0/resource/a/b/c", marker, "resource.set", "kbs:///a/b/c", "14 bytes"},
		{"DELETE /kbs/v0/resource/a/b/c", "", "resource.delete", "kbs:///a/b/c", ""},
		{"DELETE /kbs/v0/resource/a/b/d", "", "resource.delete", "kbs:///a/b/d", "none"},
		{"POST /kbs/v0/resource-policy", `{"policy":"cGFja2FnZQ"}`, "policy.set", "coffer:///policies/resource/", "7 bytes, SHA-256 bc4a"},
		{"POST /kbs/v0/attestation-policy", `{"policy_id":"x_cpu","policy":"cGFja2FnZQ"}`, "policy.set", "coffer:///policies/attestation/x_cpu", ""},
		{"PUT /admin/v1/policies/resource?scope=a/b", "package", "policy.set", "coffer:///policies/resource/a/b", ""},
		{"DELETE /admin/v1/policies/resource?scope=a/b", "", "policy.delete", "coffer:///policies/resource/a/b", ""},
		{"PUT /admin/v1/policies/attestation/y_cpu", "package", "policy.set", "coffer:///policies/attestation/y_cpu", ""},
		{"DELETE /admin/v1/policies/attestation/y_cpu", "", "policy.delete", "coffer:///policies/attestation/y_cpu", ""},
		{"POST /kbs/v0/reference-value", `{"type":"sample","payload":"eyJhIjoxLCJiIjoyfQ=="}`, "reference.register", "coffer:///reference-values/", "a: 1 values, b: 1 values"},
		{"POST /admin/v1/provenance", `{"type":"sample","payload":"eyJhIjoxfQ=="}`, "reference.register", "coffer:///reference-values/a", ""},
		{"PUT /admin/v1/reference-values/m", `{"values":[1,2]}`, "reference.set", "coffer:///reference-values/m", "m: 2 values"},
		{"POST /admin/v1/reference-values?name=m", `{"values":[3]}`, "reference.add", "coffer:///reference-values/m", ""},
		{"DELETE /admin/v1/reference-values/m", "", "reference.delete", "coffer:///reference-values/m", ""},
		{"PUT /admin/v1/bindings", `{"resource":"+pki/issue","initdata":"` + digest + `","description":"d"}`, "binding.set", "kbs+pki:///issue", "d"},
		{"DELETE /admin/v1/bindings?resource=%2Bpki/issue", "", "binding.delete", "kbs+pki:///issue", "1 bindings"},
		{"POST /admin/v1/admins", `{"name":"n","roles":["auditor"],"public_key":` + string(quoted) + `}`, "admin.add", "coffer:///admins/" + id, "roles auditor, name n"},
		{"DELETE /admin/v1/admins/" + id, "", "admin.remove", "coffer:///admins/" + id, "name n"},
		{"POST /admin/v1/tenants", `{"name":"other"}`, "tenant.create", "coffer:///tenants/other", ""},
		{"PATCH /admin/v1/tenants/other", `{"enabled":false}`, "tenant.change", "coffer:///tenants/other", "disabled"},
		{"POST /admin/v1/token-keys/rotate", `{"alg":"ES384"}`, "token-key.rotate", "coffer:///token-keys/kid", "ES384"},
		{"GET /admin/v1/backup", "", "backup", "coffer:///backup", ""},
		{"GET /kbs/v0/pki/ca/x", "", "plugin.get", "kbs+pki:///ca/x", "answered"},
		{"PUT /kbs/v0/pki", marker, "plugin.put", "kbs+pki:///", "answered"},
	}
	actions := map[string]bool{}
	for i, tc := range changes {
		e.root(tenant.Default, tc.request, tc.body, 200)
		records := e.records(tenant.Default)
		if len(records) != i+1 {
			t.Fatalf("%s: %d records, want %d", tc.request, len(records), i+1)
		}
		r := records[i]
		if r.Action != tc.action || r.Resource != tc.resource || !strings.Contains(r.Detail, tc.detail) || !r.Granted || r.Status != 200 ||
			r.Subject != "someone" || r.Role != "admin" || r.Client != "192.0.2.7:4711" || !r.At.Equal(fixed) || r.Tenant != tenant.Default || r.ID == "" {
			t.Errorf("%s: %+v", tc.request, r)
		}
		if strings.HasPrefix(tc.action, "binding") && tc.body != "" && r.InitData != digest {
			t.Errorf("%s: %+v", tc.request, r)
		}
		actions[tc.action] = true
	}
	for _, rt := range e.api.routes {
		if rt.action != "" && !actions[rt.action] {
			t.Errorf("%s %s: %s is not tried", rt.method, rt.path, rt.action)
		}
	}
	// What is only read, asked or refused for its form leaves no record.
	for request, status := range map[string]int{
		"GET /admin/v1/audit": 200, "GET /kbs/v0/resource": 200, "POST /kbs/v0/resource/x": 400, "PUT /admin/v1/bindings": 400, "GET /admin/v1/nothing": 404,
	} {
		e.root(tenant.Default, request, "", status)
	}
	if got := e.records(tenant.Default); len(got) != len(changes) {
		t.Errorf("%d records, want %d: %+v", len(got), len(changes), got[len(changes):])
	}
	// Refused for what is there: somebody tried.
	e.root(tenant.Default, "POST /admin/v1/tenants", `{"name":"other"}`, 409)
	if got := e.records(tenant.Default); len(got) != len(changes)+1 || got[len(changes)].Granted || got[len(changes)].Status != 409 {
		t.Errorf("%+v", got[len(changes):])
	}
	all, _ := json.Marshal(e.records(tenant.Default))
	for _, text := range []string{marker, "eyJ"} {
		if strings.Contains(string(all), text) || strings.Contains(log.String(), text) {
			t.Errorf("%q is in the record or in the log", text)
		}
	}
}

// faulty is a store that fails where it is told to.
type faulty struct {
	*store.Store
	append, admins, generation, entries error
	backup                              func(io.Writer) error
}

func (f *faulty) Append(ctx context.Context, t tenant.Name, r audit.Record) (audit.Entry, error) {
	if f.append != nil {
		return audit.Entry{}, f.append
	}
	return f.Store.Append(ctx, t, r)
}

func (f *faulty) Admins(ctx context.Context, t tenant.Name) ([]store.Admin, error) {
	if f.admins != nil {
		return nil, f.admins
	}
	return f.Store.Admins(ctx, t)
}

func (f *faulty) Generation(ctx context.Context, t tenant.Name) (int64, error) {
	if f.generation != nil {
		return 0, f.generation
	}
	return f.Store.Generation(ctx, t)
}

func (f *faulty) Entries(ctx context.Context, t tenant.Name, q audit.Query) ([]audit.Entry, error) {
	if f.entries != nil {
		return nil, f.entries
	}
	return f.Store.Entries(ctx, t, q)
}

func (f *faulty) Backup(ctx context.Context, w io.Writer) error {
	if f.backup != nil {
		return f.backup(w)
	}
	return f.Store.Backup(ctx, w)
}

func faultyEnv(t *testing.T, change func(*Options)) (*env, *faulty) {
	t.Helper()
	f := &faulty{}
	e := newEnv(t, func(o *Options) {
		f.Store, _ = o.Store.(*store.Store)
		o.Store = f
		if change != nil {
			change(o)
		}
	})
	return e, f
}

// TestFailures: nothing is let in, and nothing called done, when the store or
// a backend fails.
func TestFailures(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken " + marker)
	away := fmt.Errorf("x: %w", store.ErrUnavailable)
	backend := &brokenBackend{}
	e, f := faultyEnv(t, func(o *Options) { o.Plugin = pluginOf(marker) })
	e2, _ := faultyEnv(t, func(o *Options) { o.Resources = backend })
	check := func(what string, got reply, status int, retry bool) {
		t.Helper()
		if got.status != status || (got.header.Get("Retry-After") != "") != retry || strings.Contains(got.body, marker) {
			t.Errorf("%s: %d %s %v", what, got.status, got.body, got.header)
		}
	}
	root := e.token("root", nil)
	f.append = broken
	got := e.do("acme", root, "POST /kbs/v0/resource/a/b/c", "x")
	check("no record of a change", got, 500, false)
	if !strings.Contains(got.info.Detail, "could not be written") {
		t.Errorf("%s", got.body)
	}
	check("no record of a plugin's answer", e.do("acme", root, "GET /kbs/v0/pki/x", ""), 500, false)
	check("no record of a backup", e.do(tenant.Default, root, "GET /admin/v1/backup", ""), 500, false)
	f.append = away
	check("no record of a backup, the database being away", e.do(tenant.Default, root, "GET /admin/v1/backup", ""), 503, true)
	check("a refusal stands", e.do("acme", e.token("root", map[string]any{"role": "auditor"}), "POST /kbs/v0/resource/a/b/c", "x"), 403, false)
	f.append, f.admins = nil, away
	check("keys unknown", e.do("acme", e.token("stored", nil), "GET /admin/v1/bindings", ""), 503, true)
	check("a configured key does not need the store's", e.do("acme", root, "GET /admin/v1/bindings", ""), 200, false)
	f.admins, f.generation = nil, broken
	check("tenant unknown", e.do("acme", root, "GET /admin/v1/bindings", ""), 500, false)
	f.generation, f.entries = nil, away
	for _, path := range []string{"audit", "verdicts", "audit?after=0"} {
		check(path, e.do("acme", root, "GET /admin/v1/"+path, ""), 503, true)
	}
	for _, tc := range []struct {
		err    error
		status int
	}{{resource.ErrReadOnly, 409}, {fmt.Errorf("vault: %w", resource.ErrUnavailable), 503}, {broken, 500}, {context.DeadlineExceeded, 503}, {store.ErrFull, 507}} {
		backend.err = tc.err
		for _, request := range []string{"POST /kbs/v0/resource/a/b/c", "DELETE /kbs/v0/resource/a/b/c", "GET /kbs/v0/resource", "GET /admin/v1/resources/versions/a/b/c"} {
			check(fmt.Sprintf("%s: %v", request, tc.err), e2.do("acme", root, request, "x"), tc.status, tc.status == 503)
		}
	}
	// Failed changes are on record: what became of them is not known.
	records := e2.records("acme")
	for _, r := range records {
		if r.Granted || r.Status < 409 || r.Resource != "kbs:///a/b/c" {
			t.Errorf("%+v", r)
		}
	}
	if len(records) != 10 {
		t.Errorf("%d failures on record, want 10", len(records))
	}
}

// brokenBackend fails always.
type brokenBackend struct{ err error }

func (b *brokenBackend) Put(context.Context, tenant.Name, resource.Path, secret.Bytes) (int64, error) {
	return 0, b.err
}

func (b *brokenBackend) Get(context.Context, tenant.Name, resource.Path, int64) (secret.Bytes, int64, error) {
	return secret.Bytes{}, 0, b.err
}

func (b *brokenBackend) Delete(context.Context, tenant.Name, resource.Path) (bool, error) {
	return false, b.err
}

func (b *brokenBackend) List(context.Context, tenant.Name, string, string, int) ([]resource.Info, error) {
	return nil, b.err
}

func (b *brokenBackend) Versions(context.Context, tenant.Name, resource.Path) ([]resource.Info, error) {
	return nil, b.err
}

// TestRecordOutlivesTheClient: a client that goes away after its change does
// not take the record with it.
func TestRecordOutlivesTheClient(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	e := newEnv(t, func(o *Options) { o.Resources = goesAway{o.Resources, cancel} })
	r := httptest.NewRequestWithContext(tenant.With(ctx, "acme"), http.MethodPost, "/kbs/v0/resource/a/b/c", strings.NewReader("x"))
	r.Header.Set("Authorization", "Bearer "+e.token("root", nil))
	w := httptest.NewRecorder()
	e.api.ServeHTTP(w, r)
	if got := e.records("acme"); w.Code != 200 || len(got) != 1 || !got[0].Granted || got[0].Version != 1 {
		t.Errorf("%d %s, %+v", w.Code, w.Body, got)
	}
}

type goesAway struct {
	resource.Backend
	cancel func()
}

func (g goesAway) Put(ctx context.Context, t tenant.Name, p resource.Path, content secret.Bytes) (int64, error) {
	n, err := g.Backend.Put(ctx, t, p, content)
	g.cancel()
	return n, err
}
