// Package measure predicts launch measurements: what a machine's security
// processor will report for given firmware, kernel, initrd, command line and
// virtual CPUs.
//
// [SNP] computes the launch digest of AMD SEV-SNP: every page that the
// hypervisor adds before the first instruction runs is chained into a SHA-384
// digest (SEV Secure Nested Paging Firmware ABI Specification, publication
// 56860, §8.17 SNP_LAUNCH_UPDATE), as QEMU (9.1 and newer), EC2 and GCE start a
// guest ([VMM]). [NewSeed] computes the digests of many CPU counts in one pass.
//
// [TDX] computes MRTD and RTMR0 to RTMR3 of a trust domain that QEMU starts, and
// lists every event that it assumed.
//
// Firmware that declares its pages (OVMF) is measured exactly as hardware does.
// Firmware that does not (SeaBIOS) can only be started by the software TEE; see
// [LayoutSoftware].
//
// What is proved by published vectors, and what is not, is written in
// docs/measure.md: nothing here has been compared with hardware of our own.
package measure

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits on what is measured. They bound the work on one call, not what a real
// machine could start.
const (
	// MaxFirmware is the greatest size of a firmware image in bytes.
	MaxFirmware = 16 << 20
	// MaxVCPUs is the greatest number of virtual CPUs.
	MaxVCPUs = 512
	// MaxCmdline is the greatest length of a kernel command line in bytes; the
	// x86 kernel itself reads no more than 2047.
	MaxCmdline = 64 << 10
)

// DefaultGuestFeatures is the SEV_FEATURES value of a guest that asks for
// nothing but SNP itself (bit 0, SNP active; AMD APM volume 2, appendix B).
const DefaultGuestFeatures = 0x1

// Launch is what a machine is started with.
type Launch struct {
	// Firmware is the whole image given to QEMU's -bios.
	Firmware []byte
	// Kernel, Initrd and Cmdline are what QEMU's direct kernel boot loads. A
	// nil Kernel means that the firmware finds its own; then Initrd and
	// Cmdline must be empty.
	Kernel, Initrd []byte
	// Cmdline has no terminating NUL.
	Cmdline string
	VCPUs   int
	// VCPUModel is a QEMU CPU model; see [CPUSignature].
	VCPUModel string
	// VCPUSignature is the CPUID Fn0000_0001 EAX value of the guest's CPUs,
	// instead of a VCPUModel; see [SignatureOf]. EC2 and GCE start their CPUs
	// with a value of their own, so neither is needed there.
	VCPUSignature *uint32
	// VMM is the program that starts the guest. "": VMMQEMU.
	VMM VMM
	// GuestFeatures is the VMSA's SEV_FEATURES. Zero: DefaultGuestFeatures.
	GuestFeatures uint64
	// FirmwareDigest is what [FirmwareDigest] gives for the whole image. If it
	// is not zero, Firmware is read for its metadata only, and its last pages
	// are enough.
	FirmwareDigest [48]byte
}

// Layout says how the kernel hashes came into the digest.
type Layout string

const (
	// LayoutOVMF is the real one: the firmware's SEV metadata names the pages.
	LayoutOVMF Layout = "ovmf-sev-metadata"
	// LayoutSoftware is for firmware without SEV metadata, which no hardware
	// starts as an SNP guest. The same algorithm runs over the firmware's
	// pages, then one page of kernel hashes at [SoftwareHashesGPA] (if there
	// is a kernel), then the VMSAs, all of which start at the reset vector.
	// There are no zero, secrets or CPUID pages.
	LayoutSoftware Layout = "software"
)

// SoftwareHashesGPA is the guest-physical address of the kernel hashes table in
// [LayoutSoftware]: where OVMF's AmdSev build has it.
const SoftwareHashesGPA = 0x810c00

// Result is a predicted launch measurement.
type Result struct {
	Digest [48]byte
	Layout Layout
}

// SNP returns the launch digest that an SEV-SNP report will carry in its
// MEASUREMENT field.
func SNP(l Launch) ([48]byte, error) {
	r, err := Predict(l)
	return r.Digest, err
}

// Predict is [SNP] with the layout it used. A caller that prepares a launch on
// hardware should refuse any layout but [LayoutOVMF].
func Predict(l Launch) (Result, error) {
	s, err := NewSeed(l)
	if err != nil {
		return Result{}, err
	}
	all, err := s.Digests(l.VCPUs)
	if err != nil {
		return Result{}, err
	}
	return Result{Digest: all[l.VCPUs-1], Layout: s.Layout}, nil
}

// FirmwareDigest is the launch digest when the pages of a firmware image have
// been added and nothing else: what other tools call the OVMF hash. It saves
// shipping and hashing the image where only kernel, initrd, command line and
// CPUs change.
func FirmwareDigest(image []byte) ([48]byte, error) {
	if err := checkFirmware(image); err != nil {
		return [48]byte{}, err
	}
	var d digest
	d.normalPages(fourGiB-uint64(len(image)), image)
	return d.ld, nil
}

// NewSeed measures l with one virtual CPU; [Seed.Digests] goes on from there.
// l.VCPUs must be valid all the same.
func NewSeed(l Launch) (Seed, error) {
	if err := l.check(); err != nil {
		return Seed{}, err
	}
	fw, err := parseFirmware(l.Firmware)
	if err != nil {
		return Seed{}, err
	}
	layout := LayoutSoftware
	if fw.hasMetadata {
		layout = LayoutOVMF
	}
	signature, err := l.signature(layout)
	if err != nil {
		return Seed{}, err
	}
	d := digest{l.FirmwareDigest}
	if l.FirmwareDigest == ([48]byte{}) {
		d.normalPages(fourGiB-uint64(len(l.Firmware)), l.Firmware)
	}
	return l.seed(d, fw, layout, signature)
}

// seed adds to d, which already covers the firmware's pages, everything that
// follows them up to the first CPU.
func (l Launch) seed(d digest, fw firmware, layout Layout, signature uint32) (Seed, error) {
	switch layout {
	case LayoutOVMF:
		if err := d.metadataPages(fw, l); err != nil {
			return Seed{}, err
		}
	case LayoutSoftware:
		if l.Kernel != nil {
			page := hashesPage(l, SoftwareHashesGPA%pageSize)
			d.normalPages(SoftwareHashesGPA&^(pageSize-1), page[:])
		}
	}
	bsp := vmsaPage(l.VMM, resetVector, signature, l.features())
	d.vmsa(&bsp)
	s := ResumeSeed(d.ld, fw.apResetEIP, signature, l.features(), l.VMM)
	s.Layout = layout
	return s, nil
}

// signature is the CPUs' signature; 0 where the VMM does not tell it to them.
func (l Launch) signature(layout Layout) (uint32, error) {
	switch {
	case l.VCPUSignature != nil:
		return *l.VCPUSignature, nil
	case l.VCPUModel == "" && l.VMM.resetState().rdx != 0:
		return 0, nil
	}
	return cpuSignature(l.VCPUModel, layout)
}

func (l Launch) features() uint64 {
	if l.GuestFeatures == 0 {
		return DefaultGuestFeatures
	}
	return l.GuestFeatures
}

// check reports every field that cannot be launched.
func (l Launch) check() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf("measure: "+format, args...)) }
	if err := checkFirmware(l.Firmware); err != nil {
		errs = append(errs, err)
	}
	if l.VMM != "" && !slices.Contains(VMMs(), l.VMM) {
		add("vmm: expected one of %q, got %q", VMMs(), l.VMM)
	}
	if l.VCPUSignature != nil && l.VCPUModel != "" {
		add("vcpu_signature: is given together with the model %q; give one of them", l.VCPUModel)
	}
	if l.VCPUs < 1 || l.VCPUs > MaxVCPUs {
		add("vcpus: expected 1 to %d, got %d", MaxVCPUs, l.VCPUs)
	}
	errs = append(errs, checkBoot(l.Kernel, l.Initrd, l.Cmdline)...)
	if l.features()&1 == 0 {
		add("guest_features: bit 0 (SNP active) must be set, got %#x", l.GuestFeatures)
	}
	return errors.Join(errs...)
}

// checkFirmware holds an image to the sizes that can be mapped.
func checkFirmware(image []byte) error {
	switch n := len(image); {
	case n == 0:
		return errors.New("measure: firmware is empty; give the image that QEMU's -bios gets")
	case n > MaxFirmware:
		return fmt.Errorf("measure: firmware: expected at most %d bytes, got %d", MaxFirmware, n)
	case n%pageSize != 0:
		return fmt.Errorf("measure: firmware: expected a multiple of %d bytes, got %d; the file is cut short or not a firmware image", pageSize, n)
	}
	return nil
}

// checkBoot holds what direct kernel boot loads to what can be loaded.
func checkBoot(kernel, initrd []byte, cmdline string) (errs []error) {
	if len(cmdline) > MaxCmdline {
		errs = append(errs, fmt.Errorf("measure: cmdline: expected at most %d bytes, got %d", MaxCmdline, len(cmdline)))
	}
	if i := strings.IndexByte(cmdline, 0); i >= 0 {
		errs = append(errs, fmt.Errorf("measure: cmdline: has a NUL at byte %d, where the kernel would stop reading", i))
	}
	if kernel == nil && (initrd != nil || cmdline != "") {
		errs = append(errs, errors.New("measure: initrd or cmdline is given without a kernel; QEMU measures them only together"))
	}
	return errs
}
