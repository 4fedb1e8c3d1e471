package measure

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/tee/measure/qemuload"
)

// MaxMemory bounds the memory of a machine in bytes.
const MaxMemory = 1 << 46

// Constants of hand-off blocks (UEFI Platform Initialization Specification,
// volume 3, §5; the attributes are those that QEMU sets, hw/i386/tdvf-hob.c).
const (
	hobHandoff       = 1
	hobResource      = 3
	hobVersion       = 9
	resourceMemory   = 0 // EFI_RESOURCE_SYSTEM_MEMORY
	resourceUnaccept = 7 // EFI_RESOURCE_MEMORY_UNACCEPTED
	resourceFlags    = 7 // present, initialized, tested
	hobEndSize       = 8
)

// tdHOB is the hand-off block that QEMU writes for a machine with that much
// memory, as the firmware measures it: without the block that ends the list.
// Memory in the firmware's sections is accepted, all else is not.
func tdHOB(sections []TDVFSection, memory uint64) ([]byte, error) {
	var accepted []TDVFSection
	var base uint64
	for _, s := range sections {
		if s.Kind == TDVFHOB {
			base = s.Address
		}
		if s.MemorySize != 0 && (s.Kind == TDVFHOB || s.Kind == TDVFTempMem || s.Kind == TDVFPermMem) {
			accepted = append(accepted, s)
		}
	}
	if base == 0 {
		return nil, fmt.Errorf("measure: firmware: TDX metadata: expected a TD_HOB section, got none; its measurement cannot be predicted")
	}
	slices.SortFunc(accepted, func(a, b TDVFSection) int { return cmp.Compare(a.Address, b.Address) })

	le := binary.LittleEndian
	var resources []byte
	resource := func(kind uint32, from, to uint64) {
		if to <= from {
			return
		}
		b := make([]byte, 48)
		le.PutUint16(b[0:], hobResource)
		le.PutUint16(b[2:], uint16(len(b)))
		// 8: the owner's GUID, zero.
		le.PutUint32(b[24:], kind)
		le.PutUint32(b[28:], resourceFlags)
		le.PutUint64(b[32:], from)
		le.PutUint64(b[40:], to-from)
		resources = append(resources, b...)
	}
	low, err := qemuload.Q35.BelowFourGiB(memory)
	if err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	next := uint64(0)
	for _, s := range accepted {
		if s.Address+s.MemorySize > low {
			return nil, fmt.Errorf("measure: memory: expected more than %#x bytes below 4 GiB for the firmware's %v section, got %#x", s.Address+s.MemorySize, s.Kind, low)
		}
		resource(resourceUnaccept, next, s.Address)
		resource(resourceMemory, s.Address, s.Address+s.MemorySize)
		next = s.Address + s.MemorySize
	}
	resource(resourceUnaccept, next, low)
	resource(resourceUnaccept, fourGiB, fourGiB+memory-low)

	var head [56]byte
	le.PutUint16(head[0:], hobHandoff)
	le.PutUint16(head[2:], uint16(len(head)))
	le.PutUint32(head[8:], hobVersion)
	le.PutUint64(head[48:], base+uint64(len(head)+len(resources)+hobEndSize))
	return append(head[:], resources...), nil
}
