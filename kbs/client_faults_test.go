package kbs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRefusalExplainsItself(t *testing.T) {
	t.Parallel()
	reason := &Reason{Rule: "resource.initdata", Claim: "init_data", Expected: "ab", Got: "cd", Help: "register it"}
	ft := newTrustee(t)
	ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodGet {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(ErrorInfo{Type: ErrorType("PolicyDeny"), Detail: "initdata is not registered", Reason: reason})
		return true
	}
	c, _ := ft.client(nil)
	_, err := c.Resource(t.Context(), testURI)
	se, ok := errors.AsType[*StatusError](err)
	if !ok || se.Status != http.StatusForbidden || ft.count(AuthPath) != 1 {
		t.Fatalf("got %v after %d handshakes", err, ft.count(AuthPath))
	}
	if diff := cmp.Diff(reason, se.Info.Reason); diff != "" {
		t.Error(diff)
	}
	want := "kbs: resource kbs:///repo/type/tag: kbs: GET /kbs/v0/resource/repo/type/tag: 403 Forbidden: initdata is not registered: " +
		"resource.initdata: init_data: expected ab, got cd (register it)"
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Error(diff)
	}
}

// Answers that must end a call at once, whichever request gets them.
func TestFinalAnswers(t *testing.T) {
	t.Parallel()
	paths := []string{AuthPath, AttestPath, testURI.RequestPath()}
	write := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: SessionCookie, Value: "x"})
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		status int
		want   string
	}{
		"400":       {write(400, `{"type":"t","detail":"bad"}`), 400, "400 Bad Request: bad"},
		"403 empty": {write(403, ""), 403, "403 Forbidden"},
		"404":       {write(404, `{"type":"t","detail":"missing"}`), 404, "404 Not Found: missing"},
		"413":       {write(413, "payload reached size limit"), 413, "payload reached size limit"},
		"500":       {write(500, "<html>\x1b[31mred\r\nline</html>"), 500, "<html> [31mred  line</html>"},
		"502 huge":  {write(502, strings.Repeat("x", 1<<20)), 502, "xxx…"},
		"504":       {write(504, ""), 504, "504 Gateway Timeout"},
		"error twice": {
			write(400, `{"detail":"a","detail":"b"}`), 400, `{"detail":"a","detail":"b"}`,
		},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusTemporaryRedirect)
		}, 307, "307 Temporary Redirect"},
		"201":      {write(201, "{}"), 201, "201 Created"},
		"204":      {write(204, ""), 204, "204 No Content"},
		"empty":    {write(200, ""), 0, "empty or ends early"},
		"html":     {write(200, "<html>"), 0, "invalid character"},
		"array":    {write(200, "[]"), 0, "expected a JSON object, got array"},
		"wrong":    {write(200, "{}"), 0, "is missing"},
		"trailing": {write(200, "{}{}"), 0, "followed by more data"},
		"deep":     {write(200, strings.Repeat("[", 100000)), 0, "nested more than"},
		"long": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "4194304")
			stream(w, 4<<20)
		}, 0, "answer has 4194304 bytes, the limit is"},
		"long stream": {func(w http.ResponseWriter, _ *http.Request) { stream(w, 4<<20) }, 0, "answer has more than"},
		"truncated": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"nonce":"x"}`))
		}, 0, "read answer: unexpected EOF"},
		"closed": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, "EOF"},
		"long header": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		}, 0, "server response headers exceeded"},
		"compressed": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte("\x1f\x8b"))
		}, 0, "not valid UTF-8"},
	} {
		for _, path := range paths {
			t.Run(name+path, func(t *testing.T) {
				t.Parallel()
				ft := newTrustee(t)
				ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
					if r.URL.Path == path {
						tc.answer(w, r)
						return true
					}
					return false
				}
				c, waits := ft.client(nil)
				v, err := c.Resource(t.Context(), testURI)
				if err == nil || v.Len() != 0 || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("got %q, %v; want an error with %q", v.Expose(), err, tc.want)
				}
				if se, ok := errors.AsType[*StatusError](err); ok != (tc.status != 0) || ok && se.Status != tc.status {
					t.Errorf("got %v, want status %d", err, tc.status)
				}
				if len(err.Error()) > 4096 {
					t.Errorf("message has %d bytes", len(err.Error()))
				}
				// What broke off is tried once more. net/http itself repeats a
				// request that an idle connection lost.
				tries := 1
				if slices.Contains([]string{"502 huge", "504", "truncated", "closed"}, name) {
					tries = 2
				}
				if n := ft.count(path); n != tries && name != "closed" || len(*waits) != tries-1 {
					t.Errorf("%d requests, %v waits, want %d", n, *waits, tries)
				}
			})
		}
	}
}

func stream(w http.ResponseWriter, n int) {
	chunk := []byte(strings.Repeat(" ", 32<<10))
	for range n / len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

func TestResponseForAnotherKey(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodGet {
			return false
		}
		resp, err := EncryptResponse(rand.Reader, vectorKey, []byte("x"))
		if err != nil {
			t.Error(err)
		}
		out, _ := marshal(resp)
		_, _ = w.Write(out)
		return true
	}
	c, _ := ft.client(nil)
	if v, err := c.Resource(t.Context(), testURI); !errors.Is(err, errDecrypt) || v.Len() != 0 {
		t.Errorf("got %q, %v", v.Expose(), err)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for _, path := range []string{AuthPath, AttestPath, testURI.RequestPath()} {
		ft := newTrustee(t)
		ft.hook = func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.URL.Path != path || n > 3 {
				return false
			}
			switch n {
			case 1:
				w.WriteHeader(http.StatusServiceUnavailable)
			case 2:
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(http.StatusTooManyRequests)
			case 3:
				w.Header().Set("Retry-After", "86400")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return true
		}
		c, waits := ft.client(nil)
		v, err := c.Resource(t.Context(), testURI)
		if err != nil || string(v.Expose()) != "the value" || ft.count(path) != 4 {
			t.Errorf("%s: got %q, %v after %d requests", path, v.Expose(), err, ft.count(path))
		}
		if w := *waits; len(w) != 3 || w[0] < firstDelay/2 || w[0] >= firstDelay || w[1] != 7*time.Second || w[2] != maxRetryAfter {
			t.Errorf("%s: waits %v", path, w)
		}
	}
}

func TestBackoffGivesUp(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.hook = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		refuse(w, http.StatusServiceUnavailable, "X", "busy")
		return true
	}
	c, waits := ft.client(nil)
	err := c.Attest(t.Context())
	if se, ok := errors.AsType[*StatusError](err); !ok || se.Status != 503 || !strings.Contains(err.Error(), "given up after 5 attempts") {
		t.Errorf("got %v", err)
	}
	if len(*waits) != maxAttempts-1 || ft.count(AuthPath) != maxAttempts {
		t.Errorf("%d requests, waits %v", ft.count(AuthPath), *waits)
	}
	for i, d := range *waits {
		if lo := firstDelay << i / 2; d < lo || d >= 2*lo {
			t.Errorf("wait %d is %v, want %v to %v", i, d, lo, 2*lo)
		}
	}
}

func TestBackoffHonoursContext(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	ft.hook = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	c, _ := ft.client(nil)
	// The real wait, with the context ending while it lasts.
	c.wait = func(ctx context.Context, _ time.Duration) error {
		cancel(stop)
		return wait(ctx, time.Hour)
	}
	err := c.Attest(ctx)
	if !errors.Is(err, stop) || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v", err)
	}
}

func TestNoConnection(t *testing.T) {
	t.Parallel()
	for name, reason := range map[string]error{"refused": syscall.ECONNREFUSED, "in no time": os.ErrDeadlineExceeded} {
		ft := newTrustee(t)
		n := 0
		c, waits := ft.client(func(o *ClientOptions) {
			o.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if n++; n <= 2 {
					return nil, &net.OpError{Op: "dial", Err: reason}
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		})
		if err := c.Attest(t.Context()); err != nil || len(*waits) != 2 {
			t.Errorf("%s: %v, waits %v", name, err, *waits)
		}
	}
}

func TestRequestTimeout(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	release := make(chan struct{})
	ft.hook = func(http.ResponseWriter, *http.Request, int) bool {
		<-release
		return false
	}
	t.Cleanup(func() { close(release) })
	c, _ := ft.client(func(o *ClientOptions) { o.RequestTimeout = 50 * time.Millisecond })
	err := c.Attest(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no complete answer within 50ms") {
		t.Errorf("got %v", err)
	}
}

func TestAuthWithoutCookie(t *testing.T) {
	t.Parallel()
	for _, cookie := range []string{"", "kbs-session-id=", "kbs-session-id=" + strings.Repeat("a", maxCookieBytes+1), "kbs-session-id=a%b", "other=x"} {
		ft := newTrustee(t)
		ft.hook = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			if cookie != "" {
				w.Header().Set("Set-Cookie", cookie)
			}
			_, _ = w.Write([]byte(`{"nonce":"x","extra-params":""}`))
			return true
		}
		c, _ := ft.client(nil)
		if err := c.Attest(t.Context()); err == nil || !strings.Contains(err.Error(), "no usable cookie") {
			t.Errorf("%q: got %v", cookie, err)
		}
	}
}

func TestAttesterFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("no report")
	for name, tc := range map[string]struct {
		evidence string
		err      error
		want     string
	}{
		"error":    {"", broken, "sample evidence: no report"},
		"not JSON": {"{", nil, "sample evidence: json"},
		"empty":    {"", nil, "sample evidence: json"},
		"huge":     {`"` + strings.Repeat("x", MaxAttestationBytes) + `"`, nil, "the limit is"},
	} {
		ft := newTrustee(t)
		c, waits := ft.client(func(o *ClientOptions) {
			o.Attester = fakeAttester{func(context.Context, []byte) (json.RawMessage, error) {
				return json.RawMessage(tc.evidence), tc.err
			}}
		})
		err := c.Attest(t.Context())
		if err == nil || !strings.Contains(err.Error(), tc.want) || tc.err != nil && !errors.Is(err, tc.err) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
		if ft.count(AttestPath) != 0 || len(*waits) != 0 {
			t.Errorf("%s: evidence was sent or waited for", name)
		}
	}
}
