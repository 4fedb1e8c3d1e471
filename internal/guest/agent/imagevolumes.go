package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/podpolicy"
)

// maxImageVolumes bounds what an image declares.
const maxImageVolumes = 64

// imageVolumes are the volumes that an image declares and the pod does not mount.
// They are directories of the container's own root file system, with what the
// image has there, and go with it: encrypted as it is, and nobody else's. All that
// is to be done is to let the container write them where its root is read-only,
// as it may with every container engine.
func imageVolumes(root string, declared map[string]struct{}, p *podpolicy.ContainerConfig) ([]container.Mount, error) {
	if len(declared) > maxImageVolumes {
		return nil, fmt.Errorf("its configuration declares %d volumes: expected at most %d", len(declared), maxImageVolumes)
	}
	if len(declared) == 0 {
		return nil, nil
	}
	covered := make([]string, 0, len(p.Mounts)+len(declared))
	for _, m := range p.Mounts {
		covered = append(covered, m.Path)
	}
	covered = append(covered, "/proc", "/sys", "/dev")
	var mounts []container.Mount
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		at := path.Join("/", name)
		if at == "/" || slices.ContainsFunc(covered, func(over string) bool { return at == over || strings.HasPrefix(at, over+"/") }) {
			continue
		}
		covered = append(covered, at) // what is below is in it
		dir, err := imageDirectory(root, at)
		if !p.ReadOnlyRoot {
			continue // a container that can write its root needs no more, and may do without
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", clip(name), err)
		}
		mounts = append(mounts, container.Mount{Source: dir, Path: at, Exec: true})
	}
	return mounts, nil
}

// imageDirectory finds a directory of a root file system as its container will
// see it, links and all, and makes it if it is missing. Nobody changes the root
// meanwhile: the container does not exist yet.
func imageDirectory(root, name string) (string, error) {
	fd, err := openInRoot(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mkdirInRoot(root, name); err != nil {
			return "", err
		}
		fd, err = openInRoot(root, name)
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

func mkdirInRoot(root, name string) error {
	parent := "/"
	for part := range strings.SplitSeq(strings.TrimPrefix(name, "/"), "/") {
		fd, err := openInRoot(root, parent)
		if err != nil {
			return err
		}
		err = unix.Mkdirat(fd, part, 0o755)
		_ = unix.Close(fd)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		parent = path.Join(parent, part)
	}
	return nil
}

func openInRoot(root, name string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	return unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}
