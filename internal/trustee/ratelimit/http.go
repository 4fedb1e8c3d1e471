package ratelimit

import (
	"log/slog"
	"net/http"
	"net/netip"

	"github.com/coffer-project/coffer/internal/trustee/problem"
)

// Middleware limits the requests of an HTTP server.
type Middleware struct {
	Limiter *Limiter
	// Client is the address that a request came from, as the listener package
	// finds it.
	Client func(*http.Request) netip.Addr
	// Rejected, where set, is told of each refusal.
	Rejected func(Reason)
	Logger   *slog.Logger
}

// HTTP answers 429 with Retry-After where a client is beyond its limits, and
// hands everything else to next.
func (m Middleware) HTTP(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addr := m.Client(r)
		if m.Limiter.Exempt(addr) {
			next.ServeHTTP(w, r)
			return
		}
		release, refused := m.Limiter.Acquire(Key(addr))
		defer release()
		if refused == nil {
			next.ServeHTTP(w, r)
			return
		}
		if m.Rejected != nil {
			m.Rejected(refused.Reason)
		}
		problem.Write(r.Context(), m.Logger, w, m.answer(refused))
	})
}

func (m Middleware) answer(r *Refusal) *problem.Error {
	o := m.Limiter.o
	var e *problem.Error
	switch r.Reason {
	case Rate:
		e = problem.New(http.StatusTooManyRequests, problem.Limit,
			"rate limit: expected at most %g requests per second and %d at once from one address, got more; try again later", o.Rate, o.Burst)
	case Concurrency:
		e = problem.New(http.StatusTooManyRequests, problem.Limit,
			"concurrency limit: expected at most %d requests under way from one address, got one more; wait for an answer first", o.Concurrent)
	default:
		e = problem.New(http.StatusTooManyRequests, problem.Limit, "client limit: too many addresses have requests under way; try again later")
	}
	e.RetryAfter = r.RetryAfter
	return e
}
