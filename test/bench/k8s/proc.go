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
	// guest is a machine's memory as far as it was touched, translator the code
	// that QEMU's translator has made: an accelerator in hardware has none.
	guest, translator float64
	// image is what is mapped of the guest image's files: the page cache, divided
	// by those who have it mapped. It is part of proportional.
	image float64
	// program is the same of other files: the emulator and its libraries, and
	// others on this machine may run it.
	program float64
}

func (f footprint) total() float64 { return f.proportional + f.held }

// own is what a machine's emulator has beyond what every one has: its program,
// whose share depends on how many run, and what the translator has made.
func (f footprint) own() float64 { return f.total() - f.program - f.translator }

// memoryOf measures a process (proc_pid_smaps(5), proc_pid_status(5)). image is
// the directory of the guest image.
func memoryOf(pid uint32, image string) (f footprint, err error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	if f.proportional, err = field(filepath.Join(dir, "smaps_rollup"), "Pss:"); err != nil {
		return f, err
	}
	if f.resident, err = field(filepath.Join(dir, "status"), "VmRSS:"); err != nil {
		return f, err
	}
	maps, err := mappings(filepath.Join(dir, "smaps"))
	if err != nil {
		return f, err
	}
	for _, m := range maps {
		switch {
		case m.size == machineMemory*mib && m.inode == 0:
			f.guest += float64(m.resident) / mib
		case strings.HasPrefix(m.mode, "rwx") && m.inode == 0:
			f.translator += float64(m.resident) / mib
		case strings.HasPrefix(m.path, image+"/"):
			f.image += float64(m.proportional) / mib
		case strings.HasPrefix(m.path, "/") && !strings.HasPrefix(m.path, "/memfd:"):
			f.program += float64(m.proportional) / mib
		}
	}
	f.held, err = unmapped(dir, maps)
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
func unmapped(dir string, maps []mapping) (float64, error) {
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
	for _, m := range maps {
		if size, ok := sizes[m.inode]; ok {
			sizes[m.inode] = max(0, size-m.resident)
		}
	}
	var sum int64
	for _, size := range sizes {
		sum += size
	}
	return float64(sum) / mib, nil
}

// mapping is a part of a process's memory; sizes are in bytes.
type mapping struct {
	mode, path                   string
	inode                        uint64
	size, resident, proportional int64
}

// mappings reads a process's smaps.
func mappings(smaps string) ([]mapping, error) {
	f, err := os.Open(smaps)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	var all []mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"): // a mapping begins
			var from, to uint64
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
				return nil, fmt.Errorf("%s: %w", smaps, err)
			}
			inode, err := strconv.ParseUint(fields[4], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", smaps, err)
			}
			all = append(all, mapping{mode: fields[1], path: strings.Join(fields[5:], " "), inode: inode, size: int64(to - from)})
		case len(all) > 0 && len(fields) > 1 && (fields[0] == "Rss:" || fields[0] == "Pss:"):
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", smaps, err)
			}
			m := &all[len(all)-1]
			if fields[0] == "Rss:" {
				m.resident = kib << 10
			} else {
				m.proportional = kib << 10
			}
		}
	}
	return all, lines.Err()
}

// ownTime is the time that this process's threads took, in seconds.
func ownTime() (float64, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, err
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9, nil
}
