package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/kek/bao"
	"github.com/coffer-project/coffer/internal/trustee/kek/bao/baotest"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/backendtest"
	"github.com/coffer-project/coffer/secret"
)

// The server is package baotest's stand-in: see there for what it proves.
func start(t testing.TB) (*baotest.Server, *bao.Client) {
	t.Helper()
	s := baotest.New(t)
	f := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(f, []byte(baotest.Root), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := bao.New(bao.Options{Address: s.URL, TokenFile: f})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func open(t testing.TB, server Server, o Options) *Backend {
	t.Helper()
	b, err := New(server, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBackend(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "coffer/prod"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			backendtest.Run(t, backendtest.Options{}, func(t testing.TB) resource.Backend {
				_, c := start(t)
				return open(t, c, Options{Prefix: prefix})
			})
		})
	}
}

// A server that somebody started; the contents stay there.
func TestRealServer(t *testing.T) {
	t.Parallel()
	address, token := baotest.Real(t)
	c, err := bao.New(bao.Options{Address: address, TokenFile: token})
	if err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, backendtest.Options{MaxContent: 512 << 10}, func(t testing.TB) resource.Backend {
		return open(t, c, Options{Prefix: "coffer-test/" + rand.Text()})
	})
}

var key = resource.Path{Repository: "repo", Type: "key", Tag: "one"}

func get(t testing.TB, b *Backend, version int64) (string, error) {
	t.Helper()
	got, _, err := b.Get(t.Context(), "default", key, version)
	if err != nil && got.Len() != 0 {
		t.Errorf("content beside the error %v", err)
	}
	return string(got.Expose()), err
}

// What others write into the engine.
func TestForeignSecrets(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	const path = "default/repo/key/one"
	text := open(t, c, Options{Field: "password", Encoding: Text})
	s.Set(path, `{"password":"correct horse","user":"x"}`)
	if got, err := get(t, text, 0); err != nil || got != "correct horse" {
		t.Errorf("text: %q, %v", got, err)
	}
	if v, err := text.Put(t.Context(), "default", key, secret.New([]byte("battery"))); err != nil || v != 2 {
		t.Errorf("put: %d, %v", v, err)
	}
	if got, err := get(t, text, 2); err != nil || got != "battery" {
		t.Errorf("text: %q, %v", got, err)
	}
	if _, err := text.Put(t.Context(), "default", key, secret.New([]byte{0xff})); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("binary as text: %v", err)
	}
	b := open(t, c, Options{MaxContent: 100})
	s.Set(path, `{"data":[0,255,7]}`)
	if got, err := get(t, b, 0); err != nil || got != "\x00\xff\x07" {
		t.Errorf("an array of numbers: %q, %v", got, err)
	}
	for name, c := range map[string]struct{ data, want string }{
		"missing":       {`{"other":"marker"}`, "expected a string"},
		"not base64":    {`{"data":"marker!"}`, "base64"},
		"number":        {`{"data":7}`, "expected a string"},
		"null":          {`{"data":null}`, "expected a string"},
		"nested":        {`{"data":{"marker":1}}`, "expected a string"},
		"large numbers": {`{"data":[256]}`, "0 to 255"},
		"fractions":     {`{"data":[1.5]}`, "0 to 255"},
		"strings":       {`{"data":["marker"]}`, "0 to 255"},
		"too long":      {`{"data":"` + strings.Repeat("AAAA", 100) + `"}`, "at most 100"},
	} {
		s.Set(path, c.data)
		if _, err := get(t, b, 0); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "marker") || errors.Is(err, resource.ErrNotFound) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// A secret may have the name of a folder.
	s.Set("default/repo", `{}`)
	s.Set("default/repo/key", `{}`)
	s.Set("default/repo/key/one/more", `{}`)
	s.Set("default/ü/x/y", `{}`)
	if list, err := b.List(t.Context(), "default", "", "", 10); err != nil || len(list) != 1 || list[0].Path != key.String() {
		t.Errorf("list: %+v, %v", list, err)
	}
}

// An operator deletes the newest version with the server's own tools.
func TestDeletedByOthers(t *testing.T) {
	t.Parallel()
	_, c := start(t)
	b := open(t, c, Options{})
	for range 2 {
		if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("x"))); err != nil {
			t.Fatal(err)
		}
	}
	err := c.Do(t.Context(), bao.Request{Method: http.MethodPost, Path: "secret/delete/default/repo/key/one", Body: map[string][]int{"versions": {2}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := get(t, b, 0); !errors.Is(err, resource.ErrNotFound) {
		t.Errorf("the newest version: %v; an older one must not take its place", err)
	}
	if list, err := b.List(t.Context(), "default", "", "", 10); err != nil || len(list) != 0 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if was, err := b.Delete(t.Context(), "default", key); err != nil || !was {
		t.Errorf("delete: %v, %v", was, err)
	}
	if _, err := get(t, b, 1); !errors.Is(err, resource.ErrNotFound) {
		t.Errorf("version 1: %v", err)
	}
}

func TestBrokenServer(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	b := open(t, c, Options{})
	if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	every := func(status int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			_, _ = fmt.Fprint(w, body)
			return true
		}
	}
	all := func() map[string]error {
		out := map[string]error{}
		_, out["get"] = get(t, b, 1)
		_, out["put"] = b.Put(t.Context(), "default", key, secret.New([]byte("y")))
		_, out["delete"] = b.Delete(t.Context(), "default", key)
		_, out["list"] = b.List(t.Context(), "default", "repo/key", "", 10)
		_, out["versions"] = b.Versions(t.Context(), "default", key)
		return out
	}
	for name, c := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"sealed":            {503, `{"errors":["Vault is sealed"]}`, resource.ErrUnavailable},
		"internal":          {500, `{"errors":["boom"]}`, resource.ErrUnavailable},
		"denied":            {403, `{"errors":["permission denied"]}`, bao.ErrDenied},
		"another version":   {200, `{"data":{"data":{"data":"eA=="},"metadata":{"version":7},"versions":{"x":{}}},"keys":7}`, nil},
		"no version":        {200, `{"data":{"data":{"data":"eA=="},"versions":{"-1":{}},"keys":[7]}}`, nil},
		"versions too high": {200, `{"data":{"current_version":1,"versions":{"2":{}},"metadata":{"version":2},"keys":{}}}`, nil},
		"negative":          {200, `{"data":{"current_version":-1,"keys":"a"}}`, nil},
	} {
		s.SetFault(every(c.status, c.body))
		for op, err := range all() {
			if err == nil || c.want != nil && !errors.Is(err, c.want) || errors.Is(err, resource.ErrNotFound) {
				t.Errorf("%s: %s: got %v, want %v", name, op, err, c.want)
			}
		}
	}
	// Names that are none are left out, whatever the server lists.
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("list") == "" {
			return false
		}
		_, _ = fmt.Fprint(w, `{"data":{"keys":["../","..","a/b/","%2e%2e/","","/","\u0000/"]}}`)
		return true
	})
	if list, err := b.List(t.Context(), "default", "", "", 10); err != nil || len(list) != 0 {
		t.Errorf("hostile names: %+v, %v", list, err)
	}
	// Other writers are always faster: it ends.
	var writes atomic.Int64
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		writes.Add(1)
		baotest.Fail(w, 400, "check-and-set parameter did not match the current version")
		return true
	})
	if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("y"))); !errors.Is(err, resource.ErrUnavailable) || writes.Load() != overtakes {
		t.Errorf("overtaken: %v after %d writes", err, writes.Load())
	}
	// An answer that is lost after the write: it is not repeated.
	writes.Store(0)
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		writes.Add(1)
		baotest.Fail(w, 502)
		return true
	})
	if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("y"))); !errors.Is(err, resource.ErrUnavailable) || writes.Load() != 1 {
		t.Errorf("lost answer: %v after %d writes", err, writes.Load())
	}
	release := make(chan struct{})
	defer close(release)
	s.SetFault(func(http.ResponseWriter, *http.Request) bool { <-release; return true })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := b.Get(ctx, "default", key, 0); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, resource.ErrUnavailable) {
		t.Errorf("slow: %v", err)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"mount": {Mount: "../x"}, "prefix": {Prefix: "a//b"}, "encoding": {Encoding: "hex"}, "size": {MaxContent: -1}, "field": {Field: strings.Repeat("x", 200)},
	} {
		if _, err := New(nil, o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func FuzzContent(f *testing.F) {
	f.Add("eA==", true)
	f.Add("x", false)
	f.Fuzz(func(t *testing.T, field string, text bool) {
		o := Options{Encoding: Base64, MaxContent: 64}
		if text {
			o.Encoding = Text
		}
		b, err := New(nil, o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.content(field)
		if got.Len() > 64 || err != nil && got.Len() != 0 {
			t.Errorf("%q: %d bytes, %v", field, got.Len(), err)
		}
	})
}
