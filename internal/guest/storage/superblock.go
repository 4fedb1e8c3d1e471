package storage

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/coffer-project/coffer/luks"
)

// superblockSize is the size of dm-integrity's superblock with its padding: what
// stands between its begin and the journal (drivers/md/dm-integrity.c,
// SB_SECTORS).
const superblockSize = 4096

const (
	sectorSize       = 512 // device-mapper's unit
	sectorsPerBlock  = luks.SectorSize / sectorSize
	log2SectorsBlock = 3

	// maxJournalSections bounds the journal, which the kernel keeps in memory:
	// sections of 132 KiB, of which cryptsetup and the kernel make at most 64 MiB.
	maxJournalSections = 512

	// flagFixedPadding is SB_FLAG_FIXED_PADDING: tags without padding in between.
	flagFixedPadding = 8
)

// superblock is dm-integrity's (drivers/md/dm-integrity.c, struct superblock),
// little endian.
type superblock struct {
	Magic           [8]byte
	Version         uint8
	Log2Interleave  uint8
	TagSize         uint16
	JournalSections uint32
	DataSectors     uint64
	Flags           uint32
	Log2Block       uint8
	Log2Bitmap      uint8
	Pad             [2]byte
	RecalcSector    uint64
	Pad2            [8]byte
	Salt            [16]byte
}

var integrityMagic = [8]byte{'i', 'n', 't', 'e', 'g', 'r', 't', 0}

// parseSuperblock reads and checks a superblock for an area of so many sectors.
// The disk's may come from a hostile host, and the kernel is shown the checked
// copy only.
func parseSuperblock(raw []byte, sectors uint64) (*superblock, error) {
	if len(raw) != superblockSize {
		return nil, fmt.Errorf("superblock of dm-integrity: expected %d bytes, got %d", superblockSize, len(raw))
	}
	s := new(superblock)
	n, err := binary.Decode(raw, binary.LittleEndian, s)
	if err != nil {
		return nil, fmt.Errorf("superblock of dm-integrity: %w", err)
	}
	bad := func(field, expected string, got any) error {
		return fmt.Errorf("superblock of dm-integrity: %s: expected %s, got %v", field, expected, got)
	}
	switch {
	case s.Magic != integrityMagic:
		return nil, bad("magic", fmt.Sprintf("%q", integrityMagic[:]), fmt.Sprintf("%q", s.Magic[:]))
	case s.Version < 1 || s.Version > 5:
		return nil, bad("version", "1 to 5", s.Version)
	case s.Log2Interleave < 3 || s.Log2Interleave > 31: // MIN_ and MAX_LOG2_INTERLEAVE_SECTORS
		return nil, bad("interleave", "2^3 to 2^31 sectors", fmt.Sprintf("2^%d", s.Log2Interleave))
	case s.TagSize != luks.TagSize:
		return nil, bad("tag size", fmt.Sprint(luks.TagSize), s.TagSize)
	case s.JournalSections < 1 || s.JournalSections > maxJournalSections:
		return nil, bad("journal sections", fmt.Sprintf("1 to %d", maxJournalSections), s.JournalSections)
	case s.DataSectors < sectorsPerBlock || s.DataSectors%sectorsPerBlock != 0 || s.DataSectors >= sectors:
		return nil, bad("data sectors", fmt.Sprintf("a multiple of %d below %d", sectorsPerBlock, sectors), s.DataSectors)
	case s.Flags&^flagFixedPadding != 0:
		return nil, bad("flags", fmt.Sprintf("0 or %d", flagFixedPadding), s.Flags)
	case s.Log2Block != log2SectorsBlock:
		return nil, bad("sectors per block", fmt.Sprintf("2^%d", log2SectorsBlock), fmt.Sprintf("2^%d", s.Log2Block))
	case s.RecalcSector != 0:
		return nil, bad("recalculation", "none", s.RecalcSector)
	case s.Pad != [2]byte{} || s.Pad2 != [8]byte{} || s.Salt != [16]byte{} || len(bytes.TrimRight(raw[n:], "\x00")) != 0:
		return nil, bad("reserved bytes", "zeros", "something else")
	}
	return s, nil
}
