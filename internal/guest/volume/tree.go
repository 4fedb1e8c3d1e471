package volume

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

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
		if _, err := t.write(f.Name, f.Mode, owner{group: t.group}, bytes.NewReader(f.Content)); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return nil
}

// write makes a new file and the directories that it lies in.
func (t *tree) write(name string, mode fs.FileMode, who owner, r io.Reader) (size int64, err error) {
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
	return size, who.own(fd, mode)
}

// own is that of the tree's directories.
func (t *tree) own(fd int, mode fs.FileMode) error { return owner{group: t.group}.own(fd, mode) }

// owner of a file; nil is root.
type owner struct{ user, group *uint32 }

// ownerOf is the owner that an archive gives. A group that the volume has wins.
func ownerOf(h *tar.Header, group *uint32) (owner, error) {
	const most = 1<<32 - 2 // 2³²-1 is "no change"
	if h.Uid < 0 || h.Uid > most || h.Gid < 0 || h.Gid > most {
		return owner{}, fmt.Errorf("owner: expected numbers of at most %d, got %d and %d", uint32(most), h.Uid, h.Gid)
	}
	if group == nil {
		group = new(uint32(h.Gid))
	}
	return owner{new(uint32(h.Uid)), group}, nil
}

// own gives owner and mode, in this order: a change of the owner takes bits away.
func (o owner) own(fd int, mode fs.FileMode) error {
	user, group := -1, -1
	if o.user != nil {
		user = int(*o.user)
	}
	if o.group != nil {
		group = int(*o.group)
	}
	if err := unix.Fchown(fd, user, group); err != nil {
		return fmt.Errorf("owner %d, group %d: %w", user, group, err)
	}
	return unix.Fchmod(fd, uint32(mode.Perm()))
}

// directory opens a directory of the tree, making what is missing of it.
func (t *tree) directory(name string) (fd int, err error) {
	at, err := unix.Dup(int(t.root.Fd()))
	if err != nil || name == "." {
		return at, err
	}
	for part := range strings.SplitSeq(name, "/") {
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
