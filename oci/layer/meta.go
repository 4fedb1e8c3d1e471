package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	xattrPrefix = "SCHILY.xattr."
	maxXattrs   = 64
)

// mode is the entry's permission bits with set-user-ID, set-group-ID and
// sticky, as chmod takes them.
func mode(hdr *tar.Header) uint32 { return uint32(hdr.Mode & 0o7777) }

// setMeta sets owner, mode and times of something that is no link.
func setMeta(hdr *tar.Header, parent int, base string) error {
	if err := unix.Fchownat(parent, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := unix.Fchmodat(parent, base, mode(hdr), 0); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return setTime(parent, base, hdr.ModTime)
}

// setTime sets access and modification time, not following a link.
func setTime(parent int, base string, at time.Time) error {
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	ts := unix.Timespec{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}
	if err := unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set modification time: %w", err)
	}
	return nil
}

// setFileTime does the same for an open file.
func setFileTime(fd int, at time.Time) error {
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	tv := [2]unix.Timespec{{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}, {Sec: at.Unix(), Nsec: int64(at.Nanosecond())}}
	// utimensat without a path: of the descriptor itself.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&tv)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("set modification time: %w", errno)
	}
	return nil
}

// checkXattrs refuses attributes with which overlayfs marks its directories:
// the unpacked image is below an overlay, where they would be believed.
func checkXattrs(hdr *tar.Header) error {
	for key := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrPrefix); ok && strings.HasPrefix(name, "trusted.overlay.") {
			return fmt.Errorf("extended attribute %q: overlayfs's own marks are refused: whiteouts of a layer are .wh. files (OCI image specification, layer.md)", clip(name))
		}
	}
	return nil
}

func countXattrs(hdr *tar.Header) int64 {
	var n int64
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) {
			n++
		}
	}
	return n
}

// setXattrs sets the extended attributes that decide what a process in the
// guest may do (capabilities, access control lists) or that belong to the
// user, and returns how many others there were. A user attribute is skipped if
// the file system has none; the others must be set or the entry is refused.
func setXattrs(fd int, hdr *tar.Header) (skipped int64, err error) {
	n := countXattrs(hdr)
	if n == 0 {
		return 0, nil
	}
	if n > maxXattrs {
		return 0, fmt.Errorf("%w of %d extended attributes: the entry has %d", ErrLimit, maxXattrs, n)
	}
	for _, key := range slices.Sorted(maps.Keys(hdr.PAXRecords)) {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		user := strings.HasPrefix(name, "user.")
		switch {
		case user, name == "security.capability", name == "system.posix_acl_access", name == "system.posix_acl_default":
		default:
			skipped++
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(hdr.PAXRecords[key]), 0)
		if user && errors.Is(err, unix.ENOTSUP) {
			skipped++
			continue
		}
		if err != nil {
			return skipped, fmt.Errorf("set extended attribute %q: %w", clip(name), err)
		}
	}
	return skipped, nil
}
