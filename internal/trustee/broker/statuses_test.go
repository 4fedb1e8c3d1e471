package broker

import (
	"crypto/rand"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// TestStatuses: one row for each way out.
func TestStatuses(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	_, tok := b.attested(t, tenant.Default)
	fresh := func() string { return b.begin(t, tenant.Default, kbs.V040, tee.SNP).cookie }
	for name, tc := range map[string]struct {
		call
		status  int
		variant string
		detail  string
	}{
		"auth: GET":              {call{method: "GET", path: kbs.AuthPath}, 405, "InvalidRequestPath", "POST"},
		"auth: HEAD":             {call{method: "HEAD", path: kbs.AuthPath}, 405, "InvalidRequestPath", "POST"},
		"auth: JSON":             {call{method: "POST", path: kbs.AuthPath, body: "{"}, 400, "SerdeError", ""},
		"auth: version":          {call{method: "POST", path: kbs.AuthPath, body: `{"version":"9","tee":"snp"}`}, 400, "AttestationError", "Mismatch"},
		"auth: TEE":              {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"abacus"}`}, 400, "SerdeError", "unknown TEE"},
		"auth: not enabled":      {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"tdx"}`}, 403, "AttestationError", "one of sample, snp"},
		"auth: selector":         {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":{"attestation-policy-selector":"x"}}`}, 400, "AttestationError", "selector"},
		"auth: metadata":         {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":{"tee-metadata":{"primary_tee":{"tee":"se"}}}}`}, 400, "SerdeError", "expected \"snp\""},
		"auth: large":            {call{method: "POST", path: kbs.AuthPath, body: strings.Repeat(" ", kbs.MaxRequestBytes+1)}, 413, "LimitExceeded", "65536"},
		"attest: GET":            {call{method: "GET", path: kbs.AttestPath}, 405, "InvalidRequestPath", "POST"},
		"attest: no cookie":      {call{method: "POST", path: kbs.AttestPath}, 401, "AttestationError", "no kbs-session-id cookie"},
		"attest: odd cookie":     {call{method: "POST", path: kbs.AttestPath, cookie: "../x"}, 401, "AttestationError", "no kbs-session-id cookie"},
		"attest: long cookie":    {call{method: "POST", path: kbs.AttestPath, cookie: strings.Repeat("a", 5000)}, 401, "AttestationError", "no kbs-session-id cookie"},
		"attest: unknown cookie": {call{method: "POST", path: kbs.AttestPath, cookie: strings.Repeat("a", 130)}, 401, "AttestationError", "used up"},
		"attest: JSON":           {call{method: "POST", path: kbs.AttestPath, cookie: fresh(), body: "x"}, 400, "SerdeError", ""},
		"attest: large":          {call{method: "POST", path: kbs.AttestPath, cookie: fresh(), body: strings.Repeat(" ", 3<<20)}, 413, "LimitExceeded", "2097152"},
		"no token":               {call{method: "GET", path: secretPath}, 401, "TokenNotFound", "POST /kbs/v0/auth"},
		"unattested session":     {call{method: "GET", path: secretPath, cookie: fresh()}, 401, "TokenNotFound", "POST /kbs/v0/auth"},
		"bad token":              {call{method: "GET", path: secretPath, bearer: "x.y.z"}, 401, "TokenVerifierError", "token"},
		"huge token":             {call{method: "GET", path: secretPath, bearer: strings.Repeat("a", 600<<10)}, 401, "TokenVerifierError", "POST /kbs/v0/auth"},
		"denied":                 {call{method: "GET", path: "/kbs/v0/resource/deny/b/c", bearer: tok}, 403, "PolicyDeny", "resource deny/b/c is denied"},
		"denied plugin":          {call{method: "GET", path: "/kbs/v0/echo/deny", bearer: tok}, 403, "PolicyDeny", "kbs+echo:///deny is denied"},
		"missing":                {call{method: "GET", path: "/kbs/v0/resource/a/b/none", bearer: tok}, 404, "ResourceNotFound", "a/b/none"},
		"segments":               {call{method: "GET", path: "/kbs/v0/resource/a/b", bearer: tok}, 400, "InvalidRequestPath", "three segments"},
		"dots":                   {call{method: "GET", path: "/kbs/v0/resource/a/../c", bearer: tok}, 400, "InvalidRequestPath", "dot"},
		"long":                   {call{method: "GET", path: "/kbs/v0/resource/a/b/" + strings.Repeat("a", 500), bearer: tok}, 400, "InvalidRequestPath", "bytes"},
		"query":                  {call{method: "GET", path: secretPath + "?a=%zz", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: NUL":             {call{method: "GET", path: secretPath + "?a=%00", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: UTF-8":           {call{method: "GET", path: secretPath + "?a=%ff", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: many":            {call{method: "GET", path: secretPath + "?" + strings.Repeat("a=1&", 1000), bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: names":           {call{method: "GET", path: secretPath + "?a1&a2&a3&a4&a5&a6&a7&a8&a9&b1&b2&b3&b4&b5&b6&b7&b8&b9&c1&c2&c3&c4&c5&c6&c7&c8&c9&d1&d2&d3&d4&d5&d6", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: long":            {call{method: "GET", path: secretPath + "?a=" + strings.Repeat("a", 9000), bearer: tok}, 400, "InvalidRequestPath", "query"},
		"body: large":            {call{method: "POST", path: "/kbs/v0/echo/x", bearer: tok, body: strings.Repeat(" ", 70<<10)}, 413, "LimitExceeded", "65536"},
		"plugin":                 {call{method: "GET", path: "/kbs/v0/none/x", bearer: tok}, 404, "PluginNotFound", "plugin"},
		"plugin: no path":        {call{method: "DELETE", path: "/kbs/v0/echo/x", bearer: tok}, 404, "InvalidRequestPath", "no such path"},
		"plugin: method":         {call{method: "PATCH", path: "/kbs/v0/echo/x", bearer: tok}, 405, "InvalidRequestPath", "GET, POST, PUT or DELETE"},
		"plugin: admin":          {call{method: "GET", path: "/kbs/v0/echo/admin", bearer: tok}, 403, "AdminAuthAccess", "administrators"},
	} {
		w := b.do(tc.call)
		e := info(t, w)
		if w.Code != tc.status || e.Type != kbs.ErrorType(tc.variant) || !strings.Contains(e.Detail, tc.detail) || len(e.Detail) > 1000 && tc.status != 403 {
			t.Errorf("%s: got %d %.500s; want %d %s with %q", name, w.Code, w.Body, tc.status, tc.variant, tc.detail)
		}
		if w.Code == 403 && tc.variant != "AdminAuthAccess" && (e.Reason == nil || len(e.Reasons) == 0) {
			t.Errorf("%s: a denial without a reason: %s", name, w.Body)
		}
		if w.Header().Get("Cache-Control") != "no-store" || w.Code == 405 && w.Header().Get("Allow") == "" {
			t.Errorf("%s: header %v", name, w.Header())
		}
	}
	for cause, status := range map[error]int{errDown: 500, store.ErrUnavailable: 503} {
		c := fresh()
		b.store.read = cause
		for _, call := range []call{{method: "POST", path: kbs.AttestPath, cookie: c}, {method: "GET", path: secretPath, cookie: c}} {
			if w := b.do(call); w.Code != status || status == 503 && w.Header().Get("Retry-After") == "" {
				t.Errorf("%v: %s: %d %s", cause, call.path, w.Code, w.Body)
			}
		}
		b.store.read = nil
	}
	b = newBench(t, func(b *bench) { b.o.Tokens = fakeTokens{err: store.ErrUnavailable} })
	if w := b.do(call{method: "GET", path: secretPath, bearer: "x"}); w.Code != 503 {
		t.Errorf("keys cannot be looked up: %d %s", w.Code, w.Body)
	}
	b = newBench(t, func(b *bench) { b.o.Rand = io.LimitReader(rand.Reader, 10) })
	if w := b.do(call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":""}`}); w.Code != 500 {
		t.Errorf("no randomness: %d %s", w.Code, w.Body)
	}
}

func TestHandles(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for path, want := range map[string]bool{
		"POST /kbs/v0/auth": true, "GET /kbs/v0/attest": true, "GET /kbs/v0/resource/a/b/c": true, "GET /kbs/v0/resource/a": true, "GET /kbs/v0/resource/../x": true,
		"GET /kbs/v0/resource": false, "GET /kbs/v0/resource/": false, "POST /kbs/v0/resource/a/b/c": false, "DELETE /kbs/v0/resource/a/b/c": false, "POST /kbs/v0/resource/../x": false,
		"GET /kbs/v0/echo": true, "POST /kbs/v0/echo/x": true, "GET /kbs/v0/echo/admin": false, "DELETE /kbs/v0/echo/x": true,
		"GET /kbs/v0/none": false, "GET /kbs/v0/resource-policy": false, "GET /kbs/v0": false, "GET /kbs/v0/": false, "GET /healthz": false, "GET /admin/v1/x": false, "POST /kbs/v1/auth": false,
	} {
		method, p, _ := strings.Cut(path, " ")
		if got := b.broker.Handles(httptest.NewRequest(method, p, nil)); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Options){
		"store": func(o *Options) { o.Store = nil }, "plugins": func(o *Options) { o.Plugins = nil }, "clock": func(o *Options) { o.Now = nil },
		"timeout": func(o *Options) { o.SessionTimeout = 0 }, "body": func(o *Options) { o.MaxBody = 0 },
	} {
		o := newBench(t, nil).o
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func FuzzAttest(f *testing.F) {
	f.Add("0.4.0", `{"runtime-data":{"nonce":"x","tee-pubkey":{}},"tee-evidence":{"primary_evidence":{}}}`)
	f.Add("0.1.0", `{"tee-pubkey":{"kty":"RSA"},"tee-evidence":"{}"}`)
	f.Fuzz(func(t *testing.T, version, body string) {
		b := newBench(t, nil)
		w := b.do(call{method: "POST", path: kbs.AuthPath, body: `{"version":` + string(quote(version)) + `,"tee":"snp","extra-params":""}`})
		if w.Code != 200 {
			info(t, w)
			return
		}
		w = b.do(call{method: "POST", path: kbs.AttestPath, body: body, cookie: w.Result().Cookies()[0].Value})
		if w.Code >= 500 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if len(b.store.finished) != len(b.store.records) {
			t.Fatal("a verdict without its record")
		}
	})
}
