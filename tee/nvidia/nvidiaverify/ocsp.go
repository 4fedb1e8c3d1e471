package nvidiaverify

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
)

const (
	// clockSkew is how far in the future a response may have been made.
	clockSkew = 5 * time.Minute
	// defaultValidity is how long a response counts that does not say so.
	// NVIDIA's say 24 hours.
	defaultValidity = 24 * time.Hour
	maxOCSP         = 32 << 10
)

// revocation asks about every certificate but the last, which is the root. The
// status is "good" when all are known to be, else empty. The error is the
// context's.
func (v *verifier) revocation(ctx context.Context, l *checks.List, d *device, field string, certs []*x509.Certificate) (string, error) {
	status := "good"
	for i := range len(certs) - 1 {
		cert, issuer := certs[i], certs[i+1]
		name := fmt.Sprintf("%s: %s", field, cert.Subject.CommonName)
		item := "OCSP response about " + cert.Subject.CommonName + ", serial number " + cert.SerialNumber.Text(16)
		der, err := v.o.Collateral.OCSP(ctx, cert, issuer)
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		var r *ocsp.Response
		if err == nil {
			if r, err = v.parseOCSP(der, cert, issuer); err != nil {
				err = &tee.CollateralError{Item: item, Reason: tee.CollateralInvalid, Err: err}
			}
		}
		if err != nil {
			l.Missing(d.fail("nvidia.revocation", name, "", "", ""), err)
			status = ""
			continue
		}
		if !v.judgeOCSP(l, d, name, r) {
			status = ""
		}
	}
	return status, nil
}

// judgeOCSP says whether a response speaks for a certificate today.
func (v *verifier) judgeOCSP(l *checks.List, d *device, name string, r *ocsp.Response) bool {
	switch r.Status {
	case ocsp.Good:
	case ocsp.Revoked:
		l.Fail(d.fail("nvidia.revocation", name, "a certificate that is not revoked",
			fmt.Sprintf("revoked at %s, reason %d", r.RevokedAt.UTC().Format(time.RFC3339), r.RevocationReason), "the device, or everything that was made with it, is no longer to be trusted: ask NVIDIA"))
		return false
	default:
		l.Fail(d.fail("nvidia.revocation", name, "a certificate that its issuer knows", "status unknown", "NVIDIA's service does not know the certificate"))
		return false
	}
	until := r.NextUpdate
	if until.IsZero() {
		until = r.ThisUpdate.Add(defaultValidity)
	}
	if now := v.o.Now(); now.After(until) {
		d.claims["collateral_expiration_status"] = "1"
		l.FailUnless(v.o.AllowMissingCollateral, d.fail("nvidia.collateral", name, "an OCSP response that is valid at "+now.UTC().Format(time.RFC3339),
			"one that expired at "+until.UTC().Format(time.RFC3339), "fetch it anew"))
		return false
	}
	return true
}

// parseOCSP verifies that a response is the issuer's, or that of a responder it
// has authorised (RFC 6960, §4.2.2.2).
func (v *verifier) parseOCSP(der []byte, cert, issuer *x509.Certificate) (*ocsp.Response, error) {
	if len(der) > maxOCSP {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", maxOCSP, len(der))
	}
	r, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		return nil, err
	}
	switch r.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA:
	default:
		return nil, fmt.Errorf("signature: expected ECDSA or RSA with SHA-2, got %s", r.SignatureAlgorithm)
	}
	now := v.o.Now()
	revoked := r.Status == ocsp.Revoked // for ever: dates do not matter
	if c := r.Certificate; c != nil && !c.Equal(issuer) {
		if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			return nil, fmt.Errorf("responder %.64q: expected one that its certificate authorises to sign OCSP responses", c.Subject.CommonName)
		}
		if !revoked && (now.Before(c.NotBefore) || now.After(c.NotAfter)) {
			return nil, fmt.Errorf("responder %.64q: expected a certificate that is valid at %s", c.Subject.CommonName, now.UTC().Format(time.RFC3339))
		}
	}
	if revoked {
		return r, nil
	}
	if r.ThisUpdate.After(now.Add(clockSkew)) {
		return nil, fmt.Errorf("was made at %s, which is in the future", r.ThisUpdate.UTC().Format(time.RFC3339))
	}
	if !r.NextUpdate.IsZero() && r.NextUpdate.Before(r.ThisUpdate) {
		return nil, errors.New("expires before it was made")
	}
	return r, nil
}
