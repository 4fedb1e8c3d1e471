package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	// whiteoutMeta starts names that AUFS used for itself; only the opaque
	// marker among them has a meaning.
	whiteoutMeta   = whiteoutPrefix + whiteoutPrefix
	whiteoutOpaque = whiteoutMeta + ".opq"

	maxPath = unix.PathMax
	maxName = 255 // NAME_MAX

	blockBytes = 4 << 10 // of most file systems, and a page

	// Device numbers of Linux have 12 and 20 bits (include/linux/kdev_t.h).
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// Unpacker unpacks the layers of an image onto one directory, lowest first. It
// is for one goroutine, and nothing else may change the directory meanwhile.
// It needs the right to change owners.
type Unpacker struct {
	tree   tree
	limits Limits
	stats  Stats
	filler *filler

	// What follows is of the layer being unpacked.

	// touched holds the paths that this layer has made and their parents:
	// whiteouts hide what is below this layer, never what is in it. It is nil
	// if there is nothing below. Paths are hashed with seed, for half a million
	// of them would take more memory than all the rest; nobody who does not know
	// it can make two of them meet.
	touched map[uint64]struct{}
	seed    maphash.Seed
	// dirTimes are set at the end, because making files changes them.
	dirTimes []dirTime
	// timed holds the inodes of directories whose times are among them.
	timed map[uint64]struct{}
}

type dirTime struct {
	path string
	at   time.Time
	// kept says that the layer does not say so: the directory had it before.
	kept bool
}

// NewUnpacker makes an unpacker for the open directory root, which stays the
// caller's. The caller closes the unpacker.
func NewUnpacker(root *os.File, limits Limits) (*Unpacker, error) {
	limits = limits.WithDefaults()
	t, err := newTree(root, limits.Depth)
	if err != nil {
		return nil, err
	}
	return &Unpacker{tree: t, limits: limits, filler: newFiller(), seed: maphash.MakeSeed()}, nil
}

// Close ends the unpacker's goroutines and frees its descriptors.
func (u *Unpacker) Close() {
	u.filler.close()
	u.tree.close()
}

// Stats counts what has been unpacked so far.
func (u *Unpacker) Stats() Stats {
	s := u.stats
	s.SkippedXattrs += u.filler.skipped.Load()
	return s
}

// Apply unpacks the layer r above those before it and reads r to its end. It
// reads in small pieces, too: r should have them in memory. Errors are [*Error]s
// or those of ctx; what was unpacked until then stays there, for the caller to
// remove, and the unpacker can only be closed.
func (u *Unpacker) Apply(ctx context.Context, r io.Reader) error {
	err := u.apply(ctx, r)
	// Whatever happened, nothing is being written when Apply returns.
	if ferr := u.filler.flush(); ferr != nil {
		err = ferr
	}
	if err == nil {
		err = u.setDirTimes()
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (u *Unpacker) apply(ctx context.Context, r io.Reader) error {
	u.touched, u.dirTimes, u.timed = nil, nil, map[uint64]struct{}{}
	u.tree.cached.valid = false // each layer keeps the times of the directories it uses
	empty, err := u.tree.empty()
	if err != nil {
		return &Error{Err: err}
	}
	if !empty {
		u.touched = make(map[uint64]struct{})
	}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return padding(r)
		}
		if err != nil {
			return &Error{Err: err}
		}
		if err := u.entry(hdr, tr); err != nil {
			if _, ok := errors.AsType[*Error](err); ok {
				return err // about another entry
			}
			return &Error{Entry: hdr.Name, Err: err}
		}
	}
}

// padding reads what follows the end of the archive, which tar pads with zeros.
// Anything else is refused: other readers go on reading there, and would unpack
// another image than this one.
func padding(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if !isZero(buf[:n]) {
			return &Error{Err: errors.New("there is something other than zeros behind the end of the archive")}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &Error{Err: err}
		}
	}
}

// setDirTimes sets the directories' times, in the order of their entries.
func (u *Unpacker) setDirTimes() error {
	for _, d := range u.dirTimes {
		if err := u.tree.setDirTime(d); err != nil {
			return &Error{Entry: d.path, Err: err}
		}
	}
	return nil
}

// entry unpacks one entry.
func (u *Unpacker) entry(hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	u.stats.Entries++
	if u.stats.Entries > u.limits.Entries {
		return fmt.Errorf("%w of %d entries", ErrLimit, u.limits.Entries)
	}
	name, err := cleanPath(hdr.Name, u.limits.Depth)
	if err != nil {
		return err
	}
	if name == "" {
		return u.rootEntry(hdr)
	}
	dir, base := split(name)
	for component := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(component, whiteoutMeta) {
			return nil // inside AUFS's own directories
		}
		if strings.HasPrefix(component, whiteoutPrefix) {
			return fmt.Errorf("directory %q: names that start with %s are whiteouts and have no content", clip(component), whiteoutPrefix)
		}
	}
	if rest, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return u.whiteoutFile(dir, base, rest)
	}
	if hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0 {
		return u.whiteout(dir, base) // overlayfs's form
	}
	if err := errors.Join(checkHeader(hdr), checkXattrs(hdr)); err != nil {
		return err
	}
	parent, err := u.tree.parent(dir, u.keepTime, u.implicit)
	if err != nil {
		return err
	}
	if err := u.place(hdr, content, parent, name, base); err != nil {
		return err
	}
	u.touch(name)
	return nil
}

// dirTime notes the time that the open directory is to have.
func (u *Unpacker) dirTime(name string, fd int, at time.Time) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	u.timed[st.Ino] = struct{}{}
	u.dirTimes = append(u.dirTimes, dirTime{path: name, at: at})
	return nil
}

// keepTime notes the time of a directory in which something is about to change,
// unless the layer has had its say about it: what is unpacked must not depend on
// when that is done.
func (u *Unpacker) keepTime(name string, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if _, known := u.timed[st.Ino]; known {
		return nil
	}
	u.timed[st.Ino] = struct{}{}
	u.dirTimes = append(u.dirTimes, dirTime{path: name, at: time.Unix(st.Mtim.Unix()), kept: true})
	return nil
}

// implicit notes a directory that was made because something is in it; its time
// is the beginning of time.
func (u *Unpacker) implicit(name string, fd int) error {
	u.touch(name)
	return u.dirTime(name, fd, time.Unix(0, 0))
}

// touch notes that this layer has made name.
func (u *Unpacker) touch(name string) {
	if u.touched == nil {
		return
	}
	for name != "" {
		key := maphash.String(u.seed, name)
		if _, known := u.touched[key]; known {
			return // and so are its parents
		}
		u.touched[key] = struct{}{}
		name, _ = split(name)
	}
}
