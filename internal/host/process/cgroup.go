package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is the control group that the process's containers have theirs in.
func (c Config) cgroup() string {
	if c.Cgroup != "" {
		return c.Cgroup
	}
	return "/" + groupName(c.ID)
}

func groupName(id string) string { return "coffer-process-" + id }

// emptyLimit bounds the wait for processes that were killed to be gone.
const emptyLimit = 5 * time.Second

// Remove takes away what is left of a process whose host did not call Close,
// killed with everything it had: an empty control group. That there is nothing
// is no error; that the process still runs is one.
func Remove(id string) error {
	if !validID(id) {
		return fmt.Errorf("id: expected 1 to 64 characters of [A-Za-z0-9._-], got %q", id)
	}
	root, err := groups()
	if errors.Is(err, unix.ENODEV) {
		return nil // a kernel without control groups, version 2
	}
	if err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	defer root.Close() //nolint:errcheck // a directory
	err = waitEmpty(root, groupName(id))
	if err == nil {
		err = removeGroup(root, groupName(id), maxDepth)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove control group %s: %w", groupName(id), err)
	}
	return nil
}

// waitEmpty waits until no process is in a group or in those below it, told by
// the kernel (cgroups(7), cgroup.events).
func waitEmpty(root *os.Root, name string) error {
	f, err := root.Open(name + "/cgroup.events")
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	deadline := time.Now().Add(emptyLimit)
	for {
		buf := make([]byte, 256)
		n, err := f.ReadAt(buf, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		left := time.Until(deadline)
		switch {
		case bytes.Contains(buf[:n], []byte("populated 0")):
			return nil
		case left <= 0:
			return errors.New("it still has processes")
		}
		poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// groups opens the hierarchy of control groups, version 2, wherever and whether
// it is mounted: the mount is of this descriptor only, and goes with it.
func groups() (*os.Root, error) {
	fsfd, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fsfd) //nolint:errcheck // a configuration
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, err
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mfd) //nolint:errcheck // the root has its own
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", mfd))
}

// maxDepth is how deep groups of containers are nested at most.
const maxDepth = 16

// removeGroup removes a group and those in it.
func removeGroup(parent *os.Root, name string, depth int) error {
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // a directory
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if depth == 0 {
			return fmt.Errorf("%s: nested too deeply", name)
		}
		if err := removeGroup(dir, e.Name(), depth-1); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return parent.Remove(name)
}
