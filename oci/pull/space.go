package pull

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci/layer"
)

// SpaceError is an image that does not fit where it is to be unpacked. It is a
// unix.ENOSPC.
type SpaceError struct {
	// Needed is what the image needs at least, as far as it was known, and
	// Available what there was when the pull began, both in Unit.
	Needed, Available int64
	// Unit is "bytes" or "inodes".
	Unit string
	// Err is what unpacking failed with; nil if nothing was fetched.
	Err error
}

// Error implements error.
func (e *SpaceError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("no space: the image needs at least %s, %s are available", amount(e.Needed, e.Unit), amount(e.Available, e.Unit))
	}
	return fmt.Sprintf("no space: the image needs at least %s, %s were available when the pull began: %v",
		amount(e.Needed, e.Unit), amount(e.Available, e.Unit), e.Err)
}

// Is says that it is ENOSPC.
func (e *SpaceError) Is(target error) bool { return target == unix.ENOSPC }

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
	size, tooLarge := errors.AsType[*layer.SizeError](err)
	tooLarge = tooLarge && size.Limit == p.space.bytes
	if !isFull(err) && !tooLarge {
		return err
	}
	if now, serr := freeSpace(filepath.Dir(p.Dest)); serr == nil && !tooLarge && now.countsInodes && now.inodes == 0 {
		return &SpaceError{Needed: p.space.inodes + 1, Available: p.space.inodes, Unit: "inodes", Err: err}
	}
	needed := done.Allocated
	if tooLarge {
		needed = size.Before + size.Size
	}
	for _, l := range rest {
		needed += l.Size
	}
	return &SpaceError{Needed: needed, Available: p.space.bytes, Unit: "bytes", Err: err}
}
