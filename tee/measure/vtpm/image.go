package vtpm

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
)

const maxSections = 96 // the limit of the Windows loader; edk2 has none

// errNotPE says that a file has no PE header.
var errNotPE = errors.New("is no PE image: expected a kernel with an EFI stub")

// extent is a part of a file.
type extent struct{ from, size uint64 }

// authenticode finds the parts of a PE image that its Authenticode digest covers
// (Windows Authenticode Portable Executable Signature Format, version 1.0,
// "Calculating the PE Image Hash"): everything but the checksum, the entry of the
// certificate table and the certificates, sections in the order of their data.
func authenticode(pe []byte) ([]extent, error) {
	u16 := func(at uint64) uint64 { return uint64(binary.LittleEndian.Uint16(pe[at:])) }
	u32 := func(at uint64) uint64 { return uint64(binary.LittleEndian.Uint32(pe[at:])) }
	size := uint64(len(pe))
	if size < 0x40 || pe[0] != 'M' || pe[1] != 'Z' {
		return nil, errNotPE
	}
	at := u32(0x3c)
	if at+24+112+40 > size || string(pe[at:at+4]) != "PE\x00\x00" {
		return nil, errNotPE
	}
	sections, optionalSize, optional := u16(at+6), u16(at+20), at+24
	directories := optional + 92
	switch magic := u16(optional); magic {
	case 0x10b:
	case 0x20b:
		directories += 16
	default:
		return nil, fmt.Errorf("magic of the optional header: expected 0x10b or 0x20b, got %#x", magic)
	}
	headers := u32(optional + 60)
	table := optional + optionalSize
	if sections > maxSections || table+40*sections > size || headers > size || table+40*sections > headers {
		return nil, fmt.Errorf("headers of %d bytes with %d sections do not fit in %d bytes", headers, sections, size)
	}
	checksum, security := optional+64, directories+4+4*8
	out := []extent{{0, checksum}}
	certificates := uint64(0)
	if u32(directories) > 4 {
		if security+8 > table {
			return nil, errors.New("data directories do not fit into the optional header")
		}
		certificates = u32(security + 4)
		out = append(out, extent{checksum + 4, security - checksum - 4}, extent{security + 8, headers - security - 8})
	} else {
		out = append(out, extent{checksum + 4, headers - checksum - 4})
	}
	covered := headers
	var data []extent
	for i := range sections {
		s := extent{from: u32(table + 40*i + 20), size: u32(table + 40*i + 16)}
		if s.size == 0 {
			continue
		}
		if s.from+s.size > size {
			return nil, fmt.Errorf("section %d: %d bytes at %d are behind the end", i, s.size, s.from)
		}
		data = append(data, s)
		if covered += s.size; covered > size {
			return nil, errors.New("sections overlap")
		}
	}
	slices.SortStableFunc(data, func(a, b extent) int { return cmp.Compare(a.from, b.from) })
	out = append(out, data...)
	if size > covered {
		if covered+certificates > size {
			return nil, fmt.Errorf("certificates of %d bytes do not fit", certificates)
		}
		out = append(out, extent{covered, size - covered - certificates})
	}
	return out, nil
}

// imageDigest is the Authenticode digest of an image.
func imageDigest(pe []byte, h hash.Hash) ([]byte, error) {
	parts, err := authenticode(pe)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		if _, err := h.Write(pe[p.from : p.from+p.size]); err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}
