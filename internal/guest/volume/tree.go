package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// tree is a new directory that files are written into. Nothing is ever written
// through a link: every directory on the way is opened beneath the one above
// without following any, and every file is new.
type tree struct {
	root  *os.File
	group *uint32
	names map[string]bool
}

// newTree makes the directory dir beneath root.
func newTree(root *os.Root, dir string, group *uint32) (*tree, error) {
	if err := root.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	t := &tree{root: f, group: group, names: map[string]bool{}}
	if err := t.own(int(f.Fd()), 0o755); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tree) close() { _ = t.root.Close() }

// top lists the names that the volume's directory has.
func (t *tree) top() map[string]bool {
	top := map[string]bool{}
	for name := range t.names {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			name = dir
		}
		top[name] = true
	}
	return top
}

// make writes files that are in memory.
func (t *tree) make(files []File) error {
	for _, f := range files {
		if !isName(f.Name) {
			return fmt.Errorf("%q: not a file name", f.Name)
		}
		if _, err := t.write(f.Name, f.Mode, bytes.NewReader(f.Content)); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return nil
}

// write makes a new file and the directories that it lies in.
func (t *tree) write(name string, mode fs.FileMode, r io.Reader) (size int64, err error) {
	t.names[name] = true
	dir, err := t.directory(path.Dir(name))
	if err != nil {
		return 0, err
	}
	defer unix.Close(dir) //nolint:errcheck // a directory
	fd, err := unix.Openat(dir, path.Base(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err = io.Copy(f, r); err != nil {
		return size, err
	}
	return size, t.own(fd, mode.Perm())
}

// own gives group and mode, in this order: a change of the group takes bits away.
func (t *tree) own(fd int, mode fs.FileMode) error {
	if t.group != nil {
		if err := unix.Fchown(fd, -1, int(*t.group)); err != nil {
			return fmt.Errorf("group %d: %w", *t.group, err)
		}
	}
	return unix.Fchmod(fd, uint32(mode.Perm()))
}

// directory opens a directory of the tree, making what is missing of it.
func (t *tree) directory(name string) (fd int, err error) {
	at, err := unix.Dup(int(t.root.Fd()))
	if err != nil || name == "." {
		return at, err
	}
	for _, part := range splitPath(name) {
		made := unix.Mkdirat(at, part, 0o755)
		next, err := unix.Openat2(at, part, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		_ = unix.Close(at)
		switch {
		case made != nil && !errors.Is(made, unix.EEXIST):
			err = made
		case err == nil && made == nil:
			err = t.own(next, 0o755)
		}
		if err != nil {
			if next >= 0 {
				_ = unix.Close(next)
			}
			return -1, err
		}
		at = next
	}
	return at, nil
}
