// Package broker serves guests: the RCAR handshake of the KBS protocol
// (request, challenge, attestation, response) and the release of what plugins
// keep. Every verdict is recorded, and nothing is released without its record.
//
// A request's tenant comes with its context. Sessions, tokens, policies,
// resources and records are the tenant's, and none serves another.
//
// Statuses: 401 means "attest (again)" and nothing else; 403 is a refusal with
// a reason; 404 a missing resource, told only to those who were allowed to
// have it; 400 and 413 a malformed or oversized request; 429 and 503 come
// with Retry-After; 500 a failure of the trustee.
package broker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/metrics"
	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/session"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// Store keeps the ends of handshakes and the records.
type Store interface {
	// Finish uses a session's nonce up and appends the record, both or
	// neither. store.ErrUsed: another request was first.
	Finish(ctx context.Context, t tenant.Name, f store.Finished, r audit.Record) error
	SessionUsed(ctx context.Context, t tenant.Name, id string) (bool, error)
	// SessionToken is the token of an attested session, store.ErrNotFound
	// where there is none.
	SessionToken(ctx context.Context, t tenant.Name, id string) (string, error)
	Append(ctx context.Context, t tenant.Name, r audit.Record) (audit.Entry, error)
}

// Sessions seals handshakes into cookies.
type Sessions interface {
	Seal(s *session.Session) (string, error)
	Open(t tenant.Name, cookie string) (*session.Session, error)
}

// Evaluator turns evidence into a token. Beside an error its outcome holds
// what is known of the environment, or is nil.
type Evaluator interface {
	Evaluate(ctx context.Context, r evaluation.Request) (*evaluation.Outcome, *problem.Error)
}

// Decider decides whether something is released.
type Decider interface {
	Decide(ctx context.Context, r release.Request) (release.Decision, error)
}

// Tokens verifies attestation tokens.
type Tokens interface {
	Verify(ctx context.Context, t tenant.Name, compact string) (*ear.Claims, json.RawMessage, error)
}

// Challenger makes the challenge of a TEE for which a random nonce is not
// enough (IBM Secure Execution's is a document). The answer has to be fresh
// for every request, and hold a nonce of at least 32 random bytes.
type Challenger interface {
	Challenge(ctx context.Context, t tenant.Name, r *kbs.Request) (string, error)
}

// Options of [New]. All are required but for those with a stated default.
type Options struct {
	Store     Store
	Sessions  Sessions
	Evaluator Evaluator
	Decider   Decider
	Tokens    Tokens
	Plugins   *plugin.Registry
	// TEEs are the environments whose evidence is accepted.
	TEEs []tee.Name
	// Challengers by TEE; may be nil. Without one, tee.SE is not accepted.
	Challengers map[tee.Name]Challenger
	// Selectors map attestation-policy-selector to policy ids; may be nil.
	Selectors map[string]string
	// SessionTimeout counts from the challenge.
	SessionTimeout time.Duration
	// MaxBody bounds an attestation, in bytes.
	MaxBody int
	// MaxPluginBody bounds a guest's request to a plugin that is not a
	// [plugin.Sized], in bytes; 0: 64 KiB.
	MaxPluginBody int
	// AllowSimulated is written into every record.
	AllowSimulated bool
	// PlainHTTP leaves Secure off the cookie.
	PlainHTTP bool
	// ClientAddr is the network address of a request's client, for records;
	// nil: that of the connection.
	ClientAddr func(*http.Request) string
	// Metrics may be nil.
	Metrics *metrics.Metrics
	Logger  *slog.Logger
	Now     func() time.Time
	// Rand is the source of nonces and content keys; safe for concurrent use.
	Rand io.Reader
}

// Broker is the handler. It is safe for concurrent use.
type Broker struct {
	o Options

	// mu guards judging: the sessions whose evidence is being judged here.
	// One session's evidence is never judged twice at once.
	mu      sync.Mutex
	judging map[string]struct{}
}

// New returns the handler.
func New(o Options) (*Broker, error) {
	switch {
	case o.Store == nil || o.Sessions == nil || o.Evaluator == nil || o.Decider == nil || o.Tokens == nil || o.Plugins == nil:
		return nil, errors.New("broker: store, sessions, evaluator, decider, tokens and plugins are required")
	case o.Logger == nil || o.Now == nil || o.Rand == nil:
		return nil, errors.New("broker: logger, clock and randomness are required")
	case o.SessionTimeout <= 0 || o.MaxBody <= 0:
		return nil, errors.New("broker: session timeout and body limit: expected more than 0")
	}
	if o.MaxPluginBody <= 0 {
		o.MaxPluginBody = 64 << 10
	}
	if o.ClientAddr == nil {
		o.ClientAddr = remoteHost
	}
	o.TEEs = slices.Sorted(slices.Values(o.TEEs))
	o.TEEs = slices.DeleteFunc(o.TEEs, func(n tee.Name) bool { return n == tee.SE && o.Challengers[n] == nil })
	return &Broker{o: o, judging: map[string]struct{}{}}, nil
}

func remoteHost(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// Handles reports whether a request is a guest's, by its path without the
// tenant's prefix; the rest of /kbs/v0 is administration or is not there.
func (b *Broker) Handles(r *http.Request) bool {
	if r.URL.Path == kbs.AuthPath || r.URL.Path == kbs.AttestPath {
		return true
	}
	rest, ok := strings.CutPrefix(r.URL.Path, kbs.PathPrefix+"/")
	if !ok {
		return false
	}
	name, segments, err := plugin.SplitPath(rest)
	p, known := b.o.Plugins.Get(name)
	switch {
	case !known:
		return false
	case err != nil: // whoever may only read, is told what is wrong here
		return r.Method == http.MethodGet
	}
	return p.Access(r.Method, segments) != plugin.Admin
}

// ServeHTTP implements http.Handler for the requests that [Broker.Handles]
// names. The caller has made sure that the path holds no percent-encoding and
// has put the tenant into the context.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var doc any
	var e *problem.Error
	switch path := r.URL.Path; {
	case path != kbs.AuthPath && path != kbs.AttestPath:
		if e = b.guest(w, r); e == nil {
			return
		}
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		e = problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %s: expected POST", clip(r.Method))
	case path == kbs.AuthPath:
		doc, e = b.auth(w, r)
	default:
		doc, e = b.attest(w, r)
	}
	if e != nil {
		problem.Write(r.Context(), b.o.Logger, w, e)
		return
	}
	problem.JSON(w, http.StatusOK, doc)
}

// setCookie sends the session. Its path covers every endpoint a guest uses,
// and no other tenant's. Max-Age, which clients prefer to Expires, spares them
// a look at their clock.
func (b *Broker) setCookie(w http.ResponseWriter, t tenant.Name, value string, expires time.Time) {
	http.SetCookie(w, &http.Cookie{
		Name: kbs.SessionCookie, Value: value, Path: t.Prefix() + kbs.PathPrefix, Expires: expires.UTC(),
		MaxAge: max(1, int(expires.Sub(b.o.Now()).Seconds())),
		Secure: !b.o.PlainHTTP, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
}

// sessionCookie returns the session's cookie, "" when there is none that could
// be one.
func sessionCookie(r *http.Request) string {
	c, err := r.Cookie(kbs.SessionCookie)
	if err != nil || len(c.Value) > session.MaxCookie || strings.ContainsFunc(c.Value, notBase64URL) {
		return ""
	}
	return c.Value
}

func notBase64URL(c rune) bool {
	return c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
}

// failure is an error of the store's or a backend's: 503 where it will pass.
func failure(err error) *problem.Error {
	if !errors.Is(err, store.ErrUnavailable) {
		return problem.Internal(problem.Storage, err)
	}
	e := problem.Busy(problem.Storage, "the trustee's storage is not available")
	e.Cause = err
	return e
}

// outcome is how metrics name an answer.
func outcome(e *problem.Error) metrics.Outcome {
	switch {
	case e == nil:
		return metrics.OK
	case e.Status == http.StatusNotFound:
		return metrics.NotFound
	case e.Status < http.StatusInternalServerError:
		return metrics.Denied
	}
	if _, ok := errors.AsType[*tee.UnavailableError](e); ok {
		return metrics.Unavailable
	}
	return metrics.Failed
}

// clip keeps text of the other side short in answers and records.
func clip(s string) string {
	if len(s) > 128 {
		return s[:128] + "…"
	}
	return s
}
