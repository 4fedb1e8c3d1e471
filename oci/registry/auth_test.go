package registry_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
)

// Marks of what must never be seen where it does not belong.
const (
	password = "secret-password"
	identity = "secret-identity"
	rotated  = "secret-rotated"
)

// tokenServer is a registry and its token server, on two hosts.
type tokenServer struct {
	registry, tokens *httptest.Server

	mu       sync.Mutex
	issued   int
	expires  int
	valid    map[string]bool
	requests []url.Values
	// challenge replaces the one that is sent; accept decides about a request
	// for a token.
	challenge func(tokens string) string
	accept    func(r *http.Request) bool
	answer    func(token string) string
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	ts := &tokenServer{expires: 300, valid: map[string]bool{}}
	ts.accept = func(r *http.Request) bool { u, p, _ := r.BasicAuth(); return u == "u" && p == password }
	ts.challenge = func(tokens string) string {
		return `Bearer realm="` + tokens + `/token",service="the registry",scope="repository:shop/web:pull"`
	}
	ts.tokens = newServer(t, ts.token)
	ts.registry = newServer(t, func(w http.ResponseWriter, r *http.Request) {
		ts.mu.Lock()
		ok := ts.valid[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		ts.mu.Unlock()
		if !ok {
			w.Header().Set("WWW-Authenticate", ts.challenge(ts.tokens.URL))
			w.WriteHeader(http.StatusUnauthorized)
			// What a registry says back is not shown.
			_, _ = fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":%q},{"code":"%s"}]}`, r.Header.Get("Authorization"), password)
			return
		}
		_, _ = w.Write(content)
	})
	return ts
}

func (ts *tokenServer) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	r.Form.Set("method", r.Method)
	ts.requests = append(ts.requests, r.Form)
	if !ts.accept(r) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, password)
		return
	}
	ts.issued++
	token := fmt.Sprintf("token-%d", ts.issued)
	ts.valid[token] = true
	if ts.answer != nil {
		_, _ = io.WriteString(w, ts.answer(token))
		return
	}
	_, _ = fmt.Fprintf(w, `{"token":%q,"expires_in":%d,"issued_at":"x","refresh_token":%q}`, token, ts.expires, rotated)
}

func (ts *tokenServer) open(t *testing.T, auth string, o registry.Options) *registry.Repository {
	t.Helper()
	o.RootPEMs = append(o.RootPEMs, rootPEM(ts.tokens))
	if auth != "" {
		c, err := registry.ParseCredentials(fmt.Appendf(nil, `{"auths":{%q:%s}}`, host(ts.registry)+"/shop", auth))
		if err != nil {
			t.Fatal(err)
		}
		o.Credentials = c
	}
	return open(t, ts.registry, o)
}

// basicAuth is an auth.json entry.
func basicAuth() string {
	return fmt.Sprintf(`{"auth":%q}`, base64.StdEncoding.EncodeToString([]byte("u:"+password)))
}

// safe fails if an error shows a secret.
func safe(t *testing.T, err error) error {
	t.Helper()
	if err != nil {
		for _, s := range []string{password, identity, rotated, base64.StdEncoding.EncodeToString([]byte("u:" + password)), "token-1"} {
			if strings.Contains(err.Error(), s) {
				t.Errorf("the error shows a secret: %v", err)
			}
		}
	}
	return err
}

// TestTokenIsCachedAndRefreshed: one token for all requests of a scope, until it
// ends or is refused.
func TestTokenIsCachedAndRefreshed(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	var now atomic.Int64
	start := time.Now()
	repo := ts.open(t, basicAuth(), registry.Options{Now: func() time.Time { return start.Add(time.Duration(now.Load())) }})
	get := func(want int) {
		t.Helper()
		if got, err := fetch(t, repo, blobOf(content)); safe(t, err) != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		ts.mu.Lock()
		defer ts.mu.Unlock()
		if ts.issued != want {
			t.Errorf("%d tokens were issued, want %d", ts.issued, want)
		}
	}
	get(1)
	get(1)
	now.Store(int64(295 * time.Second)) // within the margin of its end
	get(2)
	ts.mu.Lock()
	clear(ts.valid) // revoked
	ts.mu.Unlock()
	get(3)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, r := range ts.requests {
		if r.Get("service") != "the registry" || r.Get("scope") != "repository:shop/web:pull" || r.Get("method") != "GET" {
			t.Errorf("asked for %v", r)
		}
	}
}

// TestConcurrentRequestsShareAToken: parallel layers do not storm the token
// server.
func TestConcurrentRequestsShareAToken(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	repo := ts.open(t, basicAuth(), registry.Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := fetch(t, repo, blobOf(content)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ts.issued != 1 {
		t.Errorf("%d tokens were issued", ts.issued)
	}
}

// TestScopeIsOurs: whatever a challenge asks for, the token is for this
// repository and for reading.
func TestScopeIsOurs(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	ts.challenge = func(tokens string) string {
		return `Bearer realm="` + tokens + `/token?account=x",service="s",scope="repository:other/private:pull,push,delete registry:catalog:*"`
	}
	if _, err := fetch(t, ts.open(t, basicAuth(), registry.Options{}), blobOf(content)); err != nil {
		t.Fatal(err)
	}
	if r := ts.requests[0]; len(r["scope"]) != 1 || r.Get("scope") != "repository:shop/web:pull" || r.Get("account") != "x" {
		t.Errorf("asked for %v", r)
	}
}

// TestAnonymousToken: public images need a token without credentials.
func TestAnonymousToken(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	ts.accept = func(r *http.Request) bool { return r.Header.Get("Authorization") == "" && r.Method == http.MethodGet }
	ts.answer = func(token string) string { return `{"access_token":"` + token + `"}` }
	repo := ts.open(t, "", registry.Options{})
	if _, err := fetch(t, repo, blobOf(content)); err != nil || !repo.Public() {
		t.Errorf("%v, public: %v", err, repo.Public())
	}
	if ts.open(t, basicAuth(), registry.Options{}).Public() {
		t.Error("what is read with credentials is public")
	}
}

// TestIdentityToken: auth.json's identitytoken is exchanged by OAuth2, and the
// one that comes back is used from then on.
func TestIdentityToken(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	refresh := identity
	ts.expires = 1
	ts.accept = func(r *http.Request) bool {
		ok := r.Method == http.MethodPost && r.Header.Get("Authorization") == "" && r.PostForm.Get("grant_type") == "refresh_token" &&
			r.PostForm.Get("refresh_token") == refresh && r.PostForm.Get("client_id") != "" && r.PostForm.Get("service") == "the registry" &&
			r.PostForm.Get("scope") == "repository:shop/web:pull" && r.URL.RawQuery == ""
		refresh = rotated
		return ok
	}
	start, n := time.Now(), time.Duration(0)
	repo := ts.open(t, fmt.Sprintf(`{"auth":"MDAwOg==","identitytoken":%q}`, identity), registry.Options{Now: func() time.Time { n += time.Second; return start.Add(n) }})
	for range 2 {
		if _, err := fetch(t, repo, blobOf(content)); safe(t, err) != nil {
			t.Fatal(err)
		}
	}
	if ts.issued < 2 {
		t.Errorf("%d tokens were issued", ts.issued)
	}
}

// TestRegistryToken: auth.json's registrytoken goes to the registry as it is.
func TestRegistryToken(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	ts.valid[identity] = true
	repo := ts.open(t, fmt.Sprintf(`{"registrytoken":%q}`, identity), registry.Options{})
	if _, err := fetch(t, repo, blobOf(content)); safe(t, err) != nil {
		t.Error(err)
	}
	if ts.issued != 0 {
		t.Error("a token was asked for")
	}
	ts.valid[identity] = false
	if _, err := fetch(t, repo, blobOf(content)); safe(t, err) == nil {
		t.Error("a refused token was accepted")
	}
}

// TestRefusedCredentials: the message names what is needed and shows nothing.
func TestRefusedCredentials(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	ts.accept = func(*http.Request) bool { return false }
	_, err := fetch(t, ts.open(t, basicAuth(), registry.Options{}), blobOf(content))
	if safe(t, err) == nil || !strings.Contains(err.Error(), host(ts.registry)+`/shop" in the auth.json were not accepted for repository shop/web`) {
		t.Errorf("wrong: %v", err)
	}
	_, err = fetch(t, ts.open(t, "", registry.Options{}), blobOf(content))
	if safe(t, err) == nil || !strings.Contains(err.Error(), "there are none for "+host(ts.registry)+"/shop/web") || !strings.Contains(err.Error(), "authenticated_registry_credentials_uri") {
		t.Errorf("none: %v", err)
	}
	// A registry that is never satisfied is not asked forever.
	ts.accept = func(*http.Request) bool { return true }
	ts.answer = func(string) string { return `{"token":"worthless"}` }
	before := len(ts.requests)
	if _, err = fetch(t, ts.open(t, basicAuth(), registry.Options{}), blobOf(content)); safe(t, err) == nil || !strings.Contains(err.Error(), "(UNAUTHORIZED)") {
		t.Errorf("worthless: %v", err)
	}
	if n := len(ts.requests) - before; n != 1 {
		t.Errorf("%d tokens for one request", n)
	}
}

// TestRealmsThatAreRefused: nothing is sent to a token server over plain HTTP,
// to another scheme, or to one with a user in its URL.
func TestRealmsThatAreRefused(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	t.Cleanup(plain.Close)
	ts := newTokenServer(t)
	for _, realm := range []string{plain.URL + "/token", "file:///etc/passwd", "https://u:p@" + host(ts.tokens) + "/token", "https:///token", ":", "", "https://x/" + strings.Repeat("x", 3000)} {
		ts.challenge = func(string) string { return `Bearer realm="` + realm + `",service="x"` }
		for _, auth := range []string{"", basicAuth(), fmt.Sprintf(`{"identitytoken":%q}`, identity)} {
			// Even if the host may be asked by plain HTTP as a registry.
			_, err := fetch(t, ts.open(t, auth, registry.Options{PlainHTTP: []string{host(plain)}}), blobOf(content))
			if safe(t, err) == nil || !errors.Is(err, registry.ErrRefused) {
				t.Errorf("%.40q: want a refusal, got %v", realm, err)
			}
		}
	}
	if reached.Load() || len(ts.requests) > 0 {
		t.Error("a token server was asked")
	}
}

// TestTokenServerMisbehaves: endless and malformed answers, redirects.
func TestTokenServerMisbehaves(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ answer, says string }{
		"endless":  {strings.Repeat(" ", 300<<10), "expected at most 262144 bytes"},
		"no JSON":  {password, "expected a JSON object"},
		"no token": {`{"expires_in":3}`, "expected printable text, got none"},
		"header":   {`{"token":"x\r\ny: ` + password + `"}`, "expected printable text"},
		"number":   {`{"token":17}`, "expected a JSON object"},
	} {
		ts := newTokenServer(t)
		ts.answer = func(string) string { return tc.answer }
		if _, err := fetch(t, ts.open(t, basicAuth(), registry.Options{}), blobOf(content)); safe(t, err) == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: want %q, got %v", name, tc.says, err)
		}
	}
	var leaked atomic.Bool
	other := newServer(t, func(_ http.ResponseWriter, r *http.Request) { leaked.Store(r.Header.Get("Authorization") != "") })
	ts := newTokenServer(t)
	ts.tokens.Config.Handler = http.RedirectHandler(other.URL, http.StatusTemporaryRedirect)
	if _, err := fetch(t, ts.open(t, basicAuth(), registry.Options{RootPEMs: []string{rootPEM(other)}}), blobOf(content)); safe(t, err) == nil || leaked.Load() {
		t.Errorf("a redirect of the token server was followed: %v", err)
	}
}

// TestRedirectStripsAuthorization: also from a registry to a host below it, and
// to another port of the same host.
func TestRedirectStripsAuthorization(t *testing.T) {
	t.Parallel()
	var leaked atomic.Bool
	storage := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		leaked.Store(leaked.Load() || r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" || r.Header.Get("Referer") != "")
		_, _ = w.Write(content)
	})
	ts := newTokenServer(t)
	inner := ts.registry.Config.Handler
	ts.registry.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			inner.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Set-Cookie", "a=b")
		http.Redirect(w, r, storage.URL+"/x?signature=hidden", http.StatusFound)
	})
	if got, err := fetch(t, ts.open(t, basicAuth(), registry.Options{RootPEMs: []string{rootPEM(storage)}}), blobOf(content)); err != nil || !bytes.Equal(got, content) {
		t.Error(err)
	}
	if leaked.Load() {
		t.Error("credentials went to another host")
	}
}

// TestUnknownChallenges: the challenge that can be met is.
func TestUnknownChallenges(t *testing.T) {
	t.Parallel()
	ts := newTokenServer(t)
	for header, ok := range map[string]bool{
		`Negotiate, Basic realm="x"`: true, `Digest realm="x", nonce="y"`: false, ``: false, `Bearer realm="` + ts.tokens.URL + `/token", Basic realm="x"`: true,
	} {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			if u, p, _ := r.BasicAuth(); u == "u" && p == password || strings.HasPrefix(r.Header.Get("Authorization"), "Bearer token-") {
				_, _ = w.Write(content)
				return
			}
			w.Header().Set("WWW-Authenticate", header)
			w.WriteHeader(http.StatusUnauthorized)
		})
		c, err := registry.ParseCredentials(fmt.Appendf(nil, `{"auths":{%q:%s}}`, host(s), basicAuth()))
		if err != nil {
			t.Fatal(err)
		}
		_, err = oci.ReadAll(t.Context(), open(t, s, registry.Options{Credentials: c, RootPEMs: []string{rootPEM(ts.tokens)}}), blobOf(content), 1<<30)
		if safe(t, err) != nil && ok || err == nil && !ok {
			t.Errorf("%s: %v", header, err)
		}
	}
}
