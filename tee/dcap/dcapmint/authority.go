// Package dcapmint makes what package dcap verifies: a hierarchy in the image of
// Intel's, PCK certificates, signed collateral and quotes. The software TEE and
// tests use it, under roots of their own; nothing here makes anything that is
// good under Intel's root.
//
// The encodings are those that package dcap names the sources of.
package dcapmint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // key identifiers are SHA-1 (RFC 5280, §4.2.1.2); nothing rests on them
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// Common names, as Intel's hierarchy has them; verifiers tell the roles by them.
const (
	namePCK       = "Intel SGX PCK Certificate"
	namePlatform  = "Intel SGX PCK Platform CA"
	nameProcessor = "Intel SGX PCK Processor CA"
	nameSigning   = "Intel SGX TCB Signing"
)

// Holder is a certificate with its key, EC P-256.
type Holder struct {
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
}

// Authority issues what Intel issues. Its fields may be stored and put together
// again.
type Authority struct {
	Root      Holder
	Platform  Holder // issues PCK certificates of multi-package platforms
	Processor Holder // issues those of others
	Signing   Holder // signs TCB info and QE identities
	Profile   Profile
}

// Profile is what certificates say that is the authority's choice.
type Profile struct {
	// RootName is the root's common name.
	RootName string
	// Organization is the O of every subject.
	Organization string
	// CRLURL is the distribution point that every certificate names. Empty:
	// none does.
	CRLURL string
	// From and To are when the authority's own certificates are valid.
	From, To time.Time
}

// NewAuthority makes the keys and certificates.
func NewAuthority(p Profile) (*Authority, error) {
	a := &Authority{Profile: p}
	for _, role := range []struct {
		holder  *Holder
		name    string
		pathLen int // below zero: no CA
	}{{&a.Root, p.RootName, 1}, {&a.Platform, namePlatform, 0}, {&a.Processor, nameProcessor, 0}, {&a.Signing, nameSigning, -1}} {
		template := a.template(role.name, p.From, p.To)
		if role.pathLen >= 0 {
			template.IsCA, template.MaxPathLen, template.MaxPathLenZero = true, role.pathLen, role.pathLen == 0
			template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("dcapmint: %w", err)
		}
		issuer := a.Root
		if role.holder == &a.Root {
			issuer = Holder{Key: key, Certificate: template}
		}
		c, err := issue(template, &key.PublicKey, issuer)
		if err != nil {
			return nil, err
		}
		*role.holder = Holder{Certificate: c, Key: key}
	}
	return a, nil
}

// template is an end entity's certificate.
func (a *Authority) template(name string, from, to time.Time) *x509.Certificate {
	c := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name, Organization: []string{a.Profile.Organization}},
		NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment, BasicConstraintsValid: true,
		SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
	if a.Profile.CRLURL != "" {
		c.CRLDistributionPoints = []string{a.Profile.CRLURL}
	}
	return c
}

// issue signs a certificate. A serial number is drawn where there is none.
func issue(template *x509.Certificate, key *ecdsa.PublicKey, issuer Holder) (*x509.Certificate, error) {
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("dcapmint: %w", err)
	}
	id := sha1.Sum(point) //nolint:gosec // see the import
	template.SubjectKeyId = id[:]
	if template.SerialNumber == nil {
		if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159)); err != nil {
			return nil, fmt.Errorf("dcapmint: %w", err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.Certificate, key, issuer.Key)
	if err != nil {
		return nil, fmt.Errorf("dcapmint: certificate of %s: %w", template.Subject, err)
	}
	return x509.ParseCertificate(der)
}

// issuer is the intermediate for a CA.
func (a *Authority) issuer(ca dcap.CA) (Holder, error) {
	switch ca {
	case dcap.PlatformCA:
		return a.Platform, nil
	case dcap.ProcessorCA:
		return a.Processor, nil
	}
	return Holder{}, fmt.Errorf("dcapmint: CA: expected processor or platform, got %.20q", ca)
}

// IssuePCK issues a certificate for a platform's certification key, valid as
// long as its issuer.
func (a *Authority) IssuePCK(p *dcapquote.PCK, ca dcap.CA, key *ecdsa.PublicKey) (*x509.Certificate, error) {
	issuer, err := a.issuer(ca)
	if err != nil {
		return nil, err
	}
	extension, err := PCKExtension(p)
	if err != nil {
		return nil, err
	}
	template := a.template(namePCK, issuer.Certificate.NotBefore, issuer.Certificate.NotAfter)
	template.ExtraExtensions = []pkix.Extension{extension}
	return issue(template, key, issuer)
}

// RootPEM is the root certificate, for [dcap.DevelopmentRoot].
func (a *Authority) RootPEM() []byte { return chainPEM(a.Root.Certificate) }

// PCKChain is the PEM chain of a PCK certificate, as quotes carry it.
func (a *Authority) PCKChain(c *x509.Certificate, ca dcap.CA) ([]byte, error) {
	issuer, err := a.issuer(ca)
	if err != nil {
		return nil, err
	}
	return chainPEM(c, issuer.Certificate, a.Root.Certificate), nil
}

func chainPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Revocations is what a revocation list says.
type Revocations struct {
	Number     int64
	From, Next time.Time
	Serials    []*big.Int
}

// PCKCRL signs the revocation list of a PCK issuer.
func (a *Authority) PCKCRL(ca dcap.CA, r Revocations) (dcap.Signed, error) {
	issuer, err := a.issuer(ca)
	if err != nil {
		return dcap.Signed{}, err
	}
	der, err := r.sign(issuer)
	return dcap.Signed{Body: der, IssuerChain: chainPEM(issuer.Certificate, a.Root.Certificate)}, err
}

// RootCRL signs the root's revocation list.
func (a *Authority) RootCRL(r Revocations) ([]byte, error) { return r.sign(a.Root) }

func (r Revocations) sign(issuer Holder) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(r.Number), ThisUpdate: r.From, NextUpdate: r.Next, SignatureAlgorithm: x509.ECDSAWithSHA256}
	for _, serial := range slices.Clone(r.Serials) {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.From})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer.Certificate, issuer.Key)
	if err != nil {
		return nil, fmt.Errorf("dcapmint: revocation list: %w", err)
	}
	return der, nil
}
