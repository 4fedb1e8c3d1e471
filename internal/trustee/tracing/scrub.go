package tracing

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Allowed reports whether an attribute's name may leave the trustee. The names
// with a dot are OpenTelemetry's semantic conventions; ours begin with
// "coffer.".
func Allowed(name attribute.Key) bool {
	switch name {
	case "http.request.method", "http.response.status_code", "http.route", "network.protocol.version",
		"server.address", "error.type", "db.system.name", "db.operation.name",
		"rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code",
		"coffer.tenant", "coffer.tee", "coffer.policy", "coffer.outcome", "coffer.plugin", "coffer.devices", "coffer.batch":
		return true
	}
	return false
}

// scrubber is an exporter that lets only allowed attributes through. It
// reports failures to the log and never to OpenTelemetry's global handler,
// which would write them to stderr.
type scrubber struct {
	next sdktrace.SpanExporter
	log  *slog.Logger

	mu     sync.Mutex
	logged time.Time
	lost   int
}

// logEvery is how often a failing collector is mentioned.
const logEvery = time.Minute

func newScrubber(next sdktrace.SpanExporter, log *slog.Logger) *scrubber {
	return &scrubber{next: next, log: log}
}

// ExportSpans implements sdktrace.SpanExporter.
func (s *scrubber) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, sp := range spans {
		out[i] = scrubbed{sp}
	}
	if err := s.next.ExportSpans(ctx, out); err != nil {
		s.failed(ctx, len(spans), err)
	}
	return nil
}

func (s *scrubber) failed(ctx context.Context, n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += n
	if now := time.Now(); now.Sub(s.logged) >= logEvery {
		s.log.WarnContext(ctx, "traces could not be exported", "error", err, "lost_spans", s.lost)
		s.logged, s.lost = now, 0
	}
}

// Shutdown implements sdktrace.SpanExporter.
func (s *scrubber) Shutdown(ctx context.Context) error { return s.next.Shutdown(ctx) }

// scrubbed is a span as the collector may see it.
type scrubbed struct{ sdktrace.ReadOnlySpan }

// Attributes are the allowed ones.
func (s scrubbed) Attributes() []attribute.KeyValue { return scrub(s.ReadOnlySpan.Attributes()) }

// Events keep their time and name; an error's text stays here.
func (s scrubbed) Events() []sdktrace.Event {
	out := slices.Clone(s.ReadOnlySpan.Events())
	for i := range out {
		out[i].Attributes = scrub(out[i].Attributes)
	}
	return out
}

// Links keep what they point to.
func (s scrubbed) Links() []sdktrace.Link {
	out := slices.Clone(s.ReadOnlySpan.Links())
	for i := range out {
		out[i].Attributes = nil
	}
	return out
}

// Status keeps its code without the text.
func (s scrubbed) Status() sdktrace.Status {
	st := s.ReadOnlySpan.Status()
	if st.Code == codes.Error {
		st.Description = ""
	}
	return st
}

func scrub(in []attribute.KeyValue) []attribute.KeyValue {
	var out []attribute.KeyValue
	for _, kv := range in {
		if Allowed(kv.Key) {
			out = append(out, kv)
		}
	}
	return out
}
