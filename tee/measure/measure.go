// Package measure predicts launch measurements: what a machine's security
// processor will report for given firmware, kernel, initrd, command line and
// virtual CPUs.
//
// [SNP] computes the launch digest of AMD SEV-SNP as QEMU (9.1 and newer)
// starts a guest: every page that the hypervisor adds before the first
// instruction runs is chained into a SHA-384 digest (SEV Secure Nested Paging
// Firmware ABI Specification, publication 56860, §8.17 SNP_LAUNCH_UPDATE).
// Firmware that declares its pages (OVMF's AmdSev build) is measured exactly as
// hardware does. Firmware that does not (SeaBIOS) can only be started by the
// software TEE; see [LayoutSoftware].
package measure

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
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
	// GuestFeatures is the VMSA's SEV_FEATURES. Zero: DefaultGuestFeatures.
	GuestFeatures uint64
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
	if err := l.check(); err != nil {
		return Result{}, err
	}
	fw, err := parseFirmware(l.Firmware)
	if err != nil {
		return Result{}, err
	}
	layout := LayoutSoftware
	if fw.hasMetadata {
		layout = LayoutOVMF
	}
	signature, err := cpuSignature(l.VCPUModel, layout)
	if err != nil {
		return Result{}, err
	}

	var d digest
	d.normalPages(fourGiB-uint64(len(l.Firmware)), l.Firmware)
	digest, err := l.finish(d, fw, layout, signature)
	if err != nil {
		return Result{}, err
	}
	return Result{Digest: digest, Layout: layout}, nil
}

// finish adds to d, which already covers the firmware's pages, everything that
// follows them.
func (l Launch) finish(d digest, fw firmware, layout Layout, signature uint32) ([48]byte, error) {
	switch layout {
	case LayoutOVMF:
		if err := d.metadataPages(fw, l); err != nil {
			return [48]byte{}, err
		}
	case LayoutSoftware:
		if l.Kernel != nil {
			page := hashesPage(l, SoftwareHashesGPA%pageSize)
			d.normalPages(SoftwareHashesGPA&^(pageSize-1), page[:])
		}
	}
	features := l.features()
	bsp := vmsaPage(resetVector, signature, features)
	ap := vmsaPage(fw.apResetEIP, signature, features)
	for i := range l.VCPUs {
		if i == 0 {
			d.vmsa(&bsp)
		} else {
			d.vmsa(&ap)
		}
	}
	return d.ld, nil
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
	switch n := len(l.Firmware); {
	case n == 0:
		add("firmware is empty; give the image that QEMU's -bios gets")
	case n > MaxFirmware:
		add("firmware: expected at most %d bytes, got %d", MaxFirmware, n)
	case n%pageSize != 0:
		add("firmware: expected a multiple of %d bytes, got %d; the file is cut short or not a firmware image", pageSize, n)
	}
	if l.VCPUs < 1 || l.VCPUs > MaxVCPUs {
		add("vcpus: expected 1 to %d, got %d", MaxVCPUs, l.VCPUs)
	}
	if len(l.Cmdline) > MaxCmdline {
		add("cmdline: expected at most %d bytes, got %d", MaxCmdline, len(l.Cmdline))
	}
	for i := range len(l.Cmdline) {
		if l.Cmdline[i] == 0 {
			add("cmdline: has a NUL at byte %d, where the kernel would stop reading", i)
			break
		}
	}
	if l.Kernel == nil && (l.Initrd != nil || l.Cmdline != "") {
		add("initrd or cmdline is given without a kernel; QEMU measures them only together")
	}
	if l.features()&1 == 0 {
		add("guest_features: bit 0 (SNP active) must be set, got %#x", l.GuestFeatures)
	}
	return errors.Join(errs...)
}

// Inputs names what a measurement was computed from, in a form that can be
// stored beside it and compared later.
type Inputs struct {
	// Firmware, Kernel and Initrd are SHA-256 digests in lower-case hex.
	// Kernel is empty where the firmware finds its own.
	Firmware string `json:"firmware"`
	Kernel   string `json:"kernel,omitempty"`
	Initrd   string `json:"initrd,omitempty"`
	Cmdline  string `json:"cmdline"`
	VCPUs    int    `json:"vcpus"`
	// VCPUModel is a QEMU CPU model.
	VCPUModel string `json:"vcpu_model"`
	// GuestFeatures is the VMSA's SEV_FEATURES; zero is DefaultGuestFeatures.
	GuestFeatures uint64 `json:"guest_features,omitempty"`
}

// Inputs describes l.
func (l Launch) Inputs() Inputs {
	in := Inputs{
		Firmware: hexSHA256(l.Firmware), Cmdline: l.Cmdline, VCPUs: l.VCPUs,
		VCPUModel: l.VCPUModel, GuestFeatures: l.features(),
	}
	if l.Kernel != nil {
		in.Kernel, in.Initrd = hexSHA256(l.Kernel), hexSHA256(l.Initrd)
	}
	return in
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Change is one input that differs.
type Change struct {
	// Input is the JSON name of the field of [Inputs].
	Input    string `json:"input"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
}

// String is one line for people.
func (c Change) String() string {
	return fmt.Sprintf("%s: expected %q, got %q", c.Input, c.Expected, c.Got)
}

// Diff names the inputs in which got differs from want, in the order of the
// fields of [Inputs]. Nothing is returned for equal inputs.
func Diff(want, got Inputs) []Change {
	features := func(in Inputs) string {
		if in.GuestFeatures == 0 {
			in.GuestFeatures = DefaultGuestFeatures
		}
		return fmt.Sprintf("%#x", in.GuestFeatures)
	}
	all := []Change{
		{"firmware", want.Firmware, got.Firmware},
		{"kernel", want.Kernel, got.Kernel},
		{"initrd", want.Initrd, got.Initrd},
		{"cmdline", want.Cmdline, got.Cmdline},
		{"vcpus", strconv.Itoa(want.VCPUs), strconv.Itoa(got.VCPUs)},
		{"vcpu_model", want.VCPUModel, got.VCPUModel},
		{"guest_features", features(want), features(got)},
	}
	var out []Change
	for _, c := range all {
		if c.Expected != c.Got {
			out = append(out, c)
		}
	}
	return out
}
