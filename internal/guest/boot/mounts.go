package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one line of the guest's mount table.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

const noExec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountTable lists the file systems every guest has, in order. Those of memory
// have a share of it each: the kernel would let every one take a half. /run
// holds the files that volumes are made of; nothing of the pod's writes to the
// others.
func mountTable() []mount {
	return []mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
		{"proc", "/proc", "proc", noExec, ""},
		{"sysfs", "/sys", "sysfs", noExec, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", noExec, "nsdelegate"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", noExec, "mode=1777,size=5%"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=30%"},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=5%"},
	}
}

// moveRoot makes pivot_root(2) possible. The kernel refuses to pivot away
// from the initial rootfs because that mount has no parent. A bind mount of
// the same tree, moved on top of it, has one: nothing is copied and nothing
// is executed again. It must come before every other mount, as the bind
// mount takes none of them along.
func moveRoot(context.Context) error {
	const dir = "/newroot"
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the initial root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the new root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	return os.Remove(dir)
}

// mountAll mounts the table and links what programs expect in /dev.
func mountAll(context.Context) error {
	for _, m := range mountTable() {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
	} {
		if err := os.Symlink(l[0], l[1]); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// devtmpfs makes its own ptmx node, which belongs to no devpts instance.
	if err := os.Remove("/dev/ptmx"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink("pts/ptmx", "/dev/ptmx")
}

// delegateCgroups hands the controllers that containers need to the
// children of the cgroup at root.
func delegateCgroups(root string) error {
	raw, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for c := range strings.FieldsSeq(string(raw)) {
		have[c] = true
	}
	var enable []string
	for _, c := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if have[c] {
			enable = append(enable, "+"+c)
		}
	}
	if !have["memory"] || !have["pids"] {
		return fmt.Errorf("cgroup controllers: memory and pids are needed, the kernel has %q", strings.TrimSpace(string(raw)))
	}
	return os.WriteFile(root+"/cgroup.subtree_control", []byte(strings.Join(enable, " ")), 0o644)
}
