package kbs

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testURI = func() ResourceURI {
	u, err := NewResourceURI("repo", "type", "tag")
	if err != nil {
		panic(err)
	}
	return u
}()

func TestResource(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"", SHA256, SHA512} {
		ft := newTrustee(t)
		ft.initData = "version = \"0.1.0\" # <&>\n"
		ft.challenge.HashAlgorithm = alg
		ft.resources["/kbs/v0/plugin/x?a=1&b=%20"] = ""
		c, waits := ft.client(func(o *ClientOptions) { o.InitData = []byte(ft.initData) })
		if c.Token() != "" {
			t.Error("a token before the first handshake")
		}
		for range 3 {
			v, err := c.Resource(t.Context(), testURI)
			if err != nil || string(v.Expose()) != "the value" {
				t.Fatalf("%q: got %q, %v", alg, v.Expose(), err)
			}
		}
		u, err := ParseResourceURI("kbs+plugin:///x?a=1&b=%20")
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.Resource(t.Context(), u); err != nil || v.Len() != 0 {
			t.Errorf("got %q, %v", v.Expose(), err)
		}
		if n := ft.count(AttestPath); n != 1 || len(*waits) != 0 {
			t.Errorf("%d handshakes, %v waits", n, *waits)
		}
		old := c.Token()
		if err := c.Attest(t.Context()); err != nil || c.Token() == old || ft.count(AttestPath) != 2 {
			t.Errorf("Attest did not run a handshake: %v", err)
		}
		c.Close()
		if c.Token() != "" {
			t.Error("Close keeps the token")
		}
		if _, err := c.Resource(t.Context(), testURI); err != nil {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestResourceNonceIsADocument(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.challenge.Nonce = "{\"request_blob\":\"<\\u0001\\n\u2028>\"}"
	ft.challenge.HashAlgorithm = SHA512
	c, _ := ft.client(nil)
	if _, err := c.Resource(t.Context(), testURI); err != nil {
		t.Error(err)
	}
}

func TestTokenRefusedAttestsOnceMore(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	c, waits := ft.client(nil)
	if err := c.Attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	ft.forget()
	if v, err := c.Resource(t.Context(), testURI); err != nil || string(v.Expose()) != "the value" {
		t.Errorf("got %q, %v", v.Expose(), err)
	}
	if n := ft.count(AuthPath); n != 2 || len(*waits) != 0 {
		t.Errorf("%d handshakes, %v waits", n, *waits)
	}
}

func TestTokenAlwaysRefused(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet {
			refuse(w, http.StatusUnauthorized, "PolicyDeny", "denied by a broker that answers 401 to everything")
			return true
		}
		return false
	}
	c, _ := ft.client(nil)
	_, err := c.Resource(t.Context(), testURI)
	se, ok := errors.AsType[*StatusError](err)
	if !ok || se.Status != http.StatusUnauthorized || se.Info.Type != ErrorType("PolicyDeny") {
		t.Errorf("got %v", err)
	}
	if auth, get := ft.count(AuthPath), ft.count(testURI.RequestPath()); auth != 2 || get != 2 {
		t.Errorf("%d handshakes and %d requests, want 2 and 2", auth, get)
	}
}

func TestSessionLost(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.hook = func(_ http.ResponseWriter, r *http.Request, n int) bool {
		if r.URL.Path == AttestPath && n == 1 {
			ft.forget()
		}
		return false
	}
	c, waits := ft.client(nil)
	if err := c.Attest(t.Context()); err != nil || ft.count(AuthPath) != 2 || len(*waits) != 0 {
		t.Errorf("%v after %d handshakes, %v waits", err, ft.count(AuthPath), *waits)
	}

	ft = newTrustee(t)
	ft.hook = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == AttestPath {
			ft.forget()
		}
		return false
	}
	c, _ = ft.client(nil)
	err := c.Attest(t.Context())
	if se, ok := errors.AsType[*StatusError](err); !ok || se.Status != http.StatusUnauthorized || ft.count(AuthPath) != 2 {
		t.Errorf("got %v after %d handshakes, want 401 after 2", err, ft.count(AuthPath))
	}
	if c.Token() != "" {
		t.Error("a failed handshake left a token")
	}
}

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
				// net/http itself repeats a request that an idle connection
				// lost.
				if n := ft.count(path); n != 1 && name != "closed" || len(*waits) != 0 {
					t.Errorf("%d requests, %v waits", n, *waits)
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

func TestConnectionRefused(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	n := 0
	c, waits := ft.client(func(o *ClientOptions) {
		o.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if n++; n <= 2 {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	if err := c.Attest(t.Context()); err != nil || len(*waits) != 2 {
		t.Errorf("%v, waits %v", err, *waits)
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
	for _, cookie := range []string{"", "kbs-session-id=", "kbs-session-id=" + strings.Repeat("a", 257), "kbs-session-id=a%b", "other=x"} {
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

func TestConcurrentUseAttestsOnce(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	const calls = 16
	// The first handshake waits until all calls have begun.
	var begun sync.WaitGroup
	begun.Add(calls)
	c, _ := ft.client(func(o *ClientOptions) {
		o.Attester = fakeAttester{func(_ context.Context, rd []byte) (json.RawMessage, error) {
			begun.Wait()
			return json.Marshal(map[string][]byte{"report_data": rd})
		}}
	})
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			begun.Done()
			if v, err := c.Resource(t.Context(), testURI); err != nil || string(v.Expose()) != "the value" {
				t.Errorf("got %q, %v", v.Expose(), err)
			}
		})
	}
	wg.Wait()
	if n := ft.count(AuthPath); n != 1 {
		t.Errorf("%d handshakes, want 1", n)
	}
	// And once more when the token becomes unknown. (A call that was refused
	// with the old token after another has attested uses the new one.)
	ft.forget()
	for range calls {
		wg.Go(func() {
			if _, err := c.Resource(t.Context(), testURI); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := ft.count(AuthPath); n != 2 {
		t.Errorf("%d handshakes, want 2", n)
	}
}

// A call that joined a handshake must not fail because the call that ran it
// was cancelled.
func TestFollowerOutlivesLeader(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	started := make(chan struct{}, 2)
	leaderCtx, cancel := context.WithCancel(t.Context())
	first := true
	c, _ := ft.client(func(o *ClientOptions) {
		o.Attester = fakeAttester{func(ctx context.Context, rd []byte) (json.RawMessage, error) {
			if first {
				first = false
				started <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return json.Marshal(map[string][]byte{"report_data": rd})
		}}
	})
	leader := make(chan error, 1)
	go func() { leader <- c.Attest(leaderCtx) }()
	<-started
	// A follower whose own context has ended does not wait.
	ended, end := context.WithCancel(t.Context())
	end()
	if err := c.Attest(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("ended follower: %v", err)
	}
	follower := make(chan error, 1)
	go func() { follower <- c.Attest(t.Context()) }()
	cancel()
	if err := <-leader; !errors.Is(err, context.Canceled) {
		t.Errorf("leader: %v", err)
	}
	if err := <-follower; err != nil {
		t.Errorf("follower: %v", err)
	}
	if c.Token() == "" {
		t.Error("no token")
	}
}

func TestPanickingAttesterLeavesNoFlight(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	broken := true
	c, _ := ft.client(func(o *ClientOptions) {
		o.Attester = fakeAttester{func(_ context.Context, rd []byte) (json.RawMessage, error) {
			if broken {
				panic("broken")
			}
			return json.Marshal(map[string][]byte{"report_data": rd})
		}}
	})
	func() {
		defer func() { _ = recover() }()
		_ = c.Attest(t.Context())
	}()
	broken = false
	if err := c.Attest(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	t.Run("other root", func(t *testing.T) {
		c, waits := ft.client(func(o *ClientOptions) { o.RootPEM = otherRoot(t) })
		var unknown x509.UnknownAuthorityError
		if err := c.Attest(t.Context()); !errors.As(err, &unknown) || len(*waits) != 0 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("system roots", func(t *testing.T) {
		c, _ := ft.client(func(o *ClientOptions) { o.RootPEM = nil })
		if err := c.Attest(t.Context()); err == nil {
			t.Error("a certificate that no system root vouches for was accepted")
		}
	})
	t.Run("name", func(t *testing.T) {
		c, _ := ft.client(func(o *ClientOptions) {
			o.URL = "https://kbs.other.example:1"
			o.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, ft.server.Listener.Addr().String())
			}
		})
		var host x509.HostnameError
		if err := c.Attest(t.Context()); !errors.As(err, &host) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("expired", func(t *testing.T) {
		c, _ := ft.client(func(o *ClientOptions) {
			o.Now = func() time.Time { return ft.server.Certificate().NotAfter.Add(time.Hour) }
		})
		var invalid x509.CertificateInvalidError
		if err := c.Attest(t.Context()); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
			t.Errorf("got %v", err)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		old := httptest.NewUnstartedServer(ft)
		old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
		old.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		old.StartTLS()
		defer old.Close()
		c, _ := ft.client(func(o *ClientOptions) { o.URL = old.URL })
		if err := c.Attest(t.Context()); err == nil || !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("got %v", err)
		}
	})
	if n := ft.count(AuthPath); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func otherRoot(t *testing.T) []byte {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestNewClientRefuses(t *testing.T) {
	t.Parallel()
	good := ClientOptions{URL: "https://kbs.example", Attester: fakeAttester{}, Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader}
	if _, err := NewClient(good); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*ClientOptions)
		want   string
	}{
		"attester":  {func(o *ClientOptions) { o.Attester = nil }, "no attester"},
		"logger":    {func(o *ClientOptions) { o.Logger = nil }, "no logger"},
		"rand":      {func(o *ClientOptions) { o.Rand = nil }, "no source of randomness"},
		"initdata":  {func(o *ClientOptions) { o.InitData = []byte{0xff} }, "not valid UTF-8"},
		"no URL":    {func(o *ClientOptions) { o.URL = "" }, "expected https://"},
		"http":      {func(o *ClientOptions) { o.URL = "http://kbs.example" }, "expected https: the protocol encrypts"},
		"no host":   {func(o *ClientOptions) { o.URL = "https:///x" }, "has no host"},
		"opaque":    {func(o *ClientOptions) { o.URL = "https:kbs.example" }, "has no host"},
		"user":      {func(o *ClientOptions) { o.URL = "https://u:p@kbs.example" }, "user name"},
		"query":     {func(o *ClientOptions) { o.URL = "https://kbs.example/?x" }, "no query"},
		"fragment":  {func(o *ClientOptions) { o.URL = "https://kbs.example/#x" }, "no fragment"},
		"malformed": {func(o *ClientOptions) { o.URL = "https://kbs example" }, "malformed"},
		"no PEM":    {func(o *ClientOptions) { o.RootPEM = []byte("x") }, "is not PEM"},
		"blank PEM": {func(o *ClientOptions) { o.RootPEM = []byte("\n") }, "there is no certificate"},
	} {
		o := good
		tc.change(&o)
		c, err := NewClient(o)
		if err == nil || c != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
	c, err := NewClient(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resource(t.Context(), ResourceURI{}); err == nil {
		t.Error("the zero URI was asked for")
	}
}

func TestParseRoots(t *testing.T) {
	t.Parallel()
	one := otherRoot(t)
	two := append(append([]byte("\n"), one...), otherRoot(t)...)
	for _, ok := range [][]byte{one, two} {
		if _, err := ParseRoots(ok); err != nil {
			t.Error(err)
		}
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	for name, tc := range map[string]struct{ in, want string }{
		"empty":     {"", "there is no certificate"},
		"text":      {"hello", "after 0 certificates is not PEM"},
		"comment":   {string(one) + "# comment", "after 1 certificates is not PEM"},
		"key":       {string(one) + string(key), "PEM block 2: expected CERTIFICATE, got PRIVATE KEY"},
		"truncated": {string(one[:len(one)-10]), "PEM block 1 is malformed"},
		"DER":       {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1:"},
		"many":      {strings.Repeat(string(one), maxRoots+1), "more than 64"},
		"size":      {strings.Repeat("\n", maxRootBytes+1), "the limit is"},
	} {
		if _, err := ParseRoots([]byte(tc.in)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
}

// What the client logs and prints at the most talkative level holds neither
// token, key nor resource.
func TestLogsNoSecrets(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	var log strings.Builder
	c, _ := ft.client(func(o *ClientOptions) {
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	if err := c.Attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	tokens := []string{c.Token()}
	ft.forget()
	if _, err := c.Resource(t.Context(), testURI); err != nil {
		t.Fatal(err)
	}
	tokens = append(tokens, c.Token())
	if !strings.Contains(log.String(), "attested") || !strings.Contains(log.String(), "attesting again") {
		t.Errorf("log: %s", log.String())
	}
	for _, s := range append(tokens, "the value") {
		if strings.Contains(log.String(), s) {
			t.Errorf("the log holds %q", s)
		}
	}
}
