package tests

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/secret"
)

// scrape reads and parses /metrics.
func (s *site) scrape() (map[string]*dto.MetricFamily, string) {
	s.t.Helper()
	x := s.do(s.http(), "GET", "/metrics", "", "")
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(x.body))
	if x.status != http.StatusOK || err != nil {
		s.t.Fatalf("%d, %v", x.status, err)
	}
	return families, x.body
}

// value sums the samples of a metric whose labels are as given, "k=v".
func value(f map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	sum := 0.0
	for _, m := range f[name].GetMetric() {
		match := true
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			found := false
			for _, p := range m.GetLabel() {
				found = found || p.GetName() == k && p.GetValue() == v
			}
			match = match && found
		}
		if match {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// sink is a collector of traces.
type sink struct {
	mu    sync.Mutex
	raw   strings.Builder
	names []string
	auth  string
}

func (c *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	var req collector.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(b, &req) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.auth = r.Header.Get("X-Collector")
	c.raw.Write(b)
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				c.names = append(c.names, sp.GetName())
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// TestObservation counts and traces what was done.
func TestObservation(t *testing.T) {
	t.Parallel()
	c := &sink{}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "headers"), "# for the collector\nX-Collector: the-collectors-key\n")
	s := embed(t, dir, "tracing.endpoint = "+quote(srv.URL)+"\ntracing.headers_file = \"headers\"\n")
	a := s.populate("")
	guest := s.good("")
	for range 3 {
		if _, err := guest.Resource(t.Context(), uri(t, "kbs:///demo/key/1")); err != nil {
			t.Fatal(err)
		}
	}
	_, err := guest.Resource(t.Context(), uri(t, "kbs:///other/key/1"))
	refused(t, err, http.StatusForbidden, "initdata.registered")
	_, err = guest.Resource(t.Context(), uri(t, "kbs:///demo/key/none"))
	refused(t, err, http.StatusNotFound, "demo/key/none")
	refused(t, s.guest("", pod(t, document, ""), document+"#\n").Attest(t.Context()), http.StatusForbidden, "snp.host_data")
	s.must(a.SetResource(t.Context(), uri(t, "kbs:///demo/key/2"), secret.New([]byte("x"))), a.DeleteResource(t.Context(), uri(t, "kbs:///demo/key/2")))
	_, err = a.MakeCheckpoint(t.Context())
	s.must(err)
	s.do(s.http(), "GET", "/admin/v1/resources", "not-a-token", "")
	s.do(s.http(), "GET", "/kbs/v0/resource/"+content+"/b/c", "", "") // a stranger's words make no label

	f, text := s.scrape()
	for _, tc := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"kbs_build_info", nil, 1},
		{"kbs_attestation_requests_total", nil, 2},
		{"kbs_attestation_successes_total", []string{"tee_type=snp"}, 1},
		{"kbs_attestation_failures_total", []string{"tee_type=snp"}, 1},
		{"kbs_policy_evaluations_total", nil, 5},
		{"kbs_policy_approvals_total", nil, 4},
		{"kbs_policy_violations_total", nil, 1},
		{"kbs_resource_reads_total", []string{"outcome=ok"}, 3},
		{"kbs_resource_reads_total", []string{"outcome=not_found"}, 1},
		{"kbs_resource_writes_total", []string{"outcome=ok"}, 2},
		{"kbs_resource_deletes_total", []string{"outcome=ok"}, 1},
		{"kbs_auth_requests_total", nil, 7},
		{"kbs_auth_errors_total", nil, 1},
		{"kbs_plugin_requests_total", []string{"plugin_name=resource"}, 5},
		{"coffer_audit_records_total", []string{"kind=attestation", "granted=false"}, 1},
		{"coffer_audit_records_total", []string{"kind=resource", "granted=true"}, 3},
		{"coffer_ratelimit_clients", nil, 1},
	} {
		if got := value(f, tc.name, tc.labels...); got != tc.want {
			t.Errorf("%s %v: %v; want %v", tc.name, tc.labels, got, tc.want)
		}
	}
	for _, name := range []string{
		"kbs_http_requests_total", "kbs_http_request_duration_seconds", "coffer_attestation_duration_seconds", "coffer_audit_checkpoint_timestamp_seconds",
		"coffer_store_operations_total", "coffer_store_batch_records", "go_goroutines", "process_resident_memory_bytes",
	} {
		if value(f, name) == 0 {
			t.Errorf("%s counts nothing", name)
		}
	}
	if x := s.do(s.http(), "POST", "/metrics", "", ""); x.status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", x.status)
	}
	token := guest.HeldToken()
	s.stop() // exports what is left
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.names) < 8 || c.auth != "the-collectors-key" {
		t.Errorf("spans %q, authorization %q", c.names, c.auth)
	}
	for name, text := range map[string]string{"metrics": text, "traces": c.raw.String()} {
		for what, word := range map[string]string{"a secret": content, "a token": token, "a token's part": strings.Split(token, ".")[2], "a bad token": "not-a-token", "initdata": "aa.toml", "a resource's name": "demo/key"} {
			if strings.Contains(text, word) {
				t.Errorf("%s hold %s", name, what)
			}
		}
	}
}
