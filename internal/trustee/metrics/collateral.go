package metrics

import "github.com/prometheus/client_golang/prometheus"

type collateralMetrics struct{ events *prometheus.CounterVec }

func newCollateral(f factory) collateralMetrics {
	return collateralMetrics{f.counter("coffer_collateral_events_total",
		"What happened to collateral: hit, fetch, stored, stale, throttled, failed, damaged, notstored.", "vendor", "event")}
}

// Collateral counts an event. vendor and event are names of package collateral.
func (m *Metrics) Collateral(vendor, event string) {
	if m == nil {
		return
	}
	m.collateral.events.WithLabelValues(vendor, event).Inc()
}
