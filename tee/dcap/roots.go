package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee/internal/pemchain"
)

// intelRootPEM is the Intel SGX Root CA as every PCK chain since 2021 carries it;
// valid from 2018-05-21 to 2049-12-31.
//
//go:embed intel_sgx_root.pem
var intelRootPEM string

// intelRootSHA256 pins it independently of the file.
const intelRootSHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

const intelRootName = "Intel SGX Root CA"

// DevelopmentRoot is a root that is not Intel's.
type DevelopmentRoot struct {
	// Name appears in claims and errors.
	Name string
	// PEM is the self-signed root certificate, EC P-256.
	PEM []byte
	// Collateral of the platforms under this root. Nil: the verifier's own.
	Collateral Collateral
}

// Root is a trust anchor.
type Root struct {
	Name        string
	Development bool
	Certificate *x509.Certificate

	collateral Collateral
	keyID      [sha512.Size384]byte
}

// SHA256 is the certificate's digest in lower-case hex.
func (r *Root) SHA256() string {
	sum := sha256.Sum256(r.Certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// KeyID is the SHA-384 of the root's public key as an uncompressed point, which
// Intel's verification library calls the root key id.
func (r *Root) KeyID() [sha512.Size384]byte { return r.keyID }

// RootSet are the anchors a verifier accepts. It does not change once made.
type RootSet struct{ roots []*Root }

// Roots returns Intel's root and the development roots given.
func Roots(development ...DevelopmentRoot) (*RootSet, error) {
	intel, err := loadRoot(intelRootName, []byte(intelRootPEM))
	if err != nil {
		return nil, err
	}
	if got := intel.SHA256(); got != intelRootSHA256 {
		return nil, fmt.Errorf("dcap: Intel's embedded root: expected sha256 %s, got %s", intelRootSHA256, got)
	}
	set := &RootSet{roots: []*Root{intel}}
	for _, d := range development {
		if d.Name == "" {
			return nil, errors.New("dcap: development root: name is empty; give each root a name that claims can show")
		}
		r, err := loadRoot(d.Name, d.PEM)
		if err != nil {
			return nil, err
		}
		for _, other := range set.roots {
			if bytes.Equal(other.Certificate.RawSubjectPublicKeyInfo, r.Certificate.RawSubjectPublicKeyInfo) {
				return nil, fmt.Errorf("dcap: development root %q: it has the key of the root %q", d.Name, other.Name)
			}
		}
		r.Development, r.collateral = true, d.Collateral
		set.roots = append(set.roots, r)
	}
	return set, nil
}

func loadRoot(name string, text []byte) (*Root, error) {
	certs, err := pemchain.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("dcap: root %q: %w", name, err)
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("dcap: root %q: expected one certificate, got %d", name, len(certs))
	}
	c := certs[0]
	key, err := p256Key(c)
	if err != nil {
		return nil, fmt.Errorf("dcap: root %q: %w", name, err)
	}
	if err := issued(c, c); err != nil {
		return nil, fmt.Errorf("dcap: root %q: expected a self-signed certificate: %w", name, err)
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("dcap: root %q: %w", name, err)
	}
	return &Root{Name: name, Certificate: c, keyID: sha512.Sum384(point)}, nil
}

// find returns the anchor that c is, or nil: the very certificate, or another
// self-signed one for the same name and key.
func (s *RootSet) find(c *x509.Certificate) *Root {
	for _, r := range s.roots {
		if bytes.Equal(c.Raw, r.Certificate.Raw) {
			return r
		}
		same := bytes.Equal(c.RawSubject, r.Certificate.RawSubject) &&
			bytes.Equal(c.RawSubjectPublicKeyInfo, r.Certificate.RawSubjectPublicKeyInfo)
		if same && issued(c, c) == nil {
			return r
		}
	}
	return nil
}

// names lists the anchors for error messages.
func (s *RootSet) names() string {
	out := ""
	for i, r := range s.roots {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%q (sha256 %s)", r.Name, r.SHA256())
	}
	return out
}

// p256Key is the certificate's key, which in Intel's hierarchy is always on P-256.
func p256Key(c *x509.Certificate) (*ecdsa.PublicKey, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("certificate of %s: expected an EC P-256 key, got %s", quoteName(c.Subject), c.PublicKeyAlgorithm)
	}
	return key, nil
}

// sources answers with the collateral of a root's platforms.
func (r *Root) source(fallback Collateral) Collateral {
	if r.collateral != nil {
		return r.collateral
	}
	return fallback
}
