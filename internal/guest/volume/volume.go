// Package volume keeps the pod's volumes: ephemeral directories that containers
// share, in memory or on the pod's encrypted scratch disk, and sets of files that
// the host supplies.
//
// Containers write into volumes, so a path inside one is never trusted: what is
// in a volume is opened beneath the volume's root, which no link leads out of,
// and pinned by a mount.
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

// Disk is the pod's encrypted scratch disk.
type Disk interface {
	// Directory makes a directory of its own for at most size bytes (0: as much
	// as the disk holds) and returns its path.
	Directory(name string, size uint64) (path string, err error)
}

// Manager makes and removes volumes. It is safe for concurrent use.
type Manager struct {
	dir string

	mu    sync.Mutex
	disk  Disk                // nil without one
	roots map[string]*os.File // O_PATH, by volume
	kept  map[string]bool     // versions of files volumes that containers have directories of

	puts atomic.Uint64 // how many archives have come, to name their places

	publishing sync.Mutex // held while files take effect
}

// NewManager keeps volumes below dir.
func NewManager(dir string) (*Manager, error) {
	if err := os.MkdirAll(filepath.Join(dir, mountsDir), 0o711); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return &Manager{dir: dir, roots: map[string]*os.File{}, kept: map[string]bool{}}, nil
}

// UseDisk has ephemeral volumes that are made from now on lie on a disk, but for
// those of memory.
func (m *Manager) UseDisk(d Disk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk = d
}

// Ephemeral is a volume that lives as long as the pod.
type Ephemeral struct {
	// Bytes is how much it holds at most; 0: what the medium is bounded by
	// anyway, a disk by its size and memory by a half of it.
	Bytes uint64
	// Memory asks for memory, also where there is a disk.
	Memory bool
	// Group owns the directory; nil is root's.
	Group *uint32
}

// ephemeralFlags are those of every ephemeral volume's mount.
const ephemeralFlags = unix.MS_NOSUID | unix.MS_NODEV

// Ephemeral makes an empty directory that everyone in the pod may write. One
// that exists is left alone.
func (m *Manager) Ephemeral(name string, e Ephemeral) error {
	return m.root(name, func(path string) error {
		if m.disk != nil && !e.Memory {
			return onDisk(m.disk, name, e.Bytes, path)
		}
		return inMemory(e.Bytes, path)
	}, func(root *os.File) error { return share(root, e.Group) })
}

// onDisk mounts a directory of the disk.
func onDisk(disk Disk, name string, size uint64, path string) error {
	source, err := disk.Directory(name, size)
	if err != nil {
		return err
	}
	return bind(source, path)
}

// bind mounts a directory once more.
func bind(source, path string) error {
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	// A bind mount has flags of its own, which a first call does not take.
	if err := unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|ephemeralFlags, ""); err != nil {
		return errors.Join(fmt.Errorf("bind: %w", err), unix.Unmount(path, unix.MNT_DETACH))
	}
	return nil
}

// inMemory mounts a tmpfs, always with a size: without one the kernel takes half
// of the memory for each.
func inMemory(size uint64, path string) error {
	half, err := halfOfMemory()
	if err != nil {
		return err
	}
	if size == 0 || size > half {
		size = half
	}
	return unix.Mount("tmpfs", path, "tmpfs", ephemeralFlags, "mode=0777,size="+strconv.FormatUint(size, 10))
}

func halfOfMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("size of memory: %w", err)
	}
	return info.Totalram * uint64(info.Unit) / 2, nil
}

// share lets everyone write a volume's directory; with a group also what is made
// in it belongs to the group.
func share(root *os.File, group *uint32) error {
	mode := uint32(0o777)
	path := fmt.Sprintf("/proc/self/fd/%d", root.Fd()) // a descriptor of our own, opened O_PATH
	if group != nil {
		mode |= unix.S_ISGID
		if err := unix.Fchownat(int(root.Fd()), "", -1, int(*group), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("group %d: %w", *group, err)
		}
	}
	return unix.Chmod(path, mode)
}

// Files makes a volume for files, which are yet to come by [Manager.Put].
func (m *Manager) Files(name string) error {
	return m.root(name, func(string) error { return nil }, nil)
}

// Mounted makes a volume of a file system that is mounted at source. One that
// exists is left alone.
func (m *Manager) Mounted(name, source string) error {
	return m.root(name, func(path string) error { return bind(source, path) }, nil)
}

// Close gives all volumes up: what no container uses any more is unmounted. It
// may be called again, and volumes may be made anew.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for name, root := range m.roots {
		errs = append(errs, root.Close())
		if err := unmountRoot(filepath.Join(m.dir, name)); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
		}
		delete(m.roots, name)
	}
	m.disk = nil
	return errors.Join(errs...)
}

// root makes the volume's root directory, if it is not there: prepare mounts what is
// to be there, and finish, unless it is nil, gets the directory before anybody else
// does. When it fails, nothing stays mounted.
func (m *Manager) root(name string, prepare func(path string) error, finish func(root *os.File) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.roots[name] != nil {
		return nil
	}
	if name == "" || name[0] == '.' || filepath.Base(name) != name {
		return fmt.Errorf("volume %q: not a name", name)
	}
	path := filepath.Join(m.dir, name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	if err := prepare(path); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	root, err := openRoot(path)
	if err == nil && finish != nil {
		if err = finish(root); err != nil {
			_ = root.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, errors.Join(err, unmountRoot(path)))
	}
	m.roots[name] = root
	return nil
}

// unmountRoot unmounts a volume's root directory. A volume of files is a plain
// directory: EINVAL.
func unmountRoot(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

// openRoot opens a volume's root directory to find things beneath it.
func openRoot(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
