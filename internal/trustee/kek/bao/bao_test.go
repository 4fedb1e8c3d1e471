package bao_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/kek/bao"
	"github.com/coffer-project/coffer/internal/trustee/kek/bao/baotest"
)

func file(t testing.TB, content string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "credential")
	if err := os.WriteFile(f, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func client(t testing.TB, o bao.Options) *bao.Client {
	t.Helper()
	c, err := bao.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func byToken(t testing.TB, s *baotest.Server) *bao.Client {
	return client(t, bao.Options{Address: s.URL, TokenFile: file(t, baotest.Root+"\n")})
}

func appRole(t testing.TB) *bao.AppRole {
	return &bao.AppRole{RoleID: baotest.RoleID, SecretIDFile: file(t, baotest.SecretID)}
}

var read = bao.Request{Method: http.MethodGet, Path: "secret/data/x", Repeat: true}

func TestToken(t *testing.T) {
	t.Parallel()
	s := baotest.New(t)
	s.Set("x", `{"data":"eA=="}`)
	var out struct{ Metadata struct{ Version int } }
	if err := byToken(t, s).Do(t.Context(), read, &out); err != nil || out.Metadata.Version != 1 {
		t.Fatalf("got %+v, %v", out, err)
	}
	// The file is replaced, as an agent does, when the old token ends.
	f := file(t, "first-token")
	s.AddToken("first-token")
	c := client(t, bao.Options{Address: s.URL, TokenFile: f})
	if err := c.Do(t.Context(), read, nil); err != nil {
		t.Fatal(err)
	}
	s.Revoke("first-token")
	err := c.Do(t.Context(), read, nil)
	if !errors.Is(err, bao.ErrDenied) || strings.Contains(err.Error(), "first-token") {
		t.Errorf("revoked: %v", err)
	}
	s.AddToken("second-token")
	if err := os.WriteFile(f, []byte("second-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(t.Context(), read, nil); err != nil {
		t.Errorf("after the file was replaced: %v", err)
	}
	for _, bad := range []string{"", "\n", "two words", "x\x00", strings.Repeat("x", 9000)} {
		if err := client(t, bao.Options{Address: s.URL, TokenFile: file(t, bad)}).Do(t.Context(), read, nil); err == nil || !strings.Contains(err.Error(), "printable") {
			t.Errorf("token %.20q: %v", bad, err)
		}
	}
}

func TestAppRole(t *testing.T) {
	t.Parallel()
	s := baotest.New(t)
	s.Set("x", `{}`)
	var mu sync.Mutex
	now := time.Now()
	c := client(t, bao.Options{Address: s.URL, AppRole: appRole(t), Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	forward := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := c.Do(t.Context(), read, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, n := s.Requests(); n != 1 {
		t.Errorf("%d logins for 8 requests at once", n)
	}
	forward(10 * time.Second)
	s.Revoke()
	if err := c.Do(t.Context(), read, nil); err != nil {
		t.Errorf("after the token was revoked: %v", err)
	}
	forward(2 * time.Hour) // past the lease
	if err := c.Do(t.Context(), read, nil); err != nil {
		t.Errorf("after the lease: %v", err)
	}
	if _, n := s.Requests(); n != 3 {
		t.Errorf("%d logins, want 3", n)
	}
	// What policies forbid does not become a storm of logins.
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/login") {
			return false
		}
		baotest.Fail(w, http.StatusForbidden, "permission denied")
		return true
	})
	for range 5 {
		if err := c.Do(t.Context(), read, nil); !errors.Is(err, bao.ErrDenied) {
			t.Errorf("got %v", err)
		}
	}
	if _, n := s.Requests(); n > 4 {
		t.Errorf("%d logins", n)
	}
	wrong := client(t, bao.Options{Address: s.URL, AppRole: &bao.AppRole{RoleID: "other", SecretIDFile: file(t, "hunter2")}})
	if err := wrong.Do(t.Context(), read, nil); !errors.Is(err, bao.ErrDenied) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("wrong role: %v", err)
	}
}

func TestRenew(t *testing.T) {
	t.Parallel()
	s := baotest.New(t)
	s.SetLease(90 * time.Second)
	c := client(t, bao.Options{Address: s.URL, AppRole: appRole(t)})
	for range 2 {
		if next, err := c.Renew(t.Context()); err != nil || next != time.Minute {
			t.Errorf("next after %v, %v; want 1m", next, err)
		}
	}
	log, logins := s.Requests()
	if logins != 1 || !slices.Contains(log, "POST /v1/auth/token/renew-self") {
		t.Errorf("%d logins, requests %v", logins, log)
	}
	if next, err := byToken(t, s).Renew(t.Context()); err != nil || next < time.Minute {
		t.Errorf("a token that does not expire: next after %v, %v", next, err)
	}
	s.SetFault(func(w http.ResponseWriter, _ *http.Request) bool { baotest.Fail(w, 503); return true })
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Run(ctx, func(_ context.Context, err error) {
		if !errors.Is(err, bao.ErrUnavailable) {
			t.Errorf("reported %v", err)
		}
		cancel()
	})
	if err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	s := baotest.New(t)
	for name, c := range map[string]struct {
		status int
		body   string
		want   error
		text   string
	}{
		"sealed":         {503, `{"errors":["Vault is sealed"]}`, bao.ErrUnavailable, "Vault is sealed"},
		"internal":       {500, `{"errors":["1 error occurred"]}`, bao.ErrUnavailable, "500"},
		"bad gateway":    {502, `<html>`, bao.ErrUnavailable, "502"},
		"overloaded":     {429, ``, bao.ErrUnavailable, "429"},
		"behind":         {412, `{"errors":["required index state not present"]}`, bao.ErrUnavailable, "412"},
		"standby":        {473, ``, bao.ErrUnavailable, "473"},
		"redirect":       {307, ``, bao.ErrUnavailable, "load balancer"},
		"denied":         {403, `{"errors":["permission denied"]}`, bao.ErrDenied, "policies"},
		"missing":        {404, `{"errors":[]}`, bao.ErrNotFound, ""},
		"bad request":    {400, `{"errors":["no"]}`, nil, `"no"`},
		"no JSON":        {200, `hello`, nil, "is this an OpenBao"},
		"empty":          {200, ``, nil, "expected an answer with data"},
		"wrong type":     {200, `{"data":[]}`, nil, "not as expected"},
		"errors no list": {400, `{"errors":"no"}`, nil, "400"},
		"hostile words":  {400, `{"errors":["\u001b[31m` + strings.Repeat("x", 10000) + `"]}`, nil, `\x1b`},
		"endless":        {200, `{"data":"` + strings.Repeat("x", 33<<20) + `"}`, nil, "at most"},
	} {
		s.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Location", "http://192.0.2.1/")
			w.WriteHeader(c.status)
			_, _ = fmt.Fprint(w, c.body)
			return true
		})
		var out struct{ X string }
		err := byToken(t, s).Do(t.Context(), bao.Request{Method: http.MethodGet, Path: "secret/data/x"}, &out)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || len(err.Error()) > 2000 {
			t.Errorf("%s: got %.300v", name, err)
		}
		if c.want == nil && (errors.Is(err, bao.ErrUnavailable) || errors.Is(err, bao.ErrNotFound)) {
			t.Errorf("%s: got %.300v", name, err)
		}
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	s := baotest.New(t)
	s.Set("x", `{}`)
	c := byToken(t, s)
	var mu sync.Mutex
	failures := 2
	s.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if failures--; failures >= 0 {
			baotest.Fail(w, 503, "Vault is sealed")
			return true
		}
		return false
	})
	if err := c.Do(t.Context(), read, nil); err != nil {
		t.Errorf("a short outage: %v", err)
	}
	// What has effects is sent once.
	mu.Lock()
	failures = 1
	mu.Unlock()
	if err := c.Do(t.Context(), bao.Request{Method: http.MethodPost, Path: "secret/data/x", Body: map[string]string{}}, nil); !errors.Is(err, bao.ErrUnavailable) {
		t.Errorf("a write: %v", err)
	}
	// A server that does not answer is waited for as long as the caller wishes.
	release := make(chan struct{})
	defer close(release)
	s.SetFault(func(http.ResponseWriter, *http.Request) bool { <-release; return true })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, read, nil); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, bao.ErrUnavailable) {
		t.Errorf("no answer: %v", err)
	}
	impatient := client(t, bao.Options{Address: s.URL, TokenFile: file(t, baotest.Root), Timeout: 10 * time.Millisecond})
	if err := impatient.Do(t.Context(), bao.Request{Method: http.MethodGet, Path: "x"}, nil); !errors.Is(err, bao.ErrUnavailable) || !strings.Contains(err.Error(), "within 10ms") {
		t.Errorf("no answer within the time-out: %v", err)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	if err := client(t, bao.Options{Address: gone.URL, TokenFile: file(t, "x")}).Do(t.Context(), read, nil); !errors.Is(err, bao.ErrUnavailable) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	var namespace string
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		namespace = r.Header.Get("X-Vault-Namespace")
		_, _ = fmt.Fprint(w, `{"data":{}}`)
	}))
	t.Cleanup(s.Close)
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	c := client(t, bao.Options{Address: s.URL, TokenFile: file(t, "x"), RootPEM: root, Namespace: "team/a"})
	if err := c.Do(t.Context(), read, nil); err != nil || namespace != "team/a" {
		t.Errorf("namespace %q, %v", namespace, err)
	}
	if err := client(t, bao.Options{Address: s.URL, TokenFile: file(t, "x")}).Do(t.Context(), read, nil); !errors.Is(err, bao.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown root: %v", err)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	ok := bao.Options{Address: "https://bao.example:8200", TokenFile: "/x"}
	if _, err := bao.New(ok); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*bao.Options){
		"http":           func(o *bao.Options) { o.Address = "http://bao.example:8200" },
		"no host":        func(o *bao.Options) { o.Address = "https://" },
		"path":           func(o *bao.Options) { o.Address = "https://x/v1" },
		"query":          func(o *bao.Options) { o.Address = "https://x/?a=b" },
		"user":           func(o *bao.Options) { o.Address = "https://a:b@x" },
		"unix":           func(o *bao.Options) { o.Address = "unix:///x" },
		"no credentials": func(o *bao.Options) { o.TokenFile = "" },
		"both":           func(o *bao.Options) { o.AppRole = &bao.AppRole{RoleID: "x", SecretIDFile: "x"} },
		"half AppRole":   func(o *bao.Options) { o.TokenFile, o.AppRole = "", &bao.AppRole{RoleID: "x"} },
		"AppRole mount": func(o *bao.Options) {
			o.TokenFile, o.AppRole = "", &bao.AppRole{Mount: "../x", RoleID: "x", SecretIDFile: "x"}
		},
		"namespace": func(o *bao.Options) { o.Namespace = "a\r\nb" },
		"roots":     func(o *bao.Options) { o.RootPEM = []byte("x") },
	} {
		o := ok
		change(&o)
		if _, err := bao.New(o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	for path, want := range map[string]bool{"a/b-c/D_1.x": true, "": false, "/a": false, "a/": false, "a//b": false, "../a": false, "a/..": false, "a?b": false, "a%2f": false, strings.Repeat("a", 600): false} {
		if err := bao.CheckPath(path); (err == nil) != want {
			t.Errorf("%.20q: %v", path, err)
		}
	}
}

// FuzzAnswer: whatever a server answers is an error or decodes.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"data":{"x":"y"}}`))
	f.Add(403, []byte(`{"errors":["permission denied"]}`))
	f.Add(200, []byte(`{"auth":{"client_token":"x","lease_duration":-1}}`))
	f.Add(404, []byte(`{"data":{"data":null}}`))
	token := file(f, "x")
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 200 || status > 599 {
			return
		}
		c := client(t, bao.Options{Address: "http://127.0.0.1:1", TokenFile: token, Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.Code = status
			_, _ = w.Body.Write(body)
			return w.Result(), nil
		})})
		var out map[string]any
		if err := c.Do(t.Context(), bao.Request{Method: http.MethodGet, Path: "x"}, &out); err == nil && status != 200 && status != 204 {
			t.Errorf("status %d: no error", status)
		}
		_, _ = c.Renew(t.Context())
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
