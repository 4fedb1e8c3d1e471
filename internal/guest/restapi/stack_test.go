package restapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/restapi"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
	"github.com/coffer-project/coffer/tee"
)

// trustee is a key broker made of package kbs's server side. Its fields are
// set before the first request; mu guards the rest.
type trustee struct {
	server    *httptest.Server
	resources map[string]string // by path
	// answer may answer a request itself.
	answer func(w http.ResponseWriter, r *http.Request) bool
	// claims is the token's payload.
	claims string

	mu     sync.Mutex
	nonces map[string]string
	keys   map[string]kbs.TEEPubKey
	counts map[string]int
}

func newTrustee(t testing.TB) *trustee {
	t.Helper()
	tr := &trustee{
		resources: map[string]string{"/kbs/v0/resource/shop/db/password": "hunter2-is-the-password"},
		claims:    `{"sub":"guest"}`,
		nonces:    map[string]string{}, keys: map[string]kbs.TEEPubKey{}, counts: map[string]int{},
	}
	tr.server = httptest.NewUnstartedServer(tr)
	tr.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	tr.server.StartTLS()
	t.Cleanup(tr.server.Close)
	return tr
}

func (tr *trustee) count(path string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.counts[path]
}

func (tr *trustee) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tr.mu.Lock()
	tr.counts[r.URL.Path]++
	tr.counts[""]++
	tr.mu.Unlock()
	if tr.answer != nil && tr.answer(w, r) {
		return
	}
	body, _ := io.ReadAll(r.Body)
	switch r.URL.Path {
	case kbs.AuthPath:
		session, nonce := rand.Text(), base64.StdEncoding.EncodeToString([]byte(rand.Text()))
		tr.mu.Lock()
		tr.nonces[session] = nonce
		tr.mu.Unlock()
		http.SetCookie(w, &http.Cookie{Name: kbs.SessionCookie, Value: session, Secure: true, HttpOnly: true})
		_ = json.NewEncoder(w).Encode(kbs.Challenge{Nonce: nonce})
	case kbs.AttestPath:
		a, err := kbs.ParseAttestation(kbs.V040, body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		b64 := base64.RawURLEncoding.EncodeToString
		token := b64([]byte(`{"alg":"none"}`)) + "." + b64([]byte(tr.claims)) + "." + b64([]byte(rand.Text()))
		tr.mu.Lock()
		tr.keys[token] = a.TEEKey
		tr.mu.Unlock()
		_ = json.NewEncoder(w).Encode(kbs.TokenResponse{Token: token})
	default:
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		tr.mu.Lock()
		key, ok := tr.keys[token]
		tr.mu.Unlock()
		value, there := tr.resources[r.URL.EscapedPath()]
		switch {
		case !ok:
			refuse(w, http.StatusUnauthorized, "TokenNotFound", "attest first")
		case !there:
			refuse(w, http.StatusForbidden, "PolicyDeny", "the policy denies this to guests with debugging on")
		default:
			jwe, err := kbs.EncryptResponse(rand.Reader, key, []byte(value))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_ = json.NewEncoder(w).Encode(jwe)
		}
	}
}

func refuse(w http.ResponseWriter, status int, variant, detail string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(kbs.ErrorInfo{Type: kbs.ErrorType(variant), Detail: detail})
}

// echo is an environment whose evidence is what it is bound to.
type echo struct{}

func (echo) TEE() tee.Name { return tee.Sample }

func (echo) Evidence(_ context.Context, data []byte) (json.RawMessage, error) {
	return json.Marshal(map[string][]byte{"report_data": data})
}

func (echo) InitData(context.Context) ([]byte, error) { return make([]byte, 32), nil }

// stack is a guest's REST API with everything below it.
type stack struct {
	url    string
	hub    *datahub.Hub
	client *kbs.Client
	http   *http.Client
}

func start(t testing.TB, tr *trustee, log *slog.Logger, change func(*kbs.ClientOptions)) *stack {
	t.Helper()
	o := kbs.ClientOptions{
		URL: tr.server.URL, RootPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tr.server.Certificate().Raw}),
		Attester: echo{}, Logger: log, Rand: rand.Reader,
	}
	if change != nil {
		change(&o)
	}
	client, err := kbs.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	hub := datahub.Open(datahub.Options{Default: client, Logger: log})
	t.Cleanup(hub.Close)
	api, err := restapi.New(restapi.Options{
		Version: "test", Features: restapi.Features{Resource: true, Attestation: true}, Hub: hub,
		Evidencer: restapi.Attesters{Primary: echo{}}, TEE: "sample", Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l) }()
	s := &stack{url: "http://" + l.Addr().String(), hub: hub, client: client, http: &http.Client{Transport: &http.Transport{MaxConnsPerHost: 200}}}
	t.Cleanup(func() {
		s.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func (s *stack) get(t testing.TB, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(body)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

const (
	password = "/cdh/resource/shop/db/password"
	value    = "hunter2-is-the-password"
)

func TestAWorkload(t *testing.T) {
	t.Parallel()
	tr := newTrustee(t)
	tr.resources["/kbs/v0/nebula-ca/credential"] = "the plugin's"
	s := start(t, tr, quiet(), nil)
	if status, got := s.get(t, password+"?x=y"); status != 200 || got != value {
		t.Errorf("got %d %s", status, got)
	}
	status, got := s.get(t, "/aa/token?token_type=kbs")
	var doc map[string]string
	if err := json.Unmarshal([]byte(got), &doc); status != 200 || err != nil || doc["token"] != s.client.HeldToken() {
		t.Errorf("got %d, %v", status, err)
	}
	if block, _ := pem.Decode([]byte(doc["tee_keypair"])); block == nil || block.Type != "PRIVATE KEY" {
		t.Error("no key")
	}
	if status, got := s.get(t, "/aa/evidence?runtime_data=eA&encoding=base64"); status != 200 || got != `{"report_data":"eA=="}` {
		t.Errorf("got %d %s", status, got)
	}
	if n := tr.count(kbs.AttestPath); n != 1 {
		t.Errorf("%d attestations", n)
	}
	// Plugins answer the hub, and not containers.
	if v, err := s.hub.Resource(t.Context(), "kbs+nebula-ca:///credential?name=a&ip=10.0.0.1"); err != nil || string(v.Expose()) != "the plugin's" {
		t.Errorf("got %q, %v", v.Expose(), err)
	}
	if status, got := s.get(t, "/cdh/nebula-ca/credential"); status != 404 || got != "URL NOT FOUND" {
		t.Errorf("got %d %s", status, got)
	}
	// A denial is explained in the trustee's words.
	if status, got := s.get(t, "/cdh/resource/shop/db/other"); status != 500 || !strings.Contains(got, "the policy denies this to guests with debugging on") {
		t.Errorf("got %d %s", status, got)
	}
	if n := tr.count(kbs.AttestPath); n != 1 {
		t.Errorf("%d attestations after a denial", n)
	}
}

// TestThousandsOfRequestsAtOnce are one attestation and one request.
func TestThousandsOfRequestsAtOnce(t *testing.T) {
	t.Parallel()
	tr := newTrustee(t)
	s := start(t, tr, quiet(), nil)
	var wg sync.WaitGroup
	for i := range 3000 {
		wg.Go(func() {
			path := password
			if i%10 == 0 {
				path = "/aa/token?token_type=kbs"
			}
			if status, got := s.get(t, path); status != 200 {
				t.Errorf("%s: %d %s", path, status, got)
			}
		})
	}
	wg.Wait()
	if a, r := tr.count(kbs.AttestPath), tr.count("/kbs/v0/resource/shop/db/password"); a != 1 || r != 1 {
		t.Errorf("%d attestations and %d requests", a, r)
	}
}

// TestNothingSecretIsLogged at debug level, nor in what goes wrong: the secret,
// the token and the key, as they are, in hexadecimal and in base64.
func TestNothingSecretIsLogged(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	tr := newTrustee(t)
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := sealed.PublicJWK(&signer.PublicKey, "kbs:///shop/sealing/key")
	if err != nil {
		t.Fatal(err)
	}
	kek := strings.Repeat("kek!", 8)
	tr.resources["/kbs/v0/resource/shop/sealing/key"] = string(jwk)
	tr.resources["/kbs/v0/resource/shop/sealing/kek"] = kek
	s := start(t, tr, log, nil)
	p := sealed.Payload{Type: sealed.Envelope}
	dek, err := p.EncryptData(rand.Reader, secret.New([]byte("an-enveloped-value")), sealed.A256GCM)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WrapKey(rand.Reader, dek, secret.New([]byte(kek)), "kbs:///shop/sealing/kek"); err != nil {
		t.Fatal(err)
	}
	text, err := sealed.Seal(rand.Reader, p, "kbs:///shop/sealing/key", signer)
	if err != nil {
		t.Fatal(err)
	}

	_, token := s.get(t, "/aa/token?token_type=kbs")
	if status, got := s.get(t, password); status != 200 || got != value {
		t.Fatalf("got %d %s", status, got)
	}
	if v, err := s.hub.Unseal(t.Context(), text); err != nil || string(v.Expose()) != "an-enveloped-value" {
		t.Fatalf("got %v", err)
	}
	for _, path := range []string{
		"/cdh/resource/no/such/thing", "/cdh/resource/" + value, "/aa/evidence?runtime_data=query-data", "/aa/evidence?runtime_data=" + strings.Repeat("q", 65), "/aa/token?token_type=x",
	} {
		s.get(t, path)
	}
	_, err = s.hub.Unseal(t.Context(), text[:len(text)-4])
	log.Error("unseal", "error", err, "value", secret.New([]byte(value)))
	// The trustee forgets the token: it is attested again.
	tr.mu.Lock()
	clear(tr.keys)
	tr.mu.Unlock()
	s.hub.Close()
	s.get(t, password)

	var doc map[string]string
	if err := json.Unmarshal([]byte(token), &doc); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(doc["tee_keypair"]))
	logged := out.String()
	if !strings.Contains(logged, `"level":"DEBUG"`) || !strings.Contains(logged, "REST API") || !strings.Contains(logged, "token refused, attesting again") {
		t.Fatalf("the log has nothing of this:\n%s", logged)
	}
	// The path that was asked for is logged, and was the caller's own choice.
	logged = strings.ReplaceAll(logged, "/cdh/resource/"+value, "")
	for name, b := range map[string][]byte{
		"the resource": []byte(value), "the sealed value": []byte("an-enveloped-value"), "the key broker's key": []byte(kek), "the envelope's key": dek.Expose(),
		"the token": []byte(doc["token"]), "the token's signature": []byte(strings.Split(doc["token"], ".")[2]), "the TEE key": block.Bytes, "the query": []byte("query-data"),
	} {
		for how, form := range map[string]string{
			"as it is": string(b), "in hexadecimal": hex.EncodeToString(b), "in HEXADECIMAL": strings.ToUpper(hex.EncodeToString(b)),
			"in base64": strings.TrimRight(base64.StdEncoding.EncodeToString(b), "="), "in base64url": base64.RawURLEncoding.EncodeToString(b), "as numbers": strings.Trim(fmt.Sprintf("%d", b), "[]"),
		} {
			if strings.Contains(logged, form) {
				t.Errorf("%s was logged %s", name, how)
			}
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
