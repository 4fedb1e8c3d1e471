package vmm

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
)

// Disk is a virtio-blk disk. What is on it the guest encrypts; the emulator sees
// raw sectors. Discard and zero detection are off: they could never apply to
// ciphertext.
type Disk struct {
	// Serial is by what the guest finds the disk: 1 to 20 characters of
	// [A-Za-z0-9_-], unlike any other disk's.
	Serial string
	// Image is the raw image, a file (which may be sparse) or a block device of
	// the host, by path or already open.
	Image Input
	// BlockDevice tells that Image is a block device.
	BlockDevice bool
	ReadOnly    bool
}

// serialRE is what the guest agent takes, within virtio-blk's 20 bytes
// (VIRTIO_BLK_ID_BYTES).
var serialRE = regexp.MustCompile(`^[A-Za-z0-9_-]{1,20}$`)

func (m *Machine) validateDisks() []error {
	var problems []error
	bad := func(i int, field, expected string, got any) {
		problems = append(problems, fmt.Errorf("disks[%d].%s: expected %s, got %v", i, field, expected, got))
	}
	if len(m.Disks) > MaxDisks {
		problems = append(problems, fmt.Errorf("disks: expected at most %d, got %d", MaxDisks, len(m.Disks)))
	}
	seen := make(map[string]bool)
	for i, d := range m.Disks {
		switch {
		case !serialRE.MatchString(d.Serial):
			bad(i, "serial", "1 to 20 characters of [A-Za-z0-9_-]", fmt.Sprintf("%q", d.Serial))
		case seen[d.Serial]:
			bad(i, "serial", "one that no other disk has", fmt.Sprintf("%q", d.Serial))
		}
		seen[d.Serial] = true
		if d.Image.absent() || d.Image.Path != "" && d.Image.File != nil {
			bad(i, "image", "a path or an open file", "none or both")
		}
	}
	return problems
}

// addDisks adds a block device for each disk. An error of the host's storage is
// reported to the guest, whose file system knows what to do; QEMU would stop the
// machine when the host's disk is full.
func (m *Machine) addDisks(p *plan) {
	for i, d := range m.Disks {
		node := "disk" + strconv.Itoa(i)
		driver := "file"
		if d.BlockDevice {
			driver = "host_device"
		}
		p.add("-blockdev", options("", "driver", "raw", "node-name", node, "read-only", onOff(d.ReadOnly), "discard", "ignore", "detect-zeroes", "off",
			"file.driver", driver, "file.filename", p.path(d.Image)))
		p.add("-device", options("virtio-blk-pci", m.virtio("drive", node, "serial", d.Serial, "werror", "report", "rerror", "report")...))
	}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// Unlinked makes a sparse file of size bytes in a directory, for a disk that
// ends with its machine. The file has no name: nothing is left of it once it
// is closed and the machine has ended, however that comes about.
func Unlinked(dir string, size int64) (*os.File, error) {
	f, err := os.CreateTemp(dir, "coffer-disk-")
	if err != nil {
		return nil, fmt.Errorf("disk image: %w", err)
	}
	err = os.Remove(f.Name())
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("disk image: %w", err)
	}
	return f, nil
}
