package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// oomMax is OOM_SCORE_ADJ_MAX of linux/oom.h.
	oomMax = 1000
)

// place puts the daemon where containerd wants it.
func place(pid int, cgroup string) error {
	if err := adjustOOM(pid); err != nil {
		return fmt.Errorf("OOM score of the shim's daemon: %w", err)
	}
	if cgroup == "" {
		return nil
	}
	if err := joinCgroup(cgroupRoot, cgroup, pid); err != nil {
		return fmt.Errorf("cgroup %s of the shim's daemon: %w", cgroup, err)
	}
	return nil
}

// adjustOOM makes the kernel kill the daemon before containerd: its score is
// containerd's and one.
func adjustOOM(pid int) error {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(os.Getppid()) + "/oom_score_adj")
	if err != nil {
		return err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return err
	}
	return os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(min(score+1, oomMax))), 0)
}

// joinCgroup moves a process into an existing cgroup, of every hierarchy that
// has it.
func joinCgroup(root, cgroup string, pid int) error {
	mounted, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer func() { _ = mounted.Close() }()
	name := strings.TrimPrefix(filepath.Clean("/"+cgroup), "/")
	if _, err := mounted.Stat("cgroup.controllers"); err == nil { // version 2
		return writeProcs(mounted, filepath.Join(name, "cgroup.procs"), pid)
	}
	hierarchies, err := fs.ReadDir(mounted.FS(), ".")
	if err != nil {
		return err
	}
	joined := 0
	for _, h := range hierarchies {
		err := writeProcs(mounted, filepath.Join(h.Name(), name, "cgroup.procs"), pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return err
		}
		joined++
	}
	if joined == 0 {
		return fmt.Errorf("no hierarchy below %s has it", root)
	}
	return nil
}

func writeProcs(root *os.Root, name string, pid int) error {
	f, err := root.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	return errors.Join(err, f.Close())
}

// newCoreCookie gives this process group a cookie of its own for core
// scheduling (Linux's admin-guide/hw-vuln/core-scheduling).
func newCoreCookie() error {
	const processGroup = 2 // PR_SCHED_CORE_SCOPE_PROCESS_GROUP of linux/prctl.h
	return unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, processGroup, 0)
}
