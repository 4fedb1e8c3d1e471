package admin

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// Lists go on where the trustee says, and end.
func TestPages(t *testing.T) {
	t.Parallel()
	tr, c := newTrustee(t)
	tr.answer, tr.next = `["a/b/c"]`, "a/b/c"
	list, err := c.Resources(t.Context())
	if err != nil || len(list) != 2 || tr.uri != "/admin/v1/resources?after=a%2Fb%2Fc&limit=1000" {
		t.Errorf("%v, %v, last %s", list, err, tr.uri)
	}
	// A trustee that always goes on after the same is not asked for ever.
	tr.header = map[string]string{HeaderNext: "x"}
	if _, err := c.Bindings(t.Context()); err == nil {
		t.Error("a list without end was accepted")
	}
	tr.header = map[string]string{HeaderNext: "7"}
	tr.answer = `[{"path":"a/b/c","version":7,"size":-1,"created":"2026-09-01T12:00:00Z"}]`
	page, next, err := c.ResourceInfosPage(t.Context(), "a/b", "a/b/a", 5)
	if err != nil || len(page) != 1 || page[0].Version != 7 || next != "7" || tr.uri != "/admin/v1/resources?after=a%2Fb%2Fa&details=true&limit=5&prefix=a%2Fb" {
		t.Errorf("%+v %q %v, %s", page, next, err, tr.uri)
	}
}

func TestVersionsInHeaders(t *testing.T) {
	t.Parallel()
	tr, c := newTrustee(t)
	uri := mustURI(t, "kbs:///a/b/c")
	tr.header = map[string]string{HeaderResourceVersion: "3", HeaderPolicyVersion: "0"}
	if v, err := c.PutResource(t.Context(), uri, secret.New([]byte("x"))); err != nil || v != 3 {
		t.Errorf("%d, %v", v, err)
	}
	tr.answer = "package policy\n"
	p, err := c.Policy(t.Context(), PolicyResource, "a/b", 4)
	if err != nil || p.Text != tr.answer || p.Version != 0 || p.ID != "a/b" || tr.uri != "/admin/v1/policies/resource?scope=a%2Fb&version=4" {
		t.Errorf("%+v, %v, %s", p, err, tr.uri)
	}
	for _, bad := range []string{"x", "-1", "1.5", "99999999999999999999"} {
		tr.header[HeaderResourceVersion] = bad
		if _, err := c.PutResource(t.Context(), uri, secret.New(nil)); err == nil {
			t.Errorf("version %q was accepted", bad)
		}
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	tr, c := newTrustee(t)
	ctx := t.Context()
	tr.answer = `{"kind":"resource","id":"a","version":2,"author":"x","created":"2026-09-01T12:00:00Z"}`
	if p, err := c.SetPolicy(ctx, PolicyResource, "a", "package policy"); err != nil || p.Version != 2 || tr.body != "package policy" || tr.method != "PUT" {
		t.Errorf("%+v, %v", p, err)
	}
	tr.answer = `{"ok":false,"problems":["x:1"]}`
	if p, err := c.CheckPolicy(ctx, PolicyCheck{Kind: PolicyResource, Text: "x"}); err != nil || p.OK || len(p.Problems) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	tr.answer = `{"seq":3,"recorded":false,"granted":true,"policy":"p@1","allow":[{"name":"allow","line":1,"holds":false,"conditions":[{"line":2,"text":"x","state":"fails","values":[{"ref":"x","value":"1"}],"because":[]}]}]}`
	if e, err := c.Explain(ctx, ExplainRequest{Seq: 3}); err != nil || !e.Granted || e.Allow[0].Conditions[0].Values[0].Ref != "x" || tr.body != `{"seq":3}` {
		t.Errorf("%+v, %v", e, err)
	}
	tr.answer = `{"names":["a","b"]}`
	if n, err := c.RegisterProvenance(ctx, []byte(`{"type":"corim"}`)); err != nil || len(n) != 2 || tr.body != `{"type":"corim"}` {
		t.Errorf("%v, %v", n, err)
	}
	tr.answer = `{"name":"n","values":[1],"scalar":true,"entries":[{"value":1}]}`
	if v, err := c.ReferenceValue(ctx, "n"); err != nil || !v.Scalar || len(v.Entries) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	tr.answer = `[{"version":2,"created":"2026-09-01T12:00:00Z","deleted":true},{"version":1,"created":"2026-09-01T12:00:00Z","entries":[{"value":"x"}]}]`
	if h, err := c.ReferenceHistory(ctx, "rvps:///a"); err != nil || len(h) != 2 || !h[0].Deleted || tr.uri != "/admin/v1/reference-history?name=rvps%3A%2F%2F%2Fa" {
		t.Errorf("%+v, %v", h, err)
	}
	tr.answer = `{"entries":[{"seq":1,"previous":"0","hash":"1","record":{"id":"x","at":"2026-09-01T12:00:00Z","tenant":"default","kind":"admin","granted":true,"status":200,"simulated":false,"future":1}}]}`
	granted := false
	entries, err := c.Audit(ctx, AuditQuery{Kind: KindAdmin, Granted: &granted, From: testNow, Before: 9, Limit: 2, Subject: "a b"})
	if err != nil || len(entries) != 1 || !bytes.Contains(entries[0].Body, []byte(`"future":1`)) ||
		tr.uri != "/admin/v1/audit?before=9&from=2026-09-01T12%3A00%3A00Z&granted=false&kind=admin&limit=2&subject=a+b" {
		t.Errorf("%+v, %v, %s", entries, err, tr.uri)
	}
	if r, err := entries[0].Record(); err != nil || r.Kind != KindAdmin || !r.At.Equal(testNow) {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := c.AuditFrom(ctx, 0, 5); err != nil || tr.uri != "/admin/v1/audit?after=0&limit=5" {
		t.Errorf("%v, %s", err, tr.uri)
	}
	tr.answer = `[{"seq":1,"at":"2026-09-01T12:00:00Z","jws":"j"}]`
	if k, err := c.Checkpoints(ctx, 4); err != nil || len(k) != 1 || k[0].JWS != "j" || tr.uri != "/admin/v1/audit/checkpoints?after=4&limit=1000" {
		t.Errorf("%+v, %v, %s", k, err, tr.uri)
	}
	tr.answer = `{"keys":[]}`
	if k, err := c.AuditKeys(ctx); err != nil || string(k) != tr.answer {
		t.Errorf("%s, %v", k, err)
	}
	tr.answer = `{"subject":"s","method":"key","roles":["admin"],"tenants":["*"],"tenant":"default","permissions":["backup"]}`
	if w, err := c.WhoAmI(ctx); err != nil || w.Tenants[0] != "*" {
		t.Errorf("%+v, %v", w, err)
	}
	tr.answer = `{"kid":"k","alg":"ES384"}`
	if k, err := c.RotateTokenKey(ctx, "ES384"); err != nil || k.KeyID != "k" || tr.body != `{"alg":"ES384"}` {
		t.Errorf("%+v, %v", k, err)
	}
}

// A broken-off backup is an error, whatever the connection says.
func TestBackup(t *testing.T) {
	t.Parallel()
	tr, c := newTrustee(t)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, strings.Repeat("line\n", 10_000))
	_ = z.Close()
	tr.answer = b.String()
	var got bytes.Buffer
	if n, err := c.Backup(t.Context(), &got); err != nil || n != int64(b.Len()) || got.String() != tr.answer {
		t.Errorf("%d of %d bytes, %v", n, b.Len(), err)
	}
	for _, bad := range []string{"", b.String()[:b.Len()-1], b.String()[:20], b.String() + "x", "<html>"} {
		tr.answer = bad
		if _, err := c.Backup(t.Context(), io.Discard); err == nil {
			t.Errorf("%d bytes were accepted", len(bad))
		}
	}
	tr.status, tr.answer = http.StatusForbidden, `{"type":"x","detail":"no"}`
	if _, err := c.Backup(t.Context(), io.Discard); !isStatus(err, 403) {
		t.Errorf("got %v", err)
	}
	tr.status, tr.answer = http.StatusOK, b.String()
	if _, err := c.Backup(t.Context(), failing{}); err == nil {
		t.Error("a backup that could not be written was taken for one")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func isStatus(err error, status int) bool {
	e, ok := errors.AsType[*kbs.StatusError](err)
	return ok && e.Status == status
}

func TestTokenSourceTenantAndCertificate(t *testing.T) {
	t.Parallel()
	var seen, uri string
	var certs int
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen, uri, certs = r.Header.Get("Authorization"), r.URL.RequestURI(), len(r.TLS.PeerCertificates)
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	defer server.Close()
	token := "a.b.c"
	c, err := New(Options{
		URL: server.URL + "/", Tenant: "acme", RootPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		TokenSource: func(context.Context) (string, error) { return token, nil }, Certificate: &server.TLS.Certificates[0],
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Status(t.Context())
	e, ok := errors.AsType[*kbs.StatusError](err)
	if !ok || e.Status != 503 || e.RetryAfter != 7*time.Second || seen != "Bearer a.b.c" || uri != "/tenants/acme/admin/v1/status" || certs != 1 {
		t.Errorf("%v; %q %s %d", err, seen, uri, certs)
	}
	for _, bad := range []string{"", "a b", "a\r\nX: y", "ü"} {
		token = bad
		if _, err := c.Status(t.Context()); err == nil || isStatus(err, 503) {
			t.Errorf("token %q: %v", bad, err)
		}
	}
}
