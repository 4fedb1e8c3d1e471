package nvidiaverify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/coffer-project/coffer/tee/internal/memo"
	"github.com/coffer-project/coffer/tee/internal/p384"
	"github.com/coffer-project/coffer/tee/nvidia"
)

// chainLength is how many certificates lead from a device to the root: the key
// that signs reports, the device's identity, the provisioner, the model, the
// root (NVIDIA/nvtrust@0281730, MAX_CERT_CHAIN_LENGTH).
const chainLength = 5

// chain is a chain that was verified. It does not change.
type chain struct {
	certs []*x509.Certificate // the root is the last
	root  root
	key   *ecdsa.PublicKey
	id    nvidia.Identity
	dice  dice
	// model and ueid are name and serial number of the device's identity, pdi
	// the identifier that other devices know it by.
	model, ueid, pdi string
	// from and to are when all of it is valid.
	from, to time.Time
}

// verifyChain verifies a device's chain, once for as long as it is valid.
func (v *verifier) verifyChain(d *device) (*chain, error) {
	certs, err := d.Certificates()
	if err != nil {
		return nil, err
	}
	if len(certs) != chainLength {
		return nil, fmt.Errorf("expected %d certificates, got %d", chainLength, len(certs))
	}
	parts := make([][]byte, len(certs)) // the root is among them
	for i, c := range certs {
		parts[i] = c.Raw
	}
	key, now := memo.KeyOf(parts...), v.o.Now()
	if c, ok := v.chains.Get(key, now); ok {
		return c, nil
	}
	c, err := checkChain(certs, v.roots)
	if err != nil {
		return nil, err
	}
	for i, one := range certs {
		if now.Before(one.NotBefore) || now.After(one.NotAfter) {
			return nil, fmt.Errorf("certificate %d (%s): expected one that is valid at %s, got one from %s to %s", i, one.Subject.CommonName,
				now.UTC().Format(time.RFC3339), one.NotBefore.UTC().Format(time.RFC3339), one.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	v.chains.Put(key, c.from, c.to, c)
	return c, nil
}

// checkChain verifies everything about a chain that does not depend on the time.
func checkChain(certs []*x509.Certificate, roots []root) (*chain, error) {
	last := certs[len(certs)-1]
	anchor, ok := find(roots, last.Raw)
	if !ok {
		return nil, fmt.Errorf("certificate %d (%s): expected the root, got another certificate", len(certs)-1, last.Subject.CommonName)
	}
	c := &chain{certs: certs, root: anchor, from: last.NotBefore, to: last.NotAfter}
	for i, one := range certs {
		if err := checkForm(one); err != nil {
			return nil, fmt.Errorf("certificate %d (%s): %w", i, one.Subject.CommonName, err)
		}
		if i == 0 {
			if err := checkLeaf(one); err != nil {
				return nil, fmt.Errorf("certificate 0 (%s): %w", one.Subject.CommonName, err)
			}
		} else if err := checkAuthority(one, i-1); err != nil {
			return nil, fmt.Errorf("certificate %d (%s): %w", i, one.Subject.CommonName, err)
		}
		if i+1 < len(certs) {
			if err := issuedBy(one, certs[i+1]); err != nil {
				return nil, fmt.Errorf("certificate %d (%s): %w", i, one.Subject.CommonName, err)
			}
		}
		if one.NotBefore.After(c.from) {
			c.from = one.NotBefore
		}
		if one.NotAfter.Before(c.to) {
			c.to = one.NotAfter
		}
	}
	return c, c.identify()
}

// identify reads who the device is out of its two certificates.
func (c *chain) identify() error {
	leaf, device := c.certs[0], c.certs[1]
	var err error
	if c.id, err = nvidia.IdentityOf(leaf); err != nil {
		return err
	}
	if c.dice, err = parseDICE(leaf, device); err != nil {
		return fmt.Errorf("certificate 0 (%s): %w", leaf.Subject.CommonName, err)
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return errors.New("certificate 0: expected an EC key") // checkForm has seen one
	}
	c.key, c.model, c.ueid, c.pdi = key, device.Subject.CommonName, device.SerialNumber.String(), pdi(device)
	return nil
}

// pdi is the identifier that switches and GPUs list of each other. In published
// evidence of a whole machine it is the serial number of the device's identity
// without the first byte (NVIDIA/nvtrust@0281730,
// ppcie-verifier-sdk-cpp/tests/data). Empty where the number is another.
func pdi(device *x509.Certificate) string {
	s := strings.ToLower(device.Subject.SerialNumber)
	if len(s) != 2*(nvidia.PDISize+1) || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s[2:]
}

// signed verifies a report's signature.
func (c *chain) signed(p *nvidia.Report) bool {
	sum := sha512.Sum384(p.Signed)
	return p384.VerifyRaw(c.key, sum[:], p.Signature)
}

// checkForm is what every certificate of the chain has to be.
func checkForm(c *x509.Certificate) error {
	if c.Version != 3 {
		return fmt.Errorf("expected X.509 version 3, got %d", c.Version)
	}
	if c.SignatureAlgorithm != x509.ECDSAWithSHA384 {
		return fmt.Errorf("expected a signature by ECDSA with SHA-384, got %s", c.SignatureAlgorithm)
	}
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P384() {
		return fmt.Errorf("expected a key on P-384, got %s", c.PublicKeyAlgorithm)
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("extension %s: is critical and not understood", c.UnhandledCriticalExtensions[0])
	}
	return nil
}

func checkLeaf(c *x509.Certificate) error {
	if c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		return errors.New("expected the certificate of a device, got an authority's")
	}
	if c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("key usage: expected digital signature")
	}
	return nil
}

// checkAuthority checks a certificate that has so many other authorities below it.
func checkAuthority(c *x509.Certificate, below int) error {
	if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("expected an authority that may sign certificates")
	}
	if c.MaxPathLen >= 0 && (c.MaxPathLen > 0 || c.MaxPathLenZero) && below > c.MaxPathLen {
		return fmt.Errorf("path length: allows %d authorities below it, got %d", c.MaxPathLen, below)
	}
	return nil
}

// issuedBy verifies names, key identifiers and signature.
func issuedBy(c, issuer *x509.Certificate) error {
	if !bytes.Equal(c.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("issuer: expected %s, got %s", issuer.Subject, c.Issuer)
	}
	if len(c.AuthorityKeyId) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId) {
		return fmt.Errorf("authority key identifier: expected %x, got %x", issuer.SubjectKeyId, c.AuthorityKeyId)
	}
	key, ok := issuer.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("issuer's key: expected one on P-384, got %s", issuer.PublicKeyAlgorithm)
	}
	r, s, ok := parseSignature(c.Signature)
	sum := sha512.Sum384(c.RawTBSCertificate)
	if !ok || !p384.Verify(key, sum[:], r, s) {
		return fmt.Errorf("signature: is not one by %s", issuer.Subject.CommonName)
	}
	return nil
}

// parseSignature reads an ECDSA signature in DER.
func parseSignature(der []byte) (r, s *big.Int, ok bool) {
	r, s = new(big.Int), new(big.Int)
	in := cryptobyte.String(der)
	var inner cryptobyte.String
	ok = in.ReadASN1(&inner, asn1.SEQUENCE) && in.Empty() && inner.ReadASN1Integer(r) && inner.ReadASN1Integer(s) && inner.Empty()
	return r, s, ok
}
