package trustee_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// document is initdata for tests.
const document = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = \"x = 1\"\n"

const measurement = "aa11"

// fakeEvidence is what the fake TEE's evidence looks like.
type fakeEvidence struct {
	ReportData  string `json:"report_data"`
	InitData    string `json:"init_data"`
	Measurement string `json:"measurement"`
	Simulated   bool   `json:"simulated"`
}

// fakeVerifier believes everything but a wrong binding.
type fakeVerifier struct {
	name  tee.Name
	class tee.Class
	// broken makes it unable to judge.
	broken *atomic.Bool
	// gate, if set, holds every verification until it is closed.
	gate chan struct{}
}

func (f fakeVerifier) TEE() tee.Name { return f.name }

func (f fakeVerifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if f.broken != nil && f.broken.Load() {
		return nil, fmt.Errorf("collateral is unreachable")
	}
	if f.gate != nil {
		select {
		case <-f.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var e fakeEvidence
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, &tee.Error{TEE: f.name, Failures: []tee.Failure{{Check: "fake.format", Field: "evidence", Expected: "JSON", Got: "other", Help: "h"}}}
	}
	report, _ := hex.DecodeString(e.ReportData)
	field, _ := hex.DecodeString(e.InitData)
	var failures []tee.Failure
	if w := tee.Fit(want.ReportData, 64); !bytes.Equal(w, report) {
		failures = append(failures, tee.Failure{Check: "fake.report_data", Field: "report_data", Expected: hex.EncodeToString(w), Got: e.ReportData, Help: "replayed?"})
	}
	if want.InitData != nil && !bytes.Equal(tee.Fit(want.InitData, len(field)), field) {
		failures = append(failures, tee.Failure{Check: "fake.host_data", Field: "host_data", Expected: hex.EncodeToString(want.InitData), Got: e.InitData, Help: "h"})
	}
	if failures != nil {
		return nil, &tee.Error{TEE: f.name, Failures: failures}
	}
	return &tee.Result{TEE: f.name, Class: f.class, ReportData: report, InitData: field, Simulated: e.Simulated, Claims: map[string]any{
		"measurement": e.Measurement, "policy_debug_allowed": false, "policy_migrate_ma": false,
	}}, nil
}

// fakeAttester makes such evidence.
type fakeAttester struct {
	measurement string
	field       []byte
	simulated   bool
	// last, if set, gets the evidence.
	last *json.RawMessage
}

func (f fakeAttester) TEE() tee.Name { return tee.SNP }

func (f fakeAttester) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	doc, err := json.Marshal(fakeEvidence{
		ReportData: hex.EncodeToString(tee.Fit(reportData, 64)), InitData: hex.EncodeToString(f.field), Measurement: f.measurement, Simulated: f.simulated,
	})
	if f.last != nil {
		*f.last = doc
	}
	return doc, err
}

func (f fakeAttester) InitData(context.Context) ([]byte, error) { return f.field, nil }

func fieldOf(t *testing.T, doc string) []byte {
	t.Helper()
	_, digest, err := initdata.Digest([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return tee.Fit(digest, 32)
}

func digestOf(t *testing.T, doc string) string {
	t.Helper()
	_, digest, err := initdata.Digest([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(digest)
}

// env is a running trustee.
type env struct {
	*trustee.Trustee
	t     *testing.T
	dir   string
	log   *syncBuffer
	clock *clock
	stop  func()
}

type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a trustee with a fake SNP verifier. An empty dir is a new one.
func start(t *testing.T, dir string, change func(*trustee.Options)) *env {
	t.Helper()
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "state")
	}
	e := &env{t: t, dir: dir, log: &syncBuffer{}, clock: &clock{}}
	o := trustee.Options{
		Config:    config.Default(),
		Verifiers: map[tee.Name]tee.Verifier{tee.SNP: fakeVerifier{name: tee.SNP, class: tee.CPU}},
		Logger:    slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:       e.clock.now,
	}
	o.Config.Listen, o.Config.StateDir = "127.0.0.1:0", dir
	if change != nil {
		change(&o)
	}
	var err error
	if e.Trustee, err = trustee.New(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("trustee ended with %v", err)
		}
	})
	t.Cleanup(e.stop)
	return e
}

func (e *env) admin() *admin.Client {
	e.t.Helper()
	c, err := admin.New(admin.Options{URL: e.URL(), RootPEM: e.RootPEM(), Key: e.AdminKey(), Now: e.clock.now})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(c.Close)
	return c
}

// populate stores a resource, the good measurement and the binding of document.
func (e *env) populate(value string) *admin.Client {
	e.t.Helper()
	a := e.admin()
	ctx := e.t.Context()
	for _, err := range []error{
		a.SetResource(ctx, uri(e.t, "demo/key/1"), secret.New([]byte(value))),
		a.SetReferenceValue(ctx, admin.ReferenceValue{Name: "snp_launch_measurement", Values: []any{measurement, "bb22"}, Description: "guest 1.2"}),
		a.Bind(ctx, admin.Binding{Resource: "demo", InitData: digestOf(e.t, document), Description: "web"}),
	} {
		if err != nil {
			e.t.Fatal(err)
		}
	}
	return a
}

func uri(t *testing.T, path string) kbs.ResourceURI {
	t.Helper()
	u, err := kbs.ParseResourceURI("kbs:///" + path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// guest is the production client over an attester.
func (e *env) guest(a tee.Attester, doc string) *kbs.Client {
	e.t.Helper()
	o := kbs.ClientOptions{URL: e.URL(), RootPEM: e.RootPEM(), Attester: a, Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader, Now: e.clock.now}
	if doc != "" {
		o.InitData = []byte(doc)
	}
	c, err := kbs.NewClient(o)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(c.Close)
	return c
}

// raw is a plain HTTP client for what the production client never does.
func (e *env) raw() *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.RootPEM())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Time: e.clock.now}}
	e.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   []byte
	info   kbs.ErrorInfo
}

func (e *env) do(c *http.Client, method, path string, body []byte, header map[string]string) answer {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.URL()+path, bytes.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		e.t.Fatal(err)
	}
	if a.status >= 400 && method != http.MethodHead {
		if err := json.Unmarshal(a.body, &a.info); err != nil || a.info.Type == "" || a.info.Detail == "" {
			e.t.Errorf("%s %s: %d: body is no problem document: %q", method, path, a.status, a.body)
		}
	}
	return a
}

// handshake is the guest's side by hand.
type handshake struct {
	cookie string
	nonce  string
	key    *kbs.TEEKey
}

func (e *env) begin(c *http.Client, version string) handshake {
	e.t.Helper()
	a := e.do(c, "POST", "/kbs/v0/auth", fmt.Appendf(nil, `{"version":%q,"tee":"snp","extra-params":""}`, version), nil)
	if a.status != 200 {
		e.t.Fatalf("auth: %d %s", a.status, a.body)
	}
	ch, err := kbs.ParseChallenge(a.body)
	if err != nil {
		e.t.Fatal(err)
	}
	key, err := kbs.GenerateTEEKey(rand.Reader)
	if err != nil {
		e.t.Fatal(err)
	}
	cookies := (&http.Response{Header: a.header}).Cookies()
	if len(cookies) != 1 {
		e.t.Fatalf("cookies %v", cookies)
	}
	return handshake{cookie: cookies[0].Value, nonce: ch.Nonce, key: key}
}

// attestation is a body for POST /attest and the evidence in it.
func (e *env) attestation(h handshake, a fakeAttester, doc string) []byte {
	e.t.Helper()
	empty := ""
	att := kbs.Attestation{Version: kbs.V040, Nonce: h.nonce, TEEKey: h.key.Public(), Additional: &empty}
	if doc != "" {
		att.InitData = &kbs.InitData{Format: "toml", Body: doc}
	}
	digest, err := att.Digest("", h.nonce)
	if err != nil {
		e.t.Fatal(err)
	}
	if att.Evidence, err = a.Evidence(e.t.Context(), digest); err != nil {
		e.t.Fatal(err)
	}
	body, err := json.Marshal(att)
	if err != nil {
		e.t.Fatal(err)
	}
	return body
}

func (h handshake) header() map[string]string {
	return map[string]string{"Cookie": kbs.SessionCookie + "=" + h.cookie}
}
