package listener

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	past   = time.Now().Add(-time.Hour)
	future = time.Now().Add(time.Hour)
)

// dial returns the common name of the server's certificate and its answer.
func dial(addr string, c *tls.Config) (string, string, error) {
	c.InsecureSkipVerify = true // which certificate it is, is what is tested
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://" + addr + "/")
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.TLS.PeerCertificates[0].Subject.CommonName, string(b), err
}

func start(t *testing.T, x *TLS) string {
	t.Helper()
	l := listen(t)
	serve(t, tls.NewListener(l, x.Config()))
	return l.Addr().String()
}

func TestReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := write(t, dir, issue(t, "one", nil, past, future))
	var mu sync.Mutex
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return out.Write(p)
	}), nil))
	x, err := LoadTLS(TLSOptions{CertFile: f.cert, KeyFile: f.key, Interval: time.Hour, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	addr := start(t, x)
	ctx, cancel := context.WithCancel(t.Context())
	wake := make(chan os.Signal)
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx, wake) }()
	// A second signal is taken only after the first has been dealt with.
	reload := func() { wake <- syscall.SIGHUP; wake <- syscall.SIGHUP }
	expect := func(want string) {
		t.Helper()
		if cn, _, err := dial(addr, &tls.Config{}); err != nil || cn != want {
			t.Errorf("got %q, %v, expected %q", cn, err, want)
		}
	}
	expect("one")
	two := issue(t, "two", nil, past, future)
	// The certificate without its key, an expired one, garbage, nothing: the old stays.
	writeFile(t, f.cert, two.certPEM())
	reload()
	expect("one")
	writeFile(t, f.key, two.keyPEM(t))
	reload()
	expect("two")
	write(t, dir, issue(t, "expired", nil, past, time.Now().Add(-time.Minute)))
	reload()
	expect("two")
	writeFile(t, f.cert, []byte("garbage"))
	reload()
	expect("two")
	if err := os.Remove(f.cert); err != nil {
		t.Fatal(err)
	}
	reload()
	expect("two")
	write(t, dir, issue(t, "three", nil, past, future))
	reload()
	expect("three")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(out.String(), "stays in use"); n != 4 {
		t.Errorf("%d failures were logged, expected each of 4 once:\n%s", n, out.String())
	}
	if n := strings.Count(out.String(), "TLS files reloaded"); n != 2 {
		t.Errorf("%d reloads were logged, expected 2:\n%s", n, out.String())
	}
	if strings.Contains(out.String(), "BEGIN") {
		t.Error("the log holds PEM")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Without a signal the files are looked at now and then.
func TestReloadByTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := write(t, dir, issue(t, "one", nil, past, future))
	x, err := LoadTLS(TLSOptions{CertFile: f.cert, KeyFile: f.key, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	addr := start(t, x)
	go func() { _ = x.Run(t.Context(), nil) }()
	write(t, dir, issue(t, "two", nil, past, future))
	deadline := time.Now().Add(10 * time.Second)
	for {
		cn, _, err := dial(addr, &tls.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if cn == "two" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %q", cn)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := write(t, dir, issue(t, "server", nil, past, future))
	ca, other := issue(t, "ca", nil, past, future), issue(t, "ca", nil, past, future)
	writeFile(t, f.ca, ca.certPEM())
	x, err := LoadTLS(TLSOptions{CertFile: f.cert, KeyFile: f.key, ClientCAFile: f.ca})
	if err != nil {
		t.Fatal(err)
	}
	addr := start(t, x)
	with := func(p *pair) *tls.Config {
		cert := tls.Certificate{Certificate: [][]byte{p.cert.Raw}, PrivateKey: p.key}
		return &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
	}
	if _, body, err := dial(addr, &tls.Config{}); err != nil || body != "client=127.0.0.1;" {
		t.Errorf("without a certificate: %q, %v", body, err)
	}
	if _, body, err := dial(addr, with(issue(t, "alice", ca, past, future))); err != nil || !strings.HasSuffix(body, "cn=alice") {
		t.Errorf("with one: %q, %v", body, err)
	}
	for name, p := range map[string]*pair{
		"another authority": issue(t, "mallory", other, past, future),
		"expired":           issue(t, "alice", ca, past, time.Now().Add(-time.Minute)),
		"self-signed":       issue(t, "mallory", nil, past, future),
	} {
		if _, body, err := dial(addr, with(p)); err == nil {
			t.Errorf("%s: was let in: %q", name, body)
		}
	}
	// A new authority is in force after a reload, the old one no more.
	writeFile(t, f.ca, other.certPEM())
	if err := x.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dial(addr, with(issue(t, "alice", ca, past, future))); err == nil {
		t.Error("the old authority is still in force")
	}
	writeFile(t, f.ca, nil)
	if err := x.Reload(); err == nil {
		t.Error("an empty client CA file was accepted")
	}
	if _, _, err := dial(addr, with(issue(t, "alice", other, past, future))); err != nil {
		t.Errorf("after a failed reload: %v", err)
	}
}

func TestTLSVersionAndTickets(t *testing.T) {
	t.Parallel()
	f := write(t, t.TempDir(), issue(t, "server", nil, past, future))
	x, err := LoadTLS(TLSOptions{CertFile: f.cert, KeyFile: f.key})
	if err != nil {
		t.Fatal(err)
	}
	addr := start(t, x)
	if _, _, err := dial(addr, &tls.Config{MaxVersion: tls.VersionTLS12, MinVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ClientSessionCache: cache, ServerName: "x", NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, get)
		_, _ = io.ReadAll(c)
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		c.Close()
	}
}

func TestSource(t *testing.T) {
	t.Parallel()
	p := issue(t, "own", nil, past, future)
	cert := tls.Certificate{Certificate: [][]byte{p.cert.Raw}, PrivateKey: p.key, Leaf: p.cert}
	x, err := LoadTLS(TLSOptions{Certificate: func() (*tls.Certificate, error) { return &cert, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if cn, _, err := dial(start(t, x), &tls.Config{}); err != nil || cn != "own" {
		t.Errorf("got %q, %v", cn, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	good := issue(t, "one", nil, past, future)
	for name, c := range map[string]struct {
		change func(*testing.T, *files)
		want   string
	}{
		"no key file":        {func(t *testing.T, f *files) { f.key = "" }, "expected a certificate and a key file"},
		"nothing":            {func(t *testing.T, f *files) { *f = files{} }, "expected a certificate and a key file"},
		"missing":            {func(t *testing.T, f *files) { f.cert += "x" }, "no such file"},
		"readable by others": {func(t *testing.T, f *files) { _ = os.Chmod(f.key, 0o644) }, "expected mode 0600"},
		"another key":        {func(t *testing.T, f *files) { writeFile(t, f.key, issue(t, "x", nil, past, future).keyPEM(t)) }, "does not match"},
		"swapped":            {func(t *testing.T, f *files) { f.cert, f.key = f.key, f.cert }, "PEM"},
		"expired":            {func(t *testing.T, f *files) { *f = writeAll(t, issue(t, "x", nil, past, past.Add(time.Minute))) }, "expected one that is valid now"},
		"not yet valid":      {func(t *testing.T, f *files) { *f = writeAll(t, issue(t, "x", nil, future, future.Add(time.Hour))) }, "expected one that is valid now"},
		"too large":          {func(t *testing.T, f *files) { writeFile(t, f.cert, make([]byte, maxFile+1)) }, "expected a file of at most"},
		"directory":          {func(t *testing.T, f *files) { f.cert = t.TempDir() }, "expected a file"},
		"client CA missing":  {func(t *testing.T, f *files) { f.ca += "x" }, "tls.client_ca"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := write(t, t.TempDir(), good)
			writeFile(t, f.ca, good.certPEM())
			c.change(t, &f)
			_, err := LoadTLS(TLSOptions{CertFile: f.cert, KeyFile: f.key, ClientCAFile: f.ca})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, expected %q", err, c.want)
			}
		})
	}
}

func writeAll(t *testing.T, p *pair) files {
	t.Helper()
	f := write(t, t.TempDir(), p)
	writeFile(t, f.ca, p.certPEM())
	return f
}
