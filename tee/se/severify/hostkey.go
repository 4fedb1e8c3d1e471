package severify

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee/se"
)

const (
	maxFile         = 1 << 20
	maxCertificates = 256
	coordinateSize  = 80 // of which P-521 fills 66
)

// hostKey is the public key of one machine.
type hostKey struct {
	public      *ecdh.PublicKey
	hash        [se.HostKeyHashSize]byte
	development bool
	document    *x509.Certificate
}

// coordinates is the ultravisor's form of a public key: x and y, filled up with
// zeros on the left to 80 bytes each (s390-tools@c6649588, rust/pv/src/req/ec_coord.rs).
func coordinates(k *ecdh.PublicKey) []byte {
	point := k.Bytes()[1:]
	half := len(point) / 2
	out := make([]byte, 2*coordinateSize)
	copy(out[coordinateSize-half:], point[:half])
	copy(out[2*coordinateSize-half:], point[half:])
	return out
}

func newHostKey(c *x509.Certificate, development bool) (*hostKey, error) {
	pub, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P521() {
		return nil, fmt.Errorf("host-key document %s: expected a key on P-521", serial(c))
	}
	k, err := pub.ECDH()
	if err != nil {
		return nil, fmt.Errorf("host-key document %s: %w", serial(c), err)
	}
	return &hostKey{k, sha256.Sum256(coordinates(k)), development, c}, nil
}

func serial(c *x509.Certificate) string { return fmt.Sprintf("%.40x", c.SerialNumber) }

// readCertificates reads PEM or DER files.
func readCertificates(what string, files [][]byte) ([]*x509.Certificate, error) {
	return readFiles(what, files, "CERTIFICATE", x509.ParseCertificate)
}

// readCRLs reads PEM or DER files.
func readCRLs(files [][]byte) ([]*x509.RevocationList, error) {
	return readFiles("revocation list", files, "X509 CRL", x509.ParseRevocationList)
}

func readFiles[T any](what string, files [][]byte, kind string, parse func([]byte) (T, error)) ([]T, error) {
	var out []T
	for i, file := range files {
		if len(file) > maxFile {
			return nil, fmt.Errorf("%s %d: expected at most %d bytes, got %d", what, i, maxFile, len(file))
		}
		for _, der := range split(file, kind) {
			v, err := parse(der)
			if err != nil {
				return nil, fmt.Errorf("%s %d: %w", what, i, err)
			}
			if out = append(out, v); len(out) > maxCertificates {
				return nil, fmt.Errorf("%s: expected at most %d", what, maxCertificates)
			}
		}
	}
	return out, nil
}

// split returns the blocks of that kind; a file without PEM is taken for DER.
func split(file []byte, kind string) [][]byte {
	var out [][]byte
	for rest := file; ; {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		if rest = after; block.Type == kind {
			out = append(out, block.Bytes)
		}
	}
	if out == nil {
		out = [][]byte{file}
	}
	return out
}

// trust is the chain over the host keys: IBM's signing key, which is no
// certificate authority by its certificate, over host-key documents; a
// certification authority over that.
type trust struct {
	signing       *x509.Certificate
	intermediates []*x509.Certificate
	roots         []*x509.Certificate
	crls          []*x509.RevocationList
}

// newTrust takes IBM's signing key out of the certificates.
func newTrust(certificates, roots []*x509.Certificate, crls []*x509.RevocationList) (*trust, error) {
	t := &trust{roots: roots, crls: crls}
	for _, c := range certificates {
		switch {
		case !isSigningKey(c.Subject):
			t.intermediates = append(t.intermediates, c)
		case t.signing != nil:
			return nil, errors.New("certificates: expected one of IBM's host key signing keys, got two")
		default:
			t.signing = c
		}
	}
	if len(roots) == 0 {
		return nil, errors.New("roots: expected the root over IBM's signing key, got none")
	}
	if t.signing == nil {
		return nil, errors.New("certificates: expected the one of IBM's host key signing key, got none")
	}
	return t, nil
}

// isSigningKey knows the subject of IBM's signing keys
// (s390-tools@c6649588, rust/pv/src/verify/helper.rs).
func isSigningKey(n pkix.Name) bool {
	const ibm = "International Business Machines Corporation"
	is := func(have []string, want ...string) bool { return len(have) == 1 && slices.Contains(want, have[0]) }
	return len(n.Names) == 6 && is(n.Country, "US") && is(n.Province, "New York") && is(n.Locality, "Poughkeepsie", "Armonk") && is(n.Organization, ibm) &&
		n.CommonName == ibm && len(n.OrganizationalUnit) == 1 && strings.HasSuffix(n.OrganizationalUnit[0], "Key Signing Service")
}

// errCollateral is wrapped by errors of revocation lists that are missing or not
// valid at the time.
var errCollateral = errors.New("no valid revocation list")

// issued says whether IBM's signing key signed a host-key document.
func (t *trust) issued(c *x509.Certificate) error {
	if len(c.AuthorityKeyId) > 0 && len(t.signing.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, t.signing.SubjectKeyId) {
		return fmt.Errorf("host-key document %s: issuer: expected key %x, got %x", serial(c), t.signing.SubjectKeyId, c.AuthorityKeyId)
	}
	if err := t.signing.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("host-key document %s: %w", serial(c), err)
	}
	return nil
}

// window is a span of time.
type window struct{ from, to time.Time }

func (w *window) narrow(from, to time.Time) {
	if from.After(w.from) {
		w.from = from
	}
	if to.Before(w.to) {
		w.to = to
	}
}

// check says whether a host-key document, which issued has passed, is good at a
// time, and for how long around it: its dates, the chain over it, and that none of
// it is revoked. With lenient it is good also where revocation lists are missing.
func (t *trust) check(c *x509.Certificate, now time.Time, lenient bool) (window, error) {
	w := window{c.NotBefore, c.NotAfter}
	if now.Before(c.NotBefore) || !now.Before(c.NotAfter) {
		return w, fmt.Errorf("host-key document %s: valid from %s to %s", serial(c), c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
	}
	chains, err := t.signing.Verify(x509.VerifyOptions{Intermediates: pool(t.intermediates), Roots: pool(t.roots), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return w, fmt.Errorf("certificate of IBM's signing key: %w", err)
	}
	if err := t.revoked(&w, c, t.signing, now, lenient); err != nil {
		return w, err
	}
	// One good chain is enough; all of it is looked up.
	for _, chain := range chains {
		out := w
		if err = t.chainRevoked(&out, chain, now, lenient); err == nil {
			return out, nil
		}
	}
	return w, err
}

func (t *trust) chainRevoked(w *window, chain []*x509.Certificate, now time.Time, lenient bool) error {
	for _, c := range chain {
		w.narrow(c.NotBefore, c.NotAfter)
	}
	for i := range len(chain) - 1 {
		if err := t.revoked(w, chain[i], chain[i+1], now, lenient); err != nil {
			return err
		}
	}
	return nil
}

// revoked looks a certificate up in the lists of its issuer; one of them has to be
// valid now. IBM's lists name their issuer in other spellings than its certificate
// does, so that it is the signature that tells.
func (t *trust) revoked(w *window, c, issuer *x509.Certificate, now time.Time, lenient bool) error {
	found := false
	for _, l := range t.crls {
		if issuer.CheckSignature(l.SignatureAlgorithm, l.RawTBSRevocationList, l.Signature) != nil {
			continue
		}
		for _, e := range l.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return fmt.Errorf("certificate %s (%.80q): revoked at %s", serial(c), c.Subject.String(), e.RevocationTime.UTC().Format(time.RFC3339))
			}
		}
		if !now.Before(l.ThisUpdate) && now.Before(l.NextUpdate) {
			found = true
			w.narrow(l.ThisUpdate, l.NextUpdate)
		}
	}
	if !found && !lenient {
		return fmt.Errorf("certificate %s (%.80q): %w of its issuer at %s", serial(c), c.Subject.String(), errCollateral, now.UTC().Format(time.RFC3339))
	}
	return nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}
