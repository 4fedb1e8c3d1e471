package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the machine's cgroup file systems.
func hierarchies() ([]string, error) {
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if !e.IsDir() {
			continue // links such as cpu,cpuacct
		}
		dir := filepath.Join(cgroupRoot, e.Name())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			list = append(list, dir)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no cgroup v1 hierarchies; expected cpu, memory, pids and others", cgroupRoot)
	}
	return list, nil
}

// makeCgroups makes the cgroup below which the kubelet keeps pods.
func makeCgroups(id string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range list {
		if err := os.MkdirAll(filepath.Join(h, id), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes a node's cgroups when its processes are dead. The kernel
// lets a cgroup go some time after its last process.
func removeCgroups(ctx context.Context, id string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	return poll(ctx, "cgroups are left", func(context.Context) error {
		var errs []error
		for _, h := range list {
			errs = append(errs, removeTree(filepath.Join(h, id)))
		}
		return errors.Join(errs...)
	})
}

// removeTree removes a directory of cgroups, the deepest first.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
	var errs []error
	for _, d := range dirs {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			procs, _ := os.ReadFile(filepath.Join(d, "cgroup.procs"))
			errs = append(errs, fmt.Errorf("%s: %w (processes: %q)", d, err, strings.Fields(string(procs))))
		}
	}
	return errors.Join(errs...)
}

// leftOutside lists what a node has left on the machine: mounts and loop devices
// of its directory, and processes that hold it.
func leftOutside(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return poll(ctx, "left behind", func(context.Context) error {
		return errors.Join(leftMounts(dir), leftLoops(dir), leftProcesses(dir))
	})
}

func leftMounts(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			return fmt.Errorf("mount: %s", strings.TrimSpace(line))
		}
	}
	return nil
}

func leftLoops(dir string) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir) {
			return fmt.Errorf("loop device %s: %s", f, strings.TrimSpace(string(b)))
		}
	}
	return nil
}

func leftProcesses(dir string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if cwd, err := os.Readlink("/proc/" + e.Name() + "/cwd"); err == nil && strings.HasPrefix(cwd, dir) {
			return fmt.Errorf("process %d is in %s", pid, cwd)
		}
		if root, err := os.Readlink("/proc/" + e.Name() + "/root"); err == nil && strings.HasPrefix(root, dir) {
			return fmt.Errorf("process %d has the root %s", pid, root)
		}
	}
	return nil
}
