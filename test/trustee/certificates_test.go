package tests

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestCertificates replaces a server's certificate without a restart.
func TestCertificates(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	dir := t.TempDir()
	put := func(serial int64) {
		c, k := ca.issue(serial, x509.ExtKeyUsageServerAuth)
		write(t, filepath.Join(dir, "server.key"), k)
		write(t, filepath.Join(dir, "server.pem"), c)
	}
	put(1)
	s := launch(t, the.plain, dir, "tls.certificate = \"server.pem\"\ntls.private_key = \"server.key\"\n")
	s.root = []byte(ca.pem)
	s.populate("")
	s.check("")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	serial := func() int64 {
		c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Errorf("serial %d", n)
	}
	put(2)
	s.signal(syscall.SIGHUP)
	eventually(t, "the new certificate is used", func() bool { return serial() == 2 })
	s.check("")
	// What cannot be used is reported, and the old one stays.
	write(t, filepath.Join(dir, "server.pem"), "-----BEGIN CERTIFICATE-----\nno\n")
	s.signal(syscall.SIGHUP)
	eventually(t, "the broken file is logged", func() bool {
		return strings.Contains(s.log.String(), `"level":"ERROR"`) && strings.Contains(s.log.String(), "server.pem")
	})
	if n := serial(); n != 2 {
		t.Errorf("serial %d", n)
	}
	_, other := ca.issue(3, x509.ExtKeyUsageServerAuth)
	put(4)
	write(t, filepath.Join(dir, "server.key"), other)
	s.signal(syscall.SIGHUP)
	put(5)
	s.signal(syscall.SIGHUP)
	eventually(t, "it recovers", func() bool { return serial() == 5 })
	// TLS 1.2 is history.
	c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS12}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "https://"))
	if err == nil {
		_ = c.Close()
		t.Error("TLS 1.2 is accepted")
	}
}
