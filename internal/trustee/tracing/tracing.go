// Package tracing sends OpenTelemetry traces over OTLP/HTTP where an endpoint
// is configured, and costs nothing where none is.
//
// Spans leave the trustee's trust domain, so they are built from an allow-list:
// whatever attribute, event or status text instrumentation adds, the exporter
// passes on only the names of [Allowed]. Headers, queries, bodies, claims and
// resource names never leave. A guest's traceparent is noted as a link and
// decides nothing: it could otherwise make the trustee record every request.
package tracing

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Defaults of [Options].
const (
	DefaultService = "coffer-trustee"
	DefaultTimeout = 10 * time.Second
)

// scope names the tracers of this program.
const scope = "github.com/coffer-project/coffer/internal/trustee"

// Options configure [New].
type Options struct {
	// Endpoint is the collector's URL, for example
	// https://collector:4318/v1/traces. Empty: no tracing. Plain HTTP is
	// accepted to a loopback address only.
	Endpoint string
	// Headers are sent with each export; they may hold credentials.
	Headers map[string]string
	// SampleRatio is the part of the requests that is traced, 0 to 1.
	SampleRatio float64
	// Service is the service.name of the traces. Default: coffer-trustee.
	Service string
	// Version is the service.version.
	Version string
	// TLS is the client's TLS configuration. Default: the system's roots.
	TLS *tls.Config
	// Timeout bounds one export. Default: 10 s.
	Timeout time.Duration
	// Logger gets exports that fail, at most one a minute. Default: nowhere.
	Logger *slog.Logger
	// Exporter replaces the OTLP exporter; Endpoint is then not used.
	Exporter sdktrace.SpanExporter
}

// Tracing hands out tracers. It is safe for concurrent use, and a nil *Tracing
// traces nothing.
type Tracing struct {
	provider trace.TracerProvider
	sdk      *sdktrace.TracerProvider
}

// New starts exporting in the background until [Tracing.Shutdown]. It does not
// wait for the collector.
func New(ctx context.Context, o Options) (*Tracing, error) {
	if o.Endpoint == "" && o.Exporter == nil {
		return &Tracing{provider: noop.NewTracerProvider()}, nil
	}
	if math.IsNaN(o.SampleRatio) || o.SampleRatio < 0 || o.SampleRatio > 1 {
		return nil, fmt.Errorf("tracing.sample_ratio: expected 0 to 1, got %g", o.SampleRatio)
	}
	if o.Service == "" {
		o.Service = DefaultService
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	exporter := o.Exporter
	if exporter == nil {
		if err := CheckEndpoint(o.Endpoint); err != nil {
			return nil, err
		}
		opts := []otlptracehttp.Option{
			otlptracehttp.WithEndpointURL(o.Endpoint),
			otlptracehttp.WithHeaders(o.Headers),
			otlptracehttp.WithTimeout(o.Timeout),
			otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		}
		if o.TLS != nil {
			opts = append(opts, otlptracehttp.WithTLSClientConfig(o.TLS))
		}
		var err error
		if exporter, err = otlptracehttp.New(ctx, opts...); err != nil {
			return nil, fmt.Errorf("tracing: %w", err)
		}
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.TraceIDRatioBased(o.SampleRatio)),
		sdktrace.WithBatcher(newScrubber(exporter, o.Logger), sdktrace.WithExportTimeout(o.Timeout)),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", o.Service), attribute.String("service.version", o.Version),
		)),
		sdktrace.WithRawSpanLimits(limits()),
	)
	return &Tracing{provider: provider, sdk: provider}, nil
}

// limits bound a span, whatever instrumentation adds to it.
func limits() sdktrace.SpanLimits {
	return sdktrace.SpanLimits{
		AttributeValueLengthLimit:   256,
		AttributeCountLimit:         32,
		EventCountLimit:             16,
		LinkCountLimit:              4,
		AttributePerEventCountLimit: 8,
		AttributePerLinkCountLimit:  4,
	}
}

// CheckEndpoint refuses an endpoint to which traces would travel in the clear.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return errors.New("tracing.endpoint: is no URL")
	case u.User != nil:
		return errors.New("tracing.endpoint: holds credentials: put them into tracing.headers_file")
	case u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("tracing.endpoint: expected https://host:port/path without query and fragment")
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("tracing.endpoint: expected https, or http to a loopback address, got %q", u.Redacted())
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || host == "localhost"
}

// Provider is what instrumentation asks for tracers.
func (t *Tracing) Provider() trace.TracerProvider {
	if t == nil {
		return noop.NewTracerProvider()
	}
	return t.provider
}

// Tracer is the program's own tracer.
func (t *Tracing) Tracer() trace.Tracer { return t.Provider().Tracer(scope) }

// Enabled reports whether spans are exported.
func (t *Tracing) Enabled() bool { return t != nil && t.sdk != nil }

// Shutdown exports what is left. It returns when that is done or ctx ends.
func (t *Tracing) Shutdown(ctx context.Context) error {
	if !t.Enabled() {
		return nil
	}
	if err := t.sdk.Shutdown(ctx); err != nil {
		return fmt.Errorf("tracing: spans were lost at shutdown: %w", err)
	}
	return nil
}

// hostOnly is a host without its port.
func hostOnly(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return hostport
}
