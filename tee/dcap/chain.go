package dcap

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee/internal/pemchain"
)

// Common names in Intel's hierarchy (PCK Certificate and CRL Profile
// Specification, §1.3).
const (
	namePCK       = "Intel SGX PCK Certificate"
	namePlatform  = "Intel SGX PCK Platform CA"
	nameProcessor = "Intel SGX PCK Processor CA"
	nameSigning   = "Intel SGX TCB Signing"
)

func quoteName(n pkix.Name) string { return fmt.Sprintf("%.200q", n.String()) }

// issued checks that issuer, a CA, signed c with ECDSA and SHA-256, and that
// nothing critical in c goes unread.
func issued(c, issuer *x509.Certificate) error {
	if c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return fmt.Errorf("certificate of %s: expected a signature by ECDSA with SHA-256, got %s", quoteName(c.Subject), c.SignatureAlgorithm)
	}
	if c.Version != 3 || len(c.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("certificate of %s: expected version 3 without unknown critical extensions", quoteName(c.Subject))
	}
	if !bytes.Equal(c.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("certificate of %s: expected the issuer %s, got %s", quoteName(c.Subject), quoteName(issuer.Subject), quoteName(c.Issuer))
	}
	if !issuer.BasicConstraintsValid || !issuer.IsCA {
		return fmt.Errorf("certificate of %s: expected a CA", quoteName(issuer.Subject))
	}
	if err := c.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("certificate of %s: signature by %s: %w", quoteName(c.Subject), quoteName(issuer.Subject), err)
	}
	return nil
}

// leafOf checks that c is an end entity's certificate with that name.
func leafOf(c *x509.Certificate, name string) error {
	if c.Subject.CommonName != name {
		return fmt.Errorf("expected the common name %q, got %.64q", name, c.Subject.CommonName)
	}
	if c.IsCA || c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("certificate of %s: expected an end entity that signs", quoteName(c.Subject))
	}
	_, err := p256Key(c)
	return err
}

// splitChain reads a PEM chain of n certificates that ends in an anchor.
func splitChain(text []byte, n int, roots *RootSet) ([]*x509.Certificate, *Root, error) {
	certs, err := pemchain.Parse(text)
	if err != nil {
		return nil, nil, err
	}
	if len(certs) != n {
		return nil, nil, fmt.Errorf("expected a chain of %d certificates, got %d", n, len(certs))
	}
	root := roots.find(certs[n-1])
	if root == nil {
		return nil, nil, &unknownRootError{got: certs[n-1], want: roots.names()}
	}
	return certs, root, nil
}

// unknownRootError is a chain that ends somewhere else.
type unknownRootError struct {
	got  *x509.Certificate
	want string
}

func (e *unknownRootError) Error() string {
	return "expected a chain to one of " + e.want + ", got " + e.ends()
}

// ends says where the chain ends.
func (e *unknownRootError) ends() string {
	r := Root{Certificate: e.got}
	return fmt.Sprintf("one to %s (sha256 %s)", quoteName(e.got.Subject), r.SHA256())
}

// signingChain reads the chain of the key that signs TCB info and QE identity.
func signingChain(text []byte, roots *RootSet) ([]*x509.Certificate, *Root, error) {
	certs, root, err := splitChain(text, 2, roots)
	if err != nil {
		return nil, nil, err
	}
	if err := leafOf(certs[0], nameSigning); err != nil {
		return nil, nil, err
	}
	if err := issued(certs[0], root.Certificate); err != nil {
		return nil, nil, err
	}
	return certs, root, nil
}

// pckIssuer checks that c is one of Intel's two issuers of PCK certificates.
func pckIssuer(c *x509.Certificate, root *Root) (CA, error) {
	var ca CA
	switch c.Subject.CommonName {
	case namePlatform:
		ca = PlatformCA
	case nameProcessor:
		ca = ProcessorCA
	default:
		return "", fmt.Errorf("expected the common name %q or %q, got %.64q", namePlatform, nameProcessor, c.Subject.CommonName)
	}
	if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return "", fmt.Errorf("certificate of %s: expected a CA", quoteName(c.Subject))
	}
	if _, err := p256Key(c); err != nil {
		return "", err
	}
	return ca, issued(c, root.Certificate)
}

// window is the time in which all certificates are valid.
func window(certs []*x509.Certificate) (from, to time.Time) {
	for i, c := range certs {
		if i == 0 || c.NotBefore.After(from) {
			from = c.NotBefore
		}
		if i == 0 || c.NotAfter.Before(to) {
			to = c.NotAfter
		}
	}
	return from, to
}
