package broker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

const (
	// maxQuery bounds the query parameters a policy gets to see, and
	// maxQueryBytes all of the query as it is written.
	maxQuery      = 32
	maxQueryBytes = 8 << 10
)

// guest decides on what a plugin keeps and answers with it, encrypted to the
// key that the token's evidence is bound to.
func (b *Broker) guest(w http.ResponseWriter, r *http.Request) *problem.Error {
	t := tenant.Of(r.Context())
	p, segments, e := b.route(w, r)
	if e != nil {
		return e
	}
	claims, payload, e := b.token(r, t)
	if e != nil {
		return e
	}
	query, e := queryOf(r.URL.RawQuery)
	if e != nil {
		return e
	}
	limit := b.o.MaxPluginBody
	if s, ok := p.(plugin.Sized); ok {
		limit = s.MaxBody()
	}
	body, e := problem.Body(w, r, limit)
	if e != nil {
		return e
	}
	req := plugin.Request{
		Tenant: t, Method: r.Method, Path: segments, Query: query, Body: body, Claims: claims, Session: claims.ID,
		InitData: hex.EncodeToString(release.InitDataField(claims)), Simulated: simulated(claims),
	}
	if c, ok := p.(plugin.Checker); ok {
		if e := c.Check(req); e != nil {
			return e
		}
	}
	x := &exchange{Broker: b, r: r, plugin: p, req: req, payload: payload, rec: b.guestRecord(r, p, req)}
	return x.run(w)
}

// route finds the plugin that a request is for.
func (b *Broker) route(w http.ResponseWriter, r *http.Request) (plugin.Plugin, []string, *problem.Error) {
	name, segments, err := plugin.SplitPath(strings.TrimPrefix(r.URL.Path, kbs.PathPrefix))
	p, ok := b.o.Plugins.Get(name)
	switch {
	case !ok:
		return nil, nil, problem.New(http.StatusNotFound, problem.PluginNotFound, "no such plugin")
	case err != nil:
		return nil, nil, problem.New(http.StatusBadRequest, problem.InvalidPath, "%v", err)
	}
	switch r.Method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		w.Header().Set("Allow", "GET, POST, PUT, DELETE")
		return nil, nil, problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %s: expected GET, POST, PUT or DELETE", clip(r.Method))
	}
	switch p.Access(r.Method, segments) {
	case plugin.Guest:
		return p, segments, nil
	case plugin.Admin:
		return nil, nil, problem.New(http.StatusForbidden, problem.AdminAccess, "%s here is for administrators", r.Method)
	}
	return nil, nil, problem.New(http.StatusNotFound, problem.InvalidPath, "plugin %s has no such path or method", name)
}

// exchange is one guest's request on its way through policy and plugin.
type exchange struct {
	*Broker
	r       *http.Request
	plugin  plugin.Plugin
	req     plugin.Request
	payload json.RawMessage
	rec     audit.Record
}

func (x *exchange) run(w http.ResponseWriter) *problem.Error {
	start := x.o.Now()
	resp, e := x.decide()
	if resp != nil {
		defer resp.Body.Clear()
	}
	var doc any
	if e == nil && resp.Encrypt {
		doc, e = x.encrypt(resp)
	}
	x.o.Metrics.Plugin(x.plugin.Name(), outcome(e), x.o.Now().Sub(start))
	if x.plugin.Name() == kbs.PluginResource {
		x.o.Metrics.ResourceRead(outcome(e))
	}
	if e != nil {
		x.refused(x.r, x.rec, e)
		return e
	}
	if e := x.record(resp); e != nil {
		return e
	}
	if doc != nil {
		problem.JSON(w, http.StatusOK, doc)
		return nil
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if resp.ContentType != "" {
		h.Set("Content-Type", resp.ContentType)
	}
	h.Set("Content-Length", strconv.Itoa(resp.Body.Len()))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	// The header is out: a failure to write can only be the connection's.
	_, _ = w.Write(resp.Body.Expose())
	return nil
}

// decide asks the policy, and the plugin if the policy lets it.
func (x *exchange) decide() (*plugin.Response, *problem.Error) {
	ctx := x.r.Context()
	d, err := x.o.Decider.Decide(ctx, release.Request{
		Tenant: x.req.Tenant, Plugin: x.plugin.Name(), Path: x.req.Path, Query: x.req.Query, Claims: x.req.Claims, Payload: x.payload,
	})
	if err != nil {
		e := failure(err)
		if errors.Is(err, policy.ErrLimit) {
			// The request was as it should be: the policy's author is to act.
			e = problem.Busy(problem.PolicyEngine, "the resource policy did not decide within its limits of time and memory")
			e.Cause = err
		}
		e.Info.Type = kbs.ErrorType(problem.PolicyEngine)
		x.o.Metrics.PolicyDecision(outcome(e))
		return nil, e
	}
	x.rec.Policy, x.rec.Data = d.PolicyID, recordData(d.Data)
	if !d.Granted {
		e := problem.Denied(problem.PolicyDeny, x.name()+" is denied", d.Reasons...)
		x.o.Metrics.PolicyDecision(outcome(e))
		return nil, e
	}
	x.o.Metrics.PolicyDecision(outcome(nil))
	resp, e := x.plugin.Handle(ctx, x.req)
	if e == nil && resp == nil {
		e = problem.Internal(problem.PluginInternal, fmt.Errorf("plugin %s answered nothing", x.plugin.Name()))
	}
	return resp, e
}

// name is what denials call the thing that was asked for.
func (x *exchange) name() string {
	if x.plugin.Name() == kbs.PluginResource {
		return "resource " + strings.Join(x.req.Path, "/")
	}
	return x.rec.Resource
}

// encrypt answers in the form of the handshake's protocol version.
func (x *exchange) encrypt(resp *plugin.Response) (*kbs.Response, *problem.Error) {
	key, err := teeKey(x.payload)
	if err != nil {
		return nil, problem.Internal(problem.TokenVerifier, err)
	}
	var out *kbs.Response
	if isLegacy(kbs.Version(x.req.Claims.Protocol)) {
		out, err = encryptLegacy(x.o.Rand, key, resp.Body.Expose())
	} else {
		out, err = kbs.EncryptResponse(x.o.Rand, key, resp.Body.Expose())
	}
	if err != nil {
		return nil, problem.Internal("JweError", err)
	}
	return out, nil
}

// record is what a release depends on at the last.
func (x *exchange) record(resp *plugin.Response) *problem.Error {
	ctx := x.r.Context()
	x.rec.Granted, x.rec.Status, x.rec.Version = true, http.StatusOK, resp.Version
	if resp.Detail != "" {
		x.rec.Detail = clipDetail(resp.Detail)
	}
	if _, err := x.o.Store.Append(ctx, x.req.Tenant, x.rec); err != nil {
		return failure(fmt.Errorf("a release that cannot be recorded is refused: %w", err))
	}
	x.o.Logger.InfoContext(ctx, "resource released", "session", x.rec.Session, "tenant", x.req.Tenant, "resource", x.rec.Resource,
		"version", x.rec.Version, "simulated", x.rec.Simulated)
	return nil
}

// token finds and verifies the attestation token: that of an attested
// session, or else, also where the session's has expired, the bearer's.
func (b *Broker) token(r *http.Request, t tenant.Name) (*ear.Claims, json.RawMessage, *problem.Error) {
	ctx := r.Context()
	e := noToken()
	if cookie := sessionCookie(r); cookie != "" {
		var claims *ear.Claims
		var payload json.RawMessage
		if claims, payload, e = b.sessionToken(ctx, t, cookie); e == nil || e.Status != http.StatusUnauthorized {
			return claims, payload, e
		}
	}
	scheme, compact, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || compact == "" {
		return nil, nil, e
	}
	claims, payload, err := b.o.Tokens.Verify(ctx, t, compact)
	if err != nil {
		return nil, nil, badToken(err)
	}
	return claims, payload, nil
}

// sessionToken is the token of an attested session.
func (b *Broker) sessionToken(ctx context.Context, t tenant.Name, cookie string) (*ear.Claims, json.RawMessage, *problem.Error) {
	s, err := b.o.Sessions.Open(t, cookie)
	if err != nil {
		return nil, nil, noToken()
	}
	compact, err := b.o.Store.SessionToken(ctx, t, s.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, noToken()
	}
	if err != nil {
		return nil, nil, failure(err)
	}
	claims, payload, err := b.o.Tokens.Verify(ctx, t, compact)
	if err != nil {
		return nil, nil, badToken(err)
	}
	return claims, payload, nil
}

func noToken() *problem.Error {
	e := again("there is neither an attested session nor a bearer token")
	e.Info.Type = kbs.ErrorType(problem.TokenNotFound)
	return e
}

func badToken(err error) *problem.Error {
	if f := failure(err); f.Status == http.StatusServiceUnavailable {
		return f // the keys could not be looked up: attesting again would not help
	}
	e := again(err.Error())
	e.Info.Type = kbs.ErrorType(problem.TokenVerifier)
	return e
}

// queryOf reads query parameters; of several of a name the last counts.
func queryOf(raw string) (map[string]string, *problem.Error) {
	bad := problem.New(http.StatusBadRequest, problem.InvalidPath, "query: expected at most %d well-formed parameters of at most %d bytes", maxQuery, maxQueryBytes)
	if len(raw) > maxQueryBytes || strings.Count(raw, "&") >= 4*maxQuery {
		return nil, bad
	}
	values, err := url.ParseQuery(raw)
	if err != nil || len(values) > maxQuery {
		return nil, bad
	}
	out := make(map[string]string, len(values))
	for k, v := range values {
		out[k] = v[len(v)-1]
		if !plainText(k) || !plainText(out[k]) {
			return nil, problem.New(http.StatusBadRequest, problem.InvalidPath, "query: expected valid UTF-8 without control characters")
		}
	}
	return out, nil
}
