package trustee

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/broker"
	"github.com/coffer-project/coffer/internal/trustee/problem"
)

// Timeouts of connections; a request's own is configured.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
)

func (t *Trustee) newServer() *http.Server {
	l := t.o.Config.Limits
	return &http.Server{
		Handler:           t.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       l.RequestTimeout.D(),
		WriteTimeout:      l.RequestTimeout.D() + headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    l.Header,
		ErrorLog:          slog.NewLogLogger(t.o.Logger.Handler(), slog.LevelWarn),
	}
}

// Handler serves every endpoint: the KBS protocol below /kbs/v0,
// administration below /admin/v1, token keys below /.well-known, and /healthz.
func (t *Trustee) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), t.o.Config.Limits.RequestTimeout.D())
		defer cancel()
		start := t.o.Now()
		sw := &statusWriter{ResponseWriter: w}
		t.route(sw, r.WithContext(ctx))
		// Neither query, header nor body: they can hold credentials.
		t.o.Logger.DebugContext(ctx, "request", "method", r.Method, "path", clip(r.URL.Path), "status", sw.status,
			"remote", r.RemoteAddr, "seconds", t.o.Now().Sub(start).Seconds())
	})
}

func (t *Trustee) route(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	// Nothing here needs escaping; what is escaped could be read in two ways.
	if strings.ContainsAny(r.URL.EscapedPath(), "%") || strings.Contains(path, "//") {
		t.fail(w, r, problem.New(http.StatusBadRequest, problem.InvalidPath, "path: percent-encoding and empty segments are not accepted"))
		return
	}
	switch {
	case path == "/healthz":
		t.get(w, r, t.health)
	case path == "/.well-known/jwks.json":
		t.get(w, r, func(w http.ResponseWriter, _ *http.Request) { problem.JSON(w, http.StatusOK, t.tokens.JWKS()) })
	case path == "/.well-known/openid-configuration":
		t.get(w, r, t.discovery)
	case broker.Handles(r):
		t.broker.ServeHTTP(w, r)
	case isAdmin(path):
		t.admin.ServeHTTP(w, r)
	case strings.HasPrefix(path, "/kbs/v0/"):
		t.fail(w, r, problem.New(http.StatusNotFound, problem.PluginNotFound, "no such plugin"))
	default:
		t.fail(w, r, problem.New(http.StatusNotFound, problem.InvalidPath, "no such path"))
	}
}

// isAdmin names the paths of administration.
func isAdmin(path string) bool {
	if strings.HasPrefix(path, "/admin/v1/") {
		return true
	}
	rest, ok := strings.CutPrefix(path, "/kbs/v0/")
	first, _, _ := strings.Cut(rest, "/")
	switch first {
	case "resource", "resource-policy", "attestation-policy", "reference-value":
		return ok
	}
	return false
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

// health is 200 with an empty body where the database answers.
func (t *Trustee) health(w http.ResponseWriter, r *http.Request) {
	if err := t.store.Ping(r.Context()); err != nil {
		e := problem.Busy(problem.Storage, "the database does not answer")
		e.Cause = err
		t.fail(w, r, e)
		return
	}
	w.WriteHeader(http.StatusOK)
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

// Unwrap lets http.MaxBytesReader reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func clip(s string) string {
	if len(s) > 256 {
		return s[:256] + "…"
	}
	return s
}
