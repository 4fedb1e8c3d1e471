package restapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// serve runs a server on a free port.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// raw sends bytes and returns all that comes back.
func raw(t *testing.T, addr, in string) string {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	go func() { _, _ = io.WriteString(c, in) }() // the server may stop reading
	out, _ := io.ReadAll(c)
	return string(out)
}

// TestASecondRequestInABody is not answered: neither in a body whose length is
// told twice, nor after one that is chunked and has a length, nor after any.
func TestASecondRequestInABody(t *testing.T) {
	t.Parallel()
	addr := serve(t, server(t, "all", nil))
	hidden := "GET /cdh/resource/hidden/b/c HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, head := range map[string]string{
		"plain":              fmt.Sprintf("Content-Length: %d\r\n", len(hidden)),
		"two lengths":        fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n", len(hidden)),
		"chunked and length": fmt.Sprintf("Transfer-Encoding: chunked\r\nContent-Length: %d\r\n", len(hidden)),
		"odd chunked":        "Transfer-Encoding: xchunked\r\n",
		"space before colon": fmt.Sprintf("Content-Length : %d\r\n", len(hidden)),
		"negative":           "Content-Length: -1\r\n",
		"plus":               "Content-Length: +5\r\n",
		"chunk sizes":        "Transfer-Encoding: chunked\r\n",
	} {
		body := hidden
		if strings.Contains(name, "chunk") {
			body = "0\r\n\r\n" + hidden
		}
		out := raw(t, addr, "POST /cdh/resource/first/b/c HTTP/1.1\r\nHost: x\r\n"+head+"\r\n"+body)
		if strings.Contains(out, "hidden") || strings.Count(out, "HTTP/1.1 ") != 1 {
			t.Errorf("%s: the answer is\n%s", name, out)
		}
	}
}

// TestHeadsThatAreTooLarge are refused without being kept.
func TestHeadsThatAreTooLarge(t *testing.T) {
	t.Parallel()
	addr := serve(t, server(t, "all", nil))
	for name, in := range map[string]string{
		"header": "GET /info HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"many":   "GET /info HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 1<<16) + "\r\n",
		"URL":    "GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"query":  "GET /aa/evidence?runtime_data=" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		// The server may reset the connection before all was sent.
		if out := raw(t, addr, in); strings.Contains(out, " 200 ") {
			t.Errorf("%s: the answer is\n%.200s", name, out)
		}
	}
	for name, in := range map[string]string{
		"HTTP/2":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"star":    "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"CONNECT": "CONNECT kbs:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"garbage": "\x16\x03\x01\x02\x00\x01\r\n\r\n",
	} {
		if out := raw(t, addr, in); strings.Contains(out, " 200 ") {
			t.Errorf("%s: the answer is\n%.200s", name, out)
		}
	}
}

// TestTheServerEnds with what was under way, and frees its port.
func TestTheServerEnds(t *testing.T) {
	t.Parallel()
	hub := &slowHub{begun: make(chan struct{}), gate: make(chan struct{})}
	s, err := New(Options{Features: Features{Resource: true}, Hub: hub, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	got := make(chan string, 1)
	go func() {
		got <- raw(t, l.Addr().String(), "GET /cdh/resource/a/b/c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	}()
	<-hub.begun
	cancel()
	if out := <-got; !strings.Contains(out, "500 Internal") || !strings.Contains(out, "canceled") {
		t.Errorf("the answer is\n%s", out)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	again, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

// TestTurns: no more requests than there are turns are worked on, and one that
// waits in vain is told.
func TestTurns(t *testing.T) {
	t.Parallel()
	hub := &slowHub{begun: make(chan struct{}, 2*maxRequests), gate: make(chan struct{})}
	s, err := New(Options{Features: Features{Resource: true}, Hub: hub, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan int, maxRequests)
	for range maxRequests {
		go func() {
			status, _, _ := ask(s, local, "GET", "/cdh/resource/a/b/c", "")
			answers <- status
		}()
	}
	for range maxRequests {
		<-hub.begun
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/cdh/resource/a/b/c", nil)
	r.RemoteAddr = local
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != 500 || !strings.Contains(w.Body.String(), "busy with 64 requests") || len(hub.begun) != 0 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	close(hub.gate)
	for range maxRequests {
		if status := <-answers; status != 200 {
			t.Errorf("got %d", status)
		}
	}
}

// TestConnectionsAreBounded: one more than there may be is answered when
// another has gone.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	inner, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limit(inner, 1)
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	dial := func() {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	dial()
	first := <-accepted
	dial()
	select {
	case <-accepted:
		t.Error("a second connection was taken")
	default:
	}
	_ = first.Close()
	_ = first.Close()
	second := <-accepted
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	_ = second.Close()
}
