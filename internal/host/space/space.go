// Package space says of which directory of the node there is no more room, and
// what to do: the kernel's own words name neither. [Explain] does so for an
// error that has come about already; [Free] tells before something is begun
// that could only fail later, and elsewhere.
package space

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Explain adds to an error that comes of a full file system, or of a quota, in
// which directory that is and what to do. Others, nil among them, are returned
// as they are.
func Explain(err error) error {
	if _, ok := errors.AsType[*explained](err); ok || !IsFull(err) {
		return err
	}
	where := ""
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		where = filepath.Dir(e.Path)
	} else if e, ok := errors.AsType[*os.LinkError](err); ok {
		where = filepath.Dir(e.New)
	} else if e, ok := errors.AsType[*net.OpError](err); ok && e.Addr != nil && e.Net == "unix" {
		where = filepath.Dir(e.Addr.String())
	}
	if where == "" {
		return &explained{err, "a disk of the node is full: free space or inodes on it (df, df -i)"}
	}
	return &explained{err, fmt.Sprintf("the node's directory %s is full: free space or inodes there (df %[1]s, df -i %[1]s)", where)}
}

// IsFull tells an error that comes of want of space.
func IsFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Free is how many bytes an unprivileged program could still write in a
// directory.
func Free(dir string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return s.Bavail * uint64(max(s.Bsize, 0)), nil
}

// explained is an error with what to do behind it.
type explained struct {
	err  error
	help string
}

func (e *explained) Error() string { return e.err.Error() + "; " + e.help }
func (e *explained) Unwrap() error { return e.err }
