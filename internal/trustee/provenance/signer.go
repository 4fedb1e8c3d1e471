package provenance

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// minRSA is the least size of an RSA key, in bits.
const minRSA = 2048

// maxChain bounds how many certificates a document may bring.
const maxChain = 8

// Signer is somebody who vouches for reference values.
type Signer struct {
	// Name is shown in the source of values: 1 to 64 characters of A-Z a-z 0-9 . _ -.
	Name string
	// Keys verify in-toto envelopes and CoRIM: ECDSA (P-256, P-384, P-521),
	// Ed25519, or RSA of at least 2048 bits.
	Keys []crypto.PublicKey
	// Roots verify the certificates that SWID and CoRIM documents bring.
	Roots []*x509.Certificate
	// Subjects are the common names that the signing certificate may have. None:
	// any that chains to Roots.
	Subjects []string
	// AcceptExpired accepts a signing certificate that has expired, as of the
	// day on which it began. Manifests of older firmware outlive the
	// certificates they were signed with, and have no time stamps; whoever got
	// hold of an old key can sign with it too.
	AcceptExpired bool
	// Builders are the builder ids that SLSA provenance may name. None: any.
	Builders []string
	// Prefixes are what names of references must begin with. "*" stands for any
	// name; none is an error.
	Prefixes []string
	// Rename replaces prefixes of names, before Prefixes are looked at. The
	// first that fits is applied.
	Rename []Rename
}

// Rename says that names which begin with From shall begin with To.
type Rename struct{ From, To string }

// Check refuses a signer that cannot verify anything, or may set nothing.
func (s *Signer) Check() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("provenance: signer %.64q: "+format, append([]any{s.Name}, args...)...))
	}
	okName := s.Name != "" && len(s.Name) <= 64 && !strings.ContainsFunc(s.Name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	})
	if !okName {
		bad("name: expected 1 to 64 characters of A-Z a-z 0-9 . _ -")
	}
	if len(s.Keys) == 0 && len(s.Roots) == 0 {
		bad("expected public keys or root certificates, got none")
	}
	for i, k := range s.Keys {
		if err := checkKey(k); err != nil {
			bad("key %d: %w", i, err)
		}
	}
	if slices.Contains(s.Roots, nil) {
		bad("roots: expected certificates, got nil")
	}
	if len(s.Prefixes) == 0 || slices.Contains(s.Prefixes, "") {
		bad(`prefixes: expected at least one, and none empty; "*" stands for any name`)
	}
	for _, r := range s.Rename {
		if r.From == "" || r.To == "" {
			bad("rename: expected two prefixes, got %.80q to %.80q", r.From, r.To)
		}
	}
	return errors.Join(errs...)
}

func checkKey(k crypto.PublicKey) error {
	switch k := k.(type) {
	case *ecdsa.PublicKey:
		if k == nil || !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, k.Curve) {
			return errors.New("expected an ECDSA key on P-256, P-384 or P-521")
		}
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("expected an Ed25519 key of %d bytes, got %d", ed25519.PublicKeySize, len(k))
		}
	case *rsa.PublicKey:
		if k == nil || k.N == nil || k.N.BitLen() < minRSA {
			return fmt.Errorf("expected an RSA key of at least %d bits", minRSA)
		}
	default:
		return fmt.Errorf("expected an ECDSA, Ed25519 or RSA public key, got %T", k)
	}
	return nil
}

func (s *Signer) covers(name string) bool {
	return slices.ContainsFunc(s.Prefixes, func(p string) bool { return p == "*" || strings.HasPrefix(name, p) })
}

func (s *Signer) rename(name string) string {
	for _, r := range s.Rename {
		if rest, ok := strings.CutPrefix(name, r.From); ok {
			return r.To + rest
		}
	}
	return name
}

// chain finds the signer to whose roots a document's certificates lead: the
// first is the one that signed, the others may lead to a root. The error says
// for each signer why not.
func (o *Options) chain(certs []*x509.Certificate) (*Signer, error) {
	leaf := certs[0]
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, fmt.Errorf("certificate %q: is not for signing: %w", subject(leaf), ErrUntrusted)
	}
	if err := checkKey(leaf.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate %q: %w", subject(leaf), err)
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	var why []string
	for i := range o.Signers {
		s := &o.Signers[i]
		if len(s.Roots) == 0 {
			continue
		}
		if err := s.verify(leaf, intermediates, o.now()); err != nil {
			why = append(why, fmt.Sprintf("signer %q: %v", s.Name, err))
			continue
		}
		return s, nil
	}
	if len(why) == 0 {
		why = []string{"no signer has root certificates"}
	}
	return nil, fmt.Errorf("certificate %q: %s: %w", subject(leaf), strings.Join(why, "; "), ErrUntrusted)
}

func (s *Signer) verify(leaf *x509.Certificate, intermediates *x509.CertPool, now time.Time) error {
	if len(s.Subjects) > 0 && !slices.Contains(s.Subjects, leaf.Subject.CommonName) {
		return fmt.Errorf("expected the common name %s", strings.Join(s.Subjects, " or "))
	}
	if s.AcceptExpired && now.After(leaf.NotAfter) {
		now = leaf.NotBefore
	}
	roots := x509.NewCertPool()
	for _, c := range s.Roots {
		roots.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired && now.After(leaf.NotAfter) {
		return fmt.Errorf("the certificate expired at %s; get the manifest with a newer signature, or let the signer accept expired certificates", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return err
}

func subject(c *x509.Certificate) string { return plain(c.Subject.CommonName, 128) }

// fingerprint names a key or certificate by the first 8 bytes of its SHA-256.
func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:8])
}

func keyProof(k crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return "key"
	}
	return "key " + fingerprint(der)
}

func certProof(c *x509.Certificate) string {
	return fmt.Sprintf("certificate %q %s", subject(c), fingerprint(c.Raw))
}
