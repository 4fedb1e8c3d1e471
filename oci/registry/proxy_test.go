package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http/httpproxy"

	"github.com/coffer-project/coffer/oci/registry"
)

// connectProxy is an HTTP proxy that leads every CONNECT to one server.
func connectProxy(t *testing.T, to string) (proxy *httptest.Server, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var list []string
	proxy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		list = append(list, r.Method+" "+r.Host)
		mu.Unlock()
		conn, err := net.Dial("tcp", to)
		if err != nil || r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer conn.Close()
		w.WriteHeader(http.StatusOK)
		client, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		go func() { _, _ = io.Copy(conn, buf) }()
		_, _ = io.Copy(client, conn)
	}))
	t.Cleanup(proxy.Close)
	return proxy, func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), list...) }
}

// TestProxy: registry traffic goes through the proxy, end to end in TLS.
func TestProxy(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	proxy, asked := connectProxy(t, host(s))
	pull := func(p registry.Proxy) error {
		f, err := p.Func()
		if err != nil {
			t.Fatal(err)
		}
		c, err := registry.New(registry.Options{Proxy: f, RootPEMs: []string{rootPEM(s)}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		repo, err := c.Repository(mustRef(t, "example.com/a/b"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := fetch(t, repo, blobOf(content))
		if err == nil && !bytes.Equal(got, content) {
			t.Error("other content")
		}
		return err
	}
	if err := pull(registry.Proxy{HTTPS: proxy.URL}); err != nil {
		t.Error(err)
	}
	if got := asked(); len(got) != 1 || got[0] != "CONNECT example.com:443" {
		t.Errorf("the proxy was asked for %v", got)
	}
	// The proxy is for the other scheme: nothing of it here.
	if f, err := (registry.Proxy{HTTP: proxy.URL}).Func(); err != nil || f == nil {
		t.Error(err)
	} else if u, err := f(&http.Request{URL: &url.URL{Scheme: "https", Host: "example.com"}}); u != nil || err != nil {
		t.Errorf("%v, %v", u, err)
	}
}

// TestNoProxyLikeNetHTTP: what everybody knows from the environment variables
// means the same here.
func TestNoProxyLikeNetHTTP(t *testing.T) {
	t.Parallel()
	lists := []string{
		"", "*", "example.com", ".example.com", "*.example.com", "example.com:8443", "10.0.0.0/8", "10.1.2.3", "10.1.2.3:5000", "2001:db8::/32", "[2001:db8::1]:5000", "2001:db8::1",
		"a.example, b.example", "EXAMPLE.com", ".com", "com",
	}
	hosts := []string{
		"example.com", "a.example.com", "aexample.com", "example.com:8443", "a.example.com:8443", "example.com:443", "10.1.2.3", "10.1.2.3:5000", "11.1.2.3", "[2001:db8::1]", "[2001:db8::1]:5000",
		"[2001:db9::1]", "localhost", "localhost:5000", "127.0.0.1", "[::1]:5000", "b.example", "Example.COM",
	}
	for _, list := range lists {
		ours, err := (registry.Proxy{HTTPS: "http://p.example:1", HTTP: "http://q.example:2", NoProxy: list}).Func()
		if err != nil {
			t.Errorf("%q: %v", list, err)
			continue
		}
		theirs := (&httpproxy.Config{HTTPSProxy: "http://p.example:1", HTTPProxy: "http://q.example:2", NoProxy: list}).ProxyFunc()
		for _, h := range hosts {
			for _, scheme := range []string{"https", "http"} {
				u := &url.URL{Scheme: scheme, Host: h}
				got, err := ours(&http.Request{URL: u})
				want, _ := theirs(u)
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("no_proxy %q, %s: got %v, %v, want %v", list, u, got, err, want)
				}
			}
		}
	}
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	for _, p := range []registry.Proxy{
		{HTTPS: "socks5://x:1"}, {HTTP: "http://"}, {HTTPS: "http://u:secret-password@x:1"}, {HTTPS: "http://x:1/path"}, {HTTPS: "http://x:1?secret-password"}, {HTTPS: "https://secret-password@"},
		{NoProxy: "10.0.0.0/99"}, {NoProxy: "a.*.b"}, {NoProxy: "."}, {NoProxy: strings.Repeat("a,", 300)}, {NoProxy: "u@h"},
	} {
		f, err := p.Func()
		if err == nil || f != nil || strings.Contains(err.Error(), "secret-password") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if f, err := (registry.Proxy{NoProxy: "x"}).Func(); f != nil || err != nil {
		t.Errorf("no proxy: %v", err)
	}
}
