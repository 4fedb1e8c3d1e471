package metrics

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/tee"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func expect(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains("\n"+text, "\n"+l+"\n") {
			name, _, _ := strings.Cut(l, "{")
			var got []string
			for g := range strings.Lines(text) {
				if strings.HasPrefix(g, strings.Fields(name)[0]) {
					got = append(got, g)
				}
			}
			t.Errorf("expected %q, got\n%s", l, strings.Join(got, ""))
		}
	}
}

// Every name of the ecosystem's broker is there, kbs-attestation-rvps.md §4.6.
func TestNames(t *testing.T) {
	t.Parallel()
	m := New(Options{Version: "1.2.3", Revision: "abc", BuildDate: "2026-01-01"})
	m.HTTP(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/kbs/v0/auth", nil))
	m.PolicyDecision(OK)
	m.PolicyDecision(Denied)
	m.PolicyDecision(Failed)
	m.AttestationRequest()
	m.Attestation(tee.SNP, OK, time.Millisecond)
	m.Attestation(tee.TDX, Denied, 0)
	m.Attestation(tee.SNP, Failed, 0)
	m.Auth(OK)
	m.Auth(Denied)
	m.Plugin("resource", OK, time.Millisecond)
	m.Plugin("resource", Failed, time.Millisecond)
	m.ResourceRead(OK)
	m.ResourceWrite(NotFound)
	m.ResourceDelete("made up")
	m.AuditRecord(audit.KindResource, true)
	m.AuditFailure()
	m.AuditCheckpoint(time.Unix(7, 0))
	m.WebhookAttempt(true)
	m.WebhookEvents(3, false)
	m.WebhookLag(time.Unix(9, 0))
	m.RateLimited("rate")
	m.RateLimitClients(func() int { return 4 })
	m.Store("finish", OK, time.Millisecond)
	m.StoreRetry()
	m.StoreBatch(5)
	m.StoreUp(true)
	done := m.VerificationStarted()
	expect(t, scrape(t, m),
		`kbs_build_info{build_date="2026-01-01",git_hash="abc",version="1.2.3"} 1`,
		`kbs_http_requests_total{code="404",method="GET",route="auth"} 1`,
		`kbs_http_request_duration_seconds_count{route="auth"} 1`,
		`kbs_http_request_size_bytes_count{route="auth"} 1`,
		`kbs_http_response_size_bytes_bucket{route="auth",le="32"} 1`,
		`kbs_http_active_connections 0`,
		`kbs_policy_evaluations_total 3`, `kbs_policy_approvals_total 1`, `kbs_policy_violations_total 1`, `kbs_policy_errors_total 1`,
		`kbs_attestation_requests_total 1`, `kbs_attestation_errors_total 1`,
		`kbs_attestation_successes_total{tee_type="snp"} 1`, `kbs_attestation_failures_total{tee_type="tdx"} 1`,
		`coffer_attestation_duration_seconds_count{tee_type="snp"} 1`, `coffer_attestation_running 1`,
		`kbs_auth_requests_total 2`, `kbs_auth_successes_total 1`, `kbs_auth_errors_total 1`,
		`kbs_plugin_requests_total{plugin_name="resource"} 2`, `kbs_plugin_errors_total{plugin_name="resource"} 1`,
		`kbs_plugin_request_duration_seconds_count{plugin_name="resource"} 2`,
		`kbs_resource_reads_total{outcome="ok"} 1`, `kbs_resource_writes_total{outcome="not_found"} 1`, `kbs_resource_deletes_total{outcome="other"} 1`,
		`coffer_audit_records_total{granted="true",kind="resource"} 1`, `coffer_audit_failures_total 1`, `coffer_audit_checkpoint_timestamp_seconds 7`,
		`coffer_webhook_deliveries_total{outcome="ok"} 1`, `coffer_webhook_events_total{outcome="given_up"} 3`,
		`coffer_webhook_oldest_undelivered_timestamp_seconds 9`,
		`coffer_ratelimit_rejections_total{reason="rate"} 1`, `coffer_ratelimit_clients 4`,
		`coffer_store_operations_total{operation="finish",outcome="ok"} 1`, `coffer_store_retries_total 1`,
		`coffer_store_batch_records_sum 5`, `coffer_store_up 1`,
	)
	done()
	m.WebhookLag(time.Time{})
	m.StoreUp(false)
	text := scrape(t, m)
	expect(t, text, `coffer_attestation_running 0`, `coffer_webhook_oldest_undelivered_timestamp_seconds 0`, `coffer_store_up 0`)
	for _, c := range []string{"go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(text, "\n"+c) {
			t.Errorf("%s is missing", c)
		}
	}
}

// Whoever is not measured calls the same methods.
func TestNil(t *testing.T) {
	t.Parallel()
	var m *Metrics
	m.PolicyDecision(OK)
	m.AttestationRequest()
	m.Attestation(tee.SNP, OK, 1)
	m.VerificationStarted()()
	m.Auth(OK)
	m.Plugin("a", OK, 1)
	m.ResourceRead(OK)
	m.ResourceWrite(OK)
	m.ResourceDelete(OK)
	m.AuditRecord("a", true)
	m.AuditFailure()
	m.AuditCheckpoint(time.Now())
	m.WebhookAttempt(true)
	m.WebhookEvents(1, true)
	m.WebhookLag(time.Now())
	m.RateLimited("rate")
	m.RateLimitClients(func() int { return 1 })
	m.Store("a", OK, 1)
	m.StoreRetry()
	m.StoreBatch(1)
	m.StoreUp(true)
	if m.Registry() != nil || m.Route("/healthz") != "health" {
		t.Error("nil metrics have a registry or no routes")
	}
	w := httptest.NewRecorder()
	m.HTTP(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("status %d", w.Code)
	}
}

// However many names a client makes up, the number of series does not grow.
func TestSeriesAreBounded(t *testing.T) {
	t.Parallel()
	m := New(Options{Plugins: []string{"pki"}})
	h := m.HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) }))
	flood := func(i int) {
		for _, path := range []string{"/kbs/v0/x%d/y", "/x%d", "/tenants/t%d/kbs/v0/resource/a/b/c", "/admin/v1/x%d", "/kbs/v0/pki/x%d", "/policy/x%d"} {
			r := httptest.NewRequest(http.MethodGet, fmt.Sprintf(path, i), nil)
			r.Method = fmt.Sprintf("M%d", i)
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		m.Attestation(tee.Name(fmt.Sprintf("t%d", i)), Outcome(fmt.Sprint(i)), time.Second)
		m.Plugin(fmt.Sprintf("p%d", i), Failed, time.Second)
		m.ResourceRead(Outcome(fmt.Sprint(i)))
		m.AuditRecord(fmt.Sprint(i), i%2 == 0)
		m.RateLimited(fmt.Sprint(i))
		m.Store(fmt.Sprint(i), Outcome(fmt.Sprint(i)), time.Second)
	}
	for i := range 100 {
		flood(i)
	}
	before := strings.Count(scrape(t, m), "\n")
	for i := range 500 {
		flood(i + 100)
	}
	// The first scrape may add series of its own process.
	if after := strings.Count(scrape(t, m), "\n"); after > before+10 {
		t.Errorf("%d lines became %d", before, after)
	}
}

func TestRoute(t *testing.T) {
	t.Parallel()
	m := New(Options{Plugins: []string{"pki"}})
	for path, want := range map[string]string{
		"/kbs/v0/auth": "auth", "/kbs/v0/attest": "attest", "/kbs/v0/resource/a/b/c": "resource", "/tenants/acme/kbs/v0/resource/a/b/c": "resource",
		"/kbs/v0/resource-policy": "admin", "/kbs/v0/attestation-policy": "admin", "/kbs/v0/reference-value/x": "admin", "/admin/v1/audit": "admin",
		"/tenants/acme/admin/v1/audit": "admin", "/kbs/v0/pki/ca": "pki", "/kbs/v0/nebula/x": "other", "/kbs/v0/": "other", "/": "other", "": "other",
		"/.well-known/jwks.json": "well-known", "/healthz": "health", "/readyz": "health", "/metrics": "metrics", "/tenants/BAD/kbs/v0/auth": "other",
		"/attestation": "attestation-service", "/policy/x": "attestation-service", "/challenge": "attestation-service",
		"/attestation.AttestationService/AttestationEvaluate": "grpc", "/reference.ReferenceValueProviderService/QueryReferenceValue": "grpc",
	} {
		if got := m.Route(path); got != want {
			t.Errorf("%s: got %s, expected %s", path, got, want)
		}
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	m := New(Options{Now: func() time.Time { now = now.Add(20 * time.Millisecond); return now }})
	h := m.HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, strings.Repeat("x", 100))
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	}))
	srv := httptest.NewServer(h)
	res, err := srv.Client().Post(srv.URL+"/kbs/v0/attest", "text/plain", strings.NewReader(strings.Repeat("y", 1000)))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	srv.Close() // waits for the handler
	func() {
		defer func() { _ = recover() }()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodDelete, "/kbs/v0/resource/a/b/c", nil))
	}()
	expect(t, scrape(t, m),
		`kbs_http_requests_total{code="201",method="POST",route="attest"} 1`,
		`kbs_http_request_size_bytes_sum{route="attest"} 1000`,
		`kbs_http_response_size_bytes_sum{route="attest"} 100`,
		`kbs_http_request_duration_seconds_bucket{route="attest",le="0.01"} 0`,
		`kbs_http_request_duration_seconds_bucket{route="attest",le="0.05"} 1`,
		`kbs_http_requests_total{code="500",method="DELETE",route="resource"} 1`,
		`kbs_http_active_connections 0`,
	)
}

func TestHandlerMethodAndCollectorFailure(t *testing.T) {
	t.Parallel()
	m := New(Options{})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") == "" {
		t.Errorf("POST: %d", w.Code)
	}
	m.Registry().MustRegister(broken{})
	if text := scrape(t, m); !strings.Contains(text, "kbs_build_info") {
		t.Error("one failing collector hides the others")
	}
}

type broken struct{}

func (broken) Describe(chan<- *prometheus.Desc) {}

func (broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "", nil, nil), errors.New("broken"))
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	m := New(Options{})
	h := m.HTTP(http.NotFoundHandler())
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/kbs/v0/auth", nil))
				m.Store(fmt.Sprintf("op%d", (g*i)%100), OK, time.Millisecond)
			}
		})
	}
	wg.Wait()
	expect(t, scrape(t, m), `kbs_http_requests_total{code="404",method="GET",route="auth"} 400`)
}
