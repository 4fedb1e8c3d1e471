// Package snp holds evidence of AMD SEV-SNP: the attestation report as the
// security processor signs it, and the JSON form in which confidential
// containers send it to a key broker.
//
// The JSON form (of the guest components' SNP attester) names every field of
// the report instead of carrying its bytes, so the verifier has to rebuild the
// 1184 signed bytes. Both directions here are exact: what cannot be represented
// is an error, never a silent zero.
//
// The package verifies nothing; see tee/snp/snpverify. tee/snp/snpattest gets
// evidence from the kernel. Nothing outside this module is imported: the guest
// links the package.
package snp

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Sizes in bytes of the report (SEV-SNP Firmware ABI, publication 56860,
// ATTESTATION_REPORT structure).
const (
	// ReportSize is the size of a whole report.
	ReportSize = 0x4A0
	// SignedSize is the size of its first part, which the signature covers.
	SignedSize = 0x2A0
)

// Versions of the report that are understood.
const (
	MinVersion = 2
	MaxVersion = 5
)

// SigECDSAP384SHA384 is the only signature algorithm (SIGNATURE_ALGO).
const SigECDSAP384SHA384 = 1

// Signer is the key that signed a report (KEY_INFO.SIGNING_KEY).
type Signer uint8

// Values of Signer.
const (
	SignerVCEK Signer = 0 // the chip's own key
	SignerVLEK Signer = 1 // a key loaded for the cloud provider
	SignerNone Signer = 7 // not signed
)

// String is the name AMD uses.
func (s Signer) String() string {
	switch s {
	case SignerVCEK:
		return "VCEK"
	case SignerVLEK:
		return "VLEK"
	case SignerNone:
		return "none"
	}
	return fmt.Sprintf("reserved(%d)", uint8(s))
}

// FirmwareVersion is a version of the SNP firmware.
type FirmwareVersion struct {
	Major uint8 `json:"major"`
	Minor uint8 `json:"minor"`
	Build uint8 `json:"build"`
}

// String is "major.minor.build".
func (v FirmwareVersion) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Build) }

// Signature is an ECDSA P-384 signature: each number is little-endian, padded
// with zeros to 72 bytes.
type Signature struct {
	R [72]byte `json:"r"`
	S [72]byte `json:"s"`
}

// Report is an attestation report. Its JSON form is the value of
// "attestation_report" in the evidence; byte arrays are arrays of numbers.
type Report struct {
	Version           uint32          `json:"version"`
	GuestSVN          uint32          `json:"guest_svn"`
	Policy            uint64          `json:"policy"`
	FamilyID          [16]byte        `json:"family_id"`
	ImageID           [16]byte        `json:"image_id"`
	VMPL              uint32          `json:"vmpl"`
	SigAlgo           uint32          `json:"sig_algo"`
	CurrentTCB        TCB             `json:"current_tcb"`
	PlatInfo          uint64          `json:"plat_info"`
	KeyInfo           uint32          `json:"key_info"`
	ReportData        [64]byte        `json:"report_data"`
	Measurement       [48]byte        `json:"measurement"`
	HostData          [32]byte        `json:"host_data"`
	IDKeyDigest       [48]byte        `json:"id_key_digest"`
	AuthorKeyDigest   [48]byte        `json:"author_key_digest"`
	ReportID          [32]byte        `json:"report_id"`
	ReportIDMA        [32]byte        `json:"report_id_ma"`
	ReportedTCB       TCB             `json:"reported_tcb"`
	CPUIDFamily       *uint8          `json:"cpuid_fam_id"`
	CPUIDModel        *uint8          `json:"cpuid_mod_id"`
	CPUIDStepping     *uint8          `json:"cpuid_step"`
	ChipID            [64]byte        `json:"chip_id"`
	CommittedTCB      TCB             `json:"committed_tcb"`
	Current           FirmwareVersion `json:"current"`
	Committed         FirmwareVersion `json:"committed"`
	LaunchTCB         TCB             `json:"launch_tcb"`
	LaunchMitigation  *uint64         `json:"launch_mit_vector"`
	CurrentMitigation *uint64         `json:"current_mit_vector"`
	Signature         Signature       `json:"signature"`
}

// Signer is the kind of key that signed.
func (r *Report) Signer() Signer { return Signer(r.KeyInfo >> 2 & 7) }

// Generation is the processor generation, or "" where the report does not say
// (version 2) or names one that is not known.
func (r *Report) Generation() Generation {
	if r.Version < 3 || r.CPUIDFamily == nil || r.CPUIDModel == nil {
		return ""
	}
	return GenerationOf(*r.CPUIDFamily, *r.CPUIDModel)
}

// Offsets that are used more than once.
const (
	offChipID    = 0x1A0
	offSignature = 0x2A0
)

// DecodeReport parses the 1184 bytes of a report. Reserved bytes that are not
// zero are an error: the JSON form has no place for them.
func DecodeReport(raw []byte) (*Report, error) {
	if len(raw) != ReportSize {
		return nil, fmt.Errorf("snp: report: expected %d bytes, got %d", ReportSize, len(raw))
	}
	r := decode(raw)
	again, err := r.Bytes()
	if err != nil {
		return nil, err
	}
	if bytes.Equal(raw, again) {
		return r, nil
	}
	at := reservedByte(raw, again)
	return nil, fmt.Errorf("snp: report: reserved byte %#x: expected 0x00, got %#02x; a version %d report has no field there", at, raw[at], r.Version)
}

// reservedByte is the first byte in which a report differs from itself without
// its reserved bytes.
func reservedByte(raw, again []byte) int {
	for i := range raw {
		if raw[i] != again[i] {
			return i
		}
	}
	return -1
}

// decode reads the fields of at least [ReportSize] bytes and judges nothing.
func decode(raw []byte) *Report {
	le := binary.LittleEndian
	r := &Report{Version: le.Uint32(raw)}
	if r.Version >= 3 {
		family, model, stepping := raw[0x188], raw[0x189], raw[0x18A]
		r.CPUIDFamily, r.CPUIDModel, r.CPUIDStepping = &family, &model, &stepping
	}
	if r.Version >= 5 {
		launch, current := le.Uint64(raw[0x1F8:]), le.Uint64(raw[0x200:])
		r.LaunchMitigation, r.CurrentMitigation = &launch, &current
	}
	turin := r.Version >= 3 && raw[0x188] == familyTurin || r.Version == 2 && shortChipID(raw[offChipID:offChipID+64])

	r.GuestSVN = le.Uint32(raw[0x04:])
	r.Policy = le.Uint64(raw[0x08:])
	r.FamilyID = [16]byte(raw[0x10:])
	r.ImageID = [16]byte(raw[0x20:])
	r.VMPL = le.Uint32(raw[0x30:])
	r.SigAlgo = le.Uint32(raw[0x34:])
	r.CurrentTCB = tcbFromBytes(raw[0x38:], turin)
	r.PlatInfo = le.Uint64(raw[0x40:])
	r.KeyInfo = le.Uint32(raw[0x48:])
	r.ReportData = [64]byte(raw[0x50:])
	r.Measurement = [48]byte(raw[0x90:])
	r.HostData = [32]byte(raw[0xC0:])
	r.IDKeyDigest = [48]byte(raw[0xE0:])
	r.AuthorKeyDigest = [48]byte(raw[0x110:])
	r.ReportID = [32]byte(raw[0x140:])
	r.ReportIDMA = [32]byte(raw[0x160:])
	r.ReportedTCB = tcbFromBytes(raw[0x180:], turin)
	r.ChipID = [64]byte(raw[offChipID:])
	r.CommittedTCB = tcbFromBytes(raw[0x1E0:], turin)
	r.Current = FirmwareVersion{Build: raw[0x1E8], Minor: raw[0x1E9], Major: raw[0x1EA]}
	r.Committed = FirmwareVersion{Build: raw[0x1EC], Minor: raw[0x1ED], Major: raw[0x1EE]}
	r.LaunchTCB = tcbFromBytes(raw[0x1F0:], turin)
	r.Signature.R = [72]byte(raw[offSignature:])
	r.Signature.S = [72]byte(raw[offSignature+72:])
	return r
}

// shortChipID recognises Turin in a report that does not name the processor:
// its chip identifiers have 8 bytes, followed by zeros.
func shortChipID(id []byte) bool {
	return !allZero(id[:8]) && allZero(id[8:])
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// Bytes rebuilds the 1184 bytes of the report.
func (r *Report) Bytes() ([]byte, error) {
	turin, err := r.check()
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	raw := make([]byte, ReportSize)
	le.PutUint32(raw, r.Version)
	le.PutUint32(raw[0x04:], r.GuestSVN)
	le.PutUint64(raw[0x08:], r.Policy)
	copy(raw[0x10:], r.FamilyID[:])
	copy(raw[0x20:], r.ImageID[:])
	le.PutUint32(raw[0x30:], r.VMPL)
	le.PutUint32(raw[0x34:], r.SigAlgo)
	le.PutUint64(raw[0x40:], r.PlatInfo)
	le.PutUint32(raw[0x48:], r.KeyInfo)
	copy(raw[0x50:], r.ReportData[:])
	copy(raw[0x90:], r.Measurement[:])
	copy(raw[0xC0:], r.HostData[:])
	copy(raw[0xE0:], r.IDKeyDigest[:])
	copy(raw[0x110:], r.AuthorKeyDigest[:])
	copy(raw[0x140:], r.ReportID[:])
	copy(raw[0x160:], r.ReportIDMA[:])
	for _, t := range []struct {
		off int
		tcb TCB
	}{{0x38, r.CurrentTCB}, {0x180, r.ReportedTCB}, {0x1E0, r.CommittedTCB}, {0x1F0, r.LaunchTCB}} {
		b := t.tcb.bytes(turin)
		copy(raw[t.off:], b[:])
	}
	if r.Version >= 3 {
		raw[0x188], raw[0x189], raw[0x18A] = *r.CPUIDFamily, *r.CPUIDModel, *r.CPUIDStepping
	}
	copy(raw[offChipID:], r.ChipID[:])
	raw[0x1E8], raw[0x1E9], raw[0x1EA] = r.Current.Build, r.Current.Minor, r.Current.Major
	raw[0x1EC], raw[0x1ED], raw[0x1EE] = r.Committed.Build, r.Committed.Minor, r.Committed.Major
	if r.LaunchMitigation != nil {
		le.PutUint64(raw[0x1F8:], *r.LaunchMitigation)
	}
	if r.CurrentMitigation != nil {
		le.PutUint64(raw[0x200:], *r.CurrentMitigation)
	}
	copy(raw[offSignature:], r.Signature.R[:])
	copy(raw[offSignature+72:], r.Signature.S[:])
	return raw, nil
}

// check refuses what has no bytes and says which layout the TCBs have.
func (r *Report) check() (turin bool, err error) {
	if r.Version < MinVersion || r.Version > MaxVersion {
		return false, fmt.Errorf("snp: report: version: expected %d to %d, got %d", MinVersion, MaxVersion, r.Version)
	}
	for _, f := range []struct {
		name  string
		value *uint8
	}{{"cpuid_fam_id", r.CPUIDFamily}, {"cpuid_mod_id", r.CPUIDModel}, {"cpuid_step", r.CPUIDStepping}} {
		if has, want := f.value != nil, r.Version >= 3; has != want {
			return false, fmt.Errorf("snp: report: %s: expected a number from version 3 on and null before, got the opposite in version %d", f.name, r.Version)
		}
	}
	if r.Version < 5 && (r.LaunchMitigation != nil || r.CurrentMitigation != nil) {
		return false, fmt.Errorf("snp: report: launch_mit_vector and current_mit_vector: expected null before version 5, got a number in version %d", r.Version)
	}
	turin = r.CPUIDFamily != nil && *r.CPUIDFamily == familyTurin
	if r.Version == 2 {
		turin = r.ReportedTCB.FMC != nil
	}
	for _, t := range []struct {
		name string
		tcb  TCB
	}{{"current_tcb", r.CurrentTCB}, {"reported_tcb", r.ReportedTCB}, {"committed_tcb", r.CommittedTCB}, {"launch_tcb", r.LaunchTCB}} {
		if has := t.tcb.FMC != nil; has != turin {
			return false, fmt.Errorf("snp: report: %s.fmc: expected a number on Turin and null elsewhere (is Turin: %t)", t.name, turin)
		}
	}
	return turin, nil
}
