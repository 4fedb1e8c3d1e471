// Package metrics counts what the trustee does, for Prometheus. The kbs_* names
// are those of the ecosystem's key broker (kbs-attestation-rvps.md §4.6), so
// that its dashboards go on working; the coffer_* names are ours.
//
// No label takes a value that a client chooses: TEEs, plugins, routes and
// methods outside the known ones are counted as "other", and resources are
// labelled by outcome instead of by path. A flood of made-up names costs
// nothing.
package metrics

import (
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/coffer-project/coffer/tee"
)

// other is the label of what is not one of the known values.
const other = "other"

// maxLabels bounds how many values of one label a configuration may name.
const maxLabels = 256

// Outcome says how something ended.
type Outcome string

// Outcomes.
const (
	// OK: done, released or found.
	OK Outcome = "ok"
	// Denied: refused by a policy, a missing right or evidence.
	Denied Outcome = "denied"
	// NotFound: allowed, but there is no such thing.
	NotFound Outcome = "not_found"
	// Unavailable: evidence could not be judged for want of collateral.
	Unavailable Outcome = "unavailable"
	// Failed: the trustee or something behind it failed.
	Failed Outcome = "error"
)

func (o Outcome) label() string {
	switch o {
	case OK, Denied, NotFound, Unavailable, Failed:
		return string(o)
	}
	return other
}

// Options configure [New]. The zero value works.
type Options struct {
	// Version, Revision and BuildDate label kbs_build_info.
	Version, Revision, BuildDate string
	// Plugins are the names of plugins that get a label of their own. "resource"
	// always has one.
	Plugins []string
	// Now measures durations. Default: time.Now.
	Now func() time.Time
	// Logger gets what fails while metrics are gathered. Default: nowhere.
	Logger *slog.Logger
}

// Metrics are the trustee's metrics in a registry of their own. All methods are
// safe for concurrent use, and do nothing on a nil *Metrics, so that whoever is
// measured need not care whether it is.
type Metrics struct {
	registry *prometheus.Registry
	now      func() time.Time
	log      *slog.Logger
	tees     map[string]bool
	plugins  map[string]bool
	names    names

	http        httpMetrics
	policy      policyMetrics
	attestation attestationMetrics
	auth        authMetrics
	plugin      pluginMetrics
	resource    resourceMetrics
	audit       auditMetrics
	webhook     webhookMetrics
	ratelimit   ratelimitMetrics
	store       storeMetrics
	collateral  collateralMetrics
}

// New makes the metrics and registers them in a registry of their own.
func New(o Options) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), now: o.Now, log: o.Logger, plugins: map[string]bool{"resource": true}}
	if m.now == nil {
		m.now = time.Now
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.tees = make(map[string]bool)
	for _, n := range knownTEEs() {
		m.tees[string(n)] = true
	}
	for _, p := range o.Plugins[:min(len(o.Plugins), maxLabels)] {
		m.plugins[p] = true
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	f := factory{m.registry}
	f.gauge("kbs_build_info", "Always 1; the labels say what is running.", "version", "git_hash", "build_date").
		WithLabelValues(o.Version, o.Revision, o.BuildDate).Set(1)
	m.http = newHTTP(f)
	m.policy = newPolicy(f)
	m.attestation = newAttestation(f)
	m.auth = newAuth(f)
	m.plugin = newPlugin(f)
	m.resource = newResource(f)
	m.audit = newAudit(f)
	m.webhook = newWebhook(f)
	m.ratelimit = newRatelimit(f)
	m.store = newStore(f)
	m.collateral = newCollateral(f)
	return m
}

func knownTEEs() []tee.Name {
	return []tee.Name{
		tee.SNP, tee.TDX, tee.SGX, tee.CCA, tee.SE, tee.CSV, tee.TPM, tee.AzureSNPVTPM, tee.AzureTDXVTPM,
		tee.NVIDIA, tee.HygonDCU, tee.Sample, tee.SampleDevice,
	}
}

// Handler serves GET /metrics in the text or OpenMetrics format.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	h := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:            errorLog{m.log},
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
		EnableOpenMetrics:   true,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method "+known(r.Method, methods())+": expected GET", http.StatusMethodNotAllowed)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Registry is where further collectors of the program may be registered, nil
// for nil metrics.
func (m *Metrics) Registry() *prometheus.Registry {
	if m == nil {
		return nil
	}
	return m.registry
}

func known(s string, list []string) string {
	if slices.Contains(list, s) {
		return s
	}
	return other
}

func knownIn(s string, set map[string]bool) string {
	if set[s] {
		return s
	}
	return other
}

// errorLog is promhttp's way to report what it could not gather.
type errorLog struct{ log *slog.Logger }

func (l errorLog) Println(v ...any) { l.log.Error("metrics could not be gathered", "error", v) }

// names are the operations seen so far, of which the first few get a label.
type names struct {
	mu   sync.RWMutex
	seen map[string]bool
}

// maxNames is how many operations have a label of their own.
const maxNames = 64

func (n *names) label(s string) string {
	n.mu.RLock()
	ok := n.seen[s]
	n.mu.RUnlock()
	if ok {
		return s
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.seen[s] && len(n.seen) >= maxNames {
		return other
	}
	if n.seen == nil {
		n.seen = make(map[string]bool)
	}
	n.seen[s] = true
	return s
}

// factory makes and registers collectors. Registering panics only for a name
// used twice, which a test of New finds.
type factory struct{ r *prometheus.Registry }

func (f factory) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	f.r.MustRegister(c)
	return c
}

func (f factory) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	f.r.MustRegister(g)
	return g
}

func (f factory) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	f.r.MustRegister(h)
	return h
}
