package adminapi

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// matrix says, apart from the code, who may what: a admin, p policy author,
// s secret writer, u auditor. A star is for administrators of every tenant.
var matrix = map[Permission]string{
	ResourceWrite: "as", ResourceList: "apsu", PolicyWrite: "ap", PolicyRead: "apsu", PolicyTest: "ap", PolicyExplain: "apu",
	ReferenceWrite: "ap", ReferenceRead: "apsu", BindingWrite: "as", BindingRead: "apsu", AuditRead: "au", AuditSign: "au",
	AdminManage: "a", AdminRead: "au", PluginManage: "as", StatusRead: "apsu",
	TenantManage: "a*", TenantRead: "au*", KeyRotate: "a*", KeyRead: "au*", Backup: "a*",
}

// expected is what a route takes, apart from the code too.
var expected = map[string]Permission{
	"POST /kbs/v0/resource/": ResourceWrite, "DELETE /kbs/v0/resource/": ResourceWrite, "GET /kbs/v0/resource": ResourceList,
	"POST /kbs/v0/resource-policy": PolicyWrite, "GET /kbs/v0/resource-policy": PolicyRead,
	"POST /kbs/v0/attestation-policy": PolicyWrite, "GET /kbs/v0/attestation-policy": PolicyRead,
	"POST /kbs/v0/reference-value": ReferenceWrite, "GET /kbs/v0/reference-value/": ReferenceRead,
	"GET /admin/v1/resources": ResourceList, "GET /admin/v1/resources/versions/": ResourceList,
	"GET /admin/v1/policies/attestation": PolicyRead, "GET /admin/v1/policies/attestation/": PolicyRead,
	"PUT /admin/v1/policies/attestation/": PolicyWrite, "DELETE /admin/v1/policies/attestation/": PolicyWrite,
	"GET /admin/v1/policies/resource": PolicyRead, "GET /admin/v1/policies/resource/versions": PolicyRead,
	"PUT /admin/v1/policies/resource": PolicyWrite, "DELETE /admin/v1/policies/resource": PolicyWrite,
	"POST /admin/v1/policies/check": PolicyTest, "POST /admin/v1/explain": PolicyExplain,
	"GET /admin/v1/reference-values": ReferenceRead, "PUT /admin/v1/reference-values": ReferenceWrite,
	"POST /admin/v1/reference-values": ReferenceWrite, "DELETE /admin/v1/reference-values": ReferenceWrite,
	"GET /admin/v1/reference-values/": ReferenceRead, "PUT /admin/v1/reference-values/": ReferenceWrite,
	"POST /admin/v1/reference-values/": ReferenceWrite, "DELETE /admin/v1/reference-values/": ReferenceWrite,
	"GET /admin/v1/reference-history": ReferenceRead, "POST /admin/v1/provenance": ReferenceWrite,
	"GET /admin/v1/bindings": BindingRead, "PUT /admin/v1/bindings": BindingWrite, "DELETE /admin/v1/bindings": BindingWrite,
	"GET /admin/v1/verdicts": AuditRead, "GET /admin/v1/audit": AuditRead, "GET /admin/v1/audit/checkpoints": AuditRead,
	"POST /admin/v1/audit/checkpoints": AuditSign, "GET /admin/v1/audit/keys": AuditRead,
	"GET /admin/v1/admins": AdminRead, "POST /admin/v1/admins": AdminManage, "DELETE /admin/v1/admins/": AdminManage,
	"GET /admin/v1/tenants": TenantRead, "POST /admin/v1/tenants": TenantManage, "PATCH /admin/v1/tenants/": TenantManage,
	"GET /admin/v1/token-keys": KeyRead, "POST /admin/v1/token-keys/rotate": KeyRotate, "GET /admin/v1/backup": Backup,
	"GET /admin/v1/whoami": StatusRead, "GET /admin/v1/status": StatusRead,
	"GET /kbs/v0/pki/": PluginManage, "POST /kbs/v0/pki/": PluginManage, "PUT /kbs/v0/pki/": PluginManage, "DELETE /kbs/v0/pki/": PluginManage,
}

func TestMatrixIsWhole(t *testing.T) {
	t.Parallel()
	for _, p := range Permissions() {
		if matrix[p] == "" || strings.HasSuffix(matrix[p], "*") != p.whole() {
			t.Errorf("%s: %q", p, matrix[p])
		}
	}
	e := newEnv(t, nil)
	for _, rt := range e.api.routes {
		// A change is recorded, and nothing else; what only asks with a body
		// changes nothing.
		asks := []string{admin.PolicyCheckPath, admin.ExplainPath, admin.CheckpointsPath}
		if (rt.action != "") != (rt.method != http.MethodGet && !slices.Contains(asks, rt.path)) {
			t.Errorf("%s %s: action %q", rt.method, rt.path, rt.action)
		}
		if _, ok := expected[rt.method+" "+rt.path]; !ok {
			t.Errorf("%s %s is in no table", rt.method, rt.path)
		}
	}
	if len(expected) != len(e.api.routes)+4 || len(matrix) != len(Permissions()) {
		t.Errorf("%d routes and %d expected, %d permissions and %d in the matrix", len(e.api.routes), len(expected), len(matrix), len(Permissions()))
	}
}

// TestMatrix asks every route with every role, with keys of every tenant, of
// the tenant asked and of another one, from the configuration and from the
// store, at the URLs of two tenants.
func TestMatrix(t *testing.T) {
	t.Parallel()
	letters := map[string]string{admin.RoleAdmin: "a", admin.RolePolicyAuthor: "p", admin.RoleSecretWriter: "s", admin.RoleAuditor: "u"}
	name := func(from, role string, of tenant.Name) string { return fmt.Sprintf("%.3s %s %s", from, role, of) }
	reaches := []tenant.Name{tenant.All, tenant.Default, "acme", "beta"}
	e := newEnv(t, func(o *Options) {
		for role := range letters {
			for _, of := range reaches {
				o.Auth.Keys = append(o.Auth.Keys, Key{Public: public(name("configured", role, of)), Roles: []string{role}, Tenant: of})
			}
		}
		o.Plugin = pluginOf("answer")
	})
	for role := range letters {
		for _, of := range reaches {
			e.addKey(of, name("stored", role, of), role)
		}
	}
	// At once: records are written in groups.
	var cases atomic.Int64
	var wg sync.WaitGroup
	for request, permission := range expected {
		path := request
		if strings.HasSuffix(path, "/") {
			path += "a/b/c"
		}
		wg.Go(func() {
			for role, letter := range letters {
				for _, of := range reaches {
					for _, at := range []tenant.Name{tenant.Default, "acme"} {
						for _, from := range []string{"configured", "stored"} {
							cases.Add(1)
							key := name(from, role, of)
							bearer := token(t, testKey(key), jose.EdDSA, store.AdminID(public(key)), map[string]any{"role": role})
							got := e.do(at, bearer, path, "")
							reach := of == tenant.All || of == at
							may := strings.Contains(matrix[permission], letter) && (of == tenant.All || !permission.whole())
							want := "done or refused for what it says"
							ok := got.status != http.StatusUnauthorized && got.status != http.StatusForbidden
							switch {
							case !reach && from == "stored":
								// Nobody's key, here.
								want, ok = "401", got.status == http.StatusUnauthorized && got.header.Get("WWW-Authenticate") == "Bearer"
							case !reach || !may:
								want, ok = "403", got.status == http.StatusForbidden && got.header.Get("WWW-Authenticate") == ""
							case permission.whole() && at != tenant.Default:
								want, ok = "404", got.status == http.StatusNotFound
							}
							if !ok {
								t.Errorf("%s: %s key of %s for %s at %s: got %d %s, want %s", path, from, role, of, at, got.status, got.body, want)
							}
						}
					}
				}
			}
		})
	}
	wg.Wait()
	if want := len(expected) * 4 * 4 * 2 * 2; int(cases.Load()) != want {
		t.Errorf("%d cases, want %d", cases.Load(), want)
	}
	// Attempts are on record with who made them. Those at another tenant's URL
	// are in the chain of the key's own tenant, and leave no trace in the other.
	for _, at := range []tenant.Name{tenant.Default, "acme", "beta"} {
		refused := 0
		for _, r := range e.records(at) {
			if r.Status != http.StatusForbidden {
				continue
			}
			refused++
			if r.Granted || r.Subject != "someone" || r.Role == "" || r.Action == "" || r.Detail == "" || r.Client != "192.0.2.7:4711" || r.Tenant != at {
				t.Errorf("%s: %+v", at, r)
			}
			if !strings.Contains(r.Detail, "/v") {
				t.Errorf("%s: %+v", at, r)
			}
			if strings.HasPrefix(r.Detail, "at the URL of tenant "+string(at)+":") {
				t.Errorf("%s: %+v", at, r)
			}
		}
		if refused == 0 {
			t.Errorf("%s: no refusal on record", at)
		}
	}
}
