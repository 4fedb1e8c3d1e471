package listener

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve answers every request with the client's address.
func serve(t *testing.T, l net.Listener) {
	t.Helper()
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "client="+ClientText(r)+";")
			if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
				_, _ = io.WriteString(w, "cn="+r.TLS.VerifiedChains[0][0].Subject.CommonName)
			}
		}),
		ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// raw sends bytes and returns the answer, empty where the connection was cut.
func raw(t *testing.T, addr, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, text)
	b, _ := io.ReadAll(c)
	return string(b)
}

const get = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"

func TestProxy(t *testing.T) {
	t.Parallel()
	trusted := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	others := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	const v1 = "PROXY TCP4 192.0.2.5 127.0.0.1 4711 443\r\n"
	const v1v6 = "PROXY TCP6 2001:db8::5 ::1 4711 443\r\n"
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x06\x7f\x00\x00\x01\x12\x67\x01\xbb"
	v2local := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	for name, c := range map[string]struct {
		proxy Proxy
		send  string
		want  string // empty: refused
	}{
		"version 1":                        {Proxy{Trusted: trusted}, v1 + get, "client=192.0.2.5;"},
		"version 1, IPv6":                  {Proxy{Trusted: trusted}, v1v6 + get, "client=2001:db8::5;"},
		"version 2":                        {Proxy{Trusted: trusted}, v2 + get, "client=192.0.2.6;"},
		"version 2, health check":          {Proxy{Trusted: trusted, Required: true}, v2local + get, "client=127.0.0.1;"},
		"trusted without header":           {Proxy{Trusted: trusted}, get, "client=127.0.0.1;"},
		"trusted without header, required": {Proxy{Trusted: trusted, Required: true}, get, ""},
		"required":                         {Proxy{Trusted: trusted, Required: true}, v1 + get, "client=192.0.2.5;"},
		"untrusted sends a header":         {Proxy{Trusted: others}, v1 + get, ""},
		"untrusted sends version 2":        {Proxy{Trusted: others}, v2 + get, ""},
		"untrusted without header":         {Proxy{Trusted: others}, get, "client=127.0.0.1;"},
		"no proxies":                       {Proxy{}, v1 + get, ""},
		"no proxies, no header":            {Proxy{}, get, "client=127.0.0.1;"},
		"malformed":                        {Proxy{Trusted: trusted}, "PROXY TCP4 nonsense\r\n" + get, ""},
		"endless":                          {Proxy{Trusted: trusted}, "PROXY TCP4 " + strings.Repeat("1", 100_000), ""},
		"two headers":                      {Proxy{Trusted: trusted}, v1 + "PROXY TCP4 192.0.2.9 127.0.0.1 1 2\r\n" + get, ""},
		"version 2, too long":              {Proxy{Trusted: trusted}, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + get, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.proxy.HeaderTimeout = 300 * time.Millisecond
			l := listen(t)
			serve(t, c.proxy.Listener(l))
			got := raw(t, l.Addr().String(), c.send)
			if c.want == "" && strings.Contains(got, "client=") || c.want != "" && !strings.HasSuffix(got, c.want) {
				t.Errorf("got %q, expected %q", got, c.want)
			}
		})
	}
}

// A load balancer that connects and says nothing holds up nobody else.
func TestProxySilentConnection(t *testing.T) {
	t.Parallel()
	l := listen(t)
	serve(t, Proxy{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, HeaderTimeout: time.Minute}.Listener(l))
	for range 5 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	done := make(chan string, 1)
	go func() { done <- raw(t, l.Addr().String(), "PROXY TCP4 192.0.2.5 127.0.0.1 4711 443\r\n"+get) }()
	select {
	case got := <-done:
		if !strings.HasSuffix(got, "client=192.0.2.5;") {
			t.Errorf("got %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("no answer while others are silent")
	}
}

func TestParsePrefixes(t *testing.T) {
	t.Parallel()
	got, err := ParsePrefixes([]string{"10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::1"})
	if err != nil || len(got) != 4 || got[1].String() != "192.0.2.1/32" || got[3].String() != "::1/128" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, s := range []string{"", "10.0.0.1/8", "10.0.0.0/33", "host", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.0/-1", "0x10.0.0.1"} {
		if _, err := ParsePrefixes([]string{s}); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestClientAddr(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1", "[2001:db8::1]:80": "2001:db8::1", "[fe80::1%eth0]:80": "fe80::1",
		"@": "", "": "", "host:80": "", "192.0.2.1": "",
	} {
		if got := ClientText(&http.Request{RemoteAddr: in, Header: http.Header{"X-Forwarded-For": {"203.0.113.7"}}}); got != want {
			t.Errorf("%q: got %q, expected %q", in, got, want)
		}
	}
}

// pair is a certificate and its key, signed by an authority or by itself.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issue(t *testing.T, cn string, by *pair, from, to time.Time) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: by == nil,
	}
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{cert, key}
}

func (p *pair) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

func (p *pair) keyPEM(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

type files struct{ cert, key, ca string }

func write(t *testing.T, dir string, p *pair) files {
	t.Helper()
	f := files{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")}
	writeFile(t, f.cert, p.certPEM())
	writeFile(t, f.key, p.keyPEM(t))
	return f
}

func writeFile(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
