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
// no other. chipID is 64 bytes (8 on Turin). Dates are not judged.
func CheckVCEK(der []byte, g snp.Generation, chipID []byte, tcb snp.TCB) error {
	r, err := loadAMD(g)
	if err != nil {
		return err
	}
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
// generation signed it. Dates are not judged.
func CheckCRL(der []byte, g snp.Generation, s snp.Signer) (*x509.RevocationList, error) {
	r, err := loadAMD(g)
	if err != nil {
		return nil, err
	}
	if r.intermediate(s) == nil {
		return nil, fmt.Errorf("snpverify: revocation list: signer: expected VCEK or VLEK, got %s", s)
	}
	return r.checkCRL(der)
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
