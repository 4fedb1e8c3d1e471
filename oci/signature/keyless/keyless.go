// Package keyless verifies image signatures by certificates of a Fulcio
// certificate authority that a Rekor transparency log has seen, both pinned by
// the policy. It wraps sigstore-go, offline: nothing is fetched, neither by TUF
// nor otherwise.
//
// It has a package of its own because sigstore-go brings hundreds of others.
// The guest's agent links it under the build tag keyless only.
package keyless

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/coffer-project/coffer/oci/signature"
)

// Verifier implements signature.Keyless. It may be used by several goroutines
// at once.
type Verifier struct{}

var _ signature.Keyless = Verifier{}

// New makes a verifier.
func New() Verifier { return Verifier{} }

// Verify implements signature.Keyless. The certificate must lead to the pinned
// authority, name the issuer and the e-mail address exactly, and have been valid
// when the pinned log took the signature in, which the log's signed entry
// timestamp says. Certificate transparency (SCTs) is not looked at, since
// policies name no such log. Entries of Rekor version 2, which have no time,
// do not suffice.
func (Verifier) Verify(ctx context.Context, s signature.KeylessSignature, t signature.KeylessTrust) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var b bundle.Bundle
	if err := b.UnmarshalJSON(s.Bundle); err != nil {
		return nil, fmt.Errorf("sigstore bundle: %w", err)
	}
	material, err := newMaterial(t, sent(&b))
	if err != nil {
		return nil, err
	}
	verifier, err := verify.NewVerifier(material, verify.WithTransparencyLog(1), verify.WithIntegratedTimestamps(1))
	if err != nil {
		return nil, err
	}
	identity, err := verify.NewShortCertificateIdentity(t.OIDCIssuer, "", t.SubjectEmail, "")
	if err != nil {
		return nil, err
	}
	policy := verify.NewPolicy(verify.WithArtifactDigest("sha256", s.ArtifactSHA256), verify.WithCertificateIdentity(identity))
	if _, err := verifier.Verify(&b, policy); err != nil {
		return nil, err
	}
	content, err := b.VerificationContent()
	if err != nil {
		return nil, err
	}
	leaf := content.Certificate()
	if leaf == nil {
		return nil, errors.New("the bundle has no certificate")
	}
	// The identity above may also be met by a URI that looks like an address.
	if !slices.Contains(leaf.EmailAddresses, t.SubjectEmail) {
		return nil, fmt.Errorf("certificate: expected the e-mail address %s, it has %q", t.SubjectEmail, leaf.EmailAddresses)
	}
	return leaf.RawSubjectPublicKeyInfo, nil
}

// sent are the intermediate certificates that came with the signature. They
// are not trusted, but may lead to a root that is.
func sent(b *bundle.Bundle) []*x509.Certificate {
	var out []*x509.Certificate
	for i, c := range b.GetVerificationMaterial().GetX509CertificateChain().GetCertificates() {
		if parsed, err := x509.ParseCertificate(c.GetRawBytes()); err == nil && i > 0 && !selfIssued(parsed) {
			out = append(out, parsed)
		}
	}
	return out
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// material is what the policy pins, in sigstore-go's terms.
type material struct {
	root.BaseTrustedMaterial
	authorities []root.CertificateAuthority
	logs        map[string]*root.TransparencyLog
}

// FulcioCertificateAuthorities implements root.TrustedMaterial.
func (m *material) FulcioCertificateAuthorities() []root.CertificateAuthority { return m.authorities }

// RekorLogs implements root.TrustedMaterial.
func (m *material) RekorLogs() map[string]*root.TransparencyLog { return m.logs }

func newMaterial(t signature.KeylessTrust, sent []*x509.Certificate) (*material, error) {
	m := &material{logs: map[string]*root.TransparencyLog{}}
	var roots, intermediates []*x509.Certificate
	for data := t.CACertificates; ; {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("fulcio.ca: %w", err)
		}
		if selfIssued(c) {
			roots = append(roots, c)
		} else {
			intermediates = append(intermediates, c)
		}
	}
	if len(roots) == 0 { // then what was given is what is trusted
		roots, intermediates = intermediates, nil
	}
	if len(roots) == 0 {
		return nil, errors.New("fulcio.ca: expected certificates in PEM, found none")
	}
	for _, r := range roots {
		m.authorities = append(m.authorities, &root.FulcioCertificateAuthority{Root: r, Intermediates: append(slices.Clone(intermediates), sent...)})
	}
	for _, data := range t.LogKeys {
		if err := m.addLog(data); err != nil {
			return nil, fmt.Errorf("rekorPublicKey: %w", err)
		}
	}
	return m, nil
}

func (m *material) addLog(data []byte) error {
	block, _ := pem.Decode(data)
	if block == nil {
		return errors.New("expected PEM, found none")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return err
	}
	if _, ok := key.(*ecdsa.PublicKey); !ok {
		return fmt.Errorf("expected an ECDSA key, got %T: keyless verification needs a log that says when it took a signature in", key)
	}
	id := sha256.Sum256(block.Bytes)
	m.logs[hex.EncodeToString(id[:])] = &root.TransparencyLog{
		ID: id[:], PublicKey: key, HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256,
		ValidityPeriodStart: time.Unix(1, 0), // as long as the policy pins it
	}
	return nil
}
