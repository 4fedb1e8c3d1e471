package adminapi

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// handler does the work for an administrator who may ask for it and returns
// the document to answer with; nil is an empty answer.
type handler func(c *call) (any, *problem.Error)

type route struct {
	method, path string
	// prefix: path is a prefix and the rest, which is not empty, is call.rest.
	prefix     bool
	permission Permission
	// action names the change in the record; empty: nothing is changed.
	action string
	handle handler
}

func (rt *route) name() string {
	if rt.action != "" {
		return rt.action
	}
	return string(rt.permission)
}

// call is one request of an administrator.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	rest   string
	tenant tenant.Name
	who    Principal
	cred   Credentials
	// record is what the handler of a change says of it.
	record audit.Record
	// answered: the handler has sent the answer. after sends it once the
	// change is on record.
	answered bool
	after    func()
	// body is cleared in the end, whatever became of it.
	body secret.Bytes
}

// The prefixes of the two interfaces.
const (
	kbsPrefix   = "/kbs/v0/"
	adminPrefix = "/admin/v1/"
)

// Handles reports whether a path (without the tenant's prefix) is
// administration whatever the method: Coffer's own, and the protocol's. Of
// /kbs/v0/resource/… guests GET, and of plugins' paths the plugin tells.
func Handles(path string) bool {
	if strings.HasPrefix(path, adminPrefix) {
		return true
	}
	rest, ok := strings.CutPrefix(path, kbsPrefix)
	first, _, _ := strings.Cut(rest, "/")
	return ok && slices.Contains([]string{"resource", "resource-policy", "attestation-policy", "reference-value"}, first)
}

func (a *API) table() []route {
	const (
		get, put, post, del = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
		attestation         = admin.PoliciesPath + "/" + admin.PolicyAttestation
		byScope             = admin.PoliciesPath + "/" + admin.PolicyResource
	)
	return []route{
		{post, "/kbs/v0/resource/", true, ResourceWrite, "resource.set", a.setResource},
		{del, "/kbs/v0/resource/", true, ResourceWrite, "resource.delete", a.deleteResource},
		{get, "/kbs/v0/resource", false, ResourceList, "", a.listResources},
		{post, "/kbs/v0/resource-policy", false, PolicyWrite, "policy.set", a.kbsSetResourcePolicy},
		{get, "/kbs/v0/resource-policy", false, PolicyRead, "", a.kbsResourcePolicies},
		{post, "/kbs/v0/attestation-policy", false, PolicyWrite, "policy.set", a.kbsSetAttestationPolicy},
		{get, "/kbs/v0/attestation-policy", false, PolicyRead, "", a.kbsAttestationPolicies},
		{post, "/kbs/v0/reference-value", false, ReferenceWrite, "reference.register", a.kbsRegister},
		{get, "/kbs/v0/reference-value/", true, ReferenceRead, "", a.kbsReferenceValue},

		{get, admin.ResourcesPath, false, ResourceList, "", a.listResources},
		{get, admin.ResourceVersionsPath + "/", true, ResourceList, "", a.resourceVersions},

		{get, attestation, false, PolicyRead, "", a.listAttestationPolicies},
		{get, attestation + "/", true, PolicyRead, "", a.getAttestationPolicy},
		{put, attestation + "/", true, PolicyWrite, "policy.set", a.putAttestationPolicy},
		{del, attestation + "/", true, PolicyWrite, "policy.delete", a.deleteAttestationPolicy},
		{get, byScope, false, PolicyRead, "", a.getResourcePolicy},
		{get, byScope + "/versions", false, PolicyRead, "", a.resourcePolicyVersions},
		{put, byScope, false, PolicyWrite, "policy.set", a.putResourcePolicy},
		{del, byScope, false, PolicyWrite, "policy.delete", a.deleteResourcePolicy},
		{post, admin.PolicyCheckPath, false, PolicyTest, "", a.checkPolicy},
		{post, admin.ExplainPath, false, PolicyExplain, "", a.explain},

		{get, admin.ReferenceValuesPath, false, ReferenceRead, "", a.listReferences},
		{put, admin.ReferenceValuesPath, false, ReferenceWrite, "reference.set", a.putReference},
		{post, admin.ReferenceValuesPath, false, ReferenceWrite, "reference.add", a.addReference},
		{del, admin.ReferenceValuesPath, false, ReferenceWrite, "reference.delete", a.deleteReference},
		{get, admin.ReferenceValuesPath + "/", true, ReferenceRead, "", a.getReference},
		{put, admin.ReferenceValuesPath + "/", true, ReferenceWrite, "reference.set", a.putReference},
		{post, admin.ReferenceValuesPath + "/", true, ReferenceWrite, "reference.add", a.addReference},
		{del, admin.ReferenceValuesPath + "/", true, ReferenceWrite, "reference.delete", a.deleteReference},
		{get, admin.ReferenceHistoryPath, false, ReferenceRead, "", a.referenceHistory},
		{post, admin.ProvenancePath, false, ReferenceWrite, "reference.register", a.register},

		{get, admin.BindingsPath, false, BindingRead, "", a.listBindings},
		{put, admin.BindingsPath, false, BindingWrite, "binding.set", a.bind},
		{del, admin.BindingsPath, false, BindingWrite, "binding.delete", a.unbind},

		{get, admin.VerdictsPath, false, AuditRead, "", a.verdicts},
		{get, admin.AuditPath, false, AuditRead, "", a.auditEntries},
		{get, admin.CheckpointsPath, false, AuditRead, "", a.checkpoints},
		{post, admin.CheckpointsPath, false, AuditSign, "", a.makeCheckpoint},
		{get, admin.AuditKeysPath, false, AuditRead, "", a.auditKeys},

		{get, admin.AdminsPath, false, AdminRead, "", a.listAdmins},
		{post, admin.AdminsPath, false, AdminManage, "admin.add", a.addAdmin},
		{del, admin.AdminsPath + "/", true, AdminManage, "admin.remove", a.removeAdmin},

		{get, admin.TenantsPath, false, TenantRead, "", a.listTenants},
		{post, admin.TenantsPath, false, TenantManage, "tenant.create", a.createTenant},
		{http.MethodPatch, admin.TenantsPath + "/", true, TenantManage, "tenant.change", a.changeTenant},
		{get, admin.TokenKeysPath, false, KeyRead, "", a.tokenKeys},
		{post, admin.RotatePath, false, KeyRotate, "token-key.rotate", a.rotateTokenKey},
		// The record of a backup is written before the first byte of it.
		{get, admin.BackupPath, false, Backup, "", a.backup},

		{get, admin.WhoAmIPath, false, StatusRead, "", a.whoAmI},
		{get, admin.StatusPath, false, StatusRead, "", a.status},
	}
}

// find looks a request up; without a route, allow lists the methods that the
// path has.
func (a *API) find(r *http.Request) (rt *route, rest, allow string) {
	var methods []string
	for i := range a.routes {
		rt := &a.routes[i]
		rest, ok := "", r.URL.Path == rt.path
		if rt.prefix {
			rest, ok = strings.CutPrefix(r.URL.Path, rt.path)
			ok = ok && rest != ""
		}
		switch {
		case !ok:
		case rt.method == r.Method:
			return rt, rest, ""
		default:
			methods = append(methods, rt.method)
		}
	}
	if methods != nil {
		return nil, "", strings.Join(methods, ", ")
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, kbsPrefix); ok && a.o.Plugin != nil && !Handles(r.URL.Path) {
		rt := &route{permission: PluginManage, action: "plugin.call", handle: a.plugin}
		if slices.Contains(pluginMethods(), r.Method) {
			rt.action = "plugin." + strings.ToLower(r.Method)
		}
		return rt, rest, ""
	}
	return nil, "", ""
}

// queryOf reads the query, which may have each of the named parameters once
// and nothing else.
func queryOf(r *http.Request, names ...string) (url.Values, *problem.Error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "query: is malformed: expected name=value pairs joined by &")
	}
	for name, values := range q {
		if !slices.Contains(names, name) || len(values) != 1 {
			return nil, problem.New(http.StatusBadRequest, problem.Serde, "query parameter %.64q: expected at most one each of %s", name, strings.Join(names, ", "))
		}
	}
	return q, nil
}

// number reads a parameter between bounds; where it is absent, absent.
func number(q url.Values, name string, absent, low, high int64) (int64, *problem.Error) {
	s := q.Get(name)
	if s == "" && !q.Has(name) {
		return absent, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < low || n > high {
		return 0, problem.New(http.StatusBadRequest, problem.Serde, "query parameter %s: expected %d to %d, got %.64q", name, low, high, s)
	}
	return n, nil
}

// maxPage is the most entries of a page of a list.
const maxPage = 1000

// page is a part of a list.
type page struct {
	after string
	// limit is 0 where the whole list is asked for.
	limit int
}

// pageOf reads after and limit.
func pageOf(q url.Values) (page, *problem.Error) {
	limit, e := number(q, "limit", 0, 1, maxPage)
	if e == nil && limit == 0 && q.Has("after") {
		e = problem.New(http.StatusBadRequest, problem.Serde, "query parameter after: expected limit beside it")
	}
	return page{q.Get("after"), int(limit)}, e
}

// pages reads one page of a sorted list and says where it goes on, or all of
// them.
func pages[T any](c *call, p page, read func(after string, limit int) ([]T, error), key func(T) string) ([]T, *problem.Error) {
	size := p.limit
	if size == 0 {
		size = maxPage
	}
	out := []T{}
	for after := p.after; ; {
		list, err := read(after, size)
		if err != nil {
			return nil, storeProblem(err)
		}
		out = append(out, list...)
		if len(list) < size {
			return out, nil
		}
		after = key(list[len(list)-1])
		if p.limit > 0 {
			c.w.Header().Set(admin.HeaderNext, after)
			return out, nil
		}
	}
}
