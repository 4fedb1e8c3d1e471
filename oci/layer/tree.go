package layer

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// tree is the root file system being made. It opens directories the way a
// process inside of the root would see them.
type tree struct {
	root  int
	depth int
	dev   uint64
	ino   uint64
	// nodev says that device nodes do nothing there.
	nodev bool
	// cached is the directory that was asked for last: entries of one
	// directory follow each other in most layers.
	cached struct {
		path  string
		fd    int
		valid bool
	}
}

func newTree(root *os.File, depth int) (tree, error) {
	fd, err := unix.Openat(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, fmt.Errorf("open %s: %w", root.Name(), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return tree{}, fmt.Errorf("stat %s: %w", root.Name(), err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		_ = unix.Close(fd)
		return tree{}, fmt.Errorf("statfs %s: %w", root.Name(), err)
	}
	t := tree{root: fd, depth: depth, dev: uint64(st.Dev), ino: st.Ino, nodev: fs.Flags&unix.ST_NODEV != 0}
	t.cached.fd = -1
	return t, nil
}

func (t *tree) close() {
	if t.cached.fd >= 0 {
		_ = unix.Close(t.cached.fd)
	}
	_ = unix.Close(t.root)
}

// empty says whether there is nothing in the root yet.
func (t *tree) empty() (bool, error) {
	fd, err := unix.Openat(t.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(fd), "root")
	defer func() { _ = f.Close() }()
	_, err = f.Readdirnames(1)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// open opens a directory below the root for use with the …at calls; the
// caller closes it. Links on the way are followed within the root.
func (t *tree) open(dir string) (int, error) {
	if dir == "" {
		dir = "."
	}
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := t.openat2(dir, how)
	if err != unix.ELOOP {
		return fd, err
	}
	// There is a link on the way. What is behind it may be deeper than the
	// path says, and again for the next link: the real depth is bounded too.
	how.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	fd, err = t.openat2(dir, how)
	if err != nil {
		return -1, err
	}
	if err := t.checkDepth(fd); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (t *tree) openat2(dir string, how unix.OpenHow) (int, error) {
	// EAGAIN means that something was renamed meanwhile somewhere in the
	// system; openat2(2) says to try again.
	for range 64 {
		fd, err := unix.Openat2(t.root, dir, &how)
		switch err {
		case nil:
			return fd, nil
		case unix.EAGAIN, unix.EINTR:
			continue
		case unix.ENOSYS:
			return -1, errors.New("this kernel has no openat2 (Linux 5.6), without which layers cannot be unpacked safely")
		default:
			return -1, err
		}
	}
	return -1, unix.EAGAIN
}

// checkDepth counts the way up to the root.
func (t *tree) checkDepth(fd int) error {
	at, owned := fd, false
	defer func() {
		if owned {
			_ = unix.Close(at)
		}
	}()
	for range t.depth + 1 {
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return err
		}
		if uint64(st.Dev) == t.dev && st.Ino == t.ino {
			return nil
		}
		up, err := unix.Openat(at, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if owned {
			_ = unix.Close(at)
		}
		at, owned = up, true
	}
	return fmt.Errorf("%w of %d directories, counted behind symbolic links", ErrLimit, t.depth)
}

// parent opens the directory that an entry goes to and makes it where it is
// missing. use is called with a directory before something changes in it, made
// with each that is made. The descriptor belongs to the tree and is good until
// the next call.
func (t *tree) parent(dir string, use, made func(string, int) error) (int, error) {
	if dir == "" {
		return t.root, use("", t.root)
	}
	if t.cached.valid && t.cached.path == dir {
		return t.cached.fd, nil
	}
	fd, err := t.open(dir)
	if err == unix.ENOENT {
		fd, err = t.make(dir, use, made)
	}
	if err == nil {
		if err = use(dir, fd); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("directory %q: %w", clip(dir), err)
	}
	if t.cached.fd >= 0 {
		_ = unix.Close(t.cached.fd)
	}
	t.cached.path, t.cached.fd, t.cached.valid = dir, fd, true
	return fd, nil
}

// make makes a directory and its parents, owned by root, mode 0755.
func (t *tree) make(dir string, use, made func(string, int) error) (int, error) {
	up, base := split(dir)
	parent, err := t.open(up)
	if err == unix.ENOENT && up != "" {
		parent, err = t.make(up, use, made)
	}
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(parent) }()
	if err := use(up, parent); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(parent, base, 0o755); err == unix.EEXIST {
		return -1, errors.New("is a symbolic link that leads nowhere")
	} else if err != nil {
		return -1, err
	}
	// The mode given to mkdir is cut by the process's umask.
	if err := unix.Fchmodat(parent, base, 0o755, 0); err != nil {
		return -1, err
	}
	fd, err := t.open(dir)
	if err != nil {
		return -1, err
	}
	if err := made(dir, fd); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// remove removes what has the name, with everything below it. The cached
// directory may have been in it.
func (t *tree) remove(parent int, base string) error {
	t.cached.valid = false
	return removeAll(parent, base)
}

func removeAll(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if err := eachName(parent, base, removeAll); err != nil {
		return err
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

// eachName calls do for every name in the directory base of parent, which must
// not be a link.
func eachName(parent int, base string, do func(dir int, name string) error) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := do(fd, name); err != nil {
			return err
		}
	}
	return nil
}

// setDirTime sets a directory's times, if it is still a directory.
func (t *tree) setDirTime(d dirTime) error {
	if d.path == "" {
		return setTime(t.root, ".", d.at)
	}
	if !d.kept { // links at the end are followed only for kept times, which belong to where they lead
		up, base := split(d.path)
		parent, err := t.open(up)
		if err != nil {
			return ignoreGone(err)
		}
		defer func() { _ = unix.Close(parent) }()
		var st unix.Stat_t
		err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return ignoreGone(err)
		}
		return setTime(parent, base, d.at)
	}
	fd, err := t.open(d.path)
	if err != nil {
		return ignoreGone(err)
	}
	defer func() { _ = unix.Close(fd) }()
	return setTime(fd, ".", d.at)
}

// ignoreGone is nil for a directory that a later entry has replaced.
func ignoreGone(err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil
	}
	return err
}
