package sandboxapi

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// usage is what the node's kernel counts for a process.
type usage struct {
	userUsec, systemUsec, threads, rssBytes uint64
	minorFaults, majorFaults                uint64
}

// ticksPerSecond is Linux's USER_HZ on every architecture that guests run on.
const ticksPerSecond = 100

// processUsage reads the kernel's accounts (proc_pid_stat(5)).
func processUsage(pid uint32) (usage, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	return parseStat(string(line), uint64(os.Getpagesize()))
}

// parseStat reads a line of stat. The program's name may have any characters: the
// fields begin behind its last parenthesis.
func parseStat(line string, page uint64) (usage, error) {
	_, rest, ok := cutLast(line, ") ")
	fields := strings.Fields(rest)
	// Field 3, the state, is the first.
	const first, minor, major, user, system, threads, rss = 3, 10, 12, 14, 15, 20, 24
	if !ok || len(fields) <= rss-first {
		return usage{}, fmt.Errorf("expected the fields of proc_pid_stat(5), got %.80q", line)
	}
	var u usage
	for _, f := range []struct {
		to    *uint64
		index int
		times uint64
	}{
		{&u.userUsec, user, 1e6 / ticksPerSecond}, {&u.systemUsec, system, 1e6 / ticksPerSecond}, {&u.threads, threads, 1},
		{&u.rssBytes, rss, page}, {&u.minorFaults, minor, 1}, {&u.majorFaults, major, 1},
	} {
		n, err := strconv.ParseUint(fields[f.index-first], 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("field %d of proc_pid_stat(5): %w", f.index, err)
		}
		*f.to = n * f.times
	}
	return u, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
