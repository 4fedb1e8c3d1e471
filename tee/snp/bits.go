package snp

import (
	"fmt"
	"math/bits"
	"strings"
)

// Bits of the guest policy (POLICY; publication 56860, "Guest Policy"). The
// least significant two bytes are the minimum ABI version: minor, then major.
const (
	PolicySMT              = 1 << 16 // simultaneous multithreading is allowed
	PolicyReserved1        = 1 << 17 // always one
	PolicyMigrateMA        = 1 << 18 // a migration agent may be attached
	PolicyDebug            = 1 << 19 // the host may read and write the guest's memory
	PolicySingleSocket     = 1 << 20 // the guest runs on one socket only
	PolicyCXLAllow         = 1 << 21 // CXL memory and devices are allowed
	PolicyMemAES256XTS     = 1 << 22 // memory has to be encrypted with AES-256-XTS
	PolicyRAPLDisable      = 1 << 23 // power measurement (RAPL) has to be off
	PolicyCiphertextHiding = 1 << 24 // the host must not see even the ciphertext of memory
	PolicyPageSwapDisable  = 1 << 25 // pages may be neither moved nor swapped out

	policyABI = 1<<16 - 1
)

// Bits of PLATFORM_INFO (publication 56860, ATTESTATION_REPORT structure).
const (
	PlatformSMT              = 1 << 0 // simultaneous multithreading is on
	PlatformTSME             = 1 << 1 // transparent memory encryption is on
	PlatformECC              = 1 << 2 // memory has error correction
	PlatformRAPLDisabled     = 1 << 3 // power measurement (RAPL) is off
	PlatformCiphertextHiding = 1 << 4 // ciphertext hiding is on for DRAM
	PlatformAliasCheck       = 1 << 5 // memory was found to have no aliases since the last reset (AMD-SB-3015)
	PlatformIOMMUWriteSafe   = 1 << 6 // IOMMU_WRITE_SAFE; Turin sets it (tinfoilsh/tinfoil-go, pull request 115)
	PlatformTIO              = 1 << 7 // SEV-TIO is on
)

// Bits of KEY_INFO. [Report.Signer] has the three bits between.
const (
	KeyInfoAuthorKey   = 1 << 0 // the ID block was signed with an author key too
	KeyInfoMaskChipKey = 1 << 1 // the host keeps the chip's key from signing
	keyInfoKnown       = 1<<5 - 1
)

// Bit is one flag of a field.
type Bit struct {
	Mask uint64
	// Name is the flag's name in claims and messages.
	Name string
}

// PolicyBits are the flags of POLICY that mean something. The reserved bit that
// is always one is not among them.
func PolicyBits() []Bit {
	return []Bit{
		{PolicySMT, "policy_smt_allowed"},
		{PolicyMigrateMA, "policy_migrate_ma"},
		{PolicyDebug, "policy_debug_allowed"},
		{PolicySingleSocket, "policy_single_socket"},
		{PolicyCXLAllow, "policy_cxl_allowed"},
		{PolicyMemAES256XTS, "policy_mem_aes_256_xts"},
		{PolicyRAPLDisable, "policy_rapl_disabled"},
		{PolicyCiphertextHiding, "policy_ciphertext_hiding"},
		{PolicyPageSwapDisable, "policy_page_swap_disabled"},
	}
}

// PlatformBits are the flags of PLATFORM_INFO.
func PlatformBits() []Bit {
	return []Bit{
		{PlatformSMT, "platform_smt_enabled"},
		{PlatformTSME, "platform_tsme_enabled"},
		{PlatformECC, "platform_ecc_enabled"},
		{PlatformRAPLDisabled, "platform_rapl_disabled"},
		{PlatformCiphertextHiding, "platform_ciphertext_hiding_enabled"},
		{PlatformAliasCheck, "platform_alias_check_complete"},
		{PlatformIOMMUWriteSafe, "platform_iommu_write_safe"},
		{PlatformTIO, "platform_tio_enabled"},
	}
}

// KnownBits is the union of the masks.
func KnownBits(of []Bit) (mask uint64) {
	for _, b := range of {
		mask |= b.Mask
	}
	return mask
}

// NameBits lists the flags of value by name; one without a name is "bit 40".
func NameBits(value uint64, of []Bit) string {
	var names []string
	for value != 0 {
		i := bits.TrailingZeros64(value)
		value &^= 1 << i
		name := fmt.Sprintf("bit %d", i)
		for _, b := range of {
			if b.Mask == 1<<i {
				name = b.Name
			}
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// BitProblem is a bit that a field must not have, or has to have.
type BitProblem struct {
	// Field is the field's name in the JSON form.
	Field string
	// Expected and Got are for people.
	Expected, Got string
}

// BitProblems says which bits of policy, plat_info and key_info publication
// 56860 does not define, and whether the policy's reserved bit is missing.
func (r *Report) BitProblems() []BitProblem {
	var out []BitProblem
	if r.Policy&PolicyReserved1 == 0 {
		out = append(out, BitProblem{"policy", "bit 17 set, which is reserved and always one", fmt.Sprintf("%#x", r.Policy)})
	}
	if unknown := r.Policy &^ (KnownBits(PolicyBits()) | PolicyReserved1 | policyABI); unknown != 0 {
		out = append(out, BitProblem{"policy", "known bits only", fmt.Sprintf("%#x with %s", r.Policy, NameBits(unknown, nil))})
	}
	if unknown := r.PlatInfo &^ KnownBits(PlatformBits()); unknown != 0 {
		out = append(out, BitProblem{"plat_info", "known bits only", fmt.Sprintf("%#x with %s", r.PlatInfo, NameBits(unknown, nil))})
	}
	if unknown := r.KeyInfo &^ keyInfoKnown; unknown != 0 {
		out = append(out, BitProblem{"key_info", "known bits only", fmt.Sprintf("%#x with %s", r.KeyInfo, NameBits(uint64(unknown), nil))})
	}
	return out
}
