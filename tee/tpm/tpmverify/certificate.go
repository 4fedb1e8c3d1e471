package tpmverify

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/tpm"
)

// certificate returns the attestation key's certificate where it has one under
// a trusted root, and nil otherwise. Without roots nothing is judged; with them,
// a chain that does not hold is a failure: nobody sends one by accident.
func (v *Verifier) certificate(l *checks.List, e *tpm.Evidence, key crypto.PublicKey) *x509.Certificate {
	if v.roots == nil || len(e.AKCertificates) == 0 {
		return nil
	}
	bad := func(i int, expected string, got string) *x509.Certificate {
		l.Fail(tee.Failure{Check: "tpm.ak_certificate", Field: fmt.Sprintf("ak_certificates[%d]", i), Expected: expected, Got: got})
		return nil
	}
	chain := make([]*x509.Certificate, len(e.AKCertificates))
	for i, der := range e.AKCertificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return bad(i, "a certificate, DER", err.Error())
		}
		// The chain is the sender's: a signature by a key of 60,000 bits would
		// take as long as thousands by one that is in use.
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
			return bad(i, fmt.Sprintf("a key of at most %d bits", maxRSABits), fmt.Sprintf("RSA of %d bits", key.N.BitLen()))
		}
		chain[i] = c
	}
	leaf := chain[0]
	if public, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return bad(0, "a certificate for ak_public", "one for another key")
	}
	// TPM certificates name the TPM in a critical alternative name of a kind that
	// crypto/x509 does not read (TCG EK Credential Profile 2.5, §3.2.9).
	alternativeName := asn1.ObjectIdentifier{2, 5, 29, 17}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, alternativeName.Equal)
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: between, CurrentTime: v.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return bad(0, "a chain to a root that certifies attestation keys", err.Error())
	}
	if leaf.IsCA {
		return bad(0, "a certificate of an attestation key", "a certificate of an authority")
	}
	if !certifiesAK(leaf) {
		return bad(0, "the extended key usage of an attestation key (2.23.133.8.3)", "none, or others")
	}
	if bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
		return bad(0, "a certificate by an authority", "a certificate by itself")
	}
	return leaf
}

// certifiesAK looks for tcg-kp-AIKCertificate (TCG EK Credential Profile 2.5,
// §3.2.16 and the TCG's registry of object identifiers): endorsement keys, which
// cannot sign quotes, have other certificates of the same authorities.
func certifiesAK(c *x509.Certificate) bool {
	aik := asn1.ObjectIdentifier{2, 23, 133, 8, 3}
	return slices.ContainsFunc(c.UnknownExtKeyUsage, aik.Equal)
}
