// Package adminapi serves administration: the KBS protocol's own endpoints
// for resources, policies and reference values, and Coffer's /admin/v1 for
// all that the protocol has no words for. Every request needs the token of an
// administrator whose role and tenant allow it. Every change, and every
// attempt that a genuine token was not enough for, is in the audit record
// before it is answered.
package adminapi

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// Options of [New]. What is nil without a remark is required.
type Options struct {
	Store     Store
	Resources resource.Backend
	Auth      Auth

	// CheckResourcePolicy and CheckAttestationPolicy refuse a text that could
	// not be used; an error about the text is a *policy.CompileError.
	CheckResourcePolicy    func(ctx context.Context, t tenant.Name, scope, text string) error
	CheckAttestationPolicy func(ctx context.Context, t tenant.Name, id, text string) error
	// CheckReference refuses a value that a policy in force would choke on,
	// with a *policy.CompileError; nil: nothing is refused.
	CheckReference func(ctx context.Context, t tenant.Name, r refvalues.Reference) error
	// BuiltInPolicy is the text that is in force where none is stored; nil: it
	// is not shown.
	BuiltInPolicy func(kind, id string) (text string, ok bool)
	// PolicyText finds the text that a record's policy label names, and
	// Explain replays a decision with it. nil: there are no explanations.
	PolicyText func(ctx context.Context, t tenant.Name, label string) (string, error)
	Explain    func(ctx context.Context, in Replay) (admin.Explanation, error)

	// Provenance reads and verifies an RVPS message. Its errors are the
	// message's fault, but for a *problem.Error.
	Provenance func(ctx context.Context, t tenant.Name, message []byte) ([]refvalues.Reference, error)

	// Plugin answers what a plugin says is for administrators; nil: there is
	// no such plugin.
	Plugin func(ctx context.Context, r PluginCall) (*PluginAnswer, *problem.Error)

	// AuditKeys is the JWKS of the keys of checkpoints, Checkpoint makes one now.
	AuditKeys  func(ctx context.Context) (json.RawMessage, error)
	Checkpoint func(ctx context.Context, t tenant.Name) (admin.Checkpoint, error)
	// TokenKeys lists the keys of attestation tokens, RotateTokenKey makes a
	// new one; an algorithm that is not to be had is a *problem.Error.
	TokenKeys      func(ctx context.Context) ([]admin.TokenKey, error)
	RotateTokenKey func(ctx context.Context, alg string) (admin.TokenKey, error)
	Status         func(ctx context.Context, t tenant.Name) (admin.Status, error)

	// ClientAddr is the network address for the record; nil: RemoteAddr.
	ClientAddr func(*http.Request) string
	// MaxBody and MaxResource are in bytes.
	MaxBody, MaxResource int
	// Lifetime is the expiry of reference values stored without one; 0: never.
	Lifetime time.Duration
	Now      func() time.Time
	Logger   *slog.Logger
}

// PluginCall is an administrator's request to a plugin.
type PluginCall struct {
	Tenant         tenant.Name
	Method, Plugin string
	// Path is what follows the plugin's name, by segments.
	Path  []string
	Query map[string]string
	Body  []byte
}

// PluginAnswer is a plugin's answer. Body is cleared after it was sent.
type PluginAnswer struct {
	Body        secret.Bytes
	ContentType string
	// Version and Detail go to the record; Detail is never a secret.
	Version int64
	Detail  string
}

// Replay is what a decision depended on.
type Replay struct {
	// Label names the policy, Text is the one to evaluate.
	Label, Text  string
	Claims, Data json.RawMessage
}

// API is the handler. It is safe for concurrent use.
type API struct {
	o      Options
	routes []route
}

// New returns the handler, or says which option cannot be.
func New(o Options) (*API, error) {
	if o.Store == nil || o.Resources == nil || o.CheckResourcePolicy == nil || o.CheckAttestationPolicy == nil || o.Provenance == nil || o.Now == nil || o.Logger == nil {
		return nil, errors.New("adminapi: a required option is missing")
	}
	if o.MaxBody <= 0 || o.MaxResource <= 0 || o.Lifetime < 0 {
		return nil, errors.New("adminapi: limits: expected positive sizes and a lifetime that is not negative")
	}
	if err := o.Auth.check(); err != nil {
		return nil, err
	}
	if o.ClientAddr == nil {
		o.ClientAddr = func(r *http.Request) string { return r.RemoteAddr }
	}
	a := &API{o: o}
	a.routes = a.table()
	return a, nil
}

// Credentials are what a request shows.
type Credentials struct {
	// Bearer is the token alone, without the scheme.
	Bearer string
	// TLS is the connection; nil: not encrypted.
	TLS *tls.ConnectionState
	// Client is the network address, for the record.
	Client string
	// request is the method and path, for the record.
	request string
}

func (a *API) credentials(r *http.Request) Credentials {
	c := Credentials{TLS: r.TLS, Client: a.o.ClientAddr(r), request: clip(r.Method+" "+r.URL.Path, maxRequest)}
	// More than one header could be read in two ways.
	if h := r.Header.Values("Authorization"); len(h) == 1 {
		c.Bearer, _ = strings.CutPrefix(h[0], "Bearer ")
		if len(c.Bearer) == len(h[0]) {
			c.Bearer = ""
		}
	}
	return c
}

// Authorize lets an administrator's token in who may do something to a
// tenant, for parts of the trustee with an interface of their own. A refusal
// of a genuine token is recorded.
func (a *API) Authorize(ctx context.Context, c Credentials, t tenant.Name, p Permission) (Principal, *problem.Error) {
	who, e := a.enter(ctx, c, t, string(p))
	if e != nil {
		return Principal{}, e
	}
	if e := a.permit(ctx, *who, c, t, p, string(p)); e != nil {
		return Principal{}, e
	}
	return *who, nil
}

// enter authenticates and finds out whether the tenant is there and the
// principal's. what is for the record.
func (a *API) enter(ctx context.Context, c Credentials, t tenant.Name, what string) (*Principal, *problem.Error) {
	who, e := a.authenticate(ctx, c.Bearer, t)
	switch {
	case e != nil && who != nil:
		a.refused(ctx, *who, c, t, what, e)
		return nil, e
	case e != nil:
		return nil, e
	}
	// The token comes first: one that is used without the certificate that
	// belongs to it is worth a record.
	if a.o.Auth.RequireClientCertificate && (c.TLS == nil || len(c.TLS.VerifiedChains) == 0) {
		e := problem.New(http.StatusForbidden, problem.AdminAccess,
			"administrators must present a client certificate of the configured authority beside the token, got none that was verified")
		a.refused(ctx, *who, c, t, what, e)
		return nil, e
	}
	// The same answer whether the tenant exists or not.
	if !who.Reaches(t) {
		e := forbidden("tenant: it is not for this tenant's URL, but for %s", names(who.Tenants))
		a.refused(ctx, *who, c, t, what, e)
		return nil, e
	}
	if _, err := a.o.Store.Generation(ctx, t); err != nil {
		return nil, storeProblem(err)
	}
	return who, nil
}

func names(tenants []tenant.Name) string {
	s := make([]string, len(tenants))
	for i, t := range tenants {
		s[i] = string(t)
	}
	return strings.Join(s, ", ")
}

// permit asks whether the principal's roles include a permission.
func (a *API) permit(ctx context.Context, who Principal, c Credentials, t tenant.Name, p Permission, what string) *problem.Error {
	if who.May(p) {
		return nil
	}
	e := forbidden("role: %s takes one of the roles %s, got %s", p, rolesWith(p), strings.Join(who.Roles, ", "))
	if p.whole() && !who.Everywhere() {
		e = forbidden("tenant: %s takes an administrator of every tenant, got one of %s", p, names(who.Tenants))
	}
	a.refused(ctx, who, c, t, what, e)
	return e
}

// ServeHTTP implements http.Handler. The caller has made sure that the path
// holds no percent-encoding, has cut off the tenant's prefix and put the tenant
// into the request's context. It does not have to know whether there is such
// a tenant: who may not administer it learns nothing of that here.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	c := &call{w: w, r: r, tenant: tenant.Of(ctx), cred: a.credentials(r)}
	rt, rest, allow := a.find(r)
	what := "path.unknown"
	if rt != nil {
		what = rt.name()
	}
	who, e := a.enter(ctx, c.cred, c.tenant, what)
	if e != nil {
		a.fail(c, e)
		return
	}
	c.who, c.rest = *who, rest
	switch {
	case rt == nil && allow != "":
		w.Header().Set("Allow", allow)
		e = problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %s: expected one of %s", r.Method, allow)
	case rt == nil:
		e = problem.New(http.StatusNotFound, problem.InvalidPath, "no such path")
	default:
		e = a.permit(ctx, c.who, c.cred, c.tenant, rt.permission, what)
	}
	if e == nil && rt.permission.whole() && c.tenant != tenant.Default {
		e = problem.New(http.StatusNotFound, problem.InvalidPath, "the trustee as a whole is administered at the default tenant's URL, without /tenants/%s", c.tenant)
	}
	if e != nil {
		a.fail(c, e)
		return
	}
	doc, e := rt.handle(c)
	defer func() { c.body.Clear() }()
	if rt.action != "" {
		e = a.changed(c, rt.action, e)
	}
	switch {
	case e != nil:
		a.fail(c, e)
	case c.answered:
	case c.after != nil:
		c.after()
	case doc == nil:
		w.WriteHeader(http.StatusOK)
	default:
		problem.JSON(w, http.StatusOK, doc)
	}
}

func (a *API) fail(c *call, e *problem.Error) {
	if e.Status == http.StatusUnauthorized {
		c.w.Header().Set("WWW-Authenticate", "Bearer")
	}
	problem.Write(c.r.Context(), a.o.Logger, c.w, e)
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

// storeProblem is a failure of the store or of a resource backend.
func storeProblem(err error) *problem.Error {
	var e *problem.Error
	switch {
	case errors.Is(err, store.ErrFull):
		return problem.New(http.StatusInsufficientStorage, problem.Limit, "%v", err)
	case errors.Is(err, store.ErrNoTenant):
		return problem.New(http.StatusNotFound, problem.InvalidPath, "no such tenant")
	case errors.Is(err, store.ErrConflict):
		return problem.New(http.StatusConflict, problem.Storage, "somebody else has changed it in the meantime: look again and repeat")
	case errors.Is(err, resource.ErrReadOnly):
		return problem.New(http.StatusConflict, problem.Storage, "%v", resource.ErrReadOnly)
	case errors.Is(err, store.ErrUnavailable):
		e = problem.Busy(problem.Storage, "the database does not answer")
	case errors.Is(err, resource.ErrUnavailable):
		e = problem.Busy(problem.Storage, "the backend of resources does not answer")
	default:
		return problem.Internal(problem.Storage, err)
	}
	e.Cause = err
	return e
}
