package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// GPT is what was measured of a disk's partition table.
type GPT struct {
	Disk       GUID
	Partitions []Partition
}

// Partition is an entry of a partition table.
type Partition struct {
	Type, ID GUID
	// First and Last are blocks.
	First, Last uint64
	Name        string
}

// partitionTable reads UEFI_GPT_DATA (Platform Firmware Profile 1.06, section
// 10.2.4): the header of 92 bytes (UEFI 2.10, section 5.3.2), the number of
// partitions, 8 bytes, and entries of the size that the header gives.
func partitionTable(data []byte) (Details, error) {
	const header, entry = 92, 128
	if len(data) < header+8 {
		return Details{}, errShort
	}
	if string(data[:8]) != "EFI PART" {
		return Details{}, errors.New("partition table has no signature")
	}
	size, count := uint64(binary.LittleEndian.Uint32(data[84:])), binary.LittleEndian.Uint64(data[header:])
	rest := data[header+8:]
	if size < entry || size > 4096 || count > uint64(len(rest))/size {
		return Details{}, fmt.Errorf("%d partitions of %d bytes do not fit in %d", count, size, len(rest))
	}
	g := &GPT{Disk: GUID(data[56:72])}
	for range count {
		g.Partitions = append(g.Partitions, Partition{
			Type: GUID(rest[:16]), ID: GUID(rest[16:32]),
			First: binary.LittleEndian.Uint64(rest[32:]), Last: binary.LittleEndian.Uint64(rest[40:]),
			Name: strings.TrimRight(utf16Text(rest[56:entry]), "\x00"),
		})
		rest = rest[size:]
	}
	return Details{GPT: g}, nil
}
