// Package volume keeps the pod's volumes in the guest's own memory: ephemeral
// directories that containers share, and sets of files that the host supplies.
//
// Containers write into volumes, so a path inside one is never trusted: a
// directory in a volume is opened beneath the volume's root without following
// links, and pinned by a mount.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mountsDir holds the mount points of open directories, below the manager's.
const mountsDir = ".mounts"

// Manager makes and removes volumes. It is safe for concurrent use.
type Manager struct {
	dir string

	mu    sync.Mutex
	roots map[string]*os.File // O_PATH, by volume

	puts atomic.Uint64 // how many archives have come, to name their places
}

// NewManager keeps volumes below dir.
func NewManager(dir string) (*Manager, error) {
	if err := os.MkdirAll(filepath.Join(dir, mountsDir), 0o711); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return &Manager{dir: dir, roots: map[string]*os.File{}}, nil
}

// Ephemeral makes an empty directory that everyone in the pod may write, of
// at most size bytes (0: no limit of its own). With a group, what is made in it belongs
// to that group. One that exists is left alone: it lives as long as the pod.
func (m *Manager) Ephemeral(name string, size uint64, opts ...Option) error {
	data := "mode=0777"
	if group := collect(opts).group; group != nil {
		data = "mode=02777,gid=" + strconv.FormatUint(uint64(*group), 10)
	}
	if size != 0 {
		data += ",size=" + strconv.FormatUint(size, 10)
	}
	_, err := m.root(name, func(path string) error {
		return unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data)
	})
	return err
}

// Files makes a volume for files, which are yet to come by [Manager.Put].
func (m *Manager) Files(name string) error {
	_, err := m.root(name, func(string) error { return nil })
	return err
}

// root returns the volume's root directory; prepare is called when it is new.
func (m *Manager) root(name string, prepare func(path string) error) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.roots[name]; r != nil {
		return r, nil
	}
	if name == "" || name[0] == '.' || filepath.Base(name) != name {
		return nil, fmt.Errorf("volume %q: not a name", name)
	}
	path := filepath.Join(m.dir, name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	if err := prepare(path); err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	m.roots[name] = os.NewFile(uintptr(fd), path)
	return m.roots[name], nil
}

// Directory is a directory of a volume, ready to be mounted into a container.
type Directory struct{ path string }

// Path leads to exactly this directory, whatever containers do to names on the
// way to it, until it is closed. Mounts made from it stay.
func (d *Directory) Path() string { return d.path }

// Close gives the path up.
func (d *Directory) Close() error {
	if err := unix.Unmount(d.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", d.path, err)
	}
	return os.Remove(d.path)
}

// Open opens a directory of a volume for mounting; an empty subPath is the
// volume itself. A missing directory is made if make is true. Links are not
// followed.
func (m *Manager) Open(name, subPath string, makeDirs bool) (*Directory, error) {
	m.mu.Lock()
	root := m.roots[name]
	m.mu.Unlock()
	if root == nil {
		return nil, fmt.Errorf("volume %s: it has no content yet", name)
	}
	if subPath == "" {
		subPath = "."
	}
	if makeDirs && subPath != "." {
		if err := mkdirBeneath(root, subPath); err != nil {
			return nil, fmt.Errorf("volume %s: %s: %w", name, subPath, err)
		}
	}
	fd, err := openBeneath(int(root.Fd()), subPath)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %s: %w", name, subPath, err)
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	// A bind mount of our own pins the directory that was found: a runtime in
	// another mount namespace can be given a path, but no descriptor.
	path, err := os.MkdirTemp(filepath.Join(m.dir, mountsDir), "")
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND, ""); err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("volume %s: %s: bind: %w", name, subPath, err)
	}
	return &Directory{path}, nil
}

func openBeneath(dir int, path string) (int, error) {
	return unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// mkdirBeneath makes the directories of path, which everyone may write as the
// volume itself, one component at a time and without following links.
func mkdirBeneath(root *os.File, path string) error {
	if !filepath.IsLocal(path) {
		return errors.New("leads out of the volume")
	}
	at, err := unix.Dup(int(root.Fd()))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	for _, part := range splitPath(path) {
		made := false
		switch err := unix.Mkdirat(at, part, 0o777); {
		case err == nil:
			made = true
		case !errors.Is(err, unix.EEXIST):
			return err
		}
		next, err := openBeneath(at, part)
		if err != nil {
			return err
		}
		_ = unix.Close(at)
		at = next
		if made { // the umask has had its say in mkdir
			if err := unix.Fchmodat(at, "", 0o777, unix.AT_EMPTY_PATH); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
				return err
			}
		}
	}
	return nil
}

func splitPath(path string) []string {
	dir, last := filepath.Split(filepath.Clean(path))
	if dir == "" {
		return []string{last}
	}
	return append(splitPath(dir), last)
}
