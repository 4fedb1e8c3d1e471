package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

const (
	// caLifetime of an authority's certificate. It is as secret as the
	// database, and clients pin it: it outlives most deployments.
	caLifetime = 10 * 365 * 24 * time.Hour
	// backdate covers clocks that are behind.
	backdate = 5 * time.Minute
)

// authority signs for one tenant.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

// authority loads or makes a tenant's.
func (p *Plugin) authority(ctx context.Context, t tenant.Name) (*authority, error) {
	p.mu.Lock()
	a := p.authorities[t]
	p.mu.Unlock()
	if a != nil {
		return a, nil
	}
	// Not under the lock: a slow database holds up nobody but who asks it.
	content, err := p.o.Secrets.Secret(ctx, "pki/"+string(t)+"/ca", func() ([]byte, error) { return p.create(t) })
	if err != nil {
		return nil, fmt.Errorf("pki: authority of tenant %s: %w", t, err)
	}
	defer content.Clear()
	if a, err = load(content.Expose()); err != nil {
		return nil, fmt.Errorf("pki: authority of tenant %s: %w", t, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.authorities[t] = a
	return a, nil
}

// create makes an authority: its certificate and its key in PEM, in this order.
func (p *Plugin) create(t tenant.Name) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial(p.o.Rand)
	if err != nil {
		return nil, err
	}
	now := p.o.Now()
	name := pkix.Name{CommonName: "Coffer authority of tenant " + string(t), Organization: []string{p.o.TrustDomain}}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: name, NotBefore: now.Add(-backdate), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(private)
	return append([]byte(encodeCertificate(der)), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}

func load(content []byte) (*authority, error) {
	first, rest := pem.Decode(content)
	if first == nil || first.Type != "CERTIFICATE" {
		return nil, errors.New("stored secret: expected a PEM certificate")
	}
	second, rest := pem.Decode(rest)
	if second == nil || second.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("stored secret: expected a PEM private key after the certificate and nothing more")
	}
	cert, err := x509.ParseCertificate(first.Bytes)
	if err != nil {
		return nil, fmt.Errorf("stored secret: certificate: %w", err)
	}
	private, err := x509.ParsePKCS8PrivateKey(second.Bytes)
	if err != nil {
		return nil, errors.New("stored secret: the private key is malformed")
	}
	key, ok := private.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("stored secret: the private key is not the certificate's")
	}
	return &authority{cert: cert, key: key, pem: encodeCertificate(first.Bytes)}, nil
}

// issue makes a certificate, and its key where the guest has none.
func (a *authority) issue(p *Plugin, role Role, w *wanted, r plugin.Request) (*certificate, error) {
	out := &certificate{CA: a.pem}
	public := w.public
	if public == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		defer clear(private)
		out.PrivateKey = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
		public = &key.PublicKey
	}
	template, err := p.template(role, w, r, public)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("the authority's certificate expires at %s: expected it to outlive what it issues", a.cert.NotAfter.Format(time.RFC3339))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	out.Certificate = encodeCertificate(der)
	out.detail = fmt.Sprintf("certificate %x until %s for %s", template.SerialNumber, template.NotAfter.UTC().Format(time.RFC3339), strings.Join(names(template), " "))
	return out, nil
}

func (p *Plugin) template(role Role, w *wanted, r plugin.Request, public crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := newSerial(p.o.Rand)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	keyID := sha256.Sum256(spki)
	now := p.o.Now()
	t := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(role.Lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, DNSNames: w.dns,
		// RFC 7093 section 2, method 1.
		SubjectKeyId: keyID[:20],
		URIs:         []*url.URL{{Scheme: "spiffe", Host: p.o.TrustDomain, Path: "/tenant/" + string(r.Tenant) + "/initdata/" + r.InitData}},
	}
	t.Subject = pkix.Name{CommonName: "initdata " + r.InitData[:min(len(r.InitData), 32)]}
	if r.Simulated {
		// Whoever looks sees it, even where the operator's policy let it pass.
		t.Subject.OrganizationalUnit = []string{"simulated TEE, for development only"}
	}
	for _, s := range w.uris {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("uri: %w", err)
		}
		t.URIs = append(t.URIs, u)
	}
	for _, u := range role.Usages {
		switch u {
		case Server:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		case Client:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}
	}
	return t, nil
}

// names are a certificate's, for the record.
func names(c *x509.Certificate) []string {
	out := append([]string(nil), c.DNSNames...)
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	return out
}

// newSerial is 16 random bytes, positive and never zero (RFC 5280 section 4.1.2.2).
func newSerial(random io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("random serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

func encodeCertificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
