package snpverify

import (
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee/snp"
)

// DevelopmentRoot is a root that is not AMD's.
type DevelopmentRoot struct {
	// Name appears in claims and errors.
	Name string
	// PEM is the intermediate (ASK), then the root certificate (ARK), as the
	// software TEE exports them, then perhaps the intermediate of VLEKs (ASVK).
	PEM []byte
}

// MinimumTCB holds the least patch levels, component by component.
type MinimumTCB struct {
	// Reported is what the certificate is for, Committed what the platform
	// cannot be rolled back behind, Launch what it had when the guest started.
	Reported, Committed, Launch snp.TCB
}

// EveryTCB demands the same levels of the reported, committed and launch TCB.
func EveryTCB(t snp.TCB) MinimumTCB { return MinimumTCB{t, t, t} }

// IDBlock is what the guest's owner signed for the launch. Empty fields are not
// compared.
type IDBlock struct {
	// IDKeyDigests are the SHA-384 digests of the keys that may have signed the
	// ID block, AuthorKeyDigests those of keys that may have signed such a key.
	IDKeyDigests, AuthorKeyDigests [][48]byte
	FamilyID, ImageID              *[16]byte
	// MinGuestSVN is the least security version of the guest.
	MinGuestSVN uint32
}

// Options configure a verifier. The zero value takes real hardware only and
// does not look at revocation.
type Options struct {
	// Now is the clock for certificates and revocation lists. Nil: time.Now.
	Now func() time.Time
	// AllowDebug accepts guests whose memory the host can read, with a warning;
	// the claim policy_debug_allowed says so too.
	AllowDebug bool
	// AllowMigration accepts guests with a migration agent, with a warning.
	AllowMigration bool
	// AllowMissingCollateral makes a warning of a revocation list that is
	// missing or out of date. The certificate of the key that signed can never
	// be missing.
	AllowMissingCollateral bool
	// Collateral finds what evidence lacks. Nil: nothing.
	Collateral Collateral
	// CheckRevocation demands AMD's revocation list. Development roots have
	// none.
	CheckRevocation bool
	// DevelopmentRoots are tried where a chain does not end in AMD's root.
	// Evidence under them is Simulated.
	DevelopmentRoots []DevelopmentRoot
	// MinimumTCB is by generation. Nil: no minimum. Where it is not nil, a
	// generation that it lacks is refused.
	MinimumTCB map[snp.Generation]MinimumTCB
	// MinimumFirmware is the least version of the SNP firmware, current and
	// committed.
	MinimumFirmware snp.FirmwareVersion
	// RequireMitigations are the bits that both mitigation vectors must have;
	// reports before version 5 have none.
	RequireMitigations uint64
	// VMPL are the privilege levels of the guest that may have asked for the
	// report. Empty: 0 only.
	VMPL []uint32
	// RequirePolicy and ForbidPolicy are flags of the guest policy that must and
	// must not be set: snp.PolicySMT and so on. To forbid multithreading, forbid
	// snp.PolicySMT.
	RequirePolicy, ForbidPolicy uint64
	// RequirePlatform and ForbidPlatform are flags of PLATFORM_INFO, likewise:
	// snp.PlatformAliasCheck and so on.
	RequirePlatform, ForbidPlatform uint64
	// AllowUnknownPlatform accepts flags of PLATFORM_INFO that are not known
	// here, with a warning: newer firmware may set one. Unknown flags of the
	// guest's policy are never accepted.
	AllowUnknownPlatform bool
	// IDBlock is what is demanded of the launch. Nil: nothing.
	IDBlock *IDBlock
}

// check refuses options that could never be met, or mean nothing.
func (o Options) check() error {
	for g, minimum := range o.MinimumTCB {
		if amdPins(g) == nil {
			return fmt.Errorf("snpverify: minimum TCB: generation: expected Milan, Genoa or Turin, got %q", g)
		}
		for _, t := range []snp.TCB{minimum.Reported, minimum.Committed, minimum.Launch} {
			if t.FMC != nil && g != snp.Turin {
				return fmt.Errorf("snpverify: minimum TCB: fmc: expected none on %s, got %d", g, *t.FMC)
			}
		}
	}
	for _, level := range o.VMPL {
		if level > 3 {
			return fmt.Errorf("snpverify: VMPL: expected 0 to 3, got %d", level)
		}
	}
	for _, f := range []struct {
		name            string
		require, forbid uint64
		bits            []snp.Bit
	}{{"policy", o.RequirePolicy, o.ForbidPolicy, snp.PolicyBits()}, {"platform", o.RequirePlatform, o.ForbidPlatform, snp.PlatformBits()}} {
		if unknown := (f.require | f.forbid) &^ snp.KnownBits(f.bits); unknown != 0 {
			return fmt.Errorf("snpverify: %s: expected known flags, got %s", f.name, snp.NameBits(unknown, nil))
		}
		if both := f.require & f.forbid; both != 0 {
			return fmt.Errorf("snpverify: %s: %s: both required and forbidden", f.name, snp.NameBits(both, f.bits))
		}
	}
	return nil
}
