package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coffer-project/coffer/tee"
)

// durations are the buckets of §4.6 in seconds, and what lies beyond a second:
// a handshake that fetches collateral takes longer.
func durations() []float64 {
	return []float64{.0005, .001, .005, .01, .05, .1, .5, 1, 5, 30}
}

type policyMetrics struct {
	evaluations, approvals, violations, errors prometheus.Counter
}

func newPolicy(f factory) policyMetrics {
	return policyMetrics{
		evaluations: f.counter("kbs_policy_evaluations_total", "Decisions of resource policies.").WithLabelValues(),
		approvals:   f.counter("kbs_policy_approvals_total", "Decisions that released.").WithLabelValues(),
		violations:  f.counter("kbs_policy_violations_total", "Decisions that refused.").WithLabelValues(),
		errors:      f.counter("kbs_policy_errors_total", "Resource policies that could not be evaluated; nothing was released.").WithLabelValues(),
	}
}

// PolicyDecision counts one evaluation of a resource policy.
func (m *Metrics) PolicyDecision(o Outcome) {
	if m == nil {
		return
	}
	m.policy.evaluations.Inc()
	switch o {
	case OK:
		m.policy.approvals.Inc()
	case Denied:
		m.policy.violations.Inc()
	default:
		m.policy.errors.Inc()
	}
}

type attestationMetrics struct {
	requests, errors    prometheus.Counter
	successes, failures *prometheus.CounterVec
	unavailable         *prometheus.CounterVec
	seconds             *prometheus.HistogramVec
	running             prometheus.Gauge
}

func newAttestation(f factory) attestationMetrics {
	return attestationMetrics{
		requests:    f.counter("kbs_attestation_requests_total", "Handshakes that were begun (auth).").WithLabelValues(),
		errors:      f.counter("kbs_attestation_errors_total", "Attestations that came to no verdict: malformed, out of time, or the trustee failed.").WithLabelValues(),
		successes:   f.counter("kbs_attestation_successes_total", "Attestations that got a token.", "tee_type"),
		failures:    f.counter("kbs_attestation_failures_total", "Attestations that were refused.", "tee_type"),
		unavailable: f.counter("coffer_attestation_unavailable_total", "Attestations among those without a verdict for which collateral was missing.", "tee_type"),
		seconds:     f.histogram("coffer_attestation_duration_seconds", "Verification and appraisal, without waiting for a slot.", durations(), "tee_type"),
		running:     f.gauge("coffer_attestation_running", "Verifications under way.").WithLabelValues(),
	}
}

// AttestationRequest counts a handshake that was begun.
func (m *Metrics) AttestationRequest() {
	if m != nil {
		m.attestation.requests.Inc()
	}
}

// Attestation counts a handshake's end: [OK] got a token, [Denied] was
// refused, anything else came to no verdict, [Unavailable] for want of
// collateral. A duration of 0 is not recorded.
func (m *Metrics) Attestation(t tee.Name, o Outcome, took time.Duration) {
	if m == nil {
		return
	}
	name := knownIn(string(t), m.tees)
	switch o {
	case OK:
		m.attestation.successes.WithLabelValues(name).Inc()
	case Denied:
		m.attestation.failures.WithLabelValues(name).Inc()
	case Unavailable:
		m.attestation.unavailable.WithLabelValues(name).Inc()
		m.attestation.errors.Inc()
	default:
		m.attestation.errors.Inc()
	}
	if took > 0 {
		m.attestation.seconds.WithLabelValues(name).Observe(took.Seconds())
	}
}

// VerificationStarted counts a verification under way until the returned
// function is called.
func (m *Metrics) VerificationStarted() func() {
	if m == nil {
		return func() {}
	}
	m.attestation.running.Inc()
	return m.attestation.running.Dec
}

type authMetrics struct{ requests, successes, errors prometheus.Counter }

func newAuth(f factory) authMetrics {
	return authMetrics{
		requests:  f.counter("kbs_auth_requests_total", "Requests of administrators.").WithLabelValues(),
		successes: f.counter("kbs_auth_successes_total", "Requests of administrators that were let in.").WithLabelValues(),
		errors:    f.counter("kbs_auth_errors_total", "Requests of administrators that were turned away.").WithLabelValues(),
	}
}

// Auth counts the authentication and authorisation of one administrator's request.
func (m *Metrics) Auth(o Outcome) {
	if m == nil {
		return
	}
	m.auth.requests.Inc()
	if o == OK {
		m.auth.successes.Inc()
		return
	}
	m.auth.errors.Inc()
}

type pluginMetrics struct {
	requests, errors *prometheus.CounterVec
	seconds          *prometheus.HistogramVec
}

func newPlugin(f factory) pluginMetrics {
	return pluginMetrics{
		requests: f.counter("kbs_plugin_requests_total", "Requests handed to a plugin.", "plugin_name"),
		errors:   f.counter("kbs_plugin_errors_total", "Requests a plugin failed on.", "plugin_name"),
		seconds:  f.histogram("kbs_plugin_request_duration_seconds", "Time a plugin took.", durations(), "plugin_name"),
	}
}

// Plugin counts one request to a plugin and how long it took. [NotFound] and
// [Denied] are answers, not errors.
func (m *Metrics) Plugin(name string, o Outcome, took time.Duration) {
	if m == nil {
		return
	}
	name = knownIn(name, m.plugins)
	m.plugin.requests.WithLabelValues(name).Inc()
	m.plugin.seconds.WithLabelValues(name).Observe(took.Seconds())
	if o == Failed {
		m.plugin.errors.WithLabelValues(name).Inc()
	}
}

type resourceMetrics struct{ reads, writes, deletes *prometheus.CounterVec }

func newResource(f factory) resourceMetrics {
	return resourceMetrics{
		reads:   f.counter("kbs_resource_reads_total", "Reads of resources by guests.", "outcome"),
		writes:  f.counter("kbs_resource_writes_total", "Resources written by administrators.", "outcome"),
		deletes: f.counter("kbs_resource_deletes_total", "Resources deleted by administrators.", "outcome"),
	}
}

// ResourceRead counts a guest's read of a stored resource.
func (m *Metrics) ResourceRead(o Outcome) {
	if m != nil {
		m.resource.reads.WithLabelValues(o.label()).Inc()
	}
}

// ResourceWrite counts an administrator's write.
func (m *Metrics) ResourceWrite(o Outcome) {
	if m != nil {
		m.resource.writes.WithLabelValues(o.label()).Inc()
	}
}

// ResourceDelete counts an administrator's deletion.
func (m *Metrics) ResourceDelete(o Outcome) {
	if m != nil {
		m.resource.deletes.WithLabelValues(o.label()).Inc()
	}
}
