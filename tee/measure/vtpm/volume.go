package vtpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure/vtpm/internal/lzma"
)

// Limits of firmware.
const (
	// MaxFirmware is the size of an image in bytes.
	MaxFirmware = 16 << 20
	// maxUnpacked is the size of what is compressed in it.
	maxUnpacked = 64 << 20
	// minUnpacked is what every compressed section counts for at least: even one
	// of nothing takes a decoder, with tables of up to 6 MiB.
	minUnpacked = 1 << 20
	maxFiles    = 4096
)

// File and section types (UEFI Platform Initialization 1.7, volume 3, tables 3 and 5).
const (
	fileTypeVolume     = 0x0b
	fileTypePad        = 0xf0
	sectionGUIDed      = 0x02
	sectionUI          = 0x15
	sectionVolumeImage = 0x17
)

// lzmaSection is EE4E5898-3914-4259-9D6E-DC7BD79403CF (edk2, MdeModulePkg,
// LzmaDecompress.h).
var lzmaSection = eventlog.GUID{0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf}

// volume is a firmware volume (volume 3, section 3.2.1).
type volume struct {
	raw []byte
	// name is in the extended header; zeros where there is none.
	name  eventlog.GUID
	files []file
}

type file struct {
	name eventlog.GUID
	typ  byte
	body []byte
}

// parseVolume reads the volume that b begins with.
func parseVolume(b []byte) (*volume, error) {
	const fixed = 56
	if len(b) < fixed || string(b[40:44]) != "_FVH" {
		return nil, errors.New("firmware volume: no header")
	}
	length := binary.LittleEndian.Uint64(b[32:])
	header, extended := int(binary.LittleEndian.Uint16(b[48:])), int(binary.LittleEndian.Uint16(b[52:]))
	if length > uint64(len(b)) || uint64(header) > length || header < fixed {
		return nil, fmt.Errorf("firmware volume: length %d and header %d do not fit in %d bytes", length, header, len(b))
	}
	v := &volume{raw: b[:length]}
	at := header
	if extended != 0 {
		if extended+20 > len(v.raw) {
			return nil, errors.New("firmware volume: extended header is behind its end")
		}
		v.name = eventlog.GUID(v.raw[extended : extended+16])
		size := binary.LittleEndian.Uint32(v.raw[extended+16:])
		if uint64(extended)+uint64(size) > length {
			return nil, errors.New("firmware volume: extended header is too long")
		}
		at = extended + int(size)
	}
	var err error
	v.files, err = parseFiles(v.raw, at)
	return v, err
}

// parseFiles reads files (volume 3, section 3.2.3), which begin at multiples of 8,
// until the free space.
func parseFiles(b []byte, at int) ([]file, error) {
	const header = 24
	var out []file
	for {
		at = (at + 7) &^ 7
		if at+header > len(b) || len(bytes.Trim(b[at:at+header], "\xff")) == 0 {
			return out, nil
		}
		size := int(b[at+20]) | int(b[at+21])<<8 | int(b[at+22])<<16
		start := at + header
		if b[at+19]&1 != 0 { // FFS_ATTRIB_LARGE_FILE
			if at+header+8 > len(b) {
				return nil, fmt.Errorf("file at %#x: is cut off", at)
			}
			large := binary.LittleEndian.Uint64(b[at+24:])
			if large > uint64(len(b)) {
				return nil, fmt.Errorf("file at %#x: size %d is too large", at, large)
			}
			size, start = int(large), at+header+8
		}
		if size < start-at || size > len(b)-at {
			return nil, fmt.Errorf("file at %#x: size %d does not fit", at, size)
		}
		if len(out) >= maxFiles {
			return nil, fmt.Errorf("more than %d files", maxFiles)
		}
		if typ := b[at+18]; typ != fileTypePad {
			out = append(out, file{name: eventlog.GUID(b[at : at+16]), typ: typ, body: b[start : at+size]})
		}
		at += size
	}
}

// eachSection calls f with the sections of a file (volume 3, section 3.2.4), which
// begin at multiples of 4: their type, all their bytes and the size of the header.
func eachSection(b []byte, f func(typ byte, section []byte, header int) error) error {
	for at := 0; at+4 <= len(b); at = (at + 3) &^ 3 {
		size, header := int(b[at])|int(b[at+1])<<8|int(b[at+2])<<16, 4
		if size == 0xffffff {
			if at+8 > len(b) {
				return fmt.Errorf("section at %#x: is cut off", at)
			}
			long := binary.LittleEndian.Uint32(b[at+4:])
			if uint64(long) > uint64(len(b)) {
				return fmt.Errorf("section at %#x: size %d is too large", at, long)
			}
			size, header = int(long), 8
		}
		if size < header || size > len(b)-at {
			return fmt.Errorf("section at %#x: size %d does not fit", at, size)
		}
		if err := f(b[at+3], b[at:at+size], header); err != nil {
			return err
		}
		at += size
	}
	return nil
}

// volumes finds the volumes inside of the files of the volumes that an image
// consists of, in order: those that OVMF copies into memory and measures.
func volumes(image []byte) ([]*volume, error) {
	if len(image) > MaxFirmware {
		return nil, fmt.Errorf("vtpm: firmware: expected at most %d bytes, got %d", MaxFirmware, len(image))
	}
	var out []*volume
	found := false
	budget := maxUnpacked
	for at := 0; at+56 <= len(image); {
		if string(image[at+40:at+44]) != "_FVH" {
			at += 0x1000
			continue
		}
		v, err := parseVolume(image[at:])
		if err != nil {
			return nil, fmt.Errorf("vtpm: firmware at %#x: %w", at, err)
		}
		found = true
		for _, f := range v.files {
			if f.typ != fileTypeVolume {
				continue
			}
			inner, err := volumesIn(f.body, &budget, 0)
			if err != nil {
				return nil, fmt.Errorf("vtpm: firmware at %#x, file %s: %w", at, f.name, err)
			}
			out = append(out, inner...)
		}
		at += max(len(v.raw), 0x1000)
	}
	if !found {
		return nil, errors.New("vtpm: firmware: expected a UEFI image, found no firmware volume")
	}
	return out, nil
}

// volumesIn looks at the sections of a file of type volume image, and into what is
// compressed with LZMA.
func volumesIn(sections []byte, budget *int, depth int) ([]*volume, error) {
	if depth > 4 {
		return nil, errors.New("sections are nested too deep")
	}
	var out []*volume
	err := eachSection(sections, func(typ byte, s []byte, header int) error {
		switch {
		case typ == sectionVolumeImage:
			v, err := parseVolume(s[header:])
			if err != nil {
				return err
			}
			out = append(out, v)
		case typ == sectionGUIDed && len(s) >= header+20 && eventlog.GUID(s[header:header+16]) == lzmaSection:
			start := int(binary.LittleEndian.Uint16(s[header+16:]))
			if start > len(s) {
				return errors.New("compressed section: data is behind its end")
			}
			if *budget <= 0 {
				return fmt.Errorf("expected compressed sections of at most %d bytes in all, each counting for at least %d", maxUnpacked, minUnpacked)
			}
			unpacked, err := lzma.Decompress(s[start:], *budget)
			if err != nil {
				return err
			}
			*budget -= max(len(unpacked), minUnpacked)
			inner, err := volumesIn(unpacked, budget, depth+1)
			if err != nil {
				return err
			}
			out = append(out, inner...)
		}
		return nil
	})
	return out, err
}

// uiName is the name that a file shows, empty for none.
func (f *file) uiName() string {
	name := ""
	_ = eachSection(f.body, func(typ byte, s []byte, header int) error { // what is damaged has no name
		if typ == sectionUI && name == "" {
			name = utf16String(s[header:])
		}
		return nil
	})
	return name
}
