package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// resetVector is where an x86 CPU starts: the first one of a guest always.
const resetVector = 0xFFFFFFF0

// VMM is the program that starts the guest. Each fills in the save area of a
// virtual CPU in its own way, and adds the pages in its own order.
type VMM string

// The programs whose save areas are known.
const (
	// VMMQEMU is QEMU with KVM, 9.1 and newer.
	VMMQEMU VMM = "qemu"
	// VMMEC2 is Amazon EC2. Its CPUID page is added after all other sections.
	VMMEC2 VMM = "ec2"
	// VMMGCE is Google Compute Engine, whose SEC memory is added unmeasured.
	VMMGCE VMM = "gce"
)

// VMMs lists the programs that are known.
func VMMs() []VMM { return []VMM{VMMQEMU, VMMEC2, VMMGCE} }

// resetState is in what the programs differ (virtee/sev-snp-measure 0.0.13,
// sevsnpmeasure/vmsa.py, and google/gce-tcb-verifier v0.3.1,
// sev/ld_from_ovmf.go).
type resetState struct {
	bspCS, apCS, ss, tr uint16 // segment attributes
	pat                 uint64
	rdx                 uint64 // 0: the CPU's signature, as after a reset
	mxcsr               uint32
	fcw                 uint16
}

func (v VMM) resetState() resetState {
	const pat = 0x0007040600070406 // PAT after a reset (AMD APM volume 2, §7.8.2)
	switch v {
	case VMMEC2:
		return resetState{bspCS: 0x9a, apCS: 0x9b, ss: 0x92, tr: 0x83, pat: pat, rdx: 0x600}
	case VMMGCE:
		return resetState{bspCS: 0x9b, apCS: 0x9b, ss: 0x93, tr: 0x8b, pat: 0x00070106, rdx: 0x600}
	}
	return resetState{bspCS: 0x9b, apCS: 0x9b, ss: 0x93, tr: 0x8b, pat: pat, mxcsr: 0x1f80, fcw: 0x37f}
}

// vmsaPage is the save area of one virtual CPU in the reset state (offsets: AMD
// APM volume 2, table B-4; values: APM volume 2, §14.1.3, and KVM's additions).
// eip is the linear address of the first instruction.
func vmsaPage(v VMM, eip, signature uint32, features uint64) (page [pageSize]byte) {
	le := binary.LittleEndian
	segment := func(off int, selector, attrib uint16, base uint64) {
		le.PutUint16(page[off:], selector)
		le.PutUint16(page[off+2:], attrib)
		le.PutUint32(page[off+4:], 0xffff)
		le.PutUint64(page[off+8:], base)
	}
	reset := v.resetState()
	cs, rdx := reset.apCS, reset.rdx
	if eip == resetVector {
		cs = reset.bspCS
	}
	if rdx == 0 {
		rdx = uint64(signature)
	}
	segment(0x00, 0, 0x93, 0)                              // ES
	segment(0x10, 0xf000, cs, uint64(eip)&^uint64(0xffff)) // CS
	segment(0x20, 0, reset.ss, 0)                          // SS
	segment(0x30, 0, 0x93, 0)                              // DS
	segment(0x40, 0, 0x93, 0)                              // FS
	segment(0x50, 0, 0x93, 0)                              // GS
	segment(0x60, 0, 0, 0)                                 // GDTR
	segment(0x70, 0, 0x82, 0)                              // LDTR
	segment(0x80, 0, 0, 0)                                 // IDTR
	segment(0x90, 0, reset.tr, 0)                          // TR
	for _, r := range []struct {
		off   int
		value uint64
	}{
		{0x0d0, 0x1000},               // EFER: KVM sets SVME
		{0x148, 0x40},                 // CR4: KVM sets MCE
		{0x158, 0x10},                 // CR0: ET
		{0x160, 0x400},                // DR7
		{0x168, 0xffff0ff0},           // DR6
		{0x170, 0x2},                  // RFLAGS
		{0x178, uint64(eip) & 0xffff}, // RIP
		{0x268, reset.pat},            // PAT
		{0x310, rdx},                  // RDX
		{0x3b0, features},             // SEV_FEATURES
		{0x3e8, 0x1},                  // XCR0: x87
	} {
		le.PutUint64(page[r.off:], r.value)
	}
	le.PutUint32(page[0x408:], reset.mxcsr)
	le.PutUint16(page[0x410:], reset.fcw)
	return page
}

// cpuModels are the family, model and stepping of QEMU's CPU models
// (target/i386/cpu.c).
func cpuModels() map[string][3]uint32 {
	var (
		epyc  = [3]uint32{23, 1, 2}
		rome  = [3]uint32{23, 49, 0}
		milan = [3]uint32{25, 1, 1}
		genoa = [3]uint32{25, 17, 0}
		turin = [3]uint32{26, 0, 0}
	)
	return map[string][3]uint32{
		"EPYC": epyc, "EPYC-v1": epyc, "EPYC-v2": epyc, "EPYC-v3": epyc, "EPYC-v4": epyc, "EPYC-v5": epyc, "EPYC-IBPB": epyc,
		"EPYC-Rome": rome, "EPYC-Rome-v1": rome, "EPYC-Rome-v2": rome, "EPYC-Rome-v3": rome, "EPYC-Rome-v4": rome, "EPYC-Rome-v5": rome,
		"EPYC-Milan": milan, "EPYC-Milan-v1": milan, "EPYC-Milan-v2": milan, "EPYC-Milan-v3": milan,
		"EPYC-Genoa": genoa, "EPYC-Genoa-v1": genoa, "EPYC-Genoa-v2": genoa,
		"EPYC-Turin": turin, "EPYC-Turin-v1": turin,
	}
}

// emulatedModels are models that only make sense without SNP hardware. "max"
// is what it is under TCG; under KVM it depends on the host.
func emulatedModels() map[string][3]uint32 {
	amd64 := [3]uint32{15, 107, 1}
	return map[string][3]uint32{"max": amd64, "qemu64": amd64, "qemu64-v1": amd64}
}

// CPUSignature returns the CPUID Fn0000_0001 EAX value (family, model,
// stepping; AMD publication 25481) of a QEMU CPU model that an SNP guest can
// have. Two models with equal signatures give equal measurements.
func CPUSignature(model string) (uint32, error) {
	return cpuSignature(model, LayoutOVMF)
}

// ErrVCPUModel is wrapped where a CPU model is missing or unknown.
var ErrVCPUModel = errors.New("measure: vcpu_model: no predictable CPU signature")

func cpuSignature(model string, layout Layout) (uint32, error) {
	known := cpuModels()
	if layout == LayoutSoftware {
		maps.Copy(known, emulatedModels())
	}
	fms, ok := known[model]
	if !ok {
		names := slices.Sorted(maps.Keys(known))
		return 0, fmt.Errorf("%w: %q in layout %q; use one of %s", ErrVCPUModel, model, layout, strings.Join(names, ", "))
	}
	return signature(fms[0], fms[1], fms[2]), nil
}

// SignatureOf packs a processor's family, model and stepping as CPUID
// Fn0000_0001 EAX does (AMD publication 25481). Values that do not fit are an
// error.
func SignatureOf(family, model, stepping uint32) (uint32, error) {
	if family > 0xf+0xff || model > 0xff || stepping > 0xf {
		return 0, fmt.Errorf("measure: vcpu_signature: expected a family up to 270, a model up to 255 and a stepping up to 15, got %d, %d, %d", family, model, stepping)
	}
	return signature(family, model, stepping), nil
}

// signature packs family, model and stepping as CPUID does.
func signature(family, model, stepping uint32) uint32 {
	low, high := family, uint32(0)
	if family >= 0xf {
		low, high = 0xf, family-0xf
	}
	return high<<20 | (model>>4)<<16 | low<<8 | (model&0xf)<<4 | stepping&0xf
}
