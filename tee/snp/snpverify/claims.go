package snpverify

import "github.com/coffer-project/coffer/tee/snp"

// claimsOf are documented in the package comment.
func claimsOf(r *snp.Report, e endorsement, collateral string) map[string]any {
	out := r.Fields()
	out["simulated"] = e.root.development
	out["generation"] = string(e.generation)
	if e.root.development {
		out["development_root"] = e.root.name
		out["development_root_sha256"] = e.root.fingerprint
	}
	if r.Signer() == snp.SignerVLEK {
		out["csp_id"] = e.certificate.cspID
	}
	if collateral != "" {
		out["collateral_expiration_status"] = collateral
	}
	return out
}
