package adminapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// serve puts the API behind a server, as the trustee does, and returns clients
// for its tenants.
func serve(t *testing.T, e *env) func(tenantName string) *admin.Client {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, rest, err := tenant.FromPath(r.URL.Path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r = r.WithContext(tenant.With(r.Context(), name))
		r.URL.Path = rest
		e.api.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	s.StartTLS()
	t.Cleanup(s.Close)
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	return func(name string) *admin.Client {
		c, err := admin.New(admin.Options{
			URL: s.URL, Tenant: name, RootPEM: root,
			TokenSource: func(context.Context) (string, error) { return e.token("root", nil), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func status(err error) int {
	if e, ok := errors.AsType[*kbs.StatusError](err); ok {
		return e.Status
	}
	return 0
}

// TestClient: the library's client and this server agree on every document.
func TestClient(t *testing.T) {
	t.Parallel()
	e := newEnv(t, func(o *Options) {
		o.Plugin = pluginOf("answer")
		o.AuditKeys = func(context.Context) (json.RawMessage, error) { return json.RawMessage(`{"keys":[]}`), nil }
		o.Checkpoint = func(context.Context, tenant.Name) (admin.Checkpoint, error) {
			return admin.Checkpoint{Seq: 1, At: fixed, JWS: "j"}, nil
		}
		o.TokenKeys = func(context.Context) ([]admin.TokenKey, error) { return []admin.TokenKey{{KeyID: "k"}}, nil }
		o.RotateTokenKey = func(context.Context, string) (admin.TokenKey, error) { return admin.TokenKey{KeyID: "l"}, nil }
		o.Status = func(context.Context, tenant.Name) (admin.Status, error) {
			return admin.Status{Version: "v", Counts: map[string]int64{"resources": 1}}, nil
		}
		o.PolicyText = func(context.Context, tenant.Name, string) (string, error) { return "x", nil }
		o.Explain = func(_ context.Context, in Replay) (admin.Explanation, error) {
			return admin.Explanation{Policy: in.Label, Allow: []admin.Rule{{Name: "allow", Conditions: []admin.Condition{{State: "fails"}}}}}, nil
		}
	})
	client := serve(t, e)
	c, root := client("acme"), client("")
	ctx := t.Context()
	uri := must[kbs.ResourceURI](t)(kbs.ParseResourceURI("kbs:///demo/key/1"))
	for want := int64(1); want <= 2; want++ {
		if v := must[int64](t)(c.PutResource(ctx, uri, secret.New([]byte("x")))); v != want {
			t.Errorf("version %d, want %d", v, want)
		}
	}
	if l := must[[]kbs.ResourceURI](t)(c.Resources(ctx)); len(l) != 1 || l[0] != uri {
		t.Errorf("%v", l)
	}
	if l := must[[]admin.ResourceInfo](t)(c.ResourceInfos(ctx, "demo/key")); len(l) != 1 || l[0].Version != 2 {
		t.Errorf("%v", l)
	}
	if l := must[[]admin.ResourceInfo](t)(c.ResourceVersions(ctx, uri)); len(l) != 2 || l[0].Version != 2 {
		t.Errorf("%v", l)
	}
	for _, err := range []error{
		c.DeleteResource(ctx, uri), c.SetResourcePolicy(ctx, "package policy"), c.SetAttestationPolicy(ctx, "x_cpu", "package policy"),
		c.SetReferenceValue(ctx, admin.ReferenceValue{Name: "m", Values: []any{"a"}, Description: "d"}),
		c.AddReferenceValue(ctx, admin.ReferenceValue{Name: "m", Values: []any{"b"}}),
		c.SetReferenceValue(ctx, admin.ReferenceValue{Name: "rvps:///a/b:c", Values: []any{7}, Scalar: true}),
		c.Bind(ctx, admin.Binding{Resource: "demo", InitData: strings.Repeat("ab", 48), Description: "web"}),
		c.Bind(ctx, admin.Binding{Resource: "+pki/issue", InitData: strings.Repeat("ab", 48)}),
		c.UnbindAll(ctx, "+pki/issue"),
		root.CreateTenant(ctx, "other", "d"), root.SetTenantEnabled(ctx, "other", false),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if p := must[admin.PolicyInfo](t)(c.SetPolicy(ctx, admin.PolicyResource, "demo", "package policy\n# demo")); p.Version != 1 || p.Author != "someone" {
		t.Errorf("%+v", p)
	}
	for id, want := range map[string]string{"": "package policy", "demo": "package policy\n# demo"} {
		if p := must[admin.Policy](t)(c.Policy(ctx, admin.PolicyResource, id, 1)); p.Text != want || p.Version != 1 {
			t.Errorf("%+v", p)
		}
	}
	if l := must[[]admin.PolicyInfo](t)(c.Policies(ctx, admin.PolicyResource)); len(l) != 2 {
		t.Errorf("%+v", l)
	}
	if err := c.DeletePolicy(ctx, admin.PolicyResource, "demo"); err != nil {
		t.Error(err)
	}
	if l := must[[]admin.PolicyInfo](t)(c.PolicyVersions(ctx, admin.PolicyResource, "demo")); len(l) != 2 || !l[0].Deleted {
		t.Errorf("%+v", l)
	}
	if p := must[admin.PolicyProblems](t)(c.CheckPolicy(ctx, admin.PolicyCheck{Kind: admin.PolicyAttestation, ID: "x_cpu", Text: "bad"})); p.OK || len(p.Problems) != 1 {
		t.Errorf("%+v", p)
	}
	if l := must[[]admin.ReferenceValue](t)(c.ReferenceValues(ctx)); len(l) != 2 || len(l[0].Values) != 2 || !l[1].Scalar {
		t.Errorf("%+v", l)
	}
	if v := must[admin.ReferenceValue](t)(c.ReferenceValue(ctx, "rvps:///a/b:c")); string(v.Entries[0].Value) != "7" {
		t.Errorf("%+v", v)
	}
	if l := must[[]admin.ReferenceVersion](t)(c.ReferenceHistory(ctx, "m")); len(l) != 2 || len(l[0].Entries) != 2 {
		t.Errorf("%+v", l)
	}
	if n := must[[]string](t)(c.RegisterProvenance(ctx, []byte(`{"type":"sample","payload":"eyJhIjoxfQ=="}`))); len(n) != 1 || n[0] != "a" {
		t.Errorf("%v", n)
	}
	if l := must[[]admin.Binding](t)(c.Bindings(ctx)); len(l) != 1 || l[0].Description != "web" {
		t.Errorf("%+v", l)
	}
	seq, id := seed(t, e, "s", false)
	if v := must[[]admin.Verdict](t)(c.Verdicts(ctx, admin.VerdictQuery{Limit: 5, Session: "s"})); len(v) != 2 || v[0].Reason == nil {
		t.Errorf("%+v", v)
	}
	if x := must[admin.Explanation](t)(c.Explain(ctx, admin.ExplainRequest{ID: id})); x.Seq != seq || x.Allow[0].Conditions[0].State != "fails" {
		t.Errorf("%+v", x)
	}
	all := 0
	for after := int64(0); ; {
		l := must[[]admin.AuditEntry](t)(c.AuditFrom(ctx, after, 3))
		if len(l) == 0 {
			break
		}
		for _, x := range l {
			if r := must[admin.AuditRecord](t)(x.Record()); x.Seq != after+1 || r.Tenant != "acme" {
				t.Errorf("%+v", r)
			}
			after++
			all++
		}
	}
	if all != int(seq) {
		t.Errorf("%d entries, want %d", all, seq)
	}
	if l := must[[]admin.AuditEntry](t)(c.Audit(ctx, admin.AuditQuery{Kind: admin.KindAdmin, Resource: "coffer:///policies", Limit: 2})); len(l) != 2 {
		t.Errorf("%+v", l)
	}
	if l := must[[]admin.Checkpoint](t)(c.Checkpoints(ctx, 0)); len(l) != 0 {
		t.Errorf("%+v", l)
	}
	if x := must[admin.Checkpoint](t)(c.MakeCheckpoint(ctx)); x.JWS != "j" {
		t.Errorf("%+v", x)
	}
	must[json.RawMessage](t)(c.AuditKeys(ctx))
	x := must[admin.Administrator](t)(c.AddAdmin(ctx, admin.NewAdministrator{Name: "n", Roles: []string{admin.RoleAuditor}, PublicKey: string(pemOf(t, "new"))}))
	if l := must[[]admin.Administrator](t)(c.Admins(ctx)); len(l) != 2 || l[1].ID != x.ID {
		t.Errorf("%+v", l)
	}
	if err := c.RemoveAdmin(ctx, x.ID); err != nil {
		t.Error(err)
	}
	if l := must[[]admin.Tenant](t)(root.Tenants(ctx)); len(l) != 4 || l[3].Enabled {
		t.Errorf("%+v", l)
	}
	must[[]admin.TokenKey](t)(root.TokenKeys(ctx))
	must[admin.TokenKey](t)(root.RotateTokenKey(ctx, ""))
	if w := must[admin.WhoAmI](t)(c.WhoAmI(ctx)); w.Tenant != "acme" || len(w.Permissions) != len(Permissions())-5 {
		t.Errorf("%+v", w)
	}
	if s := must[admin.Status](t)(c.Status(ctx)); s.Tenant != "acme" || s.Counts["resources"] != 1 {
		t.Errorf("%+v", s)
	}
	if b := must[[]byte](t)(c.Plugin(ctx, admin.PluginRequest{Plugin: "pki", Method: http.MethodGet, Path: "ca"})); string(b) != "answer" {
		t.Errorf("%s", b)
	}
	var backup bytes.Buffer
	if n := must[int64](t)(root.Backup(ctx, &backup)); n != int64(backup.Len()) || n == 0 {
		t.Errorf("%d of %d bytes", n, backup.Len())
	}
	if _, err := c.Backup(ctx, io.Discard); status(err) != 404 {
		t.Errorf("a backup at a tenant's URL: %v", err)
	}
	if _, err := client("other").Resources(ctx); status(err) != 404 {
		t.Errorf("a disabled tenant: %v", err)
	}
	if _, err := root.TokenKeys(ctx); err != nil {
		t.Error(err)
	}
}

// manyResources is a backend with n names, whose listing fails at a page.
type manyResources struct {
	resource.Backend
	n, failAt atomic.Int64
}

func (m *manyResources) List(_ context.Context, _ tenant.Name, _, after string, limit int) ([]resource.Info, error) {
	i := 0
	if after != "" {
		if _, err := fmt.Sscanf(after, "r/t/%d", &i); err != nil {
			return nil, err
		}
		i++
	}
	if at := int(m.failAt.Load()); at > 0 && i >= at {
		return nil, store.ErrUnavailable
	}
	var out []resource.Info
	for ; len(out) < limit && i < int(m.n.Load()); i++ {
		out = append(out, resource.Info{Path: fmt.Sprintf("r/t/%07d", i), Version: 1})
	}
	return out, nil
}

// TestLongLists: whole however long, and cut off visibly where they fail.
func TestLongLists(t *testing.T) {
	t.Parallel()
	m := &manyResources{}
	e := newEnv(t, func(o *Options) { o.Resources = m })
	client := serve(t, e)("acme")
	for _, n := range []int{0, 1, 999, 1000, 1001, 3000} {
		m.n.Store(int64(n))
		var whole []string
		decodeInto(t, e.root("acme", "GET /kbs/v0/resource", "", 200), &whole)
		if len(whole) != n {
			t.Errorf("%d names, want %d", len(whole), n)
		}
		if l, err := client.Resources(t.Context()); err != nil || len(l) != n {
			t.Errorf("%d names, want %d: %v", len(l), n, err)
		}
	}
	m.failAt.Store(2000)
	if _, err := client.Resources(t.Context()); status(err) != 503 {
		t.Errorf("by pages: %v", err)
	}
	// As kbs-client asks: nothing that could be taken for a whole list.
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { e.api.ServeHTTP(w, r) }))
	defer s.Close()
	for path, failAt := range map[string]int{"/kbs/v0/resource": 1000, "/admin/v1/resources?details=true": 2000} {
		m.failAt.Store(int64(failAt))
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+e.token("root", nil))
		resp, err := s.Client().Do(r)
		if err != nil {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil || json.Valid(body) {
			t.Errorf("%s: %d bytes were taken for a whole list", path, len(body))
		}
	}
}

// TestBackupFails before its first byte and in its middle.
func TestBackupFails(t *testing.T) {
	t.Parallel()
	e, f := faultyEnv(t, nil)
	client := serve(t, e)("")
	f.backup = func(io.Writer) error { return store.ErrUnavailable }
	if _, err := client.Backup(t.Context(), io.Discard); status(err) != 503 {
		t.Errorf("before: %v", err)
	}
	f.backup = func(w io.Writer) error {
		z := gzip.NewWriter(w)
		_, _ = z.Write(bytes.Repeat([]byte("line"), 1<<20))
		_ = z.Flush()
		return store.ErrUnavailable
	}
	if _, err := client.Backup(t.Context(), io.Discard); err == nil || status(err) != 0 {
		t.Errorf("in the middle: %v", err)
	}
	// A client that takes nothing ends it.
	f.backup = func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := client.Backup(ctx, stopping{cancel}); err == nil {
		t.Error("a backup without end ended")
	}
}

type stopping struct{ cancel func() }

func (s stopping) Write(p []byte) (int, error) {
	s.cancel()
	return len(p), nil
}
