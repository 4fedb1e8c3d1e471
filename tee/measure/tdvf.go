package measure

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// GUIDs of the TDX metadata (Intel TDX Virtual Firmware Design Guide, revision
// 1.01, §11; edk2, OvmfPkg/ResetVector/X64/IntelTdxMetadata.asm).
var (
	guidTDXOffset   = mustGUID(0xe47a6535, 0x984a, 0x4798, 0x865e4685a7bf8ec2)
	guidTDXMetadata = mustGUID(0xe9eaf9f3, 0x168e, 0x44d5, 0xa8eb7f4d8738f6ae)
)

// TDVFKind is what a section of TDX metadata holds.
type TDVFKind uint32

// Kinds of sections (design guide, §11.2; from 4 on: the td-shim specification,
// §"TDX metadata").
const (
	TDVFBFV          TDVFKind = 0 // boot firmware volume: code
	TDVFCFV          TDVFKind = 1 // configuration firmware volume: variables
	TDVFHOB          TDVFKind = 2 // hand-off block, written by the VMM
	TDVFTempMem      TDVFKind = 3
	TDVFPermMem      TDVFKind = 4
	TDVFPayload      TDVFKind = 5
	TDVFPayloadParam TDVFKind = 6
	TDVFTDInfo       TDVFKind = 7
	TDVFTDParams     TDVFKind = 8
)

// String is the name in the specifications.
func (k TDVFKind) String() string {
	names := [...]string{"BFV", "CFV", "TD_HOB", "TempMem", "PermMem", "Payload", "PayloadParam", "TD_INFO", "TD_PARAMS"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("section type %d", uint32(k))
}

// Attributes of a section (design guide, §11.2).
const (
	// TDVFExtend says that the content is measured into MRTD.
	TDVFExtend = 1 << 0
	// TDVFAug says that the pages are added later, by TDH.MEM.PAGE.AUG, so that
	// not even their addresses are measured.
	TDVFAug = 1 << 1
)

// TDVFSection is one range of memory that the VMM sets up before the guest runs.
type TDVFSection struct {
	Kind TDVFKind
	// Offset and Size are the data's place in the image; Size is 0 for none.
	Offset, Size uint32
	// Address and MemorySize are the pages in guest-physical memory; what Size
	// does not fill is zero.
	Address, MemorySize uint64
	Attributes          uint32
}

// Bounds of the work that metadata can ask for, which are far above what firmware
// needs: bytes of one section, and of all whose adding is measured; and bytes of
// all whose content is measured.
const (
	maxTDXMemory   = 256 << 20
	maxTDXExtended = 4 * MaxFirmware
)

// ParseTDVF reads the TDX metadata of a firmware image. It returns nil for an
// image that has none, which no TDX host starts.
func ParseTDVF(image []byte) ([]TDVFSection, error) {
	table, err := footerTable(image)
	if err != nil {
		return nil, err
	}
	entry, ok := table[guidTDXOffset]
	if !ok {
		return nil, nil
	}
	offset, err := entryUint32(entry, "TDX metadata offset")
	if err != nil {
		return nil, err
	}
	const header, size = 16, 32
	if uint64(offset) > uint64(len(image)-len(guid{})) || offset < header {
		return nil, fmt.Errorf("measure: firmware: TDX metadata: expected an offset of %d to %d, got %d", header, len(image)-len(guid{}), offset)
	}
	at := len(image) - int(offset)
	if id := image[at-len(guid{}) : at]; !bytes.Equal(id, guidTDXMetadata[:]) {
		return nil, fmt.Errorf("measure: firmware: TDX metadata: expected GUID %x before the descriptor, got %x", guidTDXMetadata, id)
	}
	le, data := binary.LittleEndian, image[at:]
	if string(data[:4]) != "TDVF" {
		return nil, fmt.Errorf("measure: firmware: TDX metadata: expected signature \"TDVF\", got %q", data[:4])
	}
	length, version, count := le.Uint32(data[4:]), le.Uint32(data[8:]), le.Uint32(data[12:])
	if version != 1 {
		return nil, fmt.Errorf("measure: firmware: TDX metadata: expected version 1, got %d", version)
	}
	if count > maxSections || uint64(length) != header+uint64(count)*size || uint64(length) > uint64(len(data)) {
		return nil, fmt.Errorf("measure: firmware: TDX metadata: %d sections in %d bytes do not fit (at most %d sections, %d bytes left)", count, length, maxSections, len(data))
	}
	sections := make([]TDVFSection, count)
	for i := range sections {
		b := data[header+i*size:]
		sections[i] = TDVFSection{
			Offset: le.Uint32(b), Size: le.Uint32(b[4:]), Address: le.Uint64(b[8:]), MemorySize: le.Uint64(b[16:]),
			Kind: TDVFKind(le.Uint32(b[24:])), Attributes: le.Uint32(b[28:]),
		}
		if err := sections[i].check(len(image)); err != nil {
			return nil, fmt.Errorf("measure: firmware: TDX metadata: section %d (%v): %w", i, sections[i].Kind, err)
		}
	}
	return sections, checkTDVF(sections)
}

func (s TDVFSection) check(image int) error {
	switch {
	case s.Kind > TDVFTDParams:
		return fmt.Errorf("kind %d is unknown; this firmware is newer than the measurement code", uint32(s.Kind))
	case s.Address%pageSize != 0 || s.MemorySize%pageSize != 0 || s.MemorySize > maxTDXMemory || s.Address > 1<<52:
		return fmt.Errorf("expected whole pages of at most %#x bytes below 2^52, got %#x bytes at %#x", maxTDXMemory, s.MemorySize, s.Address)
	case uint64(s.Offset)+uint64(s.Size) > uint64(image):
		return fmt.Errorf("expected data within the image's %#x bytes, got %#x bytes at %#x; an image without its variable store (OVMF_CODE.fd) cannot be measured, give the whole one (OVMF.fd)", image, s.Size, s.Offset)
	case uint64(s.Size) > s.MemorySize:
		return fmt.Errorf("expected at most %#x bytes of data for as much memory, got %#x", s.MemorySize, s.Size)
	case s.Attributes&^(TDVFExtend|TDVFAug) != 0:
		return fmt.Errorf("attributes %#x are unknown", s.Attributes)
	case s.Attributes == TDVFExtend|TDVFAug:
		return fmt.Errorf("its pages are added after the measurement, yet measured")
	case (s.Kind == TDVFBFV || s.Kind == TDVFCFV) && (s.Size == 0 || uint64(s.Size) != s.MemorySize):
		return fmt.Errorf("expected data for all of its %#x bytes of memory, got %#x", s.MemorySize, s.Size)
	}
	return nil
}

// checkTDVF holds the sections to what the design guide demands of all.
func checkTDVF(sections []TDVFSection) error {
	count := map[TDVFKind]int{}
	var added, extended uint64
	for i, s := range sections {
		count[s.Kind]++
		if s.Attributes&TDVFAug == 0 {
			added += s.MemorySize
		}
		if s.Attributes&TDVFExtend != 0 {
			extended += s.MemorySize
		}
		for j, o := range sections[:i] {
			if s.MemorySize != 0 && o.MemorySize != 0 && s.Address < o.Address+o.MemorySize && o.Address < s.Address+s.MemorySize {
				return fmt.Errorf("measure: firmware: TDX metadata: sections %d (%v) and %d (%v) overlap in memory", j, o.Kind, i, s.Kind)
			}
		}
	}
	if added > maxTDXMemory || extended > maxTDXExtended {
		return fmt.Errorf("measure: firmware: TDX metadata: expected pages of at most %#x bytes that are added and %#x that are measured in all sections, got %#x and %#x", maxTDXMemory, maxTDXExtended, added, extended)
	}
	if count[TDVFBFV] == 0 {
		return fmt.Errorf("measure: firmware: TDX metadata: expected a boot firmware volume (BFV), got none")
	}
	if count[TDVFHOB] > 1 {
		return fmt.Errorf("measure: firmware: TDX metadata: expected at most one TD_HOB section, got %d", count[TDVFHOB])
	}
	return nil
}

// data is the section's part of image.
func (s TDVFSection) data(image []byte) []byte { return image[s.Offset : s.Offset+s.Size] }
