// Package qemuload computes what firmware gets of a Linux kernel that QEMU loads
// (-kernel, -initrd, -append). QEMU writes into the kernel's setup header what a
// boot loader would. The firmware does not use these fields, but measured boot
// covers them. They say how large the initrd is and where QEMU would place it,
// which depends on the machine's memory.
//
// With AMD SEV, and with firmware that reads QEMU 10's etc/boot/kernel, the kernel
// reaches the firmware as it is in its file; this package is not needed then.
package qemuload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// Machine is a machine type of QEMU.
type Machine string

// Machine types.
const (
	Q35 Machine = "q35"
	PC  Machine = "pc"
)

// MaxHeader is the most that [Load.Kernel] copies; all of PE's headers of a
// kernel are in it, as its first page is kept for them (Linux,
// Documentation/arch/x86/boot.rst, §"The Real-Mode Kernel Header").
const MaxHeader = 4096

const (
	pageSize = 4096
	// acpiDataSize is what pc machines keep free for ACPI tables at the top of
	// low memory (QEMU, hw/i386/pc.c, acpi_data_size).
	acpiDataSize = 0x28000
	// realAddress and cmdlineAddress are where QEMU puts the setup code and the
	// command line of a kernel that is loaded high.
	realAddress, cmdlineAddress = 0x10000, 0x20000
	// loaderType is QEMU's own number, with version 0.
	loaderType = 0xb0
)

// Offsets of the setup header, and bits in it (Linux,
// Documentation/arch/x86/boot.rst).
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
	headerEnd     = 0x260 // of protocol 2.12

	loadedHigh      = 1 << 0 // loadflags
	canUseHeap      = 1 << 7
	aboveFourGiB    = 1 << 1     // xloadflags: XLF_CAN_BE_LOADED_ABOVE_4G
	defaultMaximum  = 0x37ffffff // of an initrd's address before protocol 2.3
	protocolCmdline = 0x202
	protocolMaximum = 0x203
	protocolXLoad   = 0x20c
)

// Load is what a machine loads.
type Load struct {
	Machine Machine
	// Memory is the machine's memory in bytes. Machine and Memory matter only
	// where there is an initrd.
	Memory uint64
	// Cmdline has no terminating NUL.
	Cmdline string
	// Initrd counts the bytes of the initrd; 0: there is none.
	Initrd int
}

// Kernel returns the kernel as QEMU (hw/i386/x86-common.c, in QEMU 7.2
// hw/i386/x86.c, x86_load_linux) hands it to the firmware, in two parts: a
// changed copy of its first MaxHeader bytes, and the rest of kernel itself.
// Errors begin with the name of an input: kernel, initrd, cmdline, memory or
// machine.
func (l Load) Kernel(kernel []byte) (head, rest []byte, err error) {
	if len(kernel) < headerEnd {
		return nil, nil, fmt.Errorf("kernel: expected at least %d bytes, got %d", headerEnd, len(kernel))
	}
	head, rest = bytes.Clone(kernel[:min(len(kernel), MaxHeader)]), kernel[min(len(kernel), MaxHeader):]
	if magic := head[headerMagic : headerMagic+4]; string(magic) != "HdrS" {
		return nil, nil, fmt.Errorf("kernel: expected the Linux boot protocol's signature \"HdrS\", got %q", magic)
	}
	le := binary.LittleEndian
	// QEMU treats others in another way, and they have no EFI stub.
	if v := le.Uint16(head[headerVersion:]); v < protocolCmdline || head[loadFlags]&loadedHigh == 0 {
		return nil, nil, fmt.Errorf("kernel: expected boot protocol 2.2 or newer and a kernel that is loaded high, got %#x, loadflags %#x", v, head[loadFlags])
	}
	if strings.Contains(l.Cmdline, "vga=") {
		return nil, nil, fmt.Errorf("cmdline: \"vga=\" makes QEMU write a video mode into the kernel, which is not predicted")
	}
	head[typeOfLoader] = loaderType
	head[loadFlags] |= canUseHeap
	le.PutUint16(head[heapEnd:], cmdlineAddress-realAddress-0x200)
	le.PutUint32(head[cmdlinePtr:], cmdlineAddress)
	if l.Initrd == 0 {
		return head, rest, nil
	}
	address, err := l.initrdAddress(head)
	if err != nil {
		return nil, nil, err
	}
	le.PutUint32(head[ramdiskImage:], address)
	le.PutUint32(head[ramdiskSize:], uint32(l.Initrd))
	return head, rest, nil
}

// initrdAddress is where QEMU puts the initrd: as high as it can.
func (l Load) initrdAddress(head []byte) (uint32, error) {
	le, limit := binary.LittleEndian, uint64(defaultMaximum)
	switch protocol := le.Uint16(head[headerVersion:]); {
	case protocol >= protocolXLoad && le.Uint16(head[xloadFlags:])&aboveFourGiB != 0:
		limit = 1<<32 - 1
	case protocol >= protocolMaximum:
		limit = uint64(le.Uint32(head[initrdMax:]))
	}
	low, err := l.Machine.BelowFourGiB(l.Memory)
	if err != nil {
		return 0, err
	}
	limit = min(limit, low-acpiDataSize-1)
	if size := uint64(l.Initrd); size < limit {
		return uint32((limit - size) &^ (pageSize - 1)), nil
	}
	return 0, fmt.Errorf("initrd: expected fewer than %#x bytes in a machine with %#x bytes of memory, got %#x", limit, l.Memory, l.Initrd)
}

// BelowFourGiB is how much of a machine's memory lies there (QEMU,
// hw/i386/pc_q35.c, pc_q35_init, and hw/i386/pc_piix.c, pc_init1): all of it, or
// less where the hole for PCI is in the way. Both are in bytes. Memory has to be
// whole pages, and more than what ACPI's tables need.
func (m Machine) BelowFourGiB(memory uint64) (uint64, error) {
	if memory <= acpiDataSize || memory%pageSize != 0 {
		return 0, fmt.Errorf("memory: expected whole pages of %d bytes, more than %#x bytes, got %#x", pageSize, acpiDataSize, memory)
	}
	switch {
	case m == Q35 && memory >= 0xb0000000:
		return 0x80000000, nil
	case m == PC && memory >= 0xe0000000:
		return 0xc0000000, nil
	case m == Q35 || m == PC:
		return memory, nil
	}
	return 0, fmt.Errorf("machine: expected %s or %s, got %.40q", Q35, PC, m)
}
