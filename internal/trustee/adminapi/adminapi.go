// Package adminapi serves administration: the KBS protocol's own endpoints
// for resources, policies and reference values, and Coffer's /admin/v1 for
// reference values with expiry, bindings, verdicts and listings. Every
// request needs an administrator's token, and every change is logged.
package adminapi

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/secret"
)

// Store is what the administration works on.
type Store interface {
	SetResource(ctx context.Context, p resource.Path, content secret.Bytes) error
	DeleteResource(ctx context.Context, p resource.Path) (bool, error)
	Resources(ctx context.Context) ([]store.ResourceInfo, error)
	SetPolicy(ctx context.Context, kind, id, text string) (store.Policy, error)
	Policies(ctx context.Context, kind string) ([]store.Policy, error)
	SetReferences(ctx context.Context, refs ...refvalues.Reference) error
	AddReference(ctx context.Context, r refvalues.Reference) error
	DeleteReference(ctx context.Context, name string) (bool, error)
	Reference(ctx context.Context, name string) (refvalues.Reference, error)
	References(ctx context.Context) ([]refvalues.Reference, error)
	Bind(ctx context.Context, b store.Binding) error
	Unbind(ctx context.Context, resource, initdata string) (int, error)
	Bindings(ctx context.Context) ([]store.Binding, error)
	Verdicts(ctx context.Context, limit int, session string) ([]store.Verdict, error)
}

// Options of [New].
type Options struct {
	Store Store
	Auth  Auth
	// CheckResourcePolicy and CheckAttestationPolicy refuse a text that could
	// not be used.
	CheckResourcePolicy    func(ctx context.Context, text string) error
	CheckAttestationPolicy func(ctx context.Context, id, text string) error
	// MaxBody and MaxResource are in bytes.
	MaxBody, MaxResource int
	// Lifetime is the expiry of reference values stored without one; 0: never.
	Lifetime time.Duration
	Now      func() time.Time
	Logger   *slog.Logger
}

// API is the handler. It is safe for concurrent use.
type API struct {
	o      Options
	routes []route
}

// handler does the work for an authenticated administrator and returns the
// document to answer with; nil is an empty answer.
type handler func(c *call) (any, *problem.Error)

type route struct {
	method, path string
	// prefix: path is a prefix and the rest is call.rest.
	prefix bool
	handle handler
}

type call struct {
	w    http.ResponseWriter
	r    *http.Request
	rest string
	log  *slog.Logger
}

// New returns the handler.
func New(o Options) *API {
	a := &API{o: o}
	a.routes = []route{
		{"POST", "/kbs/v0/resource/", true, a.setResource},
		{"DELETE", "/kbs/v0/resource/", true, a.deleteResource},
		{"GET", "/kbs/v0/resource", false, a.listResources},
		{"POST", "/kbs/v0/resource-policy", false, a.setResourcePolicy},
		{"GET", "/kbs/v0/resource-policy", false, a.listResourcePolicies},
		{"POST", "/kbs/v0/attestation-policy", false, a.setAttestationPolicy},
		{"GET", "/kbs/v0/attestation-policy", false, a.listAttestationPolicies},
		{"POST", "/kbs/v0/reference-value", false, a.registerReferences},
		{"GET", "/kbs/v0/reference-value/", true, a.referenceValue},

		{"GET", "/admin/v1/resources", false, a.listResources},
		{"GET", "/admin/v1/reference-values", false, a.listReferences},
		{"PUT", "/admin/v1/reference-values/", true, a.putReference},
		{"POST", "/admin/v1/reference-values/", true, a.addReference},
		{"DELETE", "/admin/v1/reference-values/", true, a.deleteReference},
		{"GET", "/admin/v1/bindings", false, a.listBindings},
		{"PUT", "/admin/v1/bindings", false, a.bind},
		{"DELETE", "/admin/v1/bindings", false, a.unbind},
		{"GET", "/admin/v1/verdicts", false, a.verdicts},
	}
	return a
}

// ServeHTTP implements http.Handler. The caller has made sure that the path
// holds no percent-encoding.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Who may not administer learns nothing of what there is, not even paths.
	subject, e := a.o.Auth.authenticate(r)
	if e != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		problem.Write(r.Context(), a.o.Logger, w, e)
		return
	}
	h, rest, e := a.find(w, r)
	if e != nil {
		problem.Write(r.Context(), a.o.Logger, w, e)
		return
	}
	doc, e := h(&call{w: w, r: r, rest: rest, log: a.o.Logger.With("admin", subject)})
	switch {
	case e != nil:
		problem.Write(r.Context(), a.o.Logger, w, e)
	case doc == nil:
		w.WriteHeader(http.StatusOK)
	default:
		problem.JSON(w, http.StatusOK, doc)
	}
}

func (a *API) find(w http.ResponseWriter, r *http.Request) (handler, string, *problem.Error) {
	var allow []string
	for _, rt := range a.routes {
		rest, ok := "", r.URL.Path == rt.path
		if rt.prefix {
			rest, ok = strings.CutPrefix(r.URL.Path, rt.path)
		}
		switch {
		case !ok:
		case rt.method == r.Method:
			return rt.handle, rest, nil
		default:
			allow = append(allow, rt.method)
		}
	}
	if allow != nil {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		return nil, "", problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %s: expected one of %s", r.Method, strings.Join(allow, ", "))
	}
	return nil, "", problem.New(http.StatusNotFound, problem.InvalidPath, "no such path")
}

// decode reads a strict JSON body.
func (a *API) decode(c *call, v any) *problem.Error {
	data, e := problem.Body(c.w, c.r, a.o.MaxBody)
	if e != nil {
		return e
	}
	if err := strictjson.Decode(data, v, strictjson.Limits{Bytes: a.o.MaxBody, Depth: 16}); err != nil {
		return problem.New(http.StatusBadRequest, problem.Serde, "request body: %v", err)
	}
	return nil
}

func badRequest(variant string, err error) *problem.Error {
	return problem.New(http.StatusBadRequest, variant, "%v", err)
}
