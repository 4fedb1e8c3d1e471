// Package broker serves guests: the RCAR handshake of the KBS protocol
// (request, challenge, attestation, response) and the release of resources.
// Every verdict is recorded, and nothing is released without its record.
//
// Statuses: 401 means "attest (again)" and nothing else; 403 is a refusal with
// a reason; 404 a missing resource, told only to those who were allowed to
// have it; 400 and 413 a malformed or oversized request; 429 and 503 come
// with Retry-After; 500 a failure of the trustee.
package broker

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// Store keeps sessions, resources and verdicts.
type Store interface {
	CreateSession(ctx context.Context, x store.Session) error
	OpenSession(ctx context.Context, id string) (store.Session, error)
	TakeSession(ctx context.Context, id string) (store.Session, error)
	AttestedSession(ctx context.Context, id string) (store.Session, error)
	FinishSession(ctx context.Context, id, token string, v store.Verdict) error
	AddVerdict(ctx context.Context, v store.Verdict) error
	Resource(ctx context.Context, p resource.Path) (secret.Bytes, error)
}

// Appraiser judges genuine evidence.
type Appraiser interface {
	Appraise(ctx context.Context, ev appraisal.Evidence) (map[string]ear.Submod, error)
}

// Decider decides whether a resource is released.
type Decider interface {
	Decide(ctx context.Context, r release.Request) (release.Decision, error)
}

// Tokens mints and verifies attestation tokens.
type Tokens interface {
	Mint(c ear.Claims) (string, error)
	Verify(compact string) (*ear.Claims, json.RawMessage, error)
}

// Options of [New]. All are required but for those with a stated default.
type Options struct {
	Store     Store
	Verifiers map[tee.Name]tee.Verifier
	Appraiser Appraiser
	Decider   Decider
	Tokens    Tokens
	// Selectors map attestation-policy-selector to policy ids; may be nil.
	Selectors map[string]string
	// SessionTimeout counts from the challenge.
	SessionTimeout time.Duration
	// MaxBody bounds an attestation, in bytes.
	MaxBody int
	// MaxConcurrent is how many verifications run at once.
	MaxConcurrent int
	// AllowSimulated is written into every verdict.
	AllowSimulated bool
	// PlainHTTP leaves Secure off the cookie.
	PlainHTTP bool
	// Build names the program in tokens.
	Build  string
	Logger *slog.Logger
	Now    func() time.Time
	// Rand is the source of nonces and session ids; safe for concurrent use.
	Rand io.Reader
}

// Broker is the handler. It is safe for concurrent use.
type Broker struct {
	o     Options
	slots chan struct{}
}

// New returns the handler.
func New(o Options) *Broker {
	return &Broker{o: o, slots: make(chan struct{}, o.MaxConcurrent)}
}

// Handles reports whether a request is a guest's; the rest of /kbs/v0 is
// administration.
func Handles(r *http.Request) bool {
	switch {
	case r.URL.Path == kbs.AuthPath, r.URL.Path == kbs.AttestPath:
		return true
	case r.Method != http.MethodGet:
		return false
	}
	return strings.HasPrefix(r.URL.Path, resourcePrefix)
}

const resourcePrefix = kbs.PathPrefix + "/resource/"

// ServeHTTP implements http.Handler for the requests that [Handles] names.
// The caller has made sure that the path holds no percent-encoding.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var doc any
	var e *problem.Error
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, resourcePrefix):
		doc, e = b.resource(r)
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		e = problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %s: expected POST", r.Method)
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

// cookieLength is that of a session id: 16 random bytes in hex.
const cookieLength = 32

// setCookie sends the session id. Its path covers every endpoint a guest uses.
// Max-Age, which clients prefer to Expires, spares them a look at their clock.
func (b *Broker) setCookie(w http.ResponseWriter, id string, expires time.Time) {
	http.SetCookie(w, &http.Cookie{
		Name: kbs.SessionCookie, Value: id, Path: kbs.PathPrefix, Expires: expires.UTC(), MaxAge: max(1, int(expires.Sub(b.o.Now()).Seconds())),
		Secure: !b.o.PlainHTTP, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
}

// sessionCookie returns the session id of a request, "" when there is none
// that could be one.
func sessionCookie(r *http.Request) string {
	c, err := r.Cookie(kbs.SessionCookie)
	if err != nil || len(c.Value) != cookieLength || strings.Trim(c.Value, "0123456789abcdef") != "" {
		return ""
	}
	return c.Value
}
