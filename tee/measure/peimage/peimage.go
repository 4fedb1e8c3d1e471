// Package peimage hashes PE/COFF images the way that measured boot does
// (Microsoft, "Windows Authenticode Portable Executable Signature Format", version
// 1.0, §"Calculating the PE Image Hash", as edk2's
// OvmfPkg/Tcg/TdTcg2Dxe/MeasureBootPeCoff.c does it): everything but the checksum,
// the certificate table's directory entry and the certificates themselves. A
// tool that signs an image whose size is no multiple of eight hashes the padding
// too; firmware does not.
//
// A Linux kernel with an EFI stub is such an image.
package peimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
)

// MaxSections bounds the section table; a file can say 65535.
const MaxSections = 96 // the loader's own limit (Microsoft PE format, §3.3)

// Offsets and sizes (Microsoft, "PE Format", §3).
const (
	offLfanew       = 0x3c
	coffSize        = 20
	sectionSize     = 40
	magicPE32       = 0x10b
	magicPE32Plus   = 0x20b
	offHeadersSize  = 60 // in the optional header
	offChecksum     = 64
	certificateSlot = 4 // index of the certificate table's directory entry
)

// region is a half-open range of a file.
type region struct{ from, to int }

// Digest writes what of image counts to h. Only the headers are parsed, and
// nothing is copied. A patched image is given as head and rest, which follow each
// other in the file: head must hold all headers.
func Digest(h hash.Hash, head, rest []byte) error {
	regions, err := parse(head, len(head)+len(rest))
	if err != nil {
		return err
	}
	for _, r := range regions {
		if r.from < len(head) {
			_, _ = h.Write(head[r.from:min(r.to, len(head))])
		}
		if r.to > len(head) {
			_, _ = h.Write(rest[max(r.from-len(head), 0) : r.to-len(head)])
		}
	}
	return nil
}

// header is what the headers say.
type header struct {
	checksum, certEntry int // offsets
	hasCertEntry        bool
	headersSize         int
	table, sections     int // offset and count of section headers
	certSize            int
}

// parse returns what of an image is hashed, in this order.
func parse(head []byte, size int) ([]region, error) {
	hd, err := parseHeader(head)
	if err != nil {
		return nil, fmt.Errorf("peimage: %w", err)
	}
	if hd.headersSize > len(head) || hd.headersSize < hd.table+hd.sections*sectionSize {
		return nil, fmt.Errorf("peimage: SizeOfHeaders: expected %d to %d bytes, got %d", hd.table+hd.sections*sectionSize, len(head), hd.headersSize)
	}
	regions := []region{{0, hd.checksum}}
	if hd.hasCertEntry {
		regions = append(regions, region{hd.checksum + 4, hd.certEntry}, region{hd.certEntry + 8, hd.headersSize})
	} else {
		regions = append(regions, region{hd.checksum + 4, hd.headersSize})
	}
	sections, err := parseSections(head, hd, size)
	if err != nil {
		return nil, fmt.Errorf("peimage: %w", err)
	}
	hashed := hd.headersSize
	for _, r := range sections {
		hashed += r.to - r.from
	}
	regions = append(regions, sections...)
	// What follows the sections is hashed, up to the certificates at the end. The
	// specification takes the number of bytes hashed so far for its offset. Where
	// nothing follows, firmware does not look at the certificates' size.
	switch {
	case hashed == size:
		return regions, nil
	case hd.certSize > size-hashed:
		return nil, fmt.Errorf("peimage: certificate table: expected at most %d bytes behind the sections, got %d", size-hashed, hd.certSize)
	}
	return append(regions, region{hashed, size - hd.certSize}), nil
}

// parseSections returns the sections in the order of their place in the file.
func parseSections(head []byte, hd header, size int) ([]region, error) {
	le := binary.LittleEndian
	var list []region
	for i := range hd.sections {
		b := head[hd.table+i*sectionSize:]
		n, at := uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:]))
		if n == 0 {
			continue
		}
		if at+n > uint64(size) {
			return nil, fmt.Errorf("section %d: expected it within %d bytes, got %#x bytes at %#x", i, size, n, at)
		}
		list = append(list, region{int(at), int(at + n)})
	}
	slices.SortFunc(list, func(a, b region) int { return a.from - b.from })
	end := hd.headersSize
	for _, r := range list {
		if r.from < end {
			return nil, fmt.Errorf("sections overlap at %#x", r.from)
		}
		end = r.to
	}
	return list, nil
}

func parseHeader(head []byte) (header, error) {
	le := binary.LittleEndian
	if len(head) < offLfanew+4 || string(head[:2]) != "MZ" {
		return header{}, errors.New("expected a PE image, which begins with \"MZ\"")
	}
	pe := uint64(le.Uint32(head[offLfanew:]))
	if pe+4+coffSize+2 > uint64(len(head)) || string(head[pe:pe+4]) != "PE\x00\x00" {
		return header{}, fmt.Errorf("PE header: expected \"PE\" within %d bytes, got offset %#x", len(head), pe)
	}
	coff := int(pe) + 4
	opt := coff + coffSize
	hd := header{sections: int(le.Uint16(head[coff+2:])), checksum: opt + offChecksum}
	optSize := int(le.Uint16(head[coff+16:]))
	hd.table = opt + optSize
	var directories int
	switch magic := le.Uint16(head[opt:]); magic {
	case magicPE32:
		directories = 92
	case magicPE32Plus:
		directories = 108
	default:
		return header{}, fmt.Errorf("optional header: expected magic %#x or %#x, got %#x", magicPE32, magicPE32Plus, magic)
	}
	if optSize < directories+4 || hd.table+hd.sections*sectionSize > len(head) || hd.sections > MaxSections {
		return header{}, fmt.Errorf("optional header of %d bytes and %d sections do not fit (at most %d sections, %d bytes of headers)", optSize, hd.sections, MaxSections, len(head))
	}
	hd.headersSize = int(le.Uint32(head[opt+offHeadersSize:]))
	if n := le.Uint32(head[opt+directories:]); n > certificateSlot {
		hd.hasCertEntry, hd.certEntry = true, opt+directories+4+8*certificateSlot
		if hd.certEntry+8 > hd.table {
			return header{}, fmt.Errorf("optional header: %d directory entries do not fit in %d bytes", n, optSize)
		}
		hd.certSize = int(le.Uint32(head[hd.certEntry+4:]))
	}
	return hd, nil
}
