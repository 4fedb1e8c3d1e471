package storage

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/storage/mapper"
	"github.com/coffer-project/coffer/luks"
	"github.com/coffer-project/coffer/secret"
)

// mode is how dm-integrity keeps data and tags together over a crash.
type mode string

const (
	// direct writes them where they belong. What was being written when the
	// machine ends cannot be read again.
	direct mode = "D"
	// journaled writes both to a journal first.
	journaled mode = "J"
)

// maxJournal is the largest journal of a new volume: 8 MiB, which the kernel
// keeps in memory, too. A small volume has a part of its size.
const (
	maxJournal   = 16384
	journalShare = 128
)

// scratchJournal is the least: a journal that nobody uses has to be there.
const scratchJournal = 8 * sectorsPerBlock

// mapping is a decrypted disk: a stack of three devices.
//
//	crypt      AES-XTS and HMAC-SHA-256, sector by sector
//	integrity  puts the tags between the data
//	base       the disk; but for the first 4 KiB, which are in RAM
//
// These 4 KiB are the superblock of dm-integrity. So the kernel never reads from
// the host's disk what it would have to trust.
type mapping struct {
	devices []mapper.Device // in the order of their making
	slot    int             // of the RAM disk
	size    int64           // of the top device in bytes
}

// top is the device that holds plaintext.
func (m *mapping) top() mapper.Device { return m.devices[len(m.devices)-1] }

// area is the part of a disk that is encrypted.
type area struct {
	disk   *disk
	offset int64 // of its begin
}

// sectors is the area's length, whole encrypted sectors only.
func (a area) sectors() uint64 {
	return uint64(a.disk.size-a.offset) / luks.SectorSize * sectorsPerBlock
}

// params renders a table's parameters. None of them is secret.
func params(format string, args ...any) []byte { return fmt.Appendf(nil, format, args...) }

// open makes the stack. Without a superblock the kernel makes a new one, and
// the second result is it.
func (m *Manager) open(ctx context.Context, name string, a area, how mode, sb []byte, key secret.Bytes) (_ *mapping, _ []byte, err error) {
	slot, err := m.takeSlot()
	if err != nil {
		return nil, nil, err
	}
	out := &mapping{slot: slot}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.closeMapping(ctx, out))
		}
	}()
	ram, err := m.writeSlot(slot, sb)
	if err != nil {
		return nil, nil, err
	}
	base, err := m.dm.Create(ctx, "coffer-"+name+"-base",
		mapper.Target{Start: 0, Length: sectorsPerBlock, Type: "linear", Params: params("%s %d", ram, slot*sectorsPerBlock)},
		mapper.Target{Start: sectorsPerBlock, Length: a.sectors() - sectorsPerBlock, Type: "linear", Params: params("%s %d", a.disk.number, a.offset/sectorSize+sectorsPerBlock)})
	if err != nil {
		return nil, nil, err
	}
	out.devices = append(out.devices, base)
	integrity := func(sectors uint64) (mapper.Device, error) {
		journal := min(maxJournal, a.sectors()/journalShare)
		if how == direct {
			journal = scratchJournal
		}
		return m.dm.Create(ctx, "coffer-"+name+"-integrity", mapper.Target{Length: sectors, Type: "integrity",
			Params: params("%s 0 %d %s 3 journal_sectors:%d block_size:%d fix_padding", base.Number(), luks.TagSize, how, journal, luks.SectorSize)})
	}
	if sb == nil {
		// A device of one sector has the kernel write the superblock.
		tiny, err := integrity(sectorsPerBlock)
		if err != nil {
			return nil, nil, err
		}
		if err := m.dm.Remove(ctx, tiny); err != nil {
			return nil, nil, err
		}
	}
	if sb, err = m.readSlot(slot); err != nil {
		return nil, nil, err
	}
	parsed, err := parseSuperblock(sb, a.sectors())
	if err != nil {
		return nil, nil, err
	}
	tags, err := integrity(parsed.DataSectors)
	if err != nil {
		return nil, nil, err
	}
	out.devices = append(out.devices, tags)
	out.size = int64(parsed.DataSectors) * sectorSize
	crypt := cryptTarget(tags.Number(), parsed.DataSectors, key)
	defer clear(crypt.Params)
	plain, err := m.dm.Create(ctx, "coffer-"+name, crypt)
	if err != nil {
		return nil, nil, err
	}
	out.devices = append(out.devices, plain)
	return out, sb, nil
}

// cryptTarget is dm-crypt's table (Documentation/admin-guide/device-mapper/
// dm-crypt.rst): the same that cryptsetup makes for such a volume. Its parameters
// hold the key.
func cryptTarget(below string, sectors uint64, key secret.Bytes) mapper.Target {
	before, after := "capi:authenc(hmac(sha256),xts(aes))-plain64 ", fmt.Sprintf(" 0 %s 0 2 integrity:%d:aead sector_size:%d", below, luks.TagSize, luks.SectorSize)
	p := make([]byte, 0, len(before)+hex.EncodedLen(key.Len())+len(after))
	p = append(p, before...)
	p = hex.AppendEncode(p, key.Expose())
	p = append(p, after...)
	return mapper.Target{Length: sectors, Type: "crypt", Params: p}
}

// closeMapping removes the devices, the last made first.
func (m *Manager) closeMapping(ctx context.Context, out *mapping) error {
	var errs []error
	for _, d := range slices.Backward(out.devices) {
		errs = append(errs, m.dm.Remove(ctx, d))
	}
	m.freeSlot(out.slot)
	return errors.Join(errs...)
}

// ramDisk is Linux's first RAM disk, of which each mapping has 4 KiB. Slots
// bounds the mappings.
const (
	ramDisk = "/dev/ram0"
	slots   = 64
)

func (m *Manager) takeSlot() (int, error) {
	for i, used := range m.slots {
		if !used {
			m.slots[i] = true
			return i, nil
		}
	}
	return 0, fmt.Errorf("at most %d disks can be open", slots)
}

func (m *Manager) freeSlot(slot int) { m.slots[slot] = false }

// writeSlot puts content (nil: zeros) into a slot and returns the RAM disk's
// number.
func (m *Manager) writeSlot(slot int, content []byte) (number string, err error) {
	err = withSlot(slot, func(f *os.File, page []byte) error {
		copy(page, content)
		if number, err = deviceNumber(f); err != nil {
			return err
		}
		_, err := f.WriteAt(page, int64(slot)*superblockSize)
		return err
	})
	return number, err
}

func (m *Manager) readSlot(slot int) ([]byte, error) {
	out := make([]byte, superblockSize)
	err := withSlot(slot, func(f *os.File, page []byte) error {
		_, err := f.ReadAt(page, int64(slot)*superblockSize)
		copy(out, page)
		return err
	})
	return out, err
}

// withSlot opens the RAM disk past the page cache: what is written is seen by
// device-mapper at once, and the other way round. The page is aligned for that,
// and zero.
func withSlot(slot int, f func(*os.File, []byte) error) error {
	file, err := os.OpenFile(ramDisk, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("RAM disk: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing is buffered
	page, err := unix.Mmap(-1, 0, superblockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("RAM disk: %w", err)
	}
	defer unix.Munmap(page) //nolint:errcheck // it is ours
	if err := f(file, page); err != nil {
		return fmt.Errorf("RAM disk, slot %d: %w", slot, err)
	}
	return nil
}
