package kbs

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	t.Run("other root", func(t *testing.T) {
		c, waits := ft.client(func(o *ClientOptions) { o.RootPEM = otherRoot(t) })
		var unknown x509.UnknownAuthorityError
		if err := c.Attest(t.Context()); !errors.As(err, &unknown) || len(*waits) != 0 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("system roots", func(t *testing.T) {
		c, _ := ft.client(func(o *ClientOptions) { o.RootPEM = nil })
		if err := c.Attest(t.Context()); err == nil {
			t.Error("a certificate that no system root vouches for was accepted")
		}
	})
	t.Run("name", func(t *testing.T) {
		c, _ := ft.client(func(o *ClientOptions) {
			o.URL = "https://kbs.other.example:1"
			o.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, ft.server.Listener.Addr().String())
			}
		})
		var host x509.HostnameError
		if err := c.Attest(t.Context()); !errors.As(err, &host) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("expired", func(t *testing.T) {
		c, _ := ft.client(func(o *ClientOptions) {
			o.Now = func() time.Time { return ft.server.Certificate().NotAfter.Add(time.Hour) }
		})
		var invalid x509.CertificateInvalidError
		if err := c.Attest(t.Context()); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
			t.Errorf("got %v", err)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		old := httptest.NewUnstartedServer(ft)
		old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
		old.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		old.StartTLS()
		defer old.Close()
		c, _ := ft.client(func(o *ClientOptions) { o.URL = old.URL })
		if err := c.Attest(t.Context()); err == nil || !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("got %v", err)
		}
	})
	if n := ft.count(AuthPath); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func otherRoot(t *testing.T) []byte {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestNewClientRefuses(t *testing.T) {
	t.Parallel()
	good := ClientOptions{URL: "https://kbs.example", Attester: fakeAttester{}, Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader}
	if _, err := NewClient(good); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*ClientOptions)
		want   string
	}{
		"attester":  {func(o *ClientOptions) { o.Attester = nil }, "no attester"},
		"logger":    {func(o *ClientOptions) { o.Logger = nil }, "no logger"},
		"rand":      {func(o *ClientOptions) { o.Rand = nil }, "no source of randomness"},
		"initdata":  {func(o *ClientOptions) { o.InitData = []byte{0xff} }, "not valid UTF-8"},
		"no URL":    {func(o *ClientOptions) { o.URL = "" }, "expected https://"},
		"http":      {func(o *ClientOptions) { o.URL = "http://kbs.example" }, "expected https: the protocol encrypts"},
		"no host":   {func(o *ClientOptions) { o.URL = "https:///x" }, "has no host"},
		"opaque":    {func(o *ClientOptions) { o.URL = "https:kbs.example" }, "has no host"},
		"user":      {func(o *ClientOptions) { o.URL = "https://u:p@kbs.example" }, "user name"},
		"query":     {func(o *ClientOptions) { o.URL = "https://kbs.example/?x" }, "no query"},
		"fragment":  {func(o *ClientOptions) { o.URL = "https://kbs.example/#x" }, "no fragment"},
		"malformed": {func(o *ClientOptions) { o.URL = "https://kbs example" }, "malformed"},
		"no PEM":    {func(o *ClientOptions) { o.RootPEM = []byte("x") }, "is not PEM"},
		"blank PEM": {func(o *ClientOptions) { o.RootPEM = []byte("\n") }, "there is no certificate"},
	} {
		o := good
		tc.change(&o)
		c, err := NewClient(o)
		if err == nil || c != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
	c, err := NewClient(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resource(t.Context(), ResourceURI{}); err == nil {
		t.Error("the zero URI was asked for")
	}
}

func TestParseRoots(t *testing.T) {
	t.Parallel()
	one := otherRoot(t)
	two := append(append([]byte("\n"), one...), otherRoot(t)...)
	for _, ok := range [][]byte{one, two} {
		if _, err := ParseRoots(ok); err != nil {
			t.Error(err)
		}
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	for name, tc := range map[string]struct{ in, want string }{
		"empty":     {"", "there is no certificate"},
		"text":      {"hello", "after 0 certificates is not PEM"},
		"comment":   {string(one) + "# comment", "after 1 certificates is not PEM"},
		"key":       {string(one) + string(key), "PEM block 2: expected CERTIFICATE, got PRIVATE KEY"},
		"truncated": {string(one[:len(one)-10]), "PEM block 1 is malformed"},
		"DER":       {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1:"},
		"many":      {strings.Repeat(string(one), maxRoots+1), "more than 64"},
		"size":      {strings.Repeat("\n", maxRootBytes+1), "the limit is"},
	} {
		if _, err := ParseRoots([]byte(tc.in)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
}
