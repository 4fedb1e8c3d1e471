package storage

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// limitDirectory makes an empty directory and everything that is made in it
// later one project, and bounds the project's size (linux/fs.h, FS_IOC_FSSETXATTR;
// linux/quota.h; quotactl_fd(2)). Size 0 is no bound.
func limitDirectory(path string, project uint32, size uint64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := setProject(f, project); err != nil {
		return fmt.Errorf("project of the directory: %w", err)
	}
	if size == 0 {
		return nil
	}
	if err := setLimit(f, project, size); err != nil {
		return fmt.Errorf("limit of %d bytes: %w", size, err)
	}
	return nil
}

const (
	fsIocGetXattr    = 0x801c581f // _IOR('X', 31, struct fsxattr)
	fsIocSetXattr    = 0x401c5820 // _IOW('X', 32, struct fsxattr)
	fsXattrSize      = 28
	flagProjectHerit = 0x200 // FS_XFLAG_PROJINHERIT

	setQuota     = 0x800008 // Q_SETQUOTA
	projectQuota = 2        // PRJQUOTA
	blockLimits  = 1        // QIF_BLIMITS
	quotaSize    = 72       // struct if_dqblk
	quotaUnit    = 1024     // of its limits, in bytes
)

func setProject(f *os.File, project uint32) error {
	var attr [fsXattrSize]byte
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocGetXattr, uintptr(unsafe.Pointer(&attr[0]))); errno != 0 {
		return errno
	}
	le := binary.LittleEndian
	le.PutUint32(attr[0:], le.Uint32(attr[0:])|flagProjectHerit)
	le.PutUint32(attr[12:], project)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocSetXattr, uintptr(unsafe.Pointer(&attr[0]))); errno != 0 {
		return errno
	}
	return nil
}

func setLimit(f *os.File, project uint32, size uint64) error {
	var q [quotaSize]byte
	le := binary.LittleEndian
	le.PutUint64(q[0:], size/quotaUnit+min(size%quotaUnit, 1)) // hard limit of blocks
	le.PutUint32(q[64:], blockLimits)
	const command = setQuota<<8 | projectQuota
	if _, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), command, uintptr(project), uintptr(unsafe.Pointer(&q[0])), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
