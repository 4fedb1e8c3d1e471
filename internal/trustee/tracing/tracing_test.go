package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto/tls"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

const marker = "hunter2-marker"

func newTracing(t *testing.T, ratio float64) (*Tracing, *kept) {
	t.Helper()
	exp := &kept{}
	tr, err := New(t.Context(), Options{Exporter: exp, SampleRatio: ratio})
	if err != nil {
		t.Fatal(err)
	}
	return tr, exp
}

// kept is an in-memory exporter that shutting down does not empty.
type kept struct {
	mu    sync.Mutex
	spans tracetest.SpanStubs
}

func (k *kept) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spans = append(k.spans, tracetest.SpanStubsFromReadOnlySpans(spans)...)
	return nil
}

func (k *kept) Shutdown(context.Context) error { return nil }

func route(string) string { return "resource" }

func attrs(s tracetest.SpanStub) map[string]string {
	out := make(map[string]string)
	for _, kv := range s.Attributes {
		out[string(kv.Key)] = kv.Value.String()
	}
	return out
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	tr, exp := newTracing(t, 1)
	h := tr.HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		span := trace.SpanFromContext(r.Context())
		span.SetAttributes(attribute.String("coffer.tee", "snp"), attribute.String("http.request.header.cookie", marker), attribute.String("url.query", marker))
		span.AddEvent("exception", trace.WithAttributes(attribute.String("exception.message", marker)))
		span.RecordError(errors.New(marker))
		span.SetStatus(codes.Error, marker)
		w.WriteHeader(http.StatusServiceUnavailable)
	}), route)
	r := httptest.NewRequest(http.MethodGet, "/kbs/v0/resource/"+marker+"/b/c?token="+marker, nil)
	r.Header.Set("Authorization", "Bearer "+marker)
	r.Header.Set("Cookie", "kbs-session-id="+marker)
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	r.Header.Set("Tracestate", "x="+marker)
	r.Header.Set("Baggage", "x="+marker)
	r.Header.Set("User-Agent", marker)
	h.ServeHTTP(httptest.NewRecorder(), r)
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(exp.spans) != 1 {
		t.Fatalf("%d spans", len(exp.spans))
	}
	s := exp.spans[0]
	a := attrs(s)
	if s.Name != "GET resource" || a["http.response.status_code"] != "503" || a["http.route"] != "resource" || a["coffer.tee"] != "snp" ||
		s.Status.Code != codes.Error || s.SpanKind != trace.SpanKindServer || len(s.Events) == 0 {
		t.Errorf("got %s %v %+v", s.Name, a, s.Status)
	}
	if s.SpanContext.TraceID().String() == "0af7651916cd43dd8448eb211c80319c" || len(s.Links) != 1 ||
		s.Links[0].SpanContext.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("a guest's trace is a link, not the parent: %s, %+v", s.SpanContext.TraceID(), s.Links)
	}
	for _, text := range everything(s) {
		if strings.Contains(text, marker) {
			t.Errorf("exported %q", text)
		}
	}
}

// everything is all text of a span.
func everything(s tracetest.SpanStub) []string {
	out := []string{s.Name, s.Status.Description, s.SpanContext.TraceState().String()}
	add := func(kvs []attribute.KeyValue) {
		for _, kv := range kvs {
			out = append(out, string(kv.Key), kv.Value.String())
		}
	}
	add(s.Attributes)
	for _, e := range s.Events {
		out = append(out, e.Name)
		add(e.Attributes)
	}
	for _, l := range s.Links {
		out = append(out, l.SpanContext.TraceState().String())
		add(l.Attributes)
	}
	return out
}

// A guest cannot make the trustee record its requests.
func TestGuestDoesNotChooseSampling(t *testing.T) {
	t.Parallel()
	tr, exp := newTracing(t, 0)
	h := tr.HTTP(http.NotFoundHandler(), route)
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(exp.spans) != 0 {
		t.Errorf("%d spans with a ratio of 0", len(exp.spans))
	}
}

func TestHostileTraceparent(t *testing.T) {
	t.Parallel()
	tr, exp := newTracing(t, 1)
	h := tr.HTTP(http.NotFoundHandler(), route)
	for _, v := range []string{"", "00-0-0-0", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", strings.Repeat("0", 1<<16), "\x00"} {
		r := httptest.NewRequest("BREW", "/", nil)
		r.Header["Traceparent"] = []string{v}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range exp.spans {
		if s.Name != "_OTHER resource" || len(s.Links) != 0 {
			t.Errorf("got %q with %d links", s.Name, len(s.Links))
		}
	}
	if len(exp.spans) != 5 {
		t.Errorf("%d spans", len(exp.spans))
	}
}

func TestTransport(t *testing.T) {
	t.Parallel()
	var header http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { header = r.Header.Clone() }))
	defer srv.Close()
	tr, exp := newTracing(t, 1)
	c := &http.Client{Transport: tr.Transport(http.DefaultTransport)}
	res, err := c.Get(srv.URL + "/" + marker + "?q=" + marker)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if _, err := c.Get("http://127.0.0.1:1/" + marker); err == nil {
		t.Fatal("port 1 answers")
	}
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if header.Get("Traceparent") != "" {
		t.Error("a trace header was sent to somebody else's server")
	}
	if len(exp.spans) != 2 || attrs(exp.spans[0])["server.address"] != "127.0.0.1" || exp.spans[1].Status.Code != codes.Error {
		t.Fatalf("got %+v", exp.spans)
	}
	for _, s := range exp.spans {
		for _, text := range everything(s) {
			if strings.Contains(text, marker) {
				t.Errorf("exported %q", text)
			}
		}
	}
}

func TestDisabled(t *testing.T) {
	t.Parallel()
	off, err := New(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range []*Tracing{nil, off} {
		if tr.Enabled() {
			t.Error("enabled")
		}
		_, span := tr.Tracer().Start(t.Context(), "x")
		if span.IsRecording() {
			t.Error("records")
		}
		h := http.NotFoundHandler()
		w := httptest.NewRecorder()
		tr.HTTP(h, route).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != http.StatusNotFound || tr.Transport(http.DefaultTransport) != http.DefaultTransport {
			t.Error("the middleware or the transport is in the way")
		}
		if err := tr.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{Endpoint: "http://collector:4318/v1/traces"}, {Endpoint: "collector:4318"}, {Endpoint: "https://"}, {Endpoint: "grpc://collector"},
		{Endpoint: "https://user:" + marker + "@collector"}, {Endpoint: "https://collector/?token=" + marker}, {Endpoint: "http://10.0.0.1"},
		{Endpoint: "%zz"}, {Endpoint: "https://collector", SampleRatio: 2}, {Endpoint: "https://collector", SampleRatio: -1},
	} {
		_, err := New(t.Context(), o)
		if err == nil || strings.Contains(err.Error(), marker) {
			t.Errorf("%+v: got %v", o, err)
		}
	}
	for _, e := range []string{"https://collector:4318/v1/traces", "http://127.0.0.1:4318/v1/traces", "http://localhost:4318", "http://[::1]:4318/"} {
		if err := CheckEndpoint(e); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
}

// The real exporter, over TLS to a collector that has its own root.
func TestOTLP(t *testing.T) {
	t.Parallel()
	type request struct {
		auth string
		body []byte
	}
	got := make(chan request, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Error(err)
		}
		got <- request{r.Header.Get("Authorization"), b}
	}))
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	tr, err := New(t.Context(), Options{
		Endpoint: srv.URL + "/v1/traces", Headers: map[string]string{"Authorization": "Bearer x"}, SampleRatio: 1, Version: "1.2.3",
		TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tr.Tracer().Start(t.Context(), "handshake", trace.WithAttributes(attribute.String("coffer.tee", "snp"), attribute.String("secret", marker)))
	span.End()
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := <-got
	for _, want := range []string{"handshake", "coffer.tee", "coffer-trustee", "1.2.3"} {
		if !bytes.Contains(r.body, []byte(want)) {
			t.Errorf("%q is missing in the export", want)
		}
	}
	if bytes.Contains(r.body, []byte(marker)) || r.auth != "Bearer x" {
		t.Errorf("the export holds the secret, or Authorization is %q", r.auth)
	}
}

// A collector that is down costs a line in the log and nothing else.
func TestFailingCollector(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := newScrubber(failing{}, slog.New(slog.NewTextHandler(&out, nil)))
	for range 5 {
		if err := s.ExportSpans(t.Context(), make([]sdktrace.ReadOnlySpan, 3)); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(out.String(), "could not be exported"); n != 1 {
		t.Errorf("%d lines: %s", n, out.String())
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }))
	defer srv.Close()
	tr, err := New(t.Context(), Options{Endpoint: srv.URL, SampleRatio: 1, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tr.Tracer().Start(t.Context(), "x")
	span.End()
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

type failing struct{}

func (failing) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	return errors.New("connection refused")
}
func (failing) Shutdown(context.Context) error { return nil }
