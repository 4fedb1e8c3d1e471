package measure

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// guid is a GUID in the byte order of EFI: the first three groups little-endian.
type guid [16]byte

// GUIDs of the table that OVMF puts at the end of its image (edk2,
// OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm) and of the kernel hashes
// (QEMU, target/i386/sev.c).
var (
	guidTableFooter  = mustGUID(0x96b582de, 0x1fb2, 0x45f7, 0xbaeaa366c55a082d)
	guidResetBlock   = mustGUID(0x00f771de, 0x1a7e, 0x4fcb, 0x890e68c77e2fb44e)
	guidHashesArea   = mustGUID(0x7255371f, 0x3a3b, 0x4b04, 0x927b1da6efa8d454)
	guidSEVMetadata  = mustGUID(0xdc886566, 0x984a, 0x4798, 0xa75e5585a7bf67cc)
	guidHashesHeader = mustGUID(0x9438d606, 0x4f22, 0x4cc9, 0xb479a793d411fd21)
	guidHashCmdline  = mustGUID(0x97d02dd8, 0xbd20, 0x4c94, 0xaa78e7714d36ab2a)
	guidHashInitrd   = mustGUID(0x44baf731, 0x3a2f, 0x4bd7, 0x9af141e29169781d)
	guidHashKernel   = mustGUID(0x4de79437, 0xabd2, 0x427f, 0xb835d5b172d2045b)
)

func mustGUID(a uint32, b, c uint16, d uint64) (g guid) {
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], d)
	return g
}

// Kinds of sections in OVMF's SEV metadata (edk2,
// OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	sectionSecMem       = 1
	sectionSecrets      = 2
	sectionCPUID        = 3
	sectionSVSMCAA      = 4
	sectionKernelHashes = 0x10
)

// maxSections bounds the SEV metadata; OVMF has seven or fewer.
const maxSections = 64

type section struct {
	gpa, size, kind uint32
}

// firmware is what an image says about its own launch.
type firmware struct {
	hasMetadata bool
	sections    []section
	// apResetEIP is where every CPU but the first starts.
	apResetEIP uint32
	// hashesGPA is where the table of kernel hashes is expected; 0: nowhere.
	hashesGPA uint32
}

const (
	// footerEnd is the distance of the table's end from the image's end.
	footerEnd = 32
	// entryHeader is the size of an entry's trailing length and GUID.
	entryHeader = 2 + len(guid{})
)

// parseFirmware reads the GUIDed table at the end of image. An image without
// one, or without SEV metadata in it, is not an error.
func parseFirmware(image []byte) (firmware, error) {
	fw := firmware{apResetEIP: resetVector}
	table, err := footerTable(image)
	if err != nil {
		return firmware{}, err
	}
	entry, ok := table[guidSEVMetadata]
	if !ok {
		return fw, nil
	}
	fw.hasMetadata = true
	offset, err := entryUint32(entry, "SEV metadata offset")
	if err != nil {
		return firmware{}, err
	}
	if fw.sections, err = parseMetadata(image, offset); err != nil {
		return firmware{}, err
	}
	reset, ok := table[guidResetBlock]
	if !ok {
		return firmware{}, fmt.Errorf("measure: firmware: has SEV metadata but no SEV-ES reset block, so the start of the second CPU is unknown")
	}
	if fw.apResetEIP, err = entryUint32(reset, "SEV-ES reset block"); err != nil {
		return firmware{}, err
	}
	if hashes, ok := table[guidHashesArea]; ok {
		if fw.hashesGPA, err = entryUint32(hashes, "SEV hash table area"); err != nil {
			return firmware{}, err
		}
	}
	return fw, nil
}

func entryUint32(entry []byte, name string) (uint32, error) {
	if len(entry) < 4 {
		return 0, fmt.Errorf("measure: firmware: %s: expected at least 4 bytes, got %d", name, len(entry))
	}
	return binary.LittleEndian.Uint32(entry), nil
}

// footerTable returns the entries of the table that ends footerEnd bytes before
// the image's end: each is data, a 16-bit length of the whole entry, and a
// GUID; the last is the footer, whose length is that of the whole table.
func footerTable(image []byte) (map[guid][]byte, error) {
	end := len(image) - footerEnd
	if end < entryHeader || !bytes.Equal(image[end-len(guid{}):end], guidTableFooter[:]) {
		return nil, nil
	}
	size := int(binary.LittleEndian.Uint16(image[end-entryHeader:]))
	if size < entryHeader || size > end {
		return nil, fmt.Errorf("measure: firmware: footer table: expected a length of %d to %d bytes, got %d", entryHeader, end, size)
	}
	rest := image[end-size : end-entryHeader]
	table := map[guid][]byte{}
	for len(rest) > 0 {
		if len(rest) < entryHeader {
			return nil, fmt.Errorf("measure: firmware: footer table: %d bytes are left over", len(rest))
		}
		head := rest[len(rest)-entryHeader:]
		n := int(binary.LittleEndian.Uint16(head))
		if n < entryHeader || n > len(rest) {
			return nil, fmt.Errorf("measure: firmware: footer table: expected an entry of %d to %d bytes, got %d", entryHeader, len(rest), n)
		}
		id := guid(head[2:])
		if _, dup := table[id]; dup {
			return nil, fmt.Errorf("measure: firmware: footer table: entry %x occurs twice", id)
		}
		table[id] = rest[len(rest)-n : len(rest)-entryHeader]
		rest = rest[:len(rest)-n]
	}
	return table, nil
}

// parseMetadata reads the SEV metadata that begins offset bytes before the
// image's end: "ASEV", length, version 1, count, then count sections of three
// 32-bit words.
func parseMetadata(image []byte, offset uint32) ([]section, error) {
	const header, entry = 16, 12
	if offset < header || uint64(offset) > uint64(len(image)) {
		return nil, fmt.Errorf("measure: firmware: SEV metadata: expected an offset of %d to %d, got %d", header, len(image), offset)
	}
	data := image[len(image)-int(offset):]
	if string(data[:4]) != "ASEV" {
		return nil, fmt.Errorf("measure: firmware: SEV metadata: expected signature \"ASEV\", got %q", data[:4])
	}
	length := binary.LittleEndian.Uint32(data[4:])
	version := binary.LittleEndian.Uint32(data[8:])
	count := binary.LittleEndian.Uint32(data[12:])
	if version != 1 {
		return nil, fmt.Errorf("measure: firmware: SEV metadata: expected version 1, got %d", version)
	}
	if count > maxSections || uint64(length) != header+uint64(count)*entry || int(length) > len(data) {
		return nil, fmt.Errorf("measure: firmware: SEV metadata: %d sections in %d bytes do not fit (at most %d sections, %d bytes left)", count, length, maxSections, len(data))
	}
	sections := make([]section, count)
	for i := range sections {
		b := data[header+i*entry:]
		s := section{
			gpa:  binary.LittleEndian.Uint32(b),
			size: binary.LittleEndian.Uint32(b[4:]),
			kind: binary.LittleEndian.Uint32(b[8:]),
		}
		if s.gpa%pageSize != 0 || s.size == 0 || s.size%pageSize != 0 || s.size > maxSectionSize {
			return nil, fmt.Errorf("measure: firmware: SEV metadata: section %d: expected whole pages of at most %d bytes, got %#x bytes at %#x", i, maxSectionSize, s.size, s.gpa)
		}
		sections[i] = s
	}
	return sections, nil
}

// maxSectionSize bounds the work a metadata section can ask for: OVMF's
// sections lie in the first 16 MiB of memory.
const maxSectionSize = 16 << 20

// metadataPages adds the sections in the order of the metadata, as QEMU does;
// the other programs' deviations are those of virtee/sev-snp-measure 0.0.13,
// sevsnpmeasure/guest.py.
func (d *digest) metadataPages(fw firmware, l Launch) error {
	hashed := false
	var last []section // EC2 adds the CPUID page after all others
	for i, s := range fw.sections {
		gpa, size := uint64(s.gpa), uint64(s.size)
		switch s.kind {
		case sectionSecMem:
			kind := byte(pageZero)
			if l.VMM == VMMGCE {
				kind = pageUnmeasured
			}
			d.unreadPages(kind, gpa, size)
		case sectionSVSMCAA:
			d.unreadPages(pageZero, gpa, size)
		case sectionSecrets:
			if size != pageSize {
				return fmt.Errorf("measure: firmware: SEV metadata: section %d: a secrets section is one page, got %#x bytes", i, size)
			}
			d.unreadPages(pageSecrets, gpa, size)
		case sectionCPUID:
			if size != pageSize {
				return fmt.Errorf("measure: firmware: SEV metadata: section %d: a CPUID section is one page, got %#x bytes", i, size)
			}
			if l.VMM == VMMEC2 {
				last = append(last, s)
				continue
			}
			d.unreadPages(pageCPUID, gpa, size)
		case sectionKernelHashes:
			if l.Kernel == nil {
				d.unreadPages(pageZero, gpa, size)
				continue
			}
			table := uint64(fw.hashesGPA)
			if hashed || size != pageSize || table&^(pageSize-1) != gpa || table%pageSize+hashesSize > pageSize {
				return fmt.Errorf("measure: firmware: SEV metadata: section %d: expected one kernel hashes page that holds the table at %#x, got %#x bytes at %#x", i, table, size, gpa)
			}
			page := hashesPage(l, table%pageSize)
			d.normalPages(gpa, page[:])
			hashed = true
		default:
			return fmt.Errorf("measure: firmware: SEV metadata: section %d: kind %#x is unknown; this firmware is newer than the measurement code", i, s.kind)
		}
	}
	for _, s := range last {
		d.unreadPages(pageCPUID, uint64(s.gpa), uint64(s.size))
	}
	if l.Kernel != nil && !hashed {
		return fmt.Errorf("measure: firmware: has no place for kernel hashes, so kernel, initrd and cmdline would not be measured; use OVMF's AmdSev build")
	}
	return nil
}
