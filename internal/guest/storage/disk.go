package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A disk's size as the guest accepts it.
const (
	// minScratch is what a file system with a few files needs.
	minScratch = 32 << 20
	maxDisk    = 16 << 40 // ext4 without 64-bit block numbers
)

// serialRE is what virtio-blk can hold (VIRTIO_BLK_ID_BYTES), without what a
// path or a log could trip over.
var serialRE = regexp.MustCompile(`^[A-Za-z0-9_-]{1,20}$`)

// How long a disk may take to appear: one that was plugged in a moment ago is
// found while the kernel does other things. Its events tell when to look; the
// step is for a disk whose serial number could not be read at once.
const (
	diskStep  = time.Second
	diskLimit = 20 * time.Second
)

// disk is an open disk of the host.
type disk struct {
	*os.File
	serial string
	size   int64
	number string // MAJOR:MINOR
}

// findDisk opens the disk with the serial number among the block devices that
// sysfs lists. One that is not there is waited for, limit at most.
func findDisk(ctx context.Context, sysBlock, dev, serial string, limit time.Duration) (*disk, error) {
	if !serialRE.MatchString(serial) {
		return nil, fmt.Errorf("disk %q: expected a serial number of 1 to 20 characters [A-Za-z0-9_-]", serial)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// Listen first, then look: a disk between the two is not missed.
	events, err := openUevents()
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", serial, err)
	}
	defer events.close()
	for {
		name, seen, err := lookup(sysBlock, serial)
		if err != nil {
			return nil, err
		}
		if name != "" {
			return openDisk(filepath.Join(dev, name), serial)
		}
		if err := events.wait(ctx, diskStep); ctx.Err() != nil {
			return nil, fmt.Errorf("disk %s: the machine has no disk with that serial number; it has %s", serial, describe(seen))
		} else if err != nil {
			return nil, fmt.Errorf("disk %s: %w", serial, err)
		}
	}
}

func describe(serials []string) string {
	if len(serials) == 0 {
		return "none"
	}
	return strings.Join(serials, ", ")
}

// lookup returns the name of the device with the serial number, and the serial
// numbers there are.
func lookup(sysBlock, serial string) (name string, seen []string, err error) {
	files, err := filepath.Glob(filepath.Join(sysBlock, "vd*", "serial"))
	if err != nil {
		return "", nil, err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EIO) {
			continue // gone, or without a serial number
		}
		if err != nil {
			return "", nil, fmt.Errorf("serial number of a disk: %w", err)
		}
		got := strings.TrimRight(string(raw), "\x00\n")
		if got == serial {
			if name != "" {
				return "", nil, fmt.Errorf("disk %s: two disks have that serial number", serial)
			}
			name = filepath.Base(filepath.Dir(file))
		}
		if serialRE.MatchString(got) {
			seen = append(seen, got)
		}
	}
	return name, seen, nil
}

func openDisk(path, serial string) (*disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("disk %s: it is read-only: %w", serial, err)
		}
		return nil, fmt.Errorf("disk %s: %w", serial, err)
	}
	d := &disk{File: f, serial: serial}
	if d.size, err = f.Seek(0, 2); err == nil {
		d.number, err = deviceNumber(f)
	}
	if err == nil && d.size > maxDisk {
		err = fmt.Errorf("%d bytes, at most %d are used", d.size, int64(maxDisk))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("disk %s: %w", serial, err), f.Close())
	}
	return d, nil
}

// deviceNumber is the number of an open device, as device-mapper takes it.
func deviceNumber(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", errors.New("not a block device")
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}
