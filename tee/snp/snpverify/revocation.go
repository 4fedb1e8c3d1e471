package snpverify

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
	"github.com/coffer-project/coffer/tee/snp"
)

// Values of the claim collateral_expiration_status, as with the other TEEs.
const (
	collateralCurrent = "0"
	collateralExpired = "1"
)

// checkRevocation refuses an intermediate that AMD has revoked. AMD does not
// revoke single chips: patch levels supersede them. It runs for each evidence,
// so that a new list counts at once; what is remembered is that a list is
// AMD's. It returns the claim's value, or "" where there is no list.
func (v *Verifier) checkRevocation(ctx context.Context, l *checks.List, e endorsement, s snp.Signer) string {
	item := fmt.Sprintf("AMD's revocation list of %s %s certificates", e.generation, s)
	list, err := v.revocations(ctx, e, s, item)
	if err != nil {
		l.Missing(tee.Failure{Check: "snp.collateral", Field: "crl"}, err)
		return ""
	}
	intermediate := e.root.intermediate(s)
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(intermediate.SerialNumber) == 0 {
			l.Fail(tee.Failure{
				Check: "snp.revocation", Field: "cert_chain", Expected: "an intermediate that is not revoked",
				Got: fmt.Sprintf("%s, revoked at %s", quoteName(intermediate.Subject), entry.RevocationTime.Format(time.RFC3339)),
			})
		}
	}
	now := v.now()
	if now.Before(list.ThisUpdate) || now.After(list.NextUpdate) {
		l.FailUnless(v.options.AllowMissingCollateral, tee.Failure{
			Check: "snp.collateral", Field: "crl", Expected: "a revocation list that is valid at " + now.UTC().Format(time.RFC3339),
			Got:  fmt.Sprintf("one valid from %s to %s", list.ThisUpdate.UTC().Format(time.RFC3339), list.NextUpdate.UTC().Format(time.RFC3339)),
			Help: "fetch the list anew (`coffer collateral fetch`), or check the verifier's clock",
		})
		return collateralExpired
	}
	return collateralCurrent
}

func (v *Verifier) revocations(ctx context.Context, e endorsement, s snp.Signer, item string) (*x509.RevocationList, error) {
	if v.options.Collateral == nil {
		return nil, &tee.CollateralError{Item: item, Reason: tee.CollateralMissing}
	}
	der, err := v.options.Collateral.CRL(ctx, e.generation, s)
	if err != nil {
		return nil, err
	}
	key := memo.KeyOf([]byte("crl"), []byte(e.root.fingerprint), der)
	// A list is AMD's or is not: its dates are judged each time.
	if list, ok := v.lists.Get(key, time.Time{}); ok {
		return list, nil
	}
	list, err := e.root.checkCRL(der)
	if err != nil {
		return nil, &tee.CollateralError{Item: item, Reason: tee.CollateralInvalid, Err: err}
	}
	v.lists.Put(key, time.Time{}, time.Time{}, list)
	return list, nil
}
