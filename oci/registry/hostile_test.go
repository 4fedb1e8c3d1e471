package registry_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
)

// content is a blob large enough not to fit into buffers on the way.
var content = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)

func blobOf(data []byte) oci.Descriptor { return oci.Describe("x/y", data) }

// rangeFrom is where a request wants to begin.
func rangeFrom(r *http.Request) int {
	n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"))
	return n
}

// cut answers with the length of all and sends less: the connection breaks off.
func cut(w http.ResponseWriter, r *http.Request, data []byte, ranges bool, n int) {
	from := 0
	if ranges {
		if from = rangeFrom(r); from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
			w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
			w.WriteHeader(http.StatusPartialContent)
		}
	}
	if from == 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	}
	rest := data[from:]
	_, _ = w.Write(rest[:min(n, len(rest))])
	if n < len(rest) {
		panic(http.ErrAbortHandler)
	}
}

func newServer(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func fetch(t *testing.T, repo *registry.Repository, d oci.Descriptor) ([]byte, error) {
	t.Helper()
	return oci.ReadAll(t.Context(), repo, d, 1<<30)
}

// TestResetIsResumedByRange: a connection that breaks off in the middle of a blob
// goes on from there, with or without the server's help.
func TestResetIsResumedByRange(t *testing.T) {
	t.Parallel()
	for name, ranges := range map[string]bool{"with ranges": true, "without ranges": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var asked []int
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				asked = append(asked, rangeFrom(r))
				n := len(content)
				if len(asked) <= 3 {
					n = len(content) * len(asked) / 4
					if ranges {
						n = len(content) / 4
					}
				}
				mu.Unlock()
				cut(w, r, content, ranges, n)
			})
			repo := open(t, s, registry.Options{})
			got, err := fetch(t, repo, blobOf(content))
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(asked) != 4 || asked[0] != 0 || !slices.IsSorted(asked) || asked[3] == 0 {
				t.Errorf("asked from %v", asked)
			}
		})
	}
}

// TestResumedBlobIsVerifiedAsAWhole: the second half of another blob is noticed.
func TestResumedBlobIsVerifiedAsAWhole(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	other := bytes.Repeat([]byte("x"), len(content))
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			cut(w, r, content, true, len(content)/2)
		}
		cut(w, r, other, true, len(content))
	})
	_, err := fetch(t, open(t, s, registry.Options{}), blobOf(content))
	if _, ok := errors.AsType[*oci.MismatchError](err); !ok {
		t.Errorf("want a mismatch, got %v", err)
	}
}

// TestWrongRangeIsRefused: a server that sends another part than was asked for.
func TestWrongRangeIsRefused(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			cut(w, r, content, true, len(content)/2)
		}
		r.Header.Set("Range", "bytes=7-")
		cut(w, r, content, true, len(content))
	})
	if _, err := fetch(t, open(t, s, registry.Options{}), blobOf(content)); err == nil || !strings.Contains(err.Error(), "Content-Range: expected") {
		t.Errorf("want a refusal, got %v", err)
	}
}

// TestTruncatesForever: the number of resumptions is bounded, and the message
// says registry, blob and how far it came.
func TestTruncatesForever(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		cut(w, r, content, true, 8192)
	})
	d := blobOf(content)
	_, err := fetch(t, open(t, s, registry.Options{}), d)
	for _, want := range []string{"registry " + host(s), "repository shop/web", string(d.Digest), "73728 of 1048576 bytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	if n.Load() != 9 {
		t.Errorf("asked %d times", n.Load())
	}
}

// TestStallIsIdleNotTotal: what comes slowly but steadily is read, however long
// it takes; what stands still is given up, before the headers and behind them.
func TestStallIsIdleNotTotal(t *testing.T) {
	t.Parallel()
	steady := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		for _, b := range content[:30] {
			_, _ = w.Write([]byte{b})
			w.(http.Flusher).Flush()
			<-time.After(50 * time.Millisecond)
		}
	})
	if got, err := fetch(t, open(t, steady, registry.Options{StallTimeout: time.Second}), blobOf(content[:30])); err != nil || len(got) != 30 {
		t.Errorf("steady: %q, %v", got, err)
	}
	silent := newServer(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	repo := open(t, silent, registry.Options{StallTimeout: 100 * time.Millisecond})
	started := time.Now()
	if _, err := fetch(t, repo, blobOf(content)); err == nil || !strings.Contains(err.Error(), "sent nothing for 100ms") {
		t.Errorf("silent: %v", err)
	}
	if _, err := repo.Resolve(t.Context(), oci.Reference{Tag: "x"}); err == nil || !strings.Contains(err.Error(), "sent nothing for 100ms") {
		t.Errorf("silent: %v", err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestDrippingManifest: a document may take a while, not forever.
func TestDrippingManifest(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", oci.MediaTypeManifest)
		for r.Context().Err() == nil {
			_, _ = w.Write([]byte(" "))
			w.(http.Flusher).Flush()
			<-time.After(10 * time.Millisecond)
		}
	})
	repo := open(t, s, registry.Options{StallTimeout: 500 * time.Millisecond})
	d := oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: oci.FromBytes(nil), Size: 100_000}
	started := time.Now()
	if _, err := fetch(t, repo, d); err == nil || !strings.Contains(err.Error(), "took too long over a document: more than 1s") || time.Since(started) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(started))
	}
}

// TestLiesAboutSizes: Content-Length against the descriptor, before and after
// the content.
func TestLiesAboutSizes(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.HandlerFunc{
		"Content-Length too large": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("123456")) },
		"Content-Length too small": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("1234")) },
		"too much, no length": func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("123456"))
		},
		"too little, no length": func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("1234"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, h)
			for _, mediaType := range []string{"x/y", oci.MediaTypeManifest} {
				d := blobOf([]byte("12345"))
				d.MediaType = mediaType
				if got, err := fetch(t, open(t, s, registry.Options{}), d); err == nil {
					t.Errorf("%s: %q was accepted", mediaType, got)
				}
			}
		})
	}
}

// TestWrongContentDigest: the registry's own word contradicts what is asked for.
func TestWrongContentDigest(t *testing.T) {
	t.Parallel()
	manifest := []byte(`{"schemaVersion":2}`)
	d := oci.Describe(oci.MediaTypeManifest, manifest)
	var header atomic.Value
	header.Store(string(oci.FromBytes([]byte("other"))))
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", oci.MediaTypeManifest)
		w.Header().Set("Docker-Content-Digest", header.Load().(string)) //nolint:forcetypeassert // stored above
		_, _ = w.Write(manifest)
	})
	repo := open(t, s, registry.Options{})
	if _, err := repo.Resolve(t.Context(), oci.Reference{Digest: d.Digest}); err == nil || !strings.Contains(err.Error(), "Docker-Content-Digest: digest differs") {
		t.Errorf("resolve: %v", err)
	}
	if _, err := fetch(t, repo, d); err == nil || !strings.Contains(err.Error(), "Docker-Content-Digest: digest differs") {
		t.Errorf("fetch: %v", err)
	}
	header.Store("no digest")
	if _, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"}); err == nil || !strings.Contains(err.Error(), "Docker-Content-Digest: digest") {
		t.Errorf("malformed: %v", err)
	}
}

// TestResolveWithoutHeaders: a registry whose HEAD says too little is asked for
// the manifest itself, which decides.
func TestResolveWithoutHeaders(t *testing.T) {
	t.Parallel()
	manifest := []byte(`{"schemaVersion":2}`)
	var head atomic.Int32
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			head.Add(1)
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", oci.MediaTypeManifest+"; charset=utf-8")
		w.(http.Flusher).Flush()
		_, _ = w.Write(manifest)
	})
	repo := open(t, s, registry.Options{})
	want := oci.Describe(oci.MediaTypeManifest, manifest)
	for _, ref := range []oci.Reference{{Tag: "v1"}, {Digest: want.Digest}} {
		if d, err := repo.Resolve(t.Context(), ref); err != nil || d.Digest != want.Digest || d.Size != want.Size || d.MediaType != want.MediaType {
			t.Errorf("%v: %+v, %v", ref, d, err)
		}
	}
	if _, err := repo.Resolve(t.Context(), oci.Reference{Digest: oci.FromBytes([]byte("other"))}); err == nil {
		t.Error("another manifest was accepted")
	}
	if head.Load() != 3 {
		t.Errorf("%d HEAD requests", head.Load())
	}
}

// TestEndlessManifest: a manifest without an end costs no more than a manifest
// may have.
func TestEndlessManifest(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			return
		}
		for r.Context().Err() == nil {
			n, err := w.Write(content)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	})
	repo := open(t, s, registry.Options{})
	if _, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"}); err == nil || !strings.Contains(err.Error(), "at most 4194304 bytes") {
		t.Errorf("resolve: %v", err)
	}
	d := oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: oci.FromBytes(nil), Size: 1000}
	if _, err := fetch(t, repo, d); err == nil {
		t.Error("fetch: accepted")
	}
	d.Size = oci.MaxDocument + 1
	if _, err := repo.Fetch(t.Context(), d); err == nil || !strings.Contains(err.Error(), "at most 4194304 bytes") {
		t.Errorf("a descriptor that says so: %v", err)
	}
	if sent.Load() > 64<<20 {
		t.Errorf("%d bytes were taken", sent.Load())
	}
}

// TestRetries: what may pass is tried again, with growing waits and as long as
// the server says, but not forever; what will not pass is not.
func TestRetries(t *testing.T) {
	t.Parallel()
	manifest := []byte(`{"schemaVersion":2}`)
	for name, tc := range map[string]struct {
		status, failures, asked int
		retryAfter, says        string
		least, most             time.Duration // of the first wait
	}{
		"429":                  {429, 2, 3, "", "", 250 * time.Millisecond, 320 * time.Millisecond},
		"429 with Retry-After": {429, 1, 2, "7", "", 7 * time.Second, 7 * time.Second},
		"429 with a long wait": {429, 9, 1, "3600", "to be tried again in 1h0m0s", 0, 0},
		"429 with a bad wait":  {429, 1, 2, "-5", "", 250 * time.Millisecond, 320 * time.Millisecond},
		"429 forever":          {429, 99, 5, "", "(after 5 attempts)", 250 * time.Millisecond, 320 * time.Millisecond},
		"500":                  {500, 1, 2, "", "", 250 * time.Millisecond, 320 * time.Millisecond},
		"503 with Retry-After": {503, 1, 2, "2", "", 2 * time.Second, 2 * time.Second},
		"504 forever":          {504, 99, 5, "", "HTTP status 504 Gateway Timeout", 250 * time.Millisecond, 320 * time.Millisecond},
		"403":                  {403, 9, 1, "", "there are none for", 0, 0},
		"404":                  {404, 9, 1, "", "HTTP status 404", 0, 0},
		"teapot":               {418, 9, 1, "", "HTTP status 418", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
				if int(asked.Add(1)) > tc.failures {
					w.Header().Set("Content-Type", oci.MediaTypeManifest)
					w.Header().Set("Docker-Content-Digest", string(oci.FromBytes(manifest)))
					_, _ = w.Write(manifest)
					return
				}
				if tc.retryAfter != "" {
					w.Header().Set("Retry-After", tc.retryAfter)
				}
				w.WriteHeader(tc.status)
			})
			var waits []time.Duration
			repo := open(t, s, registry.Options{Sleep: func(_ context.Context, d time.Duration) error { waits = append(waits, d); return nil }})
			_, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"})
			if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("want %q, got %v", tc.says, err)
			}
			if int(asked.Load()) != tc.asked {
				t.Errorf("asked %d times, want %d", asked.Load(), tc.asked)
			}
			if len(waits) != tc.asked-1 || len(waits) > 0 && (waits[0] < tc.least || waits[0] > tc.most) {
				t.Errorf("waits %v", waits)
			}
			if tc.retryAfter == "" && !slices.IsSorted(waits) {
				t.Errorf("waits %v do not grow", waits)
			}
		})
	}
}

// TestContentEncodingIsRefused: gzip as a transfer's dress would change what is
// hashed, and can be a bomb.
func TestContentEncodingIsRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("Accept-Encoding %q", got)
		}
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(content)
	})
	if _, err := fetch(t, open(t, s, registry.Options{}), blobOf(content)); err == nil || !strings.Contains(err.Error(), `Content-Encoding: expected none, got "gzip"`) {
		t.Errorf("want a refusal, got %v", err)
	}
}

func TestHTTP2(t *testing.T) {
	t.Parallel()
	var proto atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(int32(r.ProtoMajor))
		_, _ = w.Write(content)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	if got, err := fetch(t, open(t, s, registry.Options{}), blobOf(content)); err != nil || !bytes.Equal(got, content) || proto.Load() != 2 {
		t.Errorf("%d bytes over HTTP/%d, %v", len(got), proto.Load(), err)
	}
}

// TestClockInThePast: a guest has its clock from the host. The message names the
// clock and the certificate's dates.
func TestClockInThePast(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(http.ResponseWriter, *http.Request) {})
	cert := s.Certificate()
	const day = "2006-01-02 15:04 MST"
	for name, tc := range map[string]struct {
		now  time.Time
		says string
	}{
		"past":   {cert.NotBefore.Add(-24 * time.Hour), "is not valid yet"},
		"future": {cert.NotAfter.Add(24 * time.Hour), "has expired"},
	} {
		repo := open(t, s, registry.Options{Now: func() time.Time { return tc.now }})
		_, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"})
		for _, want := range []string{tc.says, tc.now.UTC().Format(day), cert.NotBefore.UTC().Format(day), cert.NotAfter.UTC().Format(day), "clock", host(s)} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: want an error with %q, got %v", name, want, err)
			}
		}
	}
}

// TestOldTLSIsRefused: TLS 1.1 and below.
func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11} //nolint:gosec // what is refused
	s.StartTLS()
	t.Cleanup(s.Close)
	if _, err := open(t, s, registry.Options{}).Resolve(t.Context(), oci.Reference{Tag: "v1"}); err == nil || errors.Is(err, oci.ErrNotFound) || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("want a refusal of the protocol version, got %v", err)
	}
}

// TestNoRootsIsSaid: a guest trusts nobody unless it is told whom.
func TestNoRootsIsSaid(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(http.ResponseWriter, *http.Request) {})
	c, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := c.Repository(mustRef(t, host(s)+"/a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"}); err == nil || !strings.Contains(err.Error(), "extra_root_certificates") {
		t.Errorf("want what to configure, got %v", err)
	}
}

// TestHostRoots: the certificate for one host is good for no other, and replaces
// all others there.
func TestHostRoots(t *testing.T) {
	t.Parallel()
	h := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }
	one := newServer(t, h)
	resolve := func(o registry.Options) error {
		c, err := registry.New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		repo, err := c.Repository(mustRef(t, host(one)+"/a/b"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = fetch(t, repo, blobOf(content))
		return err
	}
	if err := resolve(registry.Options{HostRootPEMs: map[string]string{host(one): rootPEM(one)}}); err != nil {
		t.Errorf("the host's own: %v", err)
	}
	if err := resolve(registry.Options{HostRootPEMs: map[string]string{"other.example": rootPEM(one)}}); err == nil {
		t.Error("another host's was accepted")
	}
	if err := resolve(registry.Options{RootPEMs: []string{rootPEM(one)}, HostRootPEMs: map[string]string{host(one): otherRoot}}); err == nil {
		t.Error("the host's own does not replace the others")
	}
	if err := resolve(registry.Options{RootPEMs: []string{rootPEM(one)}, HostRootPEMs: map[string]string{"docker.io": otherRoot}}); err != nil {
		t.Errorf("another host's own: %v", err)
	}
	c, err := registry.New(registry.Options{PlainHTTP: []string{host(one)}, HostRootPEMs: map[string]string{host(one): otherRoot}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Repository(mustRef(t, host(one)+"/a/b")); err == nil || !strings.Contains(err.Error(), "listed for plain HTTP") {
		t.Errorf("certificates for plain HTTP: %v", err)
	}
	if _, err := registry.New(registry.Options{HostRootPEMs: map[string]string{"x.example": "x"}}); err == nil {
		t.Error("no PEM")
	}
}

// public lets a connection to the loopback seem one to somewhere else.
type public struct {
	net.Conn
	addr net.Addr
}

func (p public) RemoteAddr() net.Addr { return p.addr }

// TestRedirectToLocalAddressesIsRefused (server-side request forgery): a
// registry with a public address cannot make its readers ask the loopback,
// link-local addresses or a cloud's metadata service, by name or by address; one
// that is itself local may.
func TestRedirectToLocalAddressesIsRefused(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	inner := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		reached.Store(true)
		_, _ = w.Write(content)
	})
	_, port, _ := net.SplitHostPort(host(inner))
	var target atomic.Value
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, target.Load().(string), http.StatusTemporaryRedirect) //nolint:forcetypeassert // stored below
	})
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		name, _, _ := net.SplitHostPort(address)
		seems := map[string]string{"example.com": "203.0.113.1:443", "inner.example.com": "127.0.0.1:443", "metadata.example.com": "169.254.169.254:443", "public.example.com": "203.0.113.2:443"}[name]
		to := host(inner)
		if name == "example.com" {
			to = host(s)
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, to)
		if err != nil || seems == "" {
			return conn, err
		}
		addr, err := net.ResolveTCPAddr("tcp", seems)
		return public{conn, addr}, err
	}
	pull := func(name string) error {
		c, err := registry.New(registry.Options{RootPEMs: []string{rootPEM(s), rootPEM(inner)}, DialContext: dial, Sleep: func(context.Context, time.Duration) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		repo, err := c.Repository(mustRef(t, name+"/a/b"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = fetch(t, repo, blobOf(content))
		return err
	}
	for _, to := range []string{
		"https://127.0.0.1:" + port, "https://localhost:" + port, "https://x.localhost", "https://[::1]:" + port, "https://[::ffff:127.0.0.1]:" + port, "https://0.0.0.0:" + port,
		"https://169.254.169.254/latest", "https://[fe80::1]/", "https://[fd00:ec2::254]/", "https://168.63.129.16/", "https://100.100.100.200/", "https://[64:ff9b::7f00:1]/",
		"https://inner.example.com/x", "https://metadata.example.com/x",
	} {
		target.Store(to)
		if err := pull("example.com"); !errors.Is(err, registry.ErrRefused) || !strings.Contains(err.Error(), "local address") {
			t.Errorf("%s: want a refusal, got %v", to, err)
		}
	}
	if reached.Load() {
		t.Error("the local server was asked")
	}
	target.Store("https://public.example.com/x")
	if err := pull("example.com"); err != nil {
		t.Errorf("to a public address: %v", err)
	}
	target.Store("https://127.0.0.1:" + port)
	if err := pull(host(s)); err != nil {
		t.Errorf("a registry on the loopback itself: %v", err)
	}
}

// TestReadAfterClose does not go on.
func TestReadAfterClose(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	rc, err := open(t, s, registry.Options{}).Fetch(t.Context(), blobOf(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if n, err := rc.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}
