package adminapi

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// FuzzRequest: whatever an administrator asks, the trustee does not fail, and
// its refusals are problems.
func FuzzRequest(f *testing.F) {
	e := newEnv(f, func(o *Options) { o.Plugin = pluginOf("x") })
	bearer := e.token("root", nil)
	for request := range expected {
		method, path, _ := strings.Cut(request, " ")
		f.Add(method, path, "scope=a&name=b&limit=2&after=c", `{"name":"a","values":[1]}`)
	}
	f.Add("PUT", "/admin/v1/bindings", "", `{"resource":"+a/b","initdata":"`+strings.Repeat("ab", 32)+`"}`)
	f.Add("GET", "/admin/v1/audit", "from=2026-09-01T12:00:00Z&initdata=aB&before=7", "")
	f.Add("POST", "/admin/v1/explain", "x;y", `{"seq":9223372036854775807}`)
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		r := httptest.NewRequestWithContext(tenant.With(t.Context(), "acme"), http.MethodGet, "/", strings.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		r.Header.Set("Authorization", "Bearer "+bearer)
		w := httptest.NewRecorder()
		e.api.ServeHTTP(w, r)
		if !slices.Contains([]int{200, 400, 404, 405, 409, 413}, w.Code) {
			t.Fatalf("%s %q?%q %q: %d %s", method, path, query, body, w.Code, w.Body)
		}
		if w.Code != http.StatusOK && !strings.HasPrefix(w.Body.String(), `{"type":"https://`) {
			t.Fatalf("%s %q: %d %s", method, path, w.Code, w.Body)
		}
	})
}
