package trustee

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/adminapi"
	"github.com/coffer-project/coffer/internal/trustee/listener"
	"github.com/coffer-project/coffer/internal/trustee/metrics"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/ratelimit"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// Timeouts of connections; a request's own is configured.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
)

func (t *Trustee) newServer(h http.Handler) *http.Server {
	l := t.o.Config.Limits
	return &http.Server{
		Handler:           t.underWay(h),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       l.RequestTimeout.D(),
		WriteTimeout:      l.RequestTimeout.D() + headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    l.Header,
		ErrorLog:          slog.NewLogLogger(t.o.Logger.Handler(), slog.LevelWarn),
	}
}

// underWay counts requests.
func (t *Trustee) underWay(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.requests.Add(1)
		defer t.requests.Add(-1)
		next.ServeHTTP(w, r)
	})
}

// Handler serves every endpoint: the KBS protocol below /kbs/v0 and
// administration below /admin/v1, both also below /tenants/NAME; token keys
// below /.well-known; /healthz, /readyz and /metrics.
func (t *Trustee) Handler() http.Handler {
	h := t.unlimited(t.limited(http.HandlerFunc(t.serve)))
	return t.parting(t.metrics.HTTP(t.tracing.HTTP(h, t.metrics.Route)))
}

// parting ends connections with their next answer while a stop is under way:
// clients that keep them come back elsewhere, and none is cut with a request
// on its way.
func (t *Trustee) parting(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if t.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// limited refuses clients that ask for too much.
func (t *Trustee) limited(next http.Handler) http.Handler {
	return ratelimit.Middleware{
		Limiter: t.limiter, Client: listener.ClientAddr, Logger: t.o.Logger,
		Rejected: func(r ratelimit.Reason) { t.metrics.RateLimited(string(r)) },
	}.HTTP(next)
}

// unlimited answers health checks before any limit: a client that floods the
// trustee must not make it look dead to its own load balancer.
func (t *Trustee) unlimited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz":
			t.get(w, r, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
		case "/readyz":
			t.get(w, r, t.ready)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (t *Trustee) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), t.o.Config.Limits.RequestTimeout.D())
	defer cancel()
	start := t.o.Now()
	sw := &statusWriter{ResponseWriter: w}
	t.route(sw, r.WithContext(ctx))
	// Neither query, header nor body: they can hold credentials.
	t.o.Logger.DebugContext(ctx, "request", "method", r.Method, "path", clip(r.URL.Path), "status", sw.status,
		"client", listener.ClientText(r), "seconds", t.o.Now().Sub(start).Seconds())
}

func (t *Trustee) route(w http.ResponseWriter, r *http.Request) {
	// Nothing here needs escaping; what is escaped could be read in two ways.
	if strings.ContainsAny(r.URL.EscapedPath(), "%") || strings.Contains(r.URL.Path, "//") {
		t.fail(w, r, problem.New(http.StatusBadRequest, problem.InvalidPath, "path: percent-encoding and empty segments are not accepted"))
		return
	}
	name, path, err := tenant.FromPath(r.URL.Path)
	if err != nil {
		t.fail(w, r, noTenant())
		return
	}
	if h := t.global(path); h != nil && name == tenant.Default {
		t.get(w, r, h)
		return
	}
	inner := r.WithContext(tenant.With(r.Context(), name))
	u := *r.URL
	u.Path, u.RawPath = path, ""
	inner.URL = &u
	guest := t.broker.Handles(inner)
	if !guest && t.isAdmin(path) {
		// It finds out about the tenant for itself, lest it tell a stranger
		// which ones there are.
		t.administer(w, inner)
		return
	}
	if e := t.enter(r.Context(), name); e != nil {
		t.fail(w, r, e)
		return
	}
	switch {
	case guest:
		t.broker.ServeHTTP(w, inner)
	case strings.HasPrefix(path, kbs.PathPrefix+"/"):
		t.fail(w, r, problem.New(http.StatusNotFound, problem.PluginNotFound, "no such plugin"))
	default:
		t.fail(w, r, problem.New(http.StatusNotFound, problem.InvalidPath, "no such path"))
	}
}

// global are the endpoints that are no tenant's.
func (t *Trustee) global(path string) http.HandlerFunc {
	switch {
	case path == "/metrics" && t.o.Config.Metrics.Enabled:
		return t.metrics.Handler().ServeHTTP
	case path == "/.well-known/jwks.json":
		return t.jwks
	case path == "/.well-known/openid-configuration":
		return t.discovery
	}
	return nil
}

func noTenant() *problem.Error {
	return problem.New(http.StatusNotFound, problem.InvalidPath, "no such tenant")
}

// enter makes sure that the tenant exists and is enabled.
func (t *Trustee) enter(ctx context.Context, name tenant.Name) *problem.Error {
	if name == tenant.Default {
		return nil // it always is
	}
	_, err := t.store.Generation(ctx, name)
	switch {
	case errors.Is(err, store.ErrNoTenant):
		return noTenant()
	case err != nil:
		return problem.Internal(problem.Storage, err)
	}
	return nil
}

// isAdmin names the paths of administration.
func (t *Trustee) isAdmin(path string) bool {
	if adminapi.Handles(path) {
		return true
	}
	rest, ok := strings.CutPrefix(path, kbs.PathPrefix+"/")
	first, _, _ := strings.Cut(rest, "/")
	if ok {
		_, ok = t.plugins.Get(first)
	}
	return ok
}

// administer counts whom administration lets in.
func (t *Trustee) administer(w http.ResponseWriter, r *http.Request) {
	sw := &statusWriter{ResponseWriter: w}
	t.admin.ServeHTTP(sw, r)
	switch {
	case sw.status == http.StatusUnauthorized || sw.status == http.StatusForbidden:
		t.metrics.Auth(metrics.Denied)
	case sw.status >= http.StatusInternalServerError:
		t.metrics.Auth(metrics.Failed)
	default:
		t.metrics.Auth(metrics.OK)
	}
}

func (t *Trustee) get(w http.ResponseWriter, r *http.Request, h http.HandlerFunc) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		t.fail(w, r, problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %s: expected GET", r.Method))
		return
	}
	h(w, r)
}

func (t *Trustee) fail(w http.ResponseWriter, r *http.Request, e *problem.Error) {
	problem.Write(r.Context(), t.o.Logger, w, e)
}

// ready is 200 where requests can be served: the database answers, and no stop
// is under way.
func (t *Trustee) ready(w http.ResponseWriter, r *http.Request) {
	if t.draining.Load() {
		t.fail(w, r, problem.Busy(problem.Storage, "the trustee is stopping"))
		return
	}
	err, asked := t.readiness.check(r.Context(), t.store.Ping, t.o.Now)
	if asked {
		t.metrics.StoreUp(err == nil)
	}
	if err != nil {
		e := problem.Busy(problem.Storage, "the database does not answer")
		if asked {
			e.Cause = err
			t.fail(w, r, e)
			return
		}
		problem.JSON(w, e.Status, e.Info) // it is in the log
		return
	}
	w.WriteHeader(http.StatusOK)
}

// jwks are the keys that tokens are verified with.
func (t *Trustee) jwks(w http.ResponseWriter, r *http.Request) {
	set, err := t.tokens.JWKS(r.Context())
	if err != nil {
		t.fail(w, r, problem.Internal(problem.Storage, err))
		return
	}
	problem.JSON(w, http.StatusOK, set)
}

// discovery points OIDC-style relying parties to the keys of tokens.
func (t *Trustee) discovery(w http.ResponseWriter, r *http.Request) {
	scheme := "https://"
	if r.TLS == nil {
		scheme = "http://"
	}
	problem.JSON(w, http.StatusOK, map[string]any{
		"issuer":                                t.tokens.Issuer(),
		"jwks_uri":                              scheme + r.Host + "/.well-known/jwks.json",
		"id_token_signing_alg_values_supported": []string{"ES256", "ES384"},
	})
}

// statusWriter notes the status for the log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController and MaxBytesReader reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func clip(s string) string {
	if len(s) > 256 {
		return s[:256] + "…"
	}
	return s
}
