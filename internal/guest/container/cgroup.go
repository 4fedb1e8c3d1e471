package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cpuPeriod is the accounting period of a CPU limit, in microseconds.
const cpuPeriod = 100_000

// Stats are a container's figures.
type Stats struct {
	MemoryBytes uint64
	// MemoryLimitBytes is 0 where there is none.
	MemoryLimitBytes uint64
	// InactiveFileBytes are what the kernel can take back of MemoryBytes.
	InactiveFileBytes, AnonBytes, FileBytes uint64
	PageFaults, MajorPageFaults             uint64
	// OOMKills is how many processes were killed for want of memory.
	OOMKills                           uint64
	CPUUsageNS, CPUUserNS, CPUSystemNS uint64
	// CPUPeriods with a limit, and those of them in which it was reached.
	CPUPeriods, CPUThrottledPeriods, CPUThrottledNS uint64
	// PIDsLimit is 0 where there is none.
	PIDs, PIDsLimit uint64
}

// Limits bound a container; 0 leaves a limit as it is.
type Limits struct {
	MemoryBytes uint64
	// CPUMillis are thousandths of a CPU.
	CPUMillis uint32
	PIDs      uint32
}

// Stats reads the cgroup. A figure whose controller is not there is 0.
func (c *Container) Stats() (Stats, error) {
	var s Stats
	if _, err := os.Stat(c.cgroup); err != nil {
		return s, fmt.Errorf("container %s: %w", c.ID, err)
	}
	var errs []error
	number := func(name string) uint64 {
		raw, err := os.ReadFile(filepath.Join(c.cgroup, name))
		if errors.Is(err, os.ErrNotExist) {
			return 0
		}
		text := strings.TrimSpace(string(raw))
		if err != nil || text == "max" {
			errs = append(errs, err)
			return 0
		}
		n, err := strconv.ParseUint(text, 10, 64)
		errs = append(errs, err)
		return n
	}
	s.MemoryBytes = number("memory.current")
	s.MemoryLimitBytes = number("memory.max")
	s.PIDs, s.PIDsLimit = number("pids.current"), number("pids.max")
	errs = append(errs,
		c.lines("memory.stat", map[string]*uint64{
			"inactive_file": &s.InactiveFileBytes, "anon": &s.AnonBytes, "file": &s.FileBytes, "pgfault": &s.PageFaults, "pgmajfault": &s.MajorPageFaults,
		}),
		c.lines("memory.events", map[string]*uint64{"oom_kill": &s.OOMKills}),
		c.lines("cpu.stat", map[string]*uint64{
			"usage_usec": &s.CPUUsageNS, "user_usec": &s.CPUUserNS, "system_usec": &s.CPUSystemNS,
			"nr_periods": &s.CPUPeriods, "nr_throttled": &s.CPUThrottledPeriods, "throttled_usec": &s.CPUThrottledNS,
		}))
	for _, micros := range []*uint64{&s.CPUUsageNS, &s.CPUUserNS, &s.CPUSystemNS, &s.CPUThrottledNS} {
		*micros *= 1000
	}
	if err := errors.Join(errs...); err != nil {
		return s, fmt.Errorf("container %s: %w", c.ID, err)
	}
	return s, nil
}

// lines reads figures of a flat keyed file; those that are not there stay as
// they are, and so do all if the file is not.
func (c *Container) lines(name string, figures map[string]*uint64) error {
	raw, err := os.ReadFile(filepath.Join(c.cgroup, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if figure := figures[key]; figure != nil {
			if *figure, err = strconv.ParseUint(value, 10, 64); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// dropMissing leaves out limits that no controller of the machine would keep.
func (c *Crun) dropMissing(r *specs.LinuxResources) {
	raw, _ := os.ReadFile(filepath.Join(c.o.CgroupRoot, "cgroup.controllers")) // unreadable: there are none
	have := strings.Fields(string(raw))
	if !slices.Contains(have, "memory") {
		r.Memory = nil
	}
	if !slices.Contains(have, "cpu") {
		r.CPU = nil
	}
	if !slices.Contains(have, "pids") {
		r.Pids = nil
	}
}

// set writes a file of the group that is there.
func (c *Container) set(name, value string) error {
	f, err := os.OpenFile(filepath.Join(c.cgroup, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Update changes limits of a running container.
func (c *Container) Update(l Limits) error {
	var errs []error
	set := func(name, value string) {
		err := c.set(name, value)
		if missing := errors.Is(err, os.ErrNotExist) && c.crun.o.WithoutMissing; err != nil && !missing {
			errs = append(errs, err)
		}
	}
	if l.MemoryBytes != 0 {
		set("memory.max", strconv.FormatUint(l.MemoryBytes, 10))
	}
	if l.CPUMillis != 0 {
		set("cpu.max", fmt.Sprintf("%d %d", cpuQuota(l.CPUMillis), cpuPeriod))
	}
	if l.PIDs != 0 {
		set("pids.max", strconv.FormatUint(uint64(l.PIDs), 10))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("limits of container %s: %w", c.ID, err)
	}
	return nil
}

// cpuQuota is the share of cpuPeriod in microseconds, at least the kernel's
// minimum of one millisecond.
func cpuQuota(millis uint32) uint64 { return max(uint64(millis)*cpuPeriod/1000, 1000) }

// OOMKills is how many of the container's processes the kernel has killed for
// want of memory.
func (c *Container) OOMKills() (kills uint64, err error) {
	err = c.lines("memory.events", map[string]*uint64{"oom_kill": &kills})
	return kills, err
}

// WatchOOM calls f with how many processes the kernel has killed for want of
// memory, each time that this has grown, until ctx ends or the container is
// deleted. It is woken by the kernel.
func (c *Container) WatchOOM(ctx context.Context, f func(kills uint64)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch memory of container %s: %w", c.ID, err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close() //nolint:errcheck // nothing is written
	path := filepath.Join(c.cgroup, "memory.events")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil // no memory controller: nothing to tell
		}
		return fmt.Errorf("watch %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.Close() })
	defer stop()
	var seen uint64
	buf := make([]byte, 4096)
	for {
		kills, err := c.OOMKills()
		if err != nil {
			return err
		}
		if kills > seen {
			seen = kills
			f(kills)
		}
		// The removal of the file is an event too (IN_IGNORED).
		if _, err := events.Read(buf); err != nil {
			return context.Cause(ctx)
		}
		if _, err := os.Stat(path); err != nil {
			return nil
		}
	}
}
