package collateraltest

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"sync"
)

// Transport asks the server without a network, so that tests can run under
// testing/synctest. The host and scheme of a URL do not matter to it.
func (s *Server) Transport() http.RoundTripper { return transport{s} }

type transport struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close()
	}
	inner := r.Clone(r.Context())
	inner.Body = io.NopCloser(bytes.NewReader(body))
	inner.RequestURI = r.URL.RequestURI()
	reader, writer := io.Pipe()
	w := &responseWriter{header: http.Header{}, pipe: writer, started: make(chan struct{})}
	go func() {
		defer func() {
			if recover() != nil { // http.ErrAbortHandler
				w.fail()
				_ = writer.CloseWithError(io.ErrUnexpectedEOF)
				return
			}
			w.WriteHeader(http.StatusOK)
			_ = writer.Close()
		}()
		t.handler.ServeHTTP(w, inner)
	}()
	select {
	case <-w.started:
	case <-r.Context().Done():
		_ = reader.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	if w.status == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	length, _ := strconv.Atoi(w.sent.Get("Content-Length")) // 0 where there is none
	return &http.Response{
		StatusCode: w.status, Status: http.StatusText(w.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: &responseBody{reader: reader, r: r, length: length}, ContentLength: -1, Request: r,
	}, nil
}

type responseWriter struct {
	header, sent http.Header
	pipe         *io.PipeWriter
	status       int
	once         sync.Once
	started      chan struct{}
}

func (w *responseWriter) Header() http.Header { return w.header }

func (w *responseWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.started)
	})
}

func (w *responseWriter) fail() { w.once.Do(func() { close(w.started) }) }

func (w *responseWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.pipe.Write(p)
}

// Flush implements http.Flusher.
func (w *responseWriter) Flush() { w.WriteHeader(http.StatusOK) }

// responseBody ends with its request's context, as a real one does.
type responseBody struct {
	reader *io.PipeReader
	r      *http.Request
	// length is what Content-Length says, 0 where it does not, got what came.
	length, got int
	watch       sync.Once
	closed      chan struct{}
}

func (b *responseBody) Read(p []byte) (int, error) {
	b.watch.Do(func() {
		b.closed = make(chan struct{})
		go func() {
			select {
			case <-b.r.Context().Done():
				_ = b.reader.CloseWithError(b.r.Context().Err())
			case <-b.closed:
			}
		}()
	})
	n, err := b.reader.Read(p)
	b.got += n
	if ended := b.r.Context().Err(); err != nil && ended != nil {
		err = ended
	} else if err == io.EOF && b.got < b.length {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *responseBody) Close() error {
	b.watch.Do(func() { b.closed = make(chan struct{}) })
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return b.reader.Close()
}
