package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	caLifetime     = 10 * 365 * 24 * time.Hour
	serverLifetime = 90 * 24 * time.Hour
	// renewBefore is how long before its end a server certificate is replaced.
	renewBefore = 30 * 24 * time.Hour
	// backdate tolerates clients whose clock is behind.
	backdate = time.Hour
	// warnEvery is how often a renewal that fails is logged; every connection tries it.
	warnEvery = time.Minute
)

// Authority is the trustee's own TLS authority with its server certificate,
// which it renews in time. It is safe for concurrent use.
type Authority struct {
	d     Dir
	names []string
	now   func() time.Time
	log   *slog.Logger
	root  []byte
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey

	mu      sync.Mutex
	current *tls.Certificate
	warned  time.Time
}

// Authority loads or makes the authority (P-256, ten years) and a server
// certificate for names.
func (d Dir) Authority(names []string, now func() time.Time, log *slog.Logger) (*Authority, error) {
	a := &Authority{d: d, names: names, now: now, log: log}
	text, err := d.loadOrCreate(caKey, newECKey)
	if err != nil {
		return nil, fmt.Errorf("TLS authority: %w", err)
	}
	if a.key, err = parseKey[*ecdsa.PrivateKey](d.File(caKey), text); err != nil {
		return nil, err
	}
	if a.root, err = d.loadOrCreate(caCert, a.newRoot); err != nil {
		return nil, fmt.Errorf("TLS authority: %w", err)
	}
	block, _ := pem.Decode(a.root)
	if block == nil {
		return nil, fmt.Errorf("TLS authority %s: expected PEM", d.File(caCert))
	}
	if a.ca, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("TLS authority %s: %w", d.File(caCert), err)
	}
	if !a.key.PublicKey.Equal(a.ca.PublicKey) {
		return nil, fmt.Errorf("TLS authority: %s and %s do not belong together", d.File(caCert), d.File(caKey))
	}
	_, err = a.Certificate()
	return a, err
}

// RootPEM is the authority's certificate: what clients pin.
func (a *Authority) RootPEM() []byte { return slices.Clone(a.root) }

// Certificate is the server certificate, renewed when it is about to expire. A
// renewal that fails is tried again at the next call, until the certificate
// has expired.
func (a *Authority) Certificate() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil {
		a.current = a.load()
	}
	if a.good(a.current, renewBefore) {
		return a.current, nil
	}
	fresh, err := a.issue()
	if err != nil && a.good(a.current, 0) {
		if now := a.now(); now.Sub(a.warned) > warnEvery {
			a.warned = now
			a.log.Error("the TLS certificate cannot be renewed", "error", err, "expires", a.current.Leaf.NotAfter)
		}
		return a.current, nil
	}
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	a.current = fresh
	return fresh, nil
}

// load returns what is stored, nil when it is missing or unusable: a new
// certificate costs nothing.
func (a *Authority) load() *tls.Certificate {
	key, err := ReadSecret(a.d.File(serverKey))
	if err != nil {
		return nil
	}
	chain, err := ReadFile(a.d.File(serverCert))
	if err != nil {
		return nil
	}
	c, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil
	}
	return &c
}

// good reports whether c is ours, for our names, and valid for more than left.
func (a *Authority) good(c *tls.Certificate, left time.Duration) bool {
	if c == nil || c.Leaf == nil || c.Leaf.CheckSignatureFrom(a.ca) != nil {
		return false
	}
	now := a.now()
	if now.Before(c.Leaf.NotBefore) || !now.Before(c.Leaf.NotAfter.Add(-left)) {
		return false
	}
	return !slices.ContainsFunc(a.names, func(n string) bool { return c.Leaf.VerifyHostname(n) != nil })
}

func (a *Authority) newRoot() ([]byte, error) {
	now := a.now()
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Coffer trustee authority"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func (a *Authority) issue() (*tls.Certificate, error) {
	keyText, err := newECKey()
	if err != nil {
		return nil, err
	}
	key, err := parseKey[*ecdsa.PrivateKey](serverKey, keyText)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Coffer trustee"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(serverLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range a.names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.ca, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	// Two processes may write at once; a pair that does not fit is reissued at the next load.
	if err := errors.Join(a.d.replace(serverKey, keyText), a.d.replace(serverCert, chain)); err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(chain, keyText)
	return &c, err
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// ReadPEM reads a file of certificates to hand out; an empty name gives nil.
func ReadPEM(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: expected certificates in PEM", file)
	}
	return text, nil
}
