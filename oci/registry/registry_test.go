package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
)

func rootPEM(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func host(s *httptest.Server) string {
	u, _ := url.Parse(s.URL)
	return u.Host
}

func mustRef(t testing.TB, s string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func newRegistry() http.Handler {
	return ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
}

func open(t testing.TB, s *httptest.Server, o registry.Options) *registry.Repository {
	t.Helper()
	if o.Sleep == nil {
		o.Sleep = func(context.Context, time.Duration) error { return nil }
	}
	if s.TLS != nil {
		o.RootPEMs = append(o.RootPEMs, rootPEM(s))
	}
	c, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	repo, err := c.Repository(mustRef(t, host(s)+"/shop/web"))
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func TestPushAndFetch(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(newRegistry())
	t.Cleanup(s.Close)
	repo := open(t, s, registry.Options{UserAgent: "coffer-test"})
	ctx := t.Context()

	blob := []byte(rand.Text())
	d, err := oci.PushBytes(ctx, repo, oci.MediaTypeConfig, blob)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.PushBytes(ctx, repo, oci.MediaTypeConfig, blob); err != nil { // again
		t.Fatal(err)
	}
	got, err := oci.ReadAll(ctx, repo, d, 1<<20)
	if err != nil || !bytes.Equal(got, blob) {
		t.Errorf("blob: %v", err)
	}
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`, oci.MediaTypeManifest, oci.MediaTypeConfig, d.Digest, d.Size)
	md, err := oci.PushBytes(ctx, repo, oci.MediaTypeManifest, manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Tag(ctx, md, "v1"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []oci.Reference{{Tag: "v1"}, {Digest: md.Digest}} {
		found, err := repo.Resolve(ctx, ref)
		if err != nil || found.Digest != md.Digest || found.MediaType != oci.MediaTypeManifest || found.Size != md.Size {
			t.Errorf("%+v: %+v, %v", ref, found, err)
		}
		if got, err := oci.ReadAll(ctx, repo, found, 1<<20); err != nil || !bytes.Equal(got, manifest) {
			t.Errorf("manifest: %v", err)
		}
	}
	if _, err := repo.Resolve(ctx, oci.Reference{Tag: "v2"}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("want ErrNotFound, got %v", err)
	}
	if _, err := repo.Fetch(ctx, oci.Describe("x/y", []byte("z"))); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("want ErrNotFound, got %v", err)
	}
	if err := repo.Tag(ctx, md, "../x"); err == nil {
		t.Error("a bad tag was accepted")
	}
}

// authorised demands a user and a password.
func authorised(next http.Handler, seen *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if ok {
			seen.Add(1)
		}
		if user != "u" || password != "p:w" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func credentials(t testing.TB, key string) *registry.Credentials {
	t.Helper()
	c, err := registry.ParseCredentials(fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, key, base64.StdEncoding.EncodeToString([]byte("u:p:w"))))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCredentialsAreSent(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	s := httptest.NewTLSServer(authorised(newRegistry(), &seen))
	t.Cleanup(s.Close)
	repo := open(t, s, registry.Options{Credentials: credentials(t, host(s)+"/shop")})
	if _, err := oci.PushBytes(t.Context(), repo, oci.MediaTypeConfig, []byte("x")); err != nil {
		t.Fatal(err)
	}
	anonymous := open(t, s, registry.Options{Credentials: credentials(t, host(s)+"/other")})
	before := seen.Load()
	if _, err := anonymous.Resolve(t.Context(), oci.Reference{Tag: "v1"}); err == nil || seen.Load() != before {
		t.Errorf("credentials of another namespace were sent: %v", err)
	}
}

// TestTokens is the bearer-token flow of Docker's registries.
func TestTokens(t *testing.T) {
	t.Parallel()
	var s *httptest.Server
	next := newRegistry()
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if user, password, _ := r.BasicAuth(); user != "u" || password != "p:w" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_, _ = io.WriteString(w, `{"token":"tok"}`)
			return
		}
		if r.Header.Get("Authorization") != "Bearer tok" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	repo := open(t, s, registry.Options{Credentials: credentials(t, host(s))})
	if _, err := oci.PushBytes(t.Context(), repo, oci.MediaTypeConfig, []byte("x")); err != nil {
		t.Fatal(err)
	}
}

func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(newRegistry())
	t.Cleanup(s.Close)
	repo := open(t, s, registry.Options{PlainHTTP: []string{host(s)}})
	if _, err := oci.PushBytes(t.Context(), repo, oci.MediaTypeConfig, []byte("x")); err != nil {
		t.Errorf("listed: %v", err)
	}
	if _, err := open(t, s, registry.Options{}).Resolve(t.Context(), oci.Reference{Tag: "x"}); err == nil || errors.Is(err, oci.ErrNotFound) {
		t.Errorf("not listed: %v", err)
	}
	c, err := registry.New(registry.Options{PlainHTTP: []string{host(s)}, Credentials: credentials(t, host(s))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Repository(mustRef(t, host(s)+"/shop/web")); err == nil || !strings.Contains(err.Error(), "only sent over TLS") {
		t.Errorf("credentials over plain HTTP: %v", err)
	}
}

// Redirects of layers are followed to HTTPS only, and without credentials.
func TestRedirects(t *testing.T) {
	t.Parallel()
	blob := []byte("content")
	d := oci.Describe("x/y", blob)
	var leaked atomic.Bool
	store := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		_, _ = w.Write(blob)
	})
	plain, secure := httptest.NewServer(store), httptest.NewTLSServer(store)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	var target atomic.Pointer[string]
	var seen atomic.Int64
	s := httptest.NewTLSServer(authorised(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, *target.Load(), http.StatusTemporaryRedirect)
	}), &seen))
	t.Cleanup(s.Close)
	repo := open(t, s, registry.Options{Credentials: credentials(t, host(s)), RootPEMs: []string{rootPEM(secure)}, PlainHTTP: []string{host(plain)}})

	target.Store(&secure.URL)
	if got, err := oci.ReadAll(t.Context(), repo, d, 1<<20); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("to HTTPS: %v", err)
	}
	target.Store(&plain.URL)
	if _, err := oci.ReadAll(t.Context(), repo, d, 1<<20); err == nil || !strings.Contains(err.Error(), "is refused") {
		t.Errorf("to HTTP: %v", err)
	}
	closed := httptest.NewTLSServer(http.NotFoundHandler())
	closed.Close()
	gone := closed.URL + "/blob?X-Signature=hidden"
	target.Store(&gone)
	if _, err := repo.Fetch(t.Context(), d); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("a signed URL is shown: %v", err)
	}
	loop := s.URL + "/v2/"
	target.Store(&loop)
	if _, err := oci.ReadAll(t.Context(), repo, d, 1<<20); err == nil || !strings.Contains(err.Error(), "redirects") {
		t.Errorf("loop: %v", err)
	}
	if leaked.Load() {
		t.Error("credentials went to the redirect's target")
	}
}

// A registry that stops in the middle does not hang the pull.
func TestStall(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var once sync.Once
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("some"))
		w.(http.Flusher).Flush()
		<-release
	}))
	t.Cleanup(func() { once.Do(func() { close(release) }); s.Close() })
	repo := open(t, s, registry.Options{StallTimeout: 100 * time.Millisecond})
	rc, err := repo.Fetch(t.Context(), oci.Descriptor{MediaType: "x/y", Digest: oci.FromBytes(nil), Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rc.Close() }()
	if _, err := io.ReadAll(rc); err == nil || !strings.Contains(err.Error(), "sent nothing for 100ms") {
		t.Errorf("want a stall, got %v", err)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(newRegistry())
	t.Cleanup(s.Close)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(t, s, registry.Options{}).Resolve(ctx, oci.Reference{Tag: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("want context.Canceled, got %v", err)
	}
}

func TestUnknownAuthority(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(newRegistry())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	t.Cleanup(s.Close)
	c, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := c.Repository(mustRef(t, host(s)+"/a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Resolve(t.Context(), oci.Reference{Tag: "x"}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("want a refusal of the certificate, got %v", err)
	}
	if _, err := registry.New(registry.Options{RootPEMs: []string{"x"}}); err == nil || !strings.Contains(err.Error(), "extra_root_certificates[0]") {
		t.Errorf("bad root: %v", err)
	}
}

func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte(`{"auths":{"a":{"auth":"dTpw"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := registry.ParseCredentials(data)
		if (c == nil) == (err == nil) {
			t.Errorf("%v, %v", c, err)
		}
	})
}
