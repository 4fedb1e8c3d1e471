package snpverify

import (
	"encoding/hex"
	"fmt"
	"maps"

	"github.com/coffer-project/coffer/tee/snp"
)

// claims are documented in the package comment.
func claims(r *snp.Report, e *endorsement) map[string]any {
	out := map[string]any{
		"policy_abi_major":      int(r.Policy >> 8 & 0xFF),
		"policy_abi_minor":      int(r.Policy & 0xFF),
		"policy_smt_allowed":    r.Policy&snp.PolicySMT != 0,
		"policy_migrate_ma":     r.Policy&snp.PolicyMigrateMA != 0,
		"policy_debug_allowed":  r.Policy&snp.PolicyDebug != 0,
		"policy_single_socket":  r.Policy&snp.PolicySingleSocket != 0,
		"platform_tsme_enabled": r.PlatInfo&snp.PlatformTSME != 0,
		"platform_smt_enabled":  r.PlatInfo&snp.PlatformSMT != 0,
		"measurement":           hex.EncodeToString(r.Measurement[:]),
		"report_data":           hex.EncodeToString(r.ReportData[:]),
		"init_data":             hex.EncodeToString(r.HostData[:]),
		"chip_id":               hex.EncodeToString(r.ChipID[:]),

		"simulated":         e.root.development,
		"generation":        string(e.generation),
		"signer":            r.Signer().String(),
		"version":           int(r.Version),
		"guest_svn":         int(r.GuestSVN),
		"vmpl":              int(r.VMPL),
		"host_data":         hex.EncodeToString(r.HostData[:]),
		"family_id":         hex.EncodeToString(r.FamilyID[:]),
		"image_id":          hex.EncodeToString(r.ImageID[:]),
		"id_key_digest":     hex.EncodeToString(r.IDKeyDigest[:]),
		"author_key_digest": hex.EncodeToString(r.AuthorKeyDigest[:]),
		"report_id":         hex.EncodeToString(r.ReportID[:]),
		"report_id_ma":      hex.EncodeToString(r.ReportIDMA[:]),
		"current_version":   r.Current.String(),
		"committed_version": r.Committed.String(),
	}
	maps.Copy(out, tcbClaims("reported_tcb", r.ReportedTCB))
	maps.Copy(out, tcbClaims("committed_tcb", r.CommittedTCB))
	maps.Copy(out, tcbClaims("launch_tcb", r.LaunchTCB))
	maps.Copy(out, tcbClaims("current_tcb", r.CurrentTCB))
	if e.root.development {
		out["development_root"] = e.root.name
		out["development_root_sha256"] = e.root.fingerprint
	}
	if r.Signer() == snp.SignerVLEK {
		out["csp_id"] = e.certificate.cspID
	}
	if r.LaunchMitigation != nil {
		out["launch_mit_vector"] = fmt.Sprintf("%016x", *r.LaunchMitigation)
	}
	if r.CurrentMitigation != nil {
		out["current_mit_vector"] = fmt.Sprintf("%016x", *r.CurrentMitigation)
	}
	return out
}

func tcbClaims(name string, t snp.TCB) map[string]any {
	out := map[string]any{
		name + "_bootloader": int(t.Bootloader),
		name + "_tee":        int(t.TEE),
		name + "_snp":        int(t.SNP),
		name + "_microcode":  int(t.Microcode),
	}
	if t.FMC != nil {
		out[name+"_fmc"] = int(*t.FMC)
	}
	return out
}
