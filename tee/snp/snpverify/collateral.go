package snpverify

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee/snp"
)

// maxCRL bounds a revocation list in bytes; AMD's have less than a thousand.
const maxCRL = 1 << 20

// Collateral finds what evidence lacks. Implementations are safe for
// concurrent use, keep what they found, and return *[tee.CollateralError].
type Collateral interface {
	// VCEK returns the DER certificate of the chip at that patch level. chipID
	// is 64 bytes (8 on Turin).
	VCEK(ctx context.Context, g snp.Generation, chipID []byte, tcb snp.TCB) ([]byte, error)
	// CRL returns AMD's revocation list (DER) for chips of that generation and
	// kind of key. It may be stale: the verifier judges its dates.
	CRL(ctx context.Context, g snp.Generation, s snp.Signer) ([]byte, error)
}

// CheckVCEK says whether der is the certificate that AMD issued for the chip at
// exactly that patch level: for those who keep certificates, so that they keep
// no other. chipID is 64 bytes (8 on Turin). Dates are not judged. One that a
// development root issued is taken too.
func CheckVCEK(der []byte, g snp.Generation, chipID []byte, tcb snp.TCB, development ...DevelopmentRoot) error {
	return anyRoot(g, development, func(r *root) error { return r.checkVCEK(der, g, chipID, tcb) })
}

// anyRoot returns nil where check passes with AMD's root of the generation or
// with a development root, and else what it said of AMD's.
func anyRoot(g snp.Generation, development []DevelopmentRoot, check func(*root) error) error {
	amd, err := loadAMD(g)
	if err != nil {
		return err
	}
	refused := check(amd)
	for _, d := range development {
		if refused == nil {
			break
		}
		r, err := loadDevelopment(d)
		if err != nil {
			return err
		}
		if check(r) == nil {
			return nil
		}
	}
	return refused
}

func (r *root) checkVCEK(der []byte, g snp.Generation, chipID []byte, tcb snp.TCB) error {
	c, err := parseChipCertificate(der, snp.SignerVCEK)
	if err != nil {
		return fmt.Errorf("snpverify: VCEK certificate: %w", err)
	}
	if err := r.issued(c.x509, snp.SignerVCEK); err != nil {
		return fmt.Errorf("snpverify: VCEK certificate: not issued by AMD for %s: %w", g, err)
	}
	if !bytes.Equal(c.hwid, chipID) {
		return fmt.Errorf("snpverify: VCEK certificate: chip: expected %x, got %x", chipID, c.hwid)
	}
	if !c.tcb.Equal(tcb) {
		return fmt.Errorf("snpverify: VCEK certificate: patch levels: expected %s, got %s", tcb, c.tcb)
	}
	return nil
}

// CheckCRL parses a revocation list and says whether AMD's root of the
// generation, or a development root, signed it. Dates are not judged.
func CheckCRL(der []byte, g snp.Generation, s snp.Signer, development ...DevelopmentRoot) (list *x509.RevocationList, err error) {
	err = anyRoot(g, development, func(r *root) (err error) {
		if r.intermediate(s) == nil {
			return fmt.Errorf("snpverify: revocation list: signer: expected VCEK or VLEK, got %s", s)
		}
		list, err = r.checkCRL(der)
		return err
	})
	return list, err
}

// CheckChain says whether chain (PEM) is the intermediate for that kind of key
// and the root certificate of AMD, in this order, or of a development root.
func CheckChain(chain []byte, g snp.Generation, s snp.Signer, development ...DevelopmentRoot) error {
	certs, err := parsePEM(chain)
	if err != nil {
		return fmt.Errorf("snpverify: certificate chain: %w", err)
	}
	return anyRoot(g, development, func(r *root) error {
		if want := r.intermediate(s); want == nil || len(certs) != 2 || !certs[0].Equal(want) || !certs[1].Equal(r.ark) {
			return fmt.Errorf("snpverify: certificate chain: expected the intermediate of %s and the root of %s, got others", s, r.name)
		}
		return nil
	})
}

func (r *root) checkCRL(der []byte) (*x509.RevocationList, error) {
	if len(der) > maxCRL {
		return nil, fmt.Errorf("snpverify: revocation list: expected at most %d bytes, got %d", maxCRL, len(der))
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("snpverify: revocation list: %w", err)
	}
	if list.SignatureAlgorithm != x509.SHA384WithRSAPSS {
		return nil, fmt.Errorf("snpverify: revocation list: expected a signature by RSASSA-PSS with SHA-384, got %s", list.SignatureAlgorithm)
	}
	if !bytes.Equal(list.RawIssuer, r.ark.RawSubject) {
		return nil, fmt.Errorf("snpverify: revocation list: expected the issuer %s, got %s", quoteName(r.ark.Subject), quoteName(list.Issuer))
	}
	if list.NextUpdate.IsZero() {
		return nil, errors.New("snpverify: revocation list: expected a time of the next update, got none")
	}
	if err := list.CheckSignatureFrom(r.ark); err != nil {
		return nil, fmt.Errorf("snpverify: revocation list: not signed by %s (%s): %w", r.name, quoteName(r.ark.Subject), err)
	}
	return list, nil
}

// vcekName is a VCEK in words.
func vcekName(g snp.Generation, chipID []byte, tcb snp.TCB) string {
	if len(chipID) > 8 {
		return fmt.Sprintf("VCEK of %s chip %s… at %s", g, hex.EncodeToString(chipID[:8]), tcb)
	}
	return fmt.Sprintf("VCEK of %s chip %s at %s", g, hex.EncodeToString(chipID), tcb)
}
