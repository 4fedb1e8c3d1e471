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

// OpenPart opens a file of a files volume, or a directory of its files, for
// mounting it alone and read-only. What is mounted stays as it is when a later
// version of the volume comes, as with Kubernetes' subPath. A name that the
// volume does not have, or not yet, is an fs.ErrNotExist.
//
// Exactly one link is followed, the volume's own to the current version, and only
// to where this package puts versions.
func (m *Manager) OpenPart(name, part string) (*Directory, error) {
	if !isName(part) {
		return nil, fmt.Errorf("volume %s: %q: not the name of a file", name, part)
	}
	m.mu.Lock()
	defer m.mu.Unlock() // no version is removed meanwhile, see retire
	root := m.roots[name]
	if root == nil {
		return nil, fmt.Errorf("volume %s: it has no content yet: %w", name, fs.ErrNotExist)
	}
	d, err := m.openPart(root, name, part)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %s: %w", name, part, err)
	}
	return d, nil
}

func (m *Manager) openPart(root *os.File, name, part string) (*Directory, error) {
	version, err := current(root)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat2(int(root.Fd()), version+"/"+part, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return nil, errors.New("neither a file nor a directory")
	}
	place, err := m.place(kind)
	if err != nil {
		return nil, err
	}
	d, err := pin(fd, place, ephemeralFlags|unix.MS_RDONLY|unix.MS_NOEXEC)
	if err == nil && kind == unix.S_IFDIR {
		// A file that is removed stays where it is mounted; a directory would be
		// emptied.
		m.kept[filepath.Join(name, version)] = true
	}
	return d, err
}

// current is the directory of the version in effect, beneath the volume's root.
func current(root *os.File) (string, error) {
	target := make([]byte, 64)
	n, err := unix.Readlinkat(int(root.Fd()), dataLink, target)
	if err != nil {
		return "", err
	}
	version := string(target[:n])
	number, ok := strings.CutPrefix(version, "..")
	if !ok || number == "" || strings.Trim(number, "0123456789") != "" {
		return "", fmt.Errorf("%s: expected a link to a version of the volume, got %q", dataLink, version)
	}
	return version, nil
}

// retire removes a version that is no longer in effect, unless a container has a
// directory of it: that stays until the pod ends.
func (m *Manager) retire(root *os.Root, name, version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.kept[filepath.Join(name, version)] {
		_ = root.RemoveAll(version)
	}
}
