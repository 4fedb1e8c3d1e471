package snp

import (
	"encoding/hex"
	"fmt"
)

// Fields is what the report says, under the names of the claims that the
// package snpverify documents: numbers are int, flags bool, byte strings
// lower-case hex. It leaves out what a report of this version does not have,
// and the signature.
func (r *Report) Fields() map[string]any {
	hexOf := hex.EncodeToString
	out := map[string]any{
		"version":            int(r.Version),
		"guest_svn":          int(r.GuestSVN),
		"policy_abi_major":   int(r.Policy >> 8 & 0xFF),
		"policy_abi_minor":   int(r.Policy & 0xFF),
		"vmpl":               int(r.VMPL),
		"signer":             r.Signer().String(),
		"author_key_enabled": r.KeyInfo&KeyInfoAuthorKey != 0,
		"mask_chip_key":      r.KeyInfo&KeyInfoMaskChipKey != 0,
		"family_id":          hexOf(r.FamilyID[:]),
		"image_id":           hexOf(r.ImageID[:]),
		"report_data":        hexOf(r.ReportData[:]),
		"measurement":        hexOf(r.Measurement[:]),
		"init_data":          hexOf(r.HostData[:]),
		"host_data":          hexOf(r.HostData[:]),
		"id_key_digest":      hexOf(r.IDKeyDigest[:]),
		"author_key_digest":  hexOf(r.AuthorKeyDigest[:]),
		"report_id":          hexOf(r.ReportID[:]),
		"report_id_ma":       hexOf(r.ReportIDMA[:]),
		"chip_id":            hexOf(r.ChipID[:]),
		"current_version":    r.Current.String(),
		"committed_version":  r.Committed.String(),
	}
	for _, b := range PolicyBits() {
		out[b.Name] = r.Policy&b.Mask != 0
	}
	for _, b := range PlatformBits() {
		out[b.Name] = r.PlatInfo&b.Mask != 0
	}
	for _, t := range []struct {
		name string
		tcb  TCB
	}{{"reported_tcb", r.ReportedTCB}, {"committed_tcb", r.CommittedTCB}, {"launch_tcb", r.LaunchTCB}, {"current_tcb", r.CurrentTCB}} {
		out[t.name+"_bootloader"] = int(t.tcb.Bootloader)
		out[t.name+"_tee"] = int(t.tcb.TEE)
		out[t.name+"_snp"] = int(t.tcb.SNP)
		out[t.name+"_microcode"] = int(t.tcb.Microcode)
		if t.tcb.FMC != nil {
			out[t.name+"_fmc"] = int(*t.tcb.FMC)
		}
	}
	if g := r.Generation(); g != "" {
		out["generation"] = string(g)
	}
	if r.LaunchMitigation != nil {
		out["launch_mit_vector"] = fmt.Sprintf("%016x", *r.LaunchMitigation)
	}
	if r.CurrentMitigation != nil {
		out["current_mit_vector"] = fmt.Sprintf("%016x", *r.CurrentMitigation)
	}
	return out
}
