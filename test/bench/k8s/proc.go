package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const mib = 1 << 20

// footprint is the memory that a process keeps from others.
type footprint struct {
	// proportional is the set size of smaps_rollup, resident that of status.
	proportional, resident float64 // MiB
	// held is what its open anonymous files (memfd) occupy without being mapped.
	held float64
}

func (f footprint) total() float64 { return f.proportional + f.held }

// memoryOf measures a process (proc_pid_smaps(5), proc_pid_status(5)).
func memoryOf(pid uint32) (f footprint, err error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	if f.proportional, err = field(filepath.Join(dir, "smaps_rollup"), "Pss:"); err != nil {
		return f, err
	}
	if f.resident, err = field(filepath.Join(dir, "status"), "VmRSS:"); err != nil {
		return f, err
	}
	f.held, err = unmapped(dir)
	return f, err
}

// field is a line's value of a file in /proc, in MiB.
func field(path, name string) (float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s: no %s", path, name)
}

// unmapped is the size of open memfds less what of them is mapped, in MiB.
func unmapped(dir string) (float64, error) {
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return 0, err
	}
	sizes := map[uint64]int64{} // by inode
	for _, fd := range fds {
		path := filepath.Join(dir, "fd", fd.Name())
		if to, err := os.Readlink(path); err != nil || !strings.HasPrefix(to, "/memfd:") {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, errors.New("no stat of an open file")
		}
		sizes[stat.Ino] = stat.Blocks * 512
	}
	mapped, err := mappedFiles(filepath.Join(dir, "smaps"))
	if err != nil {
		return 0, err
	}
	var sum int64
	for inode, size := range sizes {
		sum += max(0, size-mapped[inode])
	}
	return float64(sum) / mib, nil
}

// mappedFiles are the bytes resident of each memfd that is mapped, by inode.
func mappedFiles(smaps string) (map[uint64]int64, error) {
	f, err := os.Open(smaps)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	sizes := map[uint64]int64{}
	var inode uint64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"): // a mapping begins
			inode = 0
			if len(fields) > 5 && strings.HasPrefix(fields[5], "/memfd:") {
				if inode, err = strconv.ParseUint(fields[4], 10, 64); err != nil {
					return nil, err
				}
			}
		case inode != 0 && len(fields) > 1 && fields[0] == "Rss:":
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return nil, err
			}
			sizes[inode] += kib << 10
		}
	}
	return sizes, lines.Err()
}

// ownTime is the time that this process's threads took, in seconds.
func ownTime() (float64, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, err
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9, nil
}
