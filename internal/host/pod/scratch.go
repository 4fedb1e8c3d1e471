package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/space"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

const (
	// scratchSerial is the serial number of the scratch disk.
	scratchSerial = "scratch"
	// leastFree is what the scratch disk's directory must have free, in bytes: the
	// disk is sparse, and with less not even a file system fits into it.
	leastFree = 32 << 20
)

// scratchDisk makes the sparse file of the scratch disk.
func scratchDisk(c *runtimeconfig.Config) (*os.File, error) {
	if full := fullScratch(c.ScratchDirectory); full != "" {
		return nil, errors.New(full)
	}
	f, err := vmm.Unlinked(c.ScratchDirectory, c.Scratch)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (make the directory, or name another in scratch_directory of the runtime configuration)", err)
	}
	return f, err
}

// fullScratch says that a directory for scratch disks is full; empty if it is
// not, or cannot be looked at.
func fullScratch(dir string) string {
	free, err := space.Free(dir)
	if err != nil || free >= leastFree {
		return ""
	}
	return fmt.Sprintf("the node's scratch_directory %s is full, %d bytes are free: free space there (df %[1]s), or name another in the runtime configuration", dir, free)
}

// scratchFull says that the node has no more room for the pod's scratch disk:
// the guest sees nothing but errors of a disk. Empty: there is room, or no such
// disk.
func (p *Pod) scratchFull() string {
	c := p.o.Config
	if c.Scratch == 0 || c.Driver != runtimeconfig.DriverQEMU {
		return ""
	}
	return fullScratch(c.ScratchDirectory)
}
