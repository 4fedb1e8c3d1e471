package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

var errDown = errors.New("disk is full")

// fakeStore holds one session and fails where it is told to.
type fakeStore struct {
	session                store.Session
	taken                  bool
	failFinish, failRecord bool
	verdicts               []store.Verdict
}

func (f *fakeStore) CreateSession(_ context.Context, x store.Session) error {
	f.session, f.taken = x, false
	return nil
}

func (f *fakeStore) OpenSession(_ context.Context, id string) (store.Session, error) {
	if f.taken || id != f.session.ID {
		return store.Session{}, store.ErrNotFound
	}
	return f.session, nil
}

func (f *fakeStore) TakeSession(ctx context.Context, id string) (store.Session, error) {
	x, err := f.OpenSession(ctx, id)
	f.taken = f.taken || err == nil
	return x, err
}

func (f *fakeStore) AttestedSession(context.Context, string) (store.Session, error) {
	return store.Session{}, store.ErrNotFound
}

func (f *fakeStore) FinishSession(_ context.Context, _, token string, v store.Verdict) error {
	if f.failFinish {
		return errDown
	}
	f.session.Token = token
	return f.AddVerdict(context.Background(), v)
}

func (f *fakeStore) AddVerdict(_ context.Context, v store.Verdict) error {
	if f.failRecord {
		return errDown
	}
	f.verdicts = append(f.verdicts, v)
	return nil
}

func (f *fakeStore) Resource(context.Context, resource.Path) (secret.Bytes, error) {
	return secret.New([]byte("the secret")), nil
}

// fakeTEE verifies everything and gives its result.
type fakeTEE struct{ result tee.Result }

func (f fakeTEE) TEE() tee.Name { return tee.SNP }
func (f fakeTEE) Verify(context.Context, json.RawMessage, tee.Expected) (*tee.Result, error) {
	return &f.result, nil
}

type fakeAppraiser struct{ err error }

func (f fakeAppraiser) Appraise(_ context.Context, ev appraisal.Evidence) (map[string]ear.Submod, error) {
	evidence, err := json.Marshal(map[string]any{"snp": map[string]any{}, "runtime_data_claims": map[string]any{"tee-pubkey": ev.Key}, "simulated": false})
	return map[string]ear.Submod{"cpu0": {Status: ear.Affirming, Evidence: evidence}}, errors.Join(err, f.err)
}

type fakeDecider struct{ err error }

func (f fakeDecider) Decide(context.Context, release.Request) (release.Decision, error) {
	return release.Decision{Granted: f.err == nil, PolicyID: "p"}, f.err
}

// fakeTokens are the claims themselves.
type fakeTokens struct{}

func (fakeTokens) Mint(c ear.Claims) (string, error) {
	b, err := json.Marshal(c)
	return string(b), err
}

func (fakeTokens) Verify(s string) (*ear.Claims, json.RawMessage, error) {
	var c ear.Claims
	err := json.Unmarshal([]byte(s), &c)
	return &c, json.RawMessage(s), err
}

type bench struct {
	store *fakeStore
	o     Options
}

func newBench(result tee.Result) *bench {
	b := &bench{store: &fakeStore{}}
	b.o = Options{
		Store: b.store, Verifiers: map[tee.Name]tee.Verifier{tee.SNP: fakeTEE{result}}, Appraiser: fakeAppraiser{}, Decider: fakeDecider{}, Tokens: fakeTokens{},
		SessionTimeout: time.Minute, MaxBody: 1 << 20, MaxConcurrent: 1, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Rand: rand.Reader,
	}
	return b
}

var genuine = tee.Result{TEE: tee.SNP, Class: tee.CPU, InitData: bytes.Repeat([]byte{1}, 32), Claims: map[string]any{}}

func (b *bench) do(method, path, body, cookie, bearer string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if cookie != "" {
		r.Header.Set("Cookie", kbs.SessionCookie+"="+cookie)
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	w := httptest.NewRecorder()
	New(b.o).ServeHTTP(w, r)
	return w
}

// attest runs a handshake; doc is the initdata presented.
func (b *bench) attest(t *testing.T, doc string) *httptest.ResponseRecorder {
	t.Helper()
	w := b.do("POST", kbs.AuthPath, `{"version":"0.4.0","tee":"snp","extra-params":""}`, "", "")
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	cookie := w.Result().Cookies()[0].Value
	key, err := kbs.GenerateTEEKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	empty := ""
	att := kbs.Attestation{Version: kbs.V040, Nonce: b.store.session.Nonce, TEEKey: key.Public(), Additional: &empty, Evidence: json.RawMessage(`{}`)}
	if doc != "" {
		att.InitData = &kbs.InitData{Format: "toml", Body: doc}
	}
	body, err := json.Marshal(att)
	if err != nil {
		t.Fatal(err)
	}
	return b.do("POST", kbs.AttestPath, string(body), cookie, "")
}

func token(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var x kbs.TokenResponse
	if err := json.Unmarshal(w.Body.Bytes(), &x); err != nil || x.Token == "" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return x.Token
}

// TestNothingWithoutItsRecord: what cannot be recorded is not given.
func TestNothingWithoutItsRecord(t *testing.T) {
	t.Parallel()
	b := newBench(genuine)
	b.store.failFinish = true
	if w := b.attest(t, ""); w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "token\":") || strings.Contains(w.Body.String(), "disk") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	b.store.failFinish = false
	tok := token(t, b.attest(t, ""))
	path := "/kbs/v0/resource/a/b/c"
	if w := b.do("GET", path, "", "", tok); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "ciphertext") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	b.store.failRecord = true
	if w := b.do("GET", path, "", "", tok); w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "ciphertext") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	// A refusal stays a refusal.
	b.store.failRecord, b.o.Decider = false, fakeDecider{err: errDown}
	if w := b.do("GET", path, "", "", tok); w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "ciphertext") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestVerifiersAreNotTrustedBlindly(t *testing.T) {
	t.Parallel()
	const doc = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n"
	for _, tc := range []struct {
		name   string
		change func(*tee.Result)
		doc    string
		status int
		want   string
	}{
		{"genuine", func(*tee.Result) {}, "", 200, "token"},
		{"initdata differs though the verifier passed it", func(*tee.Result) {}, doc, 403, "initdata.digest"},
		{"no field for initdata", func(r *tee.Result) { r.InitData = nil }, doc, 403, `"got":"none"`},
		{"field of zeros", func(r *tee.Result) { r.InitData = make([]byte, 32) }, doc, 403, "initdata.digest"},
		{"other TEE", func(r *tee.Result) { r.TEE = tee.TDX }, "", 500, "AttestationError"},
		{"no class", func(r *tee.Result) { r.Class = "" }, "", 500, "AttestationError"},
		{"a device as primary", func(r *tee.Result) { r.Class = tee.GPU }, "", 400, "CPU"},
	} {
		r := genuine
		tc.change(&r)
		b := newBench(r)
		w := b.attest(t, tc.doc)
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) {
			t.Errorf("%s: %d %s", tc.name, w.Code, w.Body)
		}
		if len(b.store.verdicts) != 1 || b.store.verdicts[0].Granted != (tc.status == 200) || b.store.verdicts[0].Status != tc.status {
			t.Errorf("%s: verdicts %+v", tc.name, b.store.verdicts)
		}
	}
	b := newBench(genuine)
	b.o.Appraiser = fakeAppraiser{err: errDown}
	if w := b.attest(t, ""); w.Code != 500 || !strings.Contains(w.Body.String(), "PolicyEngineError") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	b = newBench(genuine)
	b.o.Rand = io.LimitReader(rand.Reader, 10)
	if w := b.do("POST", kbs.AuthPath, `{"version":"0.4.0","tee":"snp","extra-params":""}`, "", ""); w.Code != 500 {
		t.Errorf("no randomness: %d %s", w.Code, w.Body)
	}
}
