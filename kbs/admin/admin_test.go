package admin

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

var testNow = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

// trustee answers every request in the same way and keeps the last one.
type trustee struct {
	server *httptest.Server
	key    ed25519.PrivateKey
	status int
	answer string
	// next is sent as HeaderNext, once.
	next string
	// header is sent with every answer.
	header map[string]string

	method, uri, contentType, body, token string
}

func newTrustee(t *testing.T) (*trustee, *Client) {
	t.Helper()
	tr := &trustee{key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)), status: http.StatusOK}
	tr.server = httptest.NewTLSServer(tr)
	t.Cleanup(tr.server.Close)
	c, err := New(Options{
		URL:     tr.server.URL,
		RootPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tr.server.Certificate().Raw}),
		Key:     tr.key,
		Now:     func() time.Time { return testNow },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return tr, c
}

func (tr *trustee) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	tr.method, tr.uri, tr.contentType, tr.body = r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type"), string(body)
	tr.token, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if tr.next != "" && !strings.Contains(tr.uri, "after=") {
		w.Header().Set(HeaderNext, tr.next)
	}
	for k, v := range tr.header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(tr.status)
	_, _ = io.WriteString(w, tr.answer)
}

func mustURI(t *testing.T, s string) kbs.ResourceURI {
	t.Helper()
	u, err := kbs.ParseResourceURI(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

var digest = strings.Repeat("0a", 48)

func TestRequests(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	uri := mustURI(t, "kbs:///repo/type/tag")
	expires := testNow.Add(time.Hour)
	const policy = "package policy\ndefault allow = false\n"
	policy64 := base64.RawURLEncoding.EncodeToString([]byte(policy))
	for name, tc := range map[string]struct {
		call func(*Client) error
		want trustee
	}{
		"SetResource": {
			func(c *Client) error { return c.SetResource(ctx, uri, secret.New([]byte("\x00value"))) },
			trustee{method: "POST", uri: "/kbs/v0/resource/repo/type/tag", contentType: "application/octet-stream", body: "\x00value"},
		},
		"DeleteResource": {
			func(c *Client) error { return c.DeleteResource(ctx, uri) },
			trustee{method: "DELETE", uri: "/kbs/v0/resource/repo/type/tag"},
		},
		"SetResourcePolicy": {
			func(c *Client) error { return c.SetResourcePolicy(ctx, policy) },
			trustee{method: "POST", uri: "/kbs/v0/resource-policy", contentType: "application/json", body: `{"policy":"` + policy64 + `"}`},
		},
		"SetAttestationPolicy": {
			func(c *Client) error { return c.SetAttestationPolicy(ctx, "default_cpu", policy) },
			trustee{method: "POST", uri: "/kbs/v0/attestation-policy", contentType: "application/json", body: `{"policy":"` + policy64 + `","policy_id":"default_cpu","type":"rego"}`},
		},
		"SetReferenceValue": {
			func(c *Client) error {
				return c.SetReferenceValue(ctx, ReferenceValue{Name: "snp_launch_measurement", Values: []any{"ab", 1}, Expires: &expires, Inputs: json.RawMessage(`{"vcpus":1}`), Description: "d"})
			},
			trustee{method: "PUT", uri: "/admin/v1/reference-values/snp_launch_measurement", contentType: "application/json", body: `{"values":["ab",1],"expires":"2026-09-01T13:00:00Z","inputs":{"vcpus":1},"description":"d"}`},
		},
		"DeleteReferenceValue": {
			func(c *Client) error { return c.DeleteReferenceValue(ctx, "a.b-c:d_1") },
			trustee{method: "DELETE", uri: "/admin/v1/reference-values/a.b-c:d_1"},
		},
		"DeleteReferenceValue by query": {
			func(c *Client) error { return c.DeleteReferenceValue(ctx, "rvps:///a/b%2f") },
			trustee{method: "DELETE", uri: "/admin/v1/reference-values?name=rvps%3A%2F%2F%2Fa%2Fb%252f"},
		},
		"AddReferenceValue": {
			func(c *Client) error {
				return c.AddReferenceValue(ctx, ReferenceValue{Name: "..", Values: []any{true}, Entries: []ReferenceEntry{{}}})
			},
			trustee{method: "POST", uri: "/admin/v1/reference-values?name=..", contentType: "application/json", body: `{"values":[true]}`},
		},
		"DeletePolicy by scope": {
			func(c *Client) error { return c.DeletePolicy(ctx, PolicyResource, "+pki/issue") },
			trustee{method: "DELETE", uri: "/admin/v1/policies/resource?scope=%2Bpki%2Fissue"},
		},
		"DeletePolicy of everything": {
			func(c *Client) error { return c.DeletePolicy(ctx, PolicyResource, "") },
			trustee{method: "DELETE", uri: "/admin/v1/policies/resource?scope="},
		},
		"DeletePolicy by id": {
			func(c *Client) error { return c.DeletePolicy(ctx, PolicyAttestation, "default_cpu") },
			trustee{method: "DELETE", uri: "/admin/v1/policies/attestation/default_cpu"},
		},
		"UnbindAll": {
			func(c *Client) error { return c.UnbindAll(ctx, "+pki") },
			trustee{method: "DELETE", uri: "/admin/v1/bindings?resource=%2Bpki"},
		},
		"RemoveAdmin": {
			func(c *Client) error { return c.RemoveAdmin(ctx, "0123abcd") },
			trustee{method: "DELETE", uri: "/admin/v1/admins/0123abcd"},
		},
		"CreateTenant": {
			func(c *Client) error { return c.CreateTenant(ctx, "acme", "d") },
			trustee{method: "POST", uri: "/admin/v1/tenants", contentType: "application/json", body: `{"name":"acme","description":"d"}`},
		},
		"SetTenantEnabled": {
			func(c *Client) error { return c.SetTenantEnabled(ctx, "acme", false) },
			trustee{method: "PATCH", uri: "/admin/v1/tenants/acme", contentType: "application/json", body: `{"enabled":false}`},
		},
		"Plugin": {
			func(c *Client) error {
				_, err := c.Plugin(ctx, PluginRequest{Plugin: "pki", Method: "PUT", Path: "role/web", Query: url.Values{"a": {"b"}}, Body: []byte("x")})
				return err
			},
			trustee{method: "PUT", uri: "/kbs/v0/pki/role/web?a=b", contentType: "application/octet-stream", body: "x"},
		},
		"Bind": {
			func(c *Client) error { return c.Bind(ctx, Binding{Resource: "repo/type", InitData: digest}) },
			trustee{method: "PUT", uri: "/admin/v1/bindings", contentType: "application/json", body: `{"resource":"repo/type","initdata":"` + digest + `"}`},
		},
		"Unbind": {
			func(c *Client) error {
				return c.Unbind(ctx, Binding{Resource: "a&b", InitData: digest, Description: "x"})
			},
			trustee{method: "DELETE", uri: "/admin/v1/bindings?initdata=" + digest + "&resource=a%26b"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, c := newTrustee(t)
			if err := tc.call(c); err != nil {
				t.Fatal(err)
			}
			got := trustee{method: tr.method, uri: tr.uri, contentType: tr.contentType, body: tr.body}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(trustee{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			tr.checkToken(t)
			tr.status, tr.answer = http.StatusNoContent, ""
			if err := tc.call(c); err != nil {
				t.Errorf("204: %v", err)
			}
			tr.status, tr.answer = http.StatusForbidden, `{"type":"x","detail":"no","reason":{"rule":"r","claim":"","expected":"","got":"","help":""}}`
			err := tc.call(c)
			if se, ok := errors.AsType[*kbs.StatusError](err); !ok || se.Status != 403 || se.Info.Detail != "no" || se.Info.Reason == nil {
				t.Errorf("403: got %v", err)
			}
		})
	}
}

// checkToken verifies the token as a server would.
func (tr *trustee) checkToken(t *testing.T) {
	t.Helper()
	parts := strings.Split(tr.token, ".")
	if len(parts) != 3 {
		t.Fatalf("token %q", tr.token)
	}
	var decoded [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil {
			t.Fatal(err)
		}
		decoded[i] = b
	}
	if string(decoded[0]) != `{"alg":"EdDSA","typ":"JWT","kid":"`+KeyID(tr.key.Public().(ed25519.PublicKey))+`"}` {
		t.Errorf("header %s", decoded[0])
	}
	want := `{"iss":"coffer","sub":"admin","aud":["KBS"],"role":"admin","iat":1788263940,"exp":1788264300}`
	if diff := cmp.Diff(want, string(decoded[1])); diff != "" {
		t.Error(diff)
	}
	if !ed25519.Verify(tr.key.Public().(ed25519.PublicKey), []byte(parts[0]+"."+parts[1]), decoded[2]) {
		t.Error("signature does not verify")
	}
}

func TestLists(t *testing.T) {
	t.Parallel()
	tr, c := newTrustee(t)
	ctx := t.Context()

	tr.answer = `["repo/type/tag","a/b/c"]`
	res, err := c.Resources(ctx)
	if err != nil || tr.uri != "/admin/v1/resources?limit=1000" || tr.method != "GET" {
		t.Fatalf("%s %s: %v", tr.method, tr.uri, err)
	}
	if diff := cmp.Diff([]kbs.ResourceURI{mustURI(t, "kbs:///repo/type/tag"), mustURI(t, "kbs:///a/b/c")}, res, cmp.Comparer(func(a, b kbs.ResourceURI) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	tr.answer = `["../x"]`
	if _, err := c.Resources(ctx); err == nil {
		t.Error("a list with an impossible name was accepted")
	}

	tr.answer = `[{"name":"n","values":["v",1],"expires":"2026-09-01T13:00:00Z","inputs":{"a":1},"entries":[{"value":"v","source":"s","created":"2026-09-01T12:00:00Z"}]}]`
	refs, err := c.ReferenceValues(ctx)
	if err != nil || len(refs) != 1 || refs[0].Name != "n" || len(refs[0].Values) != 2 || string(refs[0].Inputs) != `{"a":1}` || !refs[0].Expires.Equal(testNow.Add(time.Hour)) {
		t.Errorf("got %+v, %v", refs, err)
	}

	tr.answer = `[{"resource":"repo","initdata":"` + digest + `","description":"d"}]`
	bindings, err := c.Bindings(ctx)
	if diff := cmp.Diff([]Binding{{"repo", digest, "d"}}, bindings); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}

	tr.answer = `[{"at":"2026-09-01T12:00:00Z","kind":"resource","tee":"snp","session":"s","resource":"a/b/c","granted":false,"status":403,"reason":{"rule":"r","claim":"c","expected":"e","got":"g","help":"h"},"claims":{"x":1},"initdata":"00","simulated":true}]`
	verdicts, err := c.Verdicts(ctx, VerdictQuery{Limit: 5, Session: "a b"})
	want := []Verdict{{At: testNow, Kind: KindResource, TEE: "snp", Session: "s", Resource: "a/b/c", Status: 403, Reason: &kbs.Reason{Rule: "r", Claim: "c", Expected: "e", Got: "g", Help: "h"}, Claims: json.RawMessage(`{"x":1}`), InitData: "00", Simulated: true}}
	if diff := cmp.Diff(want, verdicts); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if tr.uri != "/admin/v1/verdicts?limit=5&session=a+b" {
		t.Errorf("asked for %s", tr.uri)
	}
	if _, err := c.Verdicts(ctx, VerdictQuery{}); err != nil || tr.uri != "/admin/v1/verdicts" {
		t.Errorf("asked for %s: %v", tr.uri, err)
	}
	for _, bad := range []string{"", "<html>", "{}", `[1]`, `[{"later":true}]`, `[{"kind":"a","kind":"b"}]`} {
		tr.answer = bad
		if got, err := c.Verdicts(ctx, VerdictQuery{}); err == nil || got != nil || !strings.Contains(err.Error(), "not the expected JSON array") {
			t.Errorf("%q: got %v, %v", bad, got, err)
		}
	}
}

// What cannot be right is refused before anything is sent.
func TestRefusesLocally(t *testing.T) {
	t.Parallel()
	tr, c := newTrustee(t)
	ctx := t.Context()
	plugin := mustURI(t, "kbs+plugin:///a/b/c")
	query := mustURI(t, "kbs:///a/b/c?x=1")
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"plugin":      {c.SetResource(ctx, plugin, secret.New(nil)), "expected a stored secret"},
		"query":       {c.DeleteResource(ctx, query), "expected a stored secret"},
		"zero":        {c.DeleteResource(ctx, kbs.ResourceURI{}), "expected a stored secret"},
		"size":        {c.SetResource(ctx, mustURI(t, "kbs:///a/b/c"), secret.New(make([]byte, kbs.MaxResourceBytes+1))), "the limit is"},
		"no policy":   {c.SetResourcePolicy(ctx, ""), "expected 1 to"},
		"no id":       {c.SetAttestationPolicy(ctx, "", "x"), "policy id"},
		"name":        {c.SetReferenceValue(ctx, ReferenceValue{Name: "a b", Values: []any{1}}), "expected a name"},
		"long name":   {c.DeleteReferenceValue(ctx, strings.Repeat("x", 257)), "expected a name"},
		"scalar":      {c.SetReferenceValue(ctx, ReferenceValue{Name: "a", Scalar: true, Values: []any{1, 2}}), "a scalar has one"},
		"plugin name": {c.Bind(ctx, Binding{"+", digest, ""}), "binding: resource"},
		"resource +":  {c.UnbindAll(ctx, "+resource/a"), "resource"},
		"kind":        {c.DeletePolicy(ctx, "other", "a"), "kind"},
		"id":          {c.DeletePolicy(ctx, PolicyAttestation, "a/b"), "policy id"},
		"admin id":    {c.RemoveAdmin(ctx, "a/b"), "hexadecimal"},
		"tenant":      {c.CreateTenant(ctx, "A", ""), "tenant"},
		"plugin path": {func() error { _, err := c.Plugin(ctx, PluginRequest{Plugin: "auth", Path: "x"}); return err }(), "plugin"},
		"both ends":   {func() error { _, err := c.Audit(ctx, AuditQuery{Before: 1, After: 1}); return err }(), "both"},
		"no record":   {func() error { _, err := c.Explain(ctx, ExplainRequest{}); return err }(), "sequence number"},
		"no values":   {c.SetReferenceValue(ctx, ReferenceValue{Name: "a"}), "no values"},
		"resource":    {c.Bind(ctx, Binding{"a/b/c/d", digest, ""}), "binding: resource"},
		"empty":       {c.Bind(ctx, Binding{"", digest, ""}), "binding: resource"},
		"slash":       {c.Bind(ctx, Binding{"a/", digest, ""}), "binding: resource"},
		"parent":      {c.Unbind(ctx, Binding{"a/..", digest, ""}), "binding: resource"},
		"with query":  {c.Bind(ctx, Binding{"a/b/c?x=1", digest, ""}), "binding: resource"},
		"short":       {c.Bind(ctx, Binding{"a", digest[:62], ""}), "whole digest"},
		"upper":       {c.Bind(ctx, Binding{"a", strings.ToUpper(digest), ""}), "lower-case"},
		"limit":       {func() error { _, err := c.Verdicts(ctx, VerdictQuery{Limit: -1}); return err }(), "negative"},
		"value types": {c.SetReferenceValue(ctx, ReferenceValue{Name: "a", Values: []any{func() {}}}), "unsupported type"},
	} {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, tc.err, tc.want)
		}
	}
	if tr.method != "" {
		t.Errorf("%s %s was sent", tr.method, tr.uri)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	for name, o := range map[string]Options{
		"no key": {URL: "https://x"},
		"http":   {URL: "http://x", Key: key},
		"roots":  {URL: "https://x", Key: key, RootPEM: []byte("x")},
		"tenant": {URL: "https://x", Key: key, Tenant: "../x"},
		"both":   {URL: "https://x", Key: key, TokenSource: func(context.Context) (string, error) { return "x", nil }},
	} {
		if c, err := New(o); err == nil || c != nil {
			t.Errorf("%s: got no error", name)
		}
	}
}
