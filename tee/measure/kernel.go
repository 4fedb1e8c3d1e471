package measure

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/coffer-project/coffer/tee/measure/peimage"
)

// headerSize is as much of a kernel as QEMU may patch; all of PE's headers are
// in it (Linux, Documentation/arch/x86/boot.rst, §"The Real-Mode Kernel
// Header").
const headerSize = 4096

// acpiDataSize is what QEMU's pc machines keep free for ACPI tables at the top
// of low memory (QEMU, hw/i386/pc.c, acpi_data_size).
const acpiDataSize = 0x28000

// kernelDigest is the Authenticode SHA-384 of the kernel as the firmware gets it.
func (l TDXLaunch) kernelDigest() (out [48]byte, err error) {
	head, rest := l.Kernel, []byte(nil)
	if !l.RawKernel {
		if head, err = l.patchedHeader(); err != nil {
			return out, err
		}
		rest = l.Kernel[headerSize:]
	} else if len(head) > headerSize {
		head, rest = head[:headerSize], head[headerSize:]
	}
	h := sha512.New384()
	if err := peimage.Digest(h, head, rest); err != nil {
		return out, fmt.Errorf("measure: kernel: %w; UEFI firmware starts only a kernel with an EFI stub", err)
	}
	h.Sum(out[:0])
	return out, nil
}

// patchedHeader is the start of the kernel as QEMU changes it for a boot
// loader's sake (hw/i386/x86-common.c, x86_load_linux).
func (l TDXLaunch) patchedHeader() ([]byte, error) {
	if len(l.Kernel) < headerSize {
		return nil, fmt.Errorf("measure: kernel: expected at least %d bytes, got %d", headerSize, len(l.Kernel))
	}
	le, head := binary.LittleEndian, bytes.Clone(l.Kernel[:headerSize])
	if string(head[0x202:0x206]) != "HdrS" {
		return nil, fmt.Errorf("measure: kernel: expected the Linux boot protocol's signature \"HdrS\", got %q", head[0x202:0x206])
	}
	protocol := le.Uint16(head[0x206:])
	if protocol < 0x202 || head[0x211]&1 == 0 {
		return nil, fmt.Errorf("measure: kernel: expected boot protocol 2.2 or newer and a kernel that is loaded high, got %#x, loadflags %#x", protocol, head[0x211])
	}
	if strings.Contains(l.Cmdline, "vga=") {
		return nil, fmt.Errorf("measure: cmdline: \"vga=\" makes QEMU write a video mode into the kernel, which is not predicted")
	}
	const realAddr, cmdlineAddr = 0x10000, 0x20000
	head[0x210] = 0xb0  // type_of_loader: QEMU
	head[0x211] |= 0x80 // loadflags: CAN_USE_HEAP
	le.PutUint16(head[0x224:], cmdlineAddr-realAddr-0x200)
	le.PutUint32(head[0x228:], cmdlineAddr)
	if len(l.Initrd) == 0 {
		return head, nil
	}
	address, err := initrdAddress(head, protocol, uint64(len(l.Initrd)), l.Memory)
	if err != nil {
		return nil, err
	}
	le.PutUint32(head[0x218:], address)
	le.PutUint32(head[0x21c:], uint32(len(l.Initrd)))
	return head, nil
}

// initrdAddress is where QEMU puts the initrd: as high as it can.
func initrdAddress(head []byte, protocol uint16, size, memory uint64) (uint32, error) {
	le, limit := binary.LittleEndian, uint64(0x37ffffff)
	switch {
	case protocol >= 0x20c && le.Uint16(head[0x236:])&0x40 != 0: // xloadflags: XLF_CAN_BE_LOADED_ABOVE_4G
		limit = 1<<32 - 1
	case protocol < 0x20c && le.Uint32(head[0x22c:]) != 0:
		limit = uint64(le.Uint32(head[0x22c:])) // initrd_addr_max
	}
	low := belowFourGiB(memory)
	if low <= acpiDataSize {
		return 0, fmt.Errorf("measure: memory: expected more than %#x bytes, got %#x", acpiDataSize, memory)
	}
	limit = min(limit, low-acpiDataSize-1)
	if size >= limit {
		return 0, fmt.Errorf("measure: initrd: expected fewer than %#x bytes in a machine with %#x bytes of memory, got %#x", limit, memory, size)
	}
	return uint32((limit - size) &^ (pageSize - 1)), nil
}

// utf16le is s as UEFI writes text, without a terminator.
func utf16le(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// loadOptions is the command line as OVMF hands it to the kernel's EFI stub,
// which measures it with its terminator.
func (l TDXLaunch) loadOptions() string {
	if len(l.Initrd) > 0 && !l.NoInitrdOption {
		return l.Cmdline + " initrd=initrd"
	}
	return l.Cmdline
}
