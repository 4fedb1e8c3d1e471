package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type auditMetrics struct {
	records    *prometheus.CounterVec
	failures   prometheus.Counter
	checkpoint prometheus.Gauge
}

func newAudit(f factory) auditMetrics {
	return auditMetrics{
		records:    f.counter("coffer_audit_records_total", "Audit records that were committed.", "kind", "granted"),
		failures:   f.counter("coffer_audit_failures_total", "Audit records that could not be committed; what they were about was refused.").WithLabelValues(),
		checkpoint: f.gauge("coffer_audit_checkpoint_timestamp_seconds", "When the last checkpoint was signed.").WithLabelValues(),
	}
}

// AuditRecord counts a committed record of a kind (audit.Kind…).
func (m *Metrics) AuditRecord(kind string, granted bool) {
	if m == nil {
		return
	}
	g := "false"
	if granted {
		g = "true"
	}
	m.audit.records.WithLabelValues(known(kind, kinds()), g).Inc()
}

// AuditFailure counts a record that could not be committed.
func (m *Metrics) AuditFailure() {
	if m != nil {
		m.audit.failures.Inc()
	}
}

// AuditCheckpoint notes when a checkpoint was signed.
func (m *Metrics) AuditCheckpoint(at time.Time) {
	if m != nil {
		m.audit.checkpoint.Set(float64(at.Unix()))
	}
}

type webhookMetrics struct {
	deliveries *prometheus.CounterVec
	events     *prometheus.CounterVec
	lag        prometheus.Gauge
}

func newWebhook(f factory) webhookMetrics {
	return webhookMetrics{
		deliveries: f.counter("coffer_webhook_deliveries_total", "Attempts to deliver events to a webhook.", "outcome"),
		events:     f.counter("coffer_webhook_events_total", "Events by what became of them.", "outcome"),
		lag:        f.gauge("coffer_webhook_oldest_undelivered_timestamp_seconds", "When the oldest event that is being retried happened; 0 when none is.").WithLabelValues(),
	}
}

// WebhookAttempt counts one POST to a webhook.
func (m *Metrics) WebhookAttempt(delivered bool) {
	if m == nil {
		return
	}
	o := Failed
	if delivered {
		o = OK
	}
	m.webhook.deliveries.WithLabelValues(o.label()).Inc()
}

// WebhookEvents counts events that were delivered, or given up.
func (m *Metrics) WebhookEvents(n int, delivered bool) {
	if m == nil {
		return
	}
	o := "given_up"
	if delivered {
		o = "delivered"
	}
	m.webhook.events.WithLabelValues(o).Add(float64(n))
}

// WebhookLag notes when the oldest undelivered event happened; the zero time
// means none waits.
func (m *Metrics) WebhookLag(oldest time.Time) {
	switch {
	case m == nil:
	case oldest.IsZero():
		m.webhook.lag.Set(0)
	default:
		m.webhook.lag.Set(float64(oldest.Unix()))
	}
}

type ratelimitMetrics struct {
	rejections *prometheus.CounterVec
	clients    *atomic.Pointer[func() int]
}

func newRatelimit(f factory) ratelimitMetrics {
	clients := new(atomic.Pointer[func() int])
	f.r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "coffer_ratelimit_clients", Help: "Clients that are tracked."}, func() float64 {
		if count := clients.Load(); count != nil {
			return float64((*count)())
		}
		return 0
	}))
	return ratelimitMetrics{
		rejections: f.counter("coffer_ratelimit_rejections_total", "Requests that were answered 429.", "reason"),
		clients:    clients,
	}
}

// RateLimited counts a request that was turned away; reason is "rate",
// "concurrency" or "clients".
func (m *Metrics) RateLimited(reason string) {
	if m != nil {
		m.ratelimit.rejections.WithLabelValues(known(reason, rejections())).Inc()
	}
}

// RateLimitClients sets how to learn how many clients are tracked; count is
// called whenever metrics are gathered.
func (m *Metrics) RateLimitClients(count func() int) {
	if m != nil {
		m.ratelimit.clients.Store(&count)
	}
}

type storeMetrics struct {
	operations *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	retries    prometheus.Counter
	batch      prometheus.Histogram
	up         prometheus.Gauge
}

func newStore(f factory) storeMetrics {
	return storeMetrics{
		operations: f.counter("coffer_store_operations_total", "Operations on the database.", "operation", "outcome"),
		seconds:    f.histogram("coffer_store_operation_duration_seconds", "Time of an operation, retries included.", durations(), "operation"),
		retries:    f.counter("coffer_store_retries_total", "Operations run again after the database was lost or busy.").WithLabelValues(),
		batch:      registered(f, "coffer_store_batch_records", "Audit records per commit.", prometheus.ExponentialBuckets(1, 2, 9)),
		up:         f.gauge("coffer_store_up", "1 when the database answered last.").WithLabelValues(),
	}
}

func registered(f factory, name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	f.r.MustRegister(h)
	return h
}

// Store counts one operation of the store. The name is a word of the program,
// such as "finish"; names beyond the first 64 are counted as "other".
func (m *Metrics) Store(operation string, o Outcome, took time.Duration) {
	if m == nil {
		return
	}
	operation = m.names.label(operation)
	m.store.operations.WithLabelValues(operation, o.label()).Inc()
	m.store.seconds.WithLabelValues(operation).Observe(took.Seconds())
}

// StoreRetry counts an operation that is run again.
func (m *Metrics) StoreRetry() {
	if m != nil {
		m.store.retries.Inc()
	}
}

// StoreBatch notes how many records one commit held.
func (m *Metrics) StoreBatch(n int) {
	if m != nil {
		m.store.batch.Observe(float64(n))
	}
}

// StoreUp notes whether the database answers.
func (m *Metrics) StoreUp(up bool) {
	if m == nil {
		return
	}
	v := 0.0
	if up {
		v = 1
	}
	m.store.up.Set(v)
}
