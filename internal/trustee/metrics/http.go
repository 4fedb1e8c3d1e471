package metrics

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

type httpMetrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	received *prometheus.HistogramVec
	sent     *prometheus.HistogramVec
	active   prometheus.Gauge
}

func newHTTP(f factory) httpMetrics {
	sizes := prometheus.ExponentialBuckets(32, 4, 10)
	return httpMetrics{
		requests: f.counter("kbs_http_requests_total", "Requests by method, route and status.", "method", "route", "code"),
		seconds:  f.histogram("kbs_http_request_duration_seconds", "Time until a request was answered.", durations(), "route"),
		received: f.histogram("kbs_http_request_size_bytes", "Size of request bodies as far as they were read.", sizes, "route"),
		sent:     f.histogram("kbs_http_response_size_bytes", "Size of response bodies.", sizes, "route"),
		active:   f.gauge("kbs_http_active_connections", "Requests under way.").WithLabelValues(),
	}
}

// HTTP measures every request that next serves.
func (m *Metrics) HTTP(next http.Handler) http.Handler {
	if m == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := m.now()
		m.http.active.Inc()
		body := &countingBody{ReadCloser: r.Body}
		if r.Body != nil {
			// A copy: the caller's request keeps its own body.
			r = r.WithContext(r.Context())
			r.Body = body
		}
		cw := &countingWriter{ResponseWriter: w}
		route := m.Route(r.URL.Path)
		// A handler that panics ends the connection, and never gets to 200.
		end := http.StatusInternalServerError
		defer func() {
			m.http.active.Dec()
			status := cw.status
			if status == 0 {
				status = end
			}
			m.http.requests.WithLabelValues(known(r.Method, methods()), route, code(status)).Inc()
			m.http.seconds.WithLabelValues(route).Observe(m.now().Sub(start).Seconds())
			m.http.received.WithLabelValues(route).Observe(float64(body.n))
			m.http.sent.WithLabelValues(route).Observe(float64(cw.n))
		}()
		next.ServeHTTP(cw, r)
		end = http.StatusOK
	})
}

// Route is the kind of endpoint that a path names, one of a few words, with or
// without the tenant's prefix.
func (m *Metrics) Route(path string) string {
	_, path, err := tenant.FromPath(path)
	if err != nil {
		return other
	}
	if rest, ok := strings.CutPrefix(path, "/kbs/v0/"); ok {
		first, _, _ := strings.Cut(rest, "/")
		if strings.HasSuffix(first, "-policy") || first == "reference-value" {
			first = "admin"
		}
		if first == "auth" || first == "attest" || first == "admin" {
			return first
		}
		if m != nil {
			return knownIn(first, m.plugins)
		}
		return other
	}
	switch {
	case strings.HasPrefix(path, "/admin/v1/"):
		return "admin"
	case strings.HasPrefix(path, "/.well-known/"):
		return "well-known"
	case path == "/healthz", path == "/readyz":
		return "health"
	case path == "/metrics":
		return "metrics"
	case path == "/attestation", path == "/challenge", path == "/policy", strings.HasPrefix(path, "/policy/"):
		return "attestation-service"
	case strings.HasPrefix(path, "/attestation.AttestationService/"), strings.HasPrefix(path, "/reference.ReferenceValueProviderService/"):
		return "grpc"
	}
	return other
}

// code is a status as a label; a handler's bug cannot make more than 500.
func code(status int) string {
	if status < 100 || status > 599 {
		return other
	}
	return strconv.Itoa(status)
}

type countingBody struct {
	io.ReadCloser
	n int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

type countingWriter struct {
	http.ResponseWriter
	status int
	n      int64
}

func (w *countingWriter) WriteHeader(status int) {
	// Informational headers may come before the status.
	if w.status == 0 && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController and http.MaxBytesReader reach the
// connection.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush implements http.Flusher, which gRPC asks for by a type assertion.
func (w *countingWriter) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}
