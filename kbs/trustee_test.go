package kbs

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
)

// fakeAttester puts the report data into its evidence.
type fakeAttester struct {
	evidence func(ctx context.Context, reportData []byte) (json.RawMessage, error)
}

func (fakeAttester) TEE() tee.Name { return tee.Sample }

func (a fakeAttester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if a.evidence != nil {
		return a.evidence(ctx, reportData)
	}
	return json.Marshal(map[string][]byte{"report_data": reportData})
}

func (fakeAttester) InitData(context.Context) ([]byte, error) { return make([]byte, 32), nil }

// fakeTrustee plays the broker, out of the package's own server side. Its
// fields are set before the first request; mu guards the rest.
type fakeTrustee struct {
	t      *testing.T
	server *httptest.Server
	// hook may answer a request itself; n counts the requests of its path
	// from 1.
	hook func(w http.ResponseWriter, r *http.Request, n int) bool
	// challenge is what /auth answers, the nonce aside.
	challenge Challenge
	// initData is what the attestation must carry.
	initData  string
	resources map[string]string
	// claims makes the payload of token n; nil: an id and nothing else.
	claims func(n int) string

	mu       sync.Mutex
	counts   map[string]int
	sessions map[string]string
	tokens   map[string]TEEPubKey
	next     int
}

func newTrustee(t *testing.T) *fakeTrustee {
	t.Helper()
	ft := &fakeTrustee{
		t:         t,
		counts:    map[string]int{},
		sessions:  map[string]string{},
		tokens:    map[string]TEEPubKey{},
		resources: map[string]string{"/kbs/v0/resource/repo/type/tag": "the value"},
	}
	ft.server = httptest.NewUnstartedServer(ft)
	ft.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	ft.server.StartTLS()
	t.Cleanup(ft.server.Close)
	return ft
}

func (ft *fakeTrustee) rootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ft.server.Certificate().Raw})
}

// client makes a client whose waits are recorded and take no time.
func (ft *fakeTrustee) client(change func(*ClientOptions)) (*Client, *[]time.Duration) {
	ft.t.Helper()
	opts := ClientOptions{
		URL:      ft.server.URL + "/",
		RootPEM:  ft.rootPEM(),
		Attester: fakeAttester{},
		Logger:   slog.New(slog.DiscardHandler),
		Rand:     rand.Reader,
	}
	if change != nil {
		change(&opts)
	}
	c, err := NewClient(opts)
	if err != nil {
		ft.t.Fatal(err)
	}
	ft.t.Cleanup(c.Close)
	var waits []time.Duration
	c.wait = func(ctx context.Context, d time.Duration) error {
		waits = append(waits, d)
		return ctx.Err()
	}
	return c, &waits
}

// count is how many requests a path had.
func (ft *fakeTrustee) count(path string) int {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	return ft.counts[path]
}

// forget makes all tokens and sessions unknown.
func (ft *fakeTrustee) forget() {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	clear(ft.tokens)
	clear(ft.sessions)
}

func (ft *fakeTrustee) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ft.mu.Lock()
	ft.counts[r.URL.Path]++
	n := ft.counts[r.URL.Path]
	ft.mu.Unlock()
	if r.UserAgent() != "coffer-agent/devel" {
		ft.t.Errorf("User-Agent %q", r.UserAgent())
	}
	if ft.hook != nil && ft.hook(w, r, n) {
		return
	}
	switch r.URL.Path {
	case AuthPath:
		ft.auth(w, r)
	case AttestPath:
		ft.attest(w, r)
	default:
		ft.resource(w, r)
	}
}

func refuse(w http.ResponseWriter, status int, variant, detail string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(ErrorInfo{Type: ErrorType(variant), Detail: detail})
}

func (ft *fakeTrustee) auth(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if _, err := ParseRequest(body); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		ft.t.Errorf("auth: %s %v", r.Method, err)
	}
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	ft.mu.Lock()
	ft.next++
	id := fmt.Sprintf("%032x", ft.next)
	c := ft.challenge
	if c.Nonce == "" {
		c.Nonce = base64.StdEncoding.EncodeToString(nonce)
	}
	ft.sessions[id] = c.Nonce
	ft.mu.Unlock()
	http.SetCookie(w, &http.Cookie{Name: SessionCookie, Value: id, Path: PathPrefix, Secure: true, HttpOnly: true})
	out, _ := marshal(c)
	_, _ = w.Write(out)
}

func (ft *fakeTrustee) attest(w http.ResponseWriter, r *http.Request) {
	ck, err := r.Cookie(SessionCookie)
	if err != nil {
		refuse(w, http.StatusUnauthorized, "AttestationError", "no cookie")
		return
	}
	ft.mu.Lock()
	nonce, ok := ft.sessions[ck.Value]
	delete(ft.sessions, ck.Value)
	ft.mu.Unlock()
	if !ok {
		refuse(w, http.StatusUnauthorized, "AttestationError", "unknown session")
		return
	}
	body, _ := io.ReadAll(r.Body)
	a, err := ParseAttestation(V040, body)
	if err != nil {
		ft.t.Errorf("attest: %v", err)
		refuse(w, http.StatusBadRequest, "SerdeError", err.Error())
		return
	}
	if got := a.InitData; (got == nil) != (ft.initData == "") || got != nil && (got.Body != ft.initData || got.Format != "toml") {
		ft.t.Errorf("attest: initdata %+v, want %q", got, ft.initData)
	}
	want, err := a.Digest(ft.challenge.HashAlgorithm, nonce)
	var evidence struct {
		ReportData []byte `json:"report_data"`
	}
	if err != nil || json.Unmarshal(a.Evidence, &evidence) != nil || !bytes.Equal(evidence.ReportData, want) {
		ft.t.Errorf("attest: report data %x, want %x, %v", evidence.ReportData, want, err)
	}
	ft.mu.Lock()
	ft.next++
	claims := fmt.Sprintf(`{"jti":"%d"}`, ft.next)
	if ft.claims != nil {
		claims = ft.claims(ft.next)
	}
	token := "e30." + b64.EncodeToString([]byte(claims)) + ".c2ln"
	ft.tokens[token] = a.TEEKey
	ft.mu.Unlock()
	out, _ := marshal(TokenResponse{Token: token})
	_, _ = w.Write(out)
}

func (ft *fakeTrustee) resource(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	ft.mu.Lock()
	key, ok := ft.tokens[token]
	ft.mu.Unlock()
	if !ok {
		refuse(w, http.StatusUnauthorized, "TokenNotFound", "attest first")
		return
	}
	if len(r.Cookies()) != 0 {
		ft.t.Error("a resource was asked for with a cookie")
	}
	value, ok := ft.resources[r.URL.RequestURI()]
	if !ok {
		refuse(w, http.StatusNotFound, "PluginInternalError", "no such resource")
		return
	}
	resp, err := EncryptResponse(rand.Reader, key, []byte(value))
	if err != nil {
		ft.t.Error(err)
		return
	}
	out, _ := marshal(resp)
	_, _ = w.Write(out)
}
