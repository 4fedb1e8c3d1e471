package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
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
	// if there is nothing below.
	touched map[string]struct{}
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
	return &Unpacker{tree: t, limits: limits, filler: newFiller()}, nil
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
		u.touched = make(map[string]struct{})
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

// place makes the file, directory, link or FIFO.
func (u *Unpacker) place(hdr *tar.Header, content io.Reader, parent int, name, base string) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.regular(hdr, content, parent, base)
	case tar.TypeDir:
		return u.directory(hdr, parent, name, base)
	case tar.TypeSymlink:
		if hdr.Linkname == "" {
			return errors.New("symbolic link without a target")
		}
		if err := u.create(parent, base, func() error { return unix.Symlinkat(hdr.Linkname, parent, base) }); err != nil {
			return fmt.Errorf("make symbolic link: %w", err)
		}
		if err := unix.Fchownat(parent, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
		}
		u.stats.SkippedXattrs += countXattrs(hdr)
		return setTime(parent, base, hdr.ModTime)
	case tar.TypeLink:
		return u.hardLink(hdr.Linkname, parent, name, base)
	case tar.TypeFifo:
		if err := u.create(parent, base, func() error { return unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0) }); err != nil {
			return fmt.Errorf("make FIFO: %w", err)
		}
		u.stats.SkippedXattrs += countXattrs(hdr)
		return setMeta(hdr, parent, base)
	case tar.TypeChar, tar.TypeBlock:
		return u.device(hdr, parent, base)
	default:
		return fmt.Errorf("tar entry type %q: expected a file, directory, link or FIFO", hdr.Typeflag)
	}
}

// device makes a device node, but only where it does nothing.
func (u *Unpacker) device(hdr *tar.Header, parent int, base string) error {
	if !u.tree.nodev {
		return fmt.Errorf("device node %d:%d: the file system that the layer is unpacked to would let it work: mount it nodev", hdr.Devmajor, hdr.Devminor)
	}
	if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
		return fmt.Errorf("device node %d:%d: expected numbers from 0 to %d and from 0 to %d", hdr.Devmajor, hdr.Devminor, maxMajor, maxMinor)
	}
	kind := uint32(unix.S_IFCHR)
	if hdr.Typeflag == tar.TypeBlock {
		kind = unix.S_IFBLK
	}
	number := int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	if err := u.create(parent, base, func() error { return unix.Mknodat(parent, base, kind|0o600, number) }); err != nil {
		return fmt.Errorf("make device node: %w", err)
	}
	u.stats.SkippedXattrs += countXattrs(hdr)
	return setMeta(hdr, parent, base)
}

func (u *Unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root of a layer must be a directory, got tar entry type %q", hdr.Typeflag)
	}
	if err := errors.Join(checkHeader(hdr), checkXattrs(hdr)); err != nil {
		return err
	}
	if err := unix.Fchown(u.tree.root, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := unix.Fchmod(u.tree.root, mode(hdr)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	skipped, err := setXattrs(u.tree.root, hdr)
	u.stats.SkippedXattrs += skipped
	return errors.Join(err, u.dirTime("", u.tree.root, hdr.ModTime))
}

func (u *Unpacker) regular(hdr *tar.Header, content io.Reader, parent int, base string) error {
	if hdr.Size > u.limits.Bytes-u.stats.Bytes {
		return &SizeError{Limit: u.limits.Bytes, Size: hdr.Size, Before: u.stats.Bytes}
	}
	u.stats.Bytes += hdr.Size
	u.stats.Allocated += (hdr.Size + blockBytes - 1) / blockBytes * blockBytes
	var fd int
	err := u.create(parent, base, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	return u.filler.fill(fd, hdr, content)
}

func (u *Unpacker) directory(hdr *tar.Header, parent int, name, base string) error {
	err := unix.Mkdirat(parent, base, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = u.create(parent, base, func() error { return unix.Mkdirat(parent, base, 0o700) })
		}
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := unix.Fchmod(fd, mode(hdr)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	skipped, err := setXattrs(fd, hdr)
	u.stats.SkippedXattrs += skipped
	return errors.Join(err, u.dirTime(name, fd, hdr.ModTime))
}

func (u *Unpacker) hardLink(target string, parent int, name, base string) error {
	to, err := cleanPath(target, u.limits.Depth)
	if err != nil {
		return fmt.Errorf("hard link target: %w", err)
	}
	if to == "" || to == name {
		return fmt.Errorf("hard link to %q: expected another file of the image", clip(target))
	}
	dir, toBase := split(to)
	from, err := u.tree.open(dir)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	defer func() { _ = unix.Close(from) }()
	err = u.create(parent, base, func() error { return unix.Linkat(from, toBase, parent, base, 0) })
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	return nil
}

// create calls build and, if something is in the way, removes that and calls
// it again: an entry replaces whatever has its name.
func (u *Unpacker) create(parent int, base string, build func() error) error {
	err := build()
	if err != unix.EEXIST {
		return err
	}
	if err := u.tree.remove(parent, base); err != nil {
		return fmt.Errorf("replace what an earlier entry made: %w", err)
	}
	return build()
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
		if _, known := u.touched[name]; known {
			return // and so are its parents
		}
		u.touched[name] = struct{}{}
		name, _ = split(name)
	}
}

// cleanPath turns a tar name into a path below the root: leading slashes and
// "." components are dropped, ".." is refused. The root itself is "".
func cleanPath(name string, depth int) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("path of %d bytes, at most %d are allowed", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("path has a NUL byte")
	}
	n := 0
	for component := range strings.SplitSeq(name, "/") {
		switch component {
		case "", ".":
		case "..":
			return "", errors.New("path has a \"..\" component, which could lead out of the root")
		default:
			n++
			if len(component) > maxName {
				return "", fmt.Errorf("name of %d bytes in a path, at most %d are allowed", len(component), maxName)
			}
		}
	}
	if n > depth {
		return "", fmt.Errorf("%w of %d path components", ErrLimit, depth)
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// checkHeader refuses numbers that the kernel would misread.
func checkHeader(hdr *tar.Header) error {
	if !validID(hdr.Uid) || !validID(hdr.Gid) {
		return fmt.Errorf("owner %d:%d: expected a user and a group from 0 to %d", hdr.Uid, hdr.Gid, uint32(math.MaxUint32-1))
	}
	if hdr.Size < 0 {
		return fmt.Errorf("size %d: expected a number of bytes", hdr.Size)
	}
	return nil
}

// validID says whether id is a user or group; the greatest number means
// "leave it as it is" to chown.
func validID(id int) bool { return id >= 0 && int64(id) < math.MaxUint32 }
