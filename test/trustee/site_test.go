package tests

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/logging"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// site is a running trustee.
type site struct {
	t *testing.T
	// dir holds trustee.toml and the state directory.
	dir          string
	url, service string
	root         []byte
	key          ed25519.PrivateKey
	log          *output
	clock        *clock
	// stop ends it in order, signal is what a process is sent.
	stop   func()
	signal func(os.Signal)
	// reload is what an embedded trustee is sent.
	reload chan os.Signal
}

type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// output is what a trustee prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// eventually polls until ok or the limit.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("did not happen in %s: %s", limit, what)
		case <-tick.C:
		}
	}
}

// write makes a file of a test, private.
func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// configure writes a configuration file over the defaults of tests: extra
// begins with keys of the top level, in the dotted form, then tables.
func configure(t testing.TB, dir, extra string) string {
	t.Helper()
	text := `listen = "127.0.0.1:0"
log.level = "debug"
log.format = "json"
policy.allow_simulated = true
limits.rate = 100000.0
limits.burst = 100000
limits.drain = "5s"
tee.snp.development_roots = ["` + the.root + `"]
`
	if !strings.Contains(extra, "state_dir") {
		text += "state_dir = \"state\"\n"
	}
	return write(t, filepath.Join(dir, "trustee.toml"), text+extra)
}

// embed runs a trustee inside the test. An empty dir is a new one.
func embed(t *testing.T, dir, extra string, change ...func(*trustee.Options)) *site {
	t.Helper()
	return embedAt(t, time.Now(), dir, extra, change...)
}

// embedAt is embed with a clock that begins at another time.
func embedAt(t *testing.T, at time.Time, dir, extra string, change ...func(*trustee.Options)) *site {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	c, err := config.Load(configure(t, dir, extra))
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: dir, log: &output{}, clock: &clock{}, reload: make(chan os.Signal, 1)}
	s.clock.advance(time.Until(at))
	logger, err := logging.New(s.log, c.Log.Level, c.Log.Format)
	if err != nil {
		t.Fatal(err)
	}
	o := trustee.Options{Config: c, Logger: logger, Now: s.clock.now, Reload: s.reload}
	for _, f := range change {
		f(&o)
	}
	x, err := trustee.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.url, s.root, s.key, s.service = x.URL(), x.RootPEM(), x.AdminKey(), x.ServiceAddr()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the trustee ended with %v", err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// admin administers a tenant, "" being the default one.
func (s *site) admin(tenant string, change ...func(*admin.Options)) *admin.Client {
	s.t.Helper()
	o := admin.Options{URL: s.url, Tenant: tenant, RootPEM: s.root, Key: s.key, Now: s.clock.now}
	for _, f := range change {
		f(&o)
	}
	c, err := admin.New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// guest is a pod's client.
func (s *site) guest(tenant string, a tee.Attester, doc string) *kbs.Client {
	s.t.Helper()
	o := kbs.ClientOptions{URL: s.url, RootPEM: s.root, Attester: a, Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader, Now: s.clock.now}
	if tenant != "" {
		o.URL += "/tenants/" + tenant
	}
	if doc != "" {
		o.InitData = []byte(doc)
	}
	c, err := kbs.NewClient(o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// good is a pod that is launched as is registered.
func (s *site) good(tenant string) *kbs.Client {
	return s.guest(tenant, pod(s.t, document, ""), document)
}

// content of the resource that populate stores.
const content = "a-secret-that-nobody-else-may-see-4711"

// populate has a tenant release its resource demo/key/1 to good pods.
func (s *site) populate(tenant string) *admin.Client {
	s.t.Helper()
	a := s.admin(tenant)
	d, _ := digest(s.t, document)
	s.must(
		a.SetResource(s.t.Context(), uri(s.t, "kbs:///demo/key/1"), secret.New([]byte(content+tenant))),
		a.SetReferenceValue(s.t.Context(), admin.ReferenceValue{Name: "snp_launch_measurement", Values: []any{the.measurement}, Description: "guest 1.2"}),
		a.Bind(s.t.Context(), admin.Binding{Resource: "demo", InitData: d}),
	)
	return a
}

// check has a good pod fetch what populate stored.
func (s *site) check(tenant string) {
	s.t.Helper()
	v, err := s.good(tenant).Resource(s.t.Context(), uri(s.t, "kbs:///demo/key/1"))
	if err != nil {
		s.t.Fatalf("%v\n%s", err, tail(s.log.String()))
	}
	if string(v.Expose()) != content+tenant {
		s.t.Fatalf("got %q", v.Expose())
	}
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

func (s *site) must(errs ...error) {
	s.t.Helper()
	for _, err := range errs {
		if err != nil {
			s.t.Fatalf("%v\n%s", err, tail(s.log.String()))
		}
	}
}

func uri(t testing.TB, text string) kbs.ResourceURI {
	t.Helper()
	u, err := kbs.ParseResourceURI(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// refused demands a refusal with a status, and a rule or a text in its detail.
func refused(t testing.TB, err error, status int, want string) *kbs.StatusError {
	t.Helper()
	e := asStatus(err)
	if e == nil {
		t.Fatalf("got %v; want %d %s", err, status, want)
	}
	rule := ""
	if e.Info.Reason != nil {
		rule = e.Info.Reason.Rule
	}
	if e.Status != status || rule != want && !strings.Contains(e.Info.Detail, want) {
		t.Fatalf("got %v; want %d %s", err, status, want)
	}
	return e
}

func asStatus(err error) *kbs.StatusError {
	e, _ := errors.AsType[*kbs.StatusError](err)
	return e
}

func roots(text []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

// http is a plain client for what the others never do.
func (s *site) http(change ...func(*tls.Config)) *http.Client {
	s.t.Helper()
	c := &tls.Config{RootCAs: roots(s.root), Time: s.clock.now, MinVersion: tls.VersionTLS13}
	for _, f := range change {
		f(c)
	}
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: limit}
}

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (s *site) do(c *http.Client, method, url, bearer, body string) answer {
	s.t.Helper()
	if strings.HasPrefix(url, "/") {
		url = s.url + url
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	return s.send(c, req)
}

// send sends a request and reads the answer.
func (s *site) send(c *http.Client, req *http.Request) answer {
	s.t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", req.Method, req.URL, err, tail(s.log.String()))
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// quote is a TOML string.
func quote(s string) string { return fmt.Sprintf("%q", s) }
