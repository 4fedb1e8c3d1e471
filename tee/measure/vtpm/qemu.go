package vtpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Machine is a machine type of QEMU.
type Machine string

// Machine types.
const (
	Q35 Machine = "q35"
	PC  Machine = "pc"
)

// Offsets of the setup header (linux, Documentation/arch/x86/boot.rst).
const (
	headerMagic   = 0x202
	headerVersion = 0x206
	typeOfLoader  = 0x210
	loadFlags     = 0x211
	ramdiskImage  = 0x218
	ramdiskSize   = 0x21c
	heapEnd       = 0x224
	cmdlinePtr    = 0x228
	initrdMax     = 0x22c
	xloadFlags    = 0x236
)

// patchKernel writes what QEMU (7.2, hw/i386/x86.c, x86_load_linux) writes into the
// setup header before it hands the kernel to the firmware: its own number, and
// where it would put command line and initrd. The latter depends on the machine's
// memory. The firmware does not use these fields, but it measures them.
func patchKernel(kernel, initrd []byte, machine Machine, memory uint64) ([]byte, error) {
	if len(kernel) < 0x260 || string(kernel[headerMagic:headerMagic+4]) != "HdrS" {
		return nil, errors.New("kernel: has no setup header")
	}
	if v := binary.LittleEndian.Uint16(kernel[headerVersion:]); v < 0x20c {
		return nil, fmt.Errorf("kernel: boot protocol: expected 0x20c or newer, got %#x", v)
	}
	const realMode, cmdline = 0x10000, 0x20000 // for a kernel that is loaded high
	k := bytes.Clone(kernel)
	k[typeOfLoader] = 0xb0
	k[loadFlags] |= 0x80 // CAN_USE_HEAP
	binary.LittleEndian.PutUint16(k[heapEnd:], cmdline-realMode-0x200)
	binary.LittleEndian.PutUint32(k[cmdlinePtr:], cmdline)
	if len(initrd) == 0 {
		return k, nil
	}
	below, err := belowFourGiB(machine, memory)
	if err != nil {
		return nil, err
	}
	limit := uint64(binary.LittleEndian.Uint32(k[initrdMax:]))
	if binary.LittleEndian.Uint16(k[xloadFlags:])&2 != 0 { // XLF_CAN_BE_LOADED_ABOVE_4G
		limit = 1<<32 - 1
	}
	const acpi = 0x20000 + 0x8000 // room for ACPI tables below the end of memory
	limit = min(limit, below-acpi-1)
	if uint64(len(initrd)) >= limit {
		return nil, fmt.Errorf("initrd: %d bytes do not fit into the memory", len(initrd))
	}
	binary.LittleEndian.PutUint32(k[ramdiskImage:], uint32((limit-uint64(len(initrd)))&^4095))
	binary.LittleEndian.PutUint32(k[ramdiskSize:], uint32(len(initrd)))
	return k, nil
}

// belowFourGiB is how much of the memory is below 4 GiB (QEMU 7.2, pc_q35.c and
// pc_piix.c).
func belowFourGiB(machine Machine, memory uint64) (uint64, error) {
	if memory < 16<<20 || memory%4096 != 0 {
		return 0, fmt.Errorf("memory: expected at least 16 MiB in pages of 4 KiB, got %d bytes", memory)
	}
	switch {
	case machine == Q35 && memory >= 0xb0000000:
		return 0x80000000, nil
	case machine == PC && memory >= 0xe0000000:
		return 0xc0000000, nil
	case machine == Q35 || machine == PC:
		return memory, nil
	}
	return 0, fmt.Errorf("machine: expected %s or %s, got %q", Q35, PC, machine)
}
