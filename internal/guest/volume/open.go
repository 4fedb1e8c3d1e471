package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Directory is a directory of a volume, or a file in one, ready to be mounted
// into a container.
type Directory struct{ path string }

// Path leads to exactly this directory or file, whatever containers do to names on the
// way to it, until it is closed. Mounts made from it stay.
func (d *Directory) Path() string { return d.path }

// Close gives the path up.
func (d *Directory) Close() error {
	if err := unix.Unmount(d.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", d.path, err)
	}
	return os.Remove(d.path)
}

// Open opens a volume for mounting, or what subPath names in it: a directory, or
// a file, socket or pipe that a container has made there. What is missing becomes
// a directory if make is true. As with Kubernetes' subPath, links are followed
// inside the volume; one that leads out of it, or is absolute, is an error.
func (m *Manager) Open(name, subPath string, makeDirs bool) (*Directory, error) {
	m.mu.Lock()
	root := m.roots[name]
	m.mu.Unlock()
	if root == nil {
		return nil, fmt.Errorf("volume %s: it has no content yet", name)
	}
	d, err := m.openIn(root, subPath, makeDirs)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %s: %w", name, subPath, err)
	}
	return d, nil
}

func (m *Manager) openIn(root *os.File, subPath string, makeDirs bool) (*Directory, error) {
	path := filepath.Clean(subPath)
	if subPath != "" && !filepath.IsLocal(subPath) {
		return nil, errOutside
	}
	fd, err := openBeneath(root, path)
	if makeDirs && errors.Is(err, fs.ErrNotExist) {
		if err := mkdirBeneath(root, path); err != nil {
			return nil, err
		}
		fd, err = openBeneath(root, path)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	place, err := m.place(st.Mode & unix.S_IFMT)
	if err != nil {
		return nil, err
	}
	return pin(fd, place, 0)
}

// place makes what something of this type can be mounted on.
func (m *Manager) place(kind uint32) (string, error) {
	dir := filepath.Join(m.dir, mountsDir)
	switch kind {
	case unix.S_IFDIR:
		return os.MkdirTemp(dir, "")
	case unix.S_IFREG, unix.S_IFSOCK, unix.S_IFIFO:
		f, err := os.CreateTemp(dir, "")
		if err != nil {
			return "", err
		}
		return f.Name(), f.Close()
	}
	return "", errors.New("expected a directory, a file, a socket or a pipe, got a device")
}

// pin mounts what was found at a place of our own, which it removes again when
// that fails: a runtime in another mount namespace can be given a path, but no
// descriptor.
func pin(fd int, place string, flags uintptr) (*Directory, error) {
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), place, "", unix.MS_BIND, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("bind: %w", err), os.Remove(place))
	}
	d := &Directory{place}
	if flags != 0 { // a bind mount has flags of its own, which a first call does not take
		if err := unix.Mount("", place, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
			return nil, errors.Join(fmt.Errorf("bind: %w", err), d.Close())
		}
	}
	return d, nil
}

var errOutside = errors.New("it leads out of the volume")

// maxRaces bounds how often a path is looked up anew because somebody renames
// what is on it meanwhile.
const maxRaces = 32

// openBeneath opens what a path names below a volume's root, to be mounted and
// not to be read.
func openBeneath(root *os.File, path string) (int, error) {
	for tries := 1; ; tries++ {
		fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case errors.Is(err, unix.EAGAIN) && tries < maxRaces, errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EXDEV):
			return -1, errOutside
		}
		return fd, err
	}
}

// mkdirBeneath makes the directories of path that are missing, which everyone may
// write as the volume itself. Each is made in a parent that was looked up beneath
// the root, and is not followed where somebody puts a link in its place.
func mkdirBeneath(root *os.File, path string) error {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		parent, err := openBeneath(root, filepath.Join(".", filepath.Join(parts[:i]...)))
		if err != nil {
			return err
		}
		err = mkdirIn(parent, part)
		_ = unix.Close(parent)
		if err != nil {
			return err
		}
	}
	return nil
}

// mkdirIn makes one directory; what is there stays as it is.
func mkdirIn(parent int, name string) error {
	err := unix.Mkdirat(parent, name, 0o777)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	// The umask has had its say in mkdir.
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o777)
}
