package snpverify

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/snp"
)

// checkChip compares what the report says about the platform with what the
// certificate was issued for.
func checkChip(l *checks.List, r *snp.Report, c *chipCertificate) {
	if !c.tcb.Equal(r.ReportedTCB) {
		l.Fail(tee.Failure{
			Check: "snp.tcb", Field: "reported_tcb", Expected: c.tcb.String() + " (certificate)", Got: r.ReportedTCB.String(),
			Help: "the certificate is for another patch level; fetch the one for the reported TCB",
		})
	}
	// A host may mask the identifier (MASK_CHIP_ID): then the certificate alone
	// tells the chip. A VLEK is not a chip's.
	masked := r.ChipID == [64]byte{}
	if r.Signer() == snp.SignerVCEK && !masked && !c.isChip(r.ChipID) {
		l.Fail(tee.Failure{
			Check: "snp.chip_id", Field: "chip_id", Expected: hex.EncodeToString(c.hwid) + " (certificate)", Got: hex.EncodeToString(r.ChipID[:]),
			Help: "the certificate is that of another chip",
		})
	}
}

// checkPlatform holds the platform against what the operator demands of it.
func (v *Verifier) checkPlatform(l *checks.List, r *snp.Report, g snp.Generation) {
	v.checkMinimumTCB(l, r, g)
	for _, f := range []struct {
		field   string
		version snp.FirmwareVersion
	}{{"current", r.Current}, {"committed", r.Committed}} {
		if older(f.version, v.options.MinimumFirmware) {
			l.Fail(tee.Failure{Check: "snp.firmware", Field: f.field, Expected: "at least " + v.options.MinimumFirmware.String(), Got: f.version.String(), Help: "the host needs newer SNP firmware"})
		}
	}
	if need := v.options.RequireMitigations; need != 0 {
		checkMitigation(l, "launch_mit_vector", r.LaunchMitigation, need, "the guest was launched before the host had this mitigation: update the host, and start the guest again")
		checkMitigation(l, "current_mit_vector", r.CurrentMitigation, need, "the host lacks the mitigation: update its firmware")
	}
	checkFlags(l, "snp.platform", "plat_info", r.PlatInfo, v.options.RequirePlatform, v.options.ForbidPlatform, snp.PlatformBits())
}

func (v *Verifier) checkMinimumTCB(l *checks.List, r *snp.Report, g snp.Generation) {
	if v.options.MinimumTCB == nil || g == "" { // an unknown generation is refused anyway
		return
	}
	minimum, ok := v.options.MinimumTCB[g]
	if !ok {
		l.Fail(tee.Failure{
			Check: "snp.minimum_tcb", Field: "generation", Expected: "a generation with a configured minimum TCB", Got: string(g),
			Help: "configure a minimum TCB for this generation",
		})
		return
	}
	for _, t := range []struct {
		field        string
		tcb, minimum snp.TCB
	}{{"reported_tcb", r.ReportedTCB, minimum.Reported}, {"committed_tcb", r.CommittedTCB, minimum.Committed}, {"launch_tcb", r.LaunchTCB, minimum.Launch}} {
		if !t.tcb.AtLeast(t.minimum) {
			l.Fail(tee.Failure{
				Check: "snp.minimum_tcb", Field: t.field, Expected: "at least " + t.minimum.String(), Got: t.tcb.String(),
				Help: "the host needs newer firmware or microcode; a guest launched before the update has to be started again",
			})
		}
	}
}

func older(v, minimum snp.FirmwareVersion) bool {
	return cmp.Or(cmp.Compare(v.Major, minimum.Major), cmp.Compare(v.Minor, minimum.Minor), cmp.Compare(v.Build, minimum.Build)) < 0
}

func checkMitigation(l *checks.List, field string, vector *uint64, need uint64, help string) {
	f := tee.Failure{Check: "snp.mitigation", Field: field, Expected: fmt.Sprintf("the bits %016x", need), Help: help}
	switch {
	case vector == nil:
		f.Got, f.Help = "none", "reports have mitigation vectors from version 5 on: the host needs newer firmware"
	case *vector&need == need:
		return
	default:
		f.Got = fmt.Sprintf("%016x", *vector)
	}
	l.Fail(f)
}

// checkFlags holds a field against the flags that it must and must not have.
func checkFlags(l *checks.List, check, field string, value, require, forbid uint64, bits []snp.Bit) {
	if missing := require &^ value; missing != 0 {
		l.Fail(tee.Failure{Check: check, Field: field, Expected: snp.NameBits(require, bits), Got: fmt.Sprintf("%#x without %s", value, snp.NameBits(missing, bits))})
	}
	if extra := value & forbid; extra != 0 {
		l.Fail(tee.Failure{Check: check, Field: field, Expected: "neither of " + snp.NameBits(forbid, bits), Got: fmt.Sprintf("%#x with %s", value, snp.NameBits(extra, bits))})
	}
}

// checkGuest checks how the guest was launched, and which part of it asks.
func (v *Verifier) checkGuest(l *checks.List, r *snp.Report) {
	if !slices.Contains(v.options.VMPL, r.VMPL) {
		l.Fail(tee.Failure{
			Check: "snp.vmpl", Field: "vmpl", Expected: strings.Trim(fmt.Sprint(v.options.VMPL), "[]"), Got: fmt.Sprint(r.VMPL),
			Help: "less privileged software in the guest, or the host, asked for this report",
		})
	}
	if r.Policy&snp.PolicyDebug != 0 {
		l.FailUnless(v.options.AllowDebug, tee.Failure{
			Check: "snp.debug", Field: "policy", Expected: "debugging not allowed", Got: fmt.Sprintf("policy %#x, which lets the host read the guest's memory", r.Policy),
			Help: "launch the guest without the debug bit",
		})
	}
	if r.Policy&snp.PolicyMigrateMA != 0 || !noAgent(r.ReportIDMA) {
		l.FailUnless(v.options.AllowMigration, tee.Failure{
			Check: "snp.migration", Field: "policy, report_id_ma", Expected: "no migration agent", Got: fmt.Sprintf("policy %#x, agent %x", r.Policy, r.ReportIDMA),
			Help: "a migration agent can move the guest's memory to another machine; launch the guest without one",
		})
	}
	checkFlags(l, "snp.policy", "policy", r.Policy, v.options.RequirePolicy, v.options.ForbidPolicy, snp.PolicyBits())
	if v.options.IDBlock != nil {
		v.options.IDBlock.check(l, r)
	}
}

// noAgent says whether an identifier is that of no migration agent: all ones,
// in early firmware all zeros.
func noAgent(id [32]byte) bool {
	return id == [32]byte{} || bytes.Equal(id[:], bytes.Repeat([]byte{0xFF}, len(id)))
}

func (b *IDBlock) check(l *checks.List, r *snp.Report) {
	fail := func(field, expected, got, help string) {
		l.Fail(tee.Failure{Check: "snp.id_block", Field: field, Expected: expected, Got: got, Help: help})
	}
	if len(b.IDKeyDigests) > 0 && !slices.Contains(b.IDKeyDigests, r.IDKeyDigest) {
		fail("id_key_digest", "one of "+hexList(b.IDKeyDigests), hex.EncodeToString(r.IDKeyDigest[:]), "the guest was launched without an ID block, or with one of another key")
	}
	if len(b.AuthorKeyDigests) > 0 && (r.KeyInfo&snp.KeyInfoAuthorKey == 0 || !slices.Contains(b.AuthorKeyDigests, r.AuthorKeyDigest)) {
		fail("author_key_digest", "one of "+hexList(b.AuthorKeyDigests), hex.EncodeToString(r.AuthorKeyDigest[:]), "the ID block's key has no author's signature, or another author's")
	}
	for _, f := range []struct {
		field string
		want  *[16]byte
		got   [16]byte
	}{{"family_id", b.FamilyID, r.FamilyID}, {"image_id", b.ImageID, r.ImageID}} {
		if f.want != nil && *f.want != f.got {
			fail(f.field, hex.EncodeToString(f.want[:]), hex.EncodeToString(f.got[:]), "the ID block is that of another guest")
		}
	}
	if r.GuestSVN < b.MinGuestSVN {
		fail("guest_svn", fmt.Sprintf("at least %d", b.MinGuestSVN), fmt.Sprint(r.GuestSVN), "launch a newer guest image")
	}
}

func hexList(digests [][48]byte) string {
	out := make([]string, len(digests))
	for i, d := range digests {
		out[i] = hex.EncodeToString(d[:])
	}
	return strings.Join(out, ", ")
}
