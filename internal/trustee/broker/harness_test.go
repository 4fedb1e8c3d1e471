package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/plugin/resources"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/session"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	tokens "github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// What the trustee puts in.
var (
	_ Store     = (*store.Store)(nil)
	_ Sessions  = (*session.Codec)(nil)
	_ Evaluator = (*evaluation.Engine)(nil)
	_ Decider   = (*release.Engine)(nil)
	_ Tokens    = (*tokens.Authority)(nil)
)

var errDown = errors.New("disk is full")

// fakeStore does what the store promises, and fails where it is told to.
type fakeStore struct {
	mu       sync.Mutex
	finished map[string]store.Finished
	records  []audit.Record
	finish   error
	append   error
	read     error
	// blind makes SessionUsed see nothing, as another replica's might.
	blind bool
}

func key(t tenant.Name, id string) string { return string(t) + "/" + id }

func (f *fakeStore) Finish(_ context.Context, t tenant.Name, x store.Finished, r audit.Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.finish != nil {
		return f.finish
	}
	if _, ok := f.finished[key(t, x.Session)]; ok {
		return fmt.Errorf("finish: %w", store.ErrUsed)
	}
	f.finished[key(t, x.Session)] = x
	return f.add(t, r)
}

func (f *fakeStore) add(t tenant.Name, r audit.Record) error {
	doc, err := json.Marshal(r)
	if err != nil || len(doc) > audit.MaxBody || r.Tenant != t {
		return fmt.Errorf("record of %d bytes of tenant %s for %s: %w", len(doc), r.Tenant, t, err)
	}
	f.records = append(f.records, r)
	return nil
}

func (f *fakeStore) SessionUsed(_ context.Context, t tenant.Name, id string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.finished[key(t, id)]
	return ok && !f.blind, f.read
}

func (f *fakeStore) SessionToken(_ context.Context, t tenant.Name, id string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.finished[key(t, id)]
	if x.Token == "" && f.read == nil {
		return "", fmt.Errorf("session: %w", store.ErrNotFound)
	}
	return x.Token, f.read
}

func (f *fakeStore) Append(_ context.Context, t tenant.Name, r audit.Record) (audit.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.append != nil {
		return audit.Entry{}, f.append
	}
	return audit.Entry{}, f.add(t, r)
}

// last is the record made last.
func (f *fakeStore) last(t *testing.T) audit.Record {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.records) == 0 {
		t.Fatal("nothing is recorded")
	}
	return f.records[len(f.records)-1]
}

// fakeEvaluator affirms everything and keeps what it was asked.
type fakeEvaluator struct {
	mu     sync.Mutex
	asked  []evaluation.Request
	refuse *problem.Error
	// claims are added to the evidence.
	claims map[string]any
	gate   chan struct{}
}

func (f *fakeEvaluator) Evaluate(_ context.Context, r evaluation.Request) (*evaluation.Outcome, *problem.Error) {
	if f.gate != nil {
		<-f.gate
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
	out := &evaluation.Outcome{InitData: bytes.Repeat([]byte{1}, 32), PolicyLabel: "default_cpu@1"}
	if f.refuse != nil {
		return out, f.refuse
	}
	evidence := map[string]any{"snp": map[string]any{"measurement": "aa"}, "runtime_data_claims": r.Runtime, "simulated": false, "init_data": strings.Repeat("01", 32)}
	for k, v := range f.claims {
		evidence[k] = v
	}
	doc, err := json.Marshal(evidence)
	if err != nil {
		return nil, problem.Internal(problem.Attestation, err)
	}
	out.Claims = ear.Claims{ID: r.Session, Protocol: r.Protocol, Tenant: string(r.Tenant), Submods: map[string]ear.Submod{
		ear.CPU: {Status: ear.Affirming, Evidence: doc},
	}}
	out.Payload, err = json.Marshal(out.Claims)
	if err != nil {
		return nil, problem.Internal(problem.Attestation, err)
	}
	// The payload is the token: encoded as a header can take it.
	out.Token = fmt.Sprintf("%x", out.Payload)
	return out, nil
}

// fakeTokens reads such tokens.
type fakeTokens struct{ err error }

func (f fakeTokens) Verify(_ context.Context, t tenant.Name, s string) (*ear.Claims, json.RawMessage, error) {
	if f.err != nil {
		return nil, nil, f.err
	}
	var payload []byte
	if _, err := fmt.Sscanf(s, "%x", &payload); err != nil {
		return nil, nil, errors.New("token: is no JWT")
	}
	var c ear.Claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, nil, err
	}
	if c.Tenant != string(t) {
		return nil, nil, errors.New("token: coffer.tenant: another")
	}
	return &c, payload, nil
}

// fakeDecider refuses what begins with "deny".
type fakeDecider struct {
	mu    sync.Mutex
	asked []release.Request
	err   error
	data  string
}

func (f *fakeDecider) Decide(_ context.Context, r release.Request) (release.Decision, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
	d := release.Decision{Granted: f.err == nil, PolicyID: "resource-policy@4", Data: json.RawMessage(`{"plugin":"x"}`)}
	if f.data != "" {
		d.Data = json.RawMessage(f.data)
	}
	if len(r.Path) > 0 && strings.HasPrefix(r.Path[0], "deny") {
		d.Granted = false
		d.Reasons = []kbs.Reason{{Rule: "initdata.registered", Got: "none"}, {Rule: "second", Got: strings.Repeat("x", 100<<10)}}
	}
	return d, f.err
}

// fakeBackend has the tenant's name as content of everything but "none".
type fakeBackend struct {
	resource.Backend
	err error
}

func (f fakeBackend) Get(_ context.Context, t tenant.Name, p resource.Path, _ int64) (secret.Bytes, int64, error) {
	if p.Tag == "none" {
		return secret.Bytes{}, 0, resource.ErrNotFound
	}
	return secret.New([]byte("secret of " + string(t))), 3, f.err
}

// echo is a plugin that answers with what it was asked.
type echo struct{}

func (echo) Name() string { return "echo" }
func (echo) Access(method string, path []string) plugin.Access {
	switch {
	case slices.Equal(path, []string{"admin"}):
		return plugin.Admin
	case method == http.MethodDelete:
		return plugin.None
	}
	return plugin.Guest
}

func (echo) Handle(_ context.Context, r plugin.Request) (*plugin.Response, *problem.Error) {
	switch strings.Join(r.Path, "/") {
	case "nothing":
		return nil, nil
	case "refused":
		return nil, problem.Denied(problem.PolicyDeny, "no", kbs.Reason{Rule: "echo.rule"})
	}
	r.Claims = nil
	doc, err := json.Marshal(r)
	if err != nil {
		return nil, problem.Internal(problem.PluginInternal, err)
	}
	return &plugin.Response{Body: secret.New(doc), ContentType: "application/json", Encrypt: len(r.Path) > 0 && r.Path[0] == "encrypt", Detail: "serial 7"}, nil
}

type bench struct {
	store     *fakeStore
	evaluator *fakeEvaluator
	decider   *fakeDecider
	now       time.Time
	o         Options
	broker    *Broker
}

func newBench(t testing.TB, change func(*bench)) *bench {
	t.Helper()
	b := &bench{
		store: &fakeStore{finished: map[string]store.Finished{}}, evaluator: &fakeEvaluator{}, decider: &fakeDecider{},
		now: time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC),
	}
	now := func() time.Time { return b.now }
	sessions, err := session.New(session.Options{Key: secret.New(make([]byte, session.KeySize)), Now: now, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	plugins, err := plugin.New(resources.New(fakeBackend{}), echo{})
	if err != nil {
		t.Fatal(err)
	}
	b.o = Options{
		Store: b.store, Sessions: sessions, Evaluator: b.evaluator, Decider: b.decider, Tokens: fakeTokens{}, Plugins: plugins,
		TEEs: []tee.Name{tee.SNP, tee.SE, tee.Sample}, Selectors: map[string]string{"strict": "strict-id"}, SessionTimeout: 5 * time.Minute, MaxBody: 2 << 20,
		Logger: slog.New(slog.DiscardHandler), Now: now, Rand: rand.Reader,
	}
	if change != nil {
		change(b)
	}
	if b.broker, err = New(b.o); err != nil {
		t.Fatal(err)
	}
	return b
}

// call is a request of a guest.
type call struct {
	tenant         tenant.Name
	method, path   string
	body           string
	cookie, bearer string
}

func (b *bench) do(c call) *httptest.ResponseRecorder {
	r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
	if c.tenant == "" {
		c.tenant = tenant.Default
	}
	r = r.WithContext(tenant.With(r.Context(), c.tenant))
	if c.cookie != "" {
		r.Header.Set("Cookie", kbs.SessionCookie+"="+c.cookie)
	}
	if c.bearer != "" {
		r.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	w := httptest.NewRecorder()
	b.broker.ServeHTTP(w, r)
	return w
}

// guest is a handshake under way.
type guest struct {
	tenant  tenant.Name
	version kbs.Version
	cookie  string
	nonce   string
	hash    string
	key     *kbs.TEEKey
}

func (b *bench) begin(t *testing.T, n tenant.Name, version kbs.Version, name tee.Name) *guest {
	t.Helper()
	w := b.do(call{tenant: n, method: "POST", path: kbs.AuthPath, body: fmt.Sprintf(`{"version":%q,"tee":%q,"extra-params":""}`, version, name)})
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	ch, err := kbs.ParseChallenge(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	k, err := kbs.GenerateTEEKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &guest{tenant: n, version: version, cookie: w.Result().Cookies()[0].Value, nonce: ch.Nonce, hash: ch.HashAlgorithm, key: k}
}

// body is an attestation in the form of the guest's protocol version.
func (g *guest) body(pub kbs.TEEPubKey) string {
	doc, err := json.Marshal(pub)
	if err != nil {
		panic(err)
	}
	switch g.version {
	case kbs.V010:
		return fmt.Sprintf(`{"tee-pubkey":%s,"tee-evidence":"{}"}`, doc)
	case kbs.V011, kbs.V020:
		return fmt.Sprintf(`{"tee-pubkey":%s,"tee-evidence":{}}`, doc)
	case kbs.V030:
		return fmt.Sprintf(`{"tee-pubkey":%s,"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`, doc)
	}
	return fmt.Sprintf(`{"runtime-data":{"nonce":%s,"tee-pubkey":%s},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`, quote(g.nonce), doc)
}

func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return b
}

func (b *bench) attest(g *guest) *httptest.ResponseRecorder {
	return b.do(call{tenant: g.tenant, method: "POST", path: kbs.AttestPath, body: g.body(g.key.Public()), cookie: g.cookie})
}

// attested runs a whole handshake and returns the token.
func (b *bench) attested(t *testing.T, n tenant.Name) (*guest, string) {
	t.Helper()
	g := b.begin(t, n, kbs.V040, tee.SNP)
	return g, tokenOf(t, b.attest(g))
}

func tokenOf(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var x kbs.TokenResponse
	if err := json.Unmarshal(w.Body.Bytes(), &x); err != nil || x.Token == "" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return x.Token
}

func info(t *testing.T, w *httptest.ResponseRecorder) kbs.ErrorInfo {
	t.Helper()
	var e kbs.ErrorInfo
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Type == "" || e.Detail == "" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d: no problem document: %s", w.Code, w.Body)
	}
	return e
}
