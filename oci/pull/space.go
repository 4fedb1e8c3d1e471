package pull

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci/layer"
)

// SpaceError is an image that does not fit where it is to be unpacked.
type SpaceError struct {
	// Needed is what the image needs at least and Available what there was when
	// the pull began, in Unit.
	Needed, Available int64
	// Unit is "bytes" or "inodes".
	Unit string
	// Err is what writing failed with; nil if that was not tried.
	Err error
}

// Error implements error.
func (e *SpaceError) Error() string {
	text := fmt.Sprintf("no space: the image needs at least %s, %s are available", amount(e.Needed, e.Unit), amount(e.Available, e.Unit))
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap gives the cause.
func (e *SpaceError) Unwrap() []error {
	if e.Err == nil {
		return []error{unix.ENOSPC}
	}
	return []error{e.Err}
}

func amount(n int64, unit string) string {
	if unit == "bytes" && n >= 10<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d %s", n, unit)
}

// space is the room on a file system.
type space struct {
	bytes, inodes int64
	countsInodes  bool // some file systems have no fixed number
}

func freeSpace(dir string) (space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return space{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return space{bytes: int64(st.Bavail) * st.Bsize, inodes: int64(st.Ffree), countsInodes: st.Files > 0}, nil
}

// isFull says whether err is about a file system that is full, or full for us.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// explain turns the error of a full file system into one that says how much
// was needed, as far as that is known: what has been unpacked, with the file
// that did not fit, and the layers that follow, which take more room unpacked
// than they have.
func (p *puller) explain(err error, done layer.Stats, rest []*planned) error {
	if !isFull(err) {
		return err
	}
	needed := done.Bytes
	for _, l := range rest {
		needed += l.Size
	}
	if p.space.countsInodes && done.Entries >= p.space.inodes {
		return &SpaceError{Needed: done.Entries, Available: p.space.inodes, Unit: "inodes", Err: err}
	}
	return &SpaceError{Needed: needed, Available: p.space.bytes, Unit: "bytes", Err: err}
}
