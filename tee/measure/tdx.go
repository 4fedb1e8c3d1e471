package measure

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// TDXProfile is a generation of OVMF: which events it measures, in which order.
// No image says which it is; its build's release does.
type TDXProfile string

// The generations that are known.
const (
	// ProfileOVMF2022 is edk2 of 2022 and 2023: the separator before the boot
	// goes to RTMR0.
	ProfileOVMF2022 TDXProfile = "ovmf-2022"
	// ProfileOVMF2024 is edk2-stable2024xx to 202502: the separator before the
	// boot goes to RTMR1.
	ProfileOVMF2024 TDXProfile = "ovmf-2024"
	// ProfileOVMF2025 is edk2-stable202505: it also measures QEMU's boot menu
	// and boot order, and publishes two boot options of its own.
	ProfileOVMF2025 TDXProfile = "ovmf-2025"
)

// TDXProfiles lists the generations that are known.
func TDXProfiles() []TDXProfile {
	return []TDXProfile{ProfileOVMF2022, ProfileOVMF2024, ProfileOVMF2025}
}

// TDXLaunch is what a trust domain is started with.
type TDXLaunch struct {
	// Firmware is the whole image given to QEMU's -bios.
	Firmware []byte
	// Kernel, Initrd and Cmdline are what QEMU's direct kernel boot loads. With
	// a nil Kernel the firmware finds its own, and RTMR1 and RTMR2 cannot be
	// predicted; then Initrd and Cmdline must be empty.
	Kernel, Initrd []byte
	// Cmdline has no terminating NUL.
	Cmdline string
	// NoInitrdOption leaves out the " initrd=initrd" that OVMF appends to the
	// command line where there is an initrd.
	NoInitrdOption bool
	// RawKernel says that the firmware starts the kernel as it is in the file:
	// QEMU 10 with firmware that reads etc/boot/kernel. Otherwise QEMU writes
	// loader fields, among them the initrd's place, into its header.
	RawKernel bool
	// Memory is the machine's memory in bytes.
	Memory uint64
	// VCPUs counts in LayoutSoftware only: on hardware it is part of the ACPI
	// tables.
	VCPUs int
	// Order is that in which the VMM adds pages. "": PageOrderInterleaved.
	Order PageOrder
	// Profile is the firmware's generation; needed for firmware with TDX
	// metadata.
	Profile TDXProfile
	// RTMR0 is needed to predict RTMR0; nil leaves it out.
	RTMR0 *TDXPlatform
	// RTMR3 are digests that the guest's software extends RTMR3 with.
	RTMR3 [][48]byte
}

// TDXPlatform is what RTMR0 covers beside firmware and memory, and no file that
// the owner builds says.
type TDXPlatform struct {
	// Loader, RSDP and Tables are QEMU's fw_cfg files etc/table-loader,
	// etc/acpi/rsdp and etc/acpi/tables. A guest started alike has them in
	// /sys/firmware/qemu_fw_cfg/by_name.
	Loader, RSDP, Tables Blob
	// SecureBoot, PK, KEK, DB and DBX are the contents of these UEFI variables;
	// nil for one that does not exist.
	SecureBoot, PK, KEK, DB, DBX []byte
	// BootOrder and Boot are the UEFI variables that the firmware has at boot,
	// Boot in the order of BootOrder. Nil BootOrder: those of a direct kernel
	// boot of Profile.
	BootOrder []byte
	Boot      [][]byte
	// FWBootOrder is QEMU's fw_cfg file bootorder; ProfileOVMF2025 only. Nil:
	// that of a direct kernel boot where no other device has a boot index.
	FWBootOrder []byte
	// VariableAuthority is the digest of the EV_EFI_VARIABLE_AUTHORITY event
	// that ProfileOVMF2025 measures; take it from the event log of a guest with
	// the same firmware.
	VariableAuthority [48]byte
}

// Blob is something that is measured as it is: its content, or only its SHA-384.
type Blob struct {
	Data   []byte
	Digest [48]byte // used if Data is nil
}

// TDXResult is what a quote will say.
type TDXResult struct {
	MRTD [48]byte
	RTMR [4][48]byte
	// Unknown says of a register that was not predicted why not.
	Unknown [4]string
	// Events are what the registers were extended with, in the order in which
	// firmware and kernel do it.
	Events []Event
	Layout Layout
}

// LayoutTDVF is that of firmware with TDX metadata.
const LayoutTDVF Layout = "tdvf-metadata"

// TDX predicts the measurements of a trust domain.
//
// In [LayoutSoftware], for firmware that has no TDX metadata, MRTD covers all
// pages of the image as if each were added and measured below 4 GiB; RTMR0 is
// extended with the SHA-384 of "vcpus=N memory=N" (bytes, decimal), RTMR1 with that of the
// kernel, RTMR2 with those of the command line and, if there is one, the initrd.
func TDX(l TDXLaunch) (TDXResult, error) {
	if err := l.check(); err != nil {
		return TDXResult{}, err
	}
	sections, err := ParseTDVF(l.Firmware)
	if err != nil {
		return TDXResult{}, err
	}
	if sections == nil {
		return l.software(), nil
	}
	if !slices.Contains(TDXProfiles(), l.Profile) {
		return TDXResult{}, fmt.Errorf("measure: profile: expected one of %q for firmware with TDX metadata, got %q", TDXProfiles(), l.Profile)
	}
	r := TDXResult{Layout: LayoutTDVF}
	// MRTD is one long chain, and so are kernel and initrd: they go side by side.
	var side sync.WaitGroup
	side.Go(func() {
		m := newMRTD()
		for _, s := range sections {
			m.section(l.Firmware, s, l.Order)
		}
		r.MRTD = m.sum()
	})
	r.Events, err = l.events(sections, &r.Unknown)
	side.Wait()
	if err != nil {
		return TDXResult{}, err
	}
	r.finish(l)
	return r, nil
}

// finish replays the events.
func (r *TDXResult) finish(l TDXLaunch) {
	for i, d := range l.RTMR3 {
		r.Events = append(r.Events, Event{Register: 3, Type: EvEventTag, Digest: d, Description: fmt.Sprintf("given for RTMR3, number %d", i+1)})
	}
	r.RTMR = Replay(r.Events)
	for i, why := range r.Unknown {
		if why != "" {
			r.RTMR[i] = [48]byte{}
		}
	}
}

// check reports every field that cannot be launched.
func (l TDXLaunch) check() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf("measure: "+format, args...)) }
	if err := checkFirmware(l.Firmware); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, checkBoot(l.Kernel, l.Initrd, l.Cmdline)...)
	if l.VCPUs < 1 || l.VCPUs > MaxVCPUs {
		add("vcpus: expected 1 to %d, got %d", MaxVCPUs, l.VCPUs)
	}
	if l.Memory == 0 || l.Memory%pageSize != 0 || l.Memory > MaxMemory {
		add("memory: expected whole pages of at most %d bytes, got %d bytes", int64(MaxMemory), l.Memory)
	}
	if l.Order != "" && l.Order != PageOrderInterleaved && l.Order != PageOrderTwoPass {
		add("order: expected %q or %q, got %q", PageOrderInterleaved, PageOrderTwoPass, l.Order)
	}
	if uint64(len(l.Initrd)) >= fourGiB {
		add("initrd: expected fewer than %d bytes, got %d", fourGiB, len(l.Initrd))
	}
	if p := l.RTMR0; p != nil {
		errs = append(errs, p.check(l.Profile)...)
	}
	return errors.Join(errs...)
}

func (p *TDXPlatform) check(profile TDXProfile) (errs []error) {
	for _, b := range []struct {
		name string
		blob Blob
	}{{"etc/table-loader", p.Loader}, {"etc/acpi/rsdp", p.RSDP}, {"etc/acpi/tables", p.Tables}} {
		if b.blob.Data == nil && b.blob.Digest == ([48]byte{}) {
			errs = append(errs, fmt.Errorf("measure: acpi: %s is missing: give the file or its SHA-384", b.name))
		}
	}
	// A number without a variable is skipped by the firmware.
	if len(p.BootOrder)%2 != 0 || len(p.BootOrder) < 2*len(p.Boot) {
		errs = append(errs, fmt.Errorf("measure: boot_order: expected 16-bit numbers for %d boot options, got %d bytes", len(p.Boot), len(p.BootOrder)))
	}
	if profile == ProfileOVMF2025 && p.VariableAuthority == ([48]byte{}) {
		errs = append(errs, fmt.Errorf("measure: variable_authority: profile %q measures it and it is not derived from anything; give its digest from an event log", profile))
	}
	return errs
}
