package process_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

// stat reads the state and the parent of a process; empty and 0 if it is gone.
func stat(pid int) (state string, parent int) {
	raw, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	if err != nil {
		return "", 0
	}
	// The name before may have anything in it but a closing parenthesis at its
	// end (proc_pid_stat(5)).
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	parent, _ = strconv.Atoi(fields[1])
	return fields[0], parent
}

func state(pid int) string { s, _ := stat(pid); return s }

// childOf finds the child of a process that has one.
func childOf(t *testing.T, parent int) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if _, p := stat(pid); p == parent {
				return pid
			}
		}
	}
	t.Fatalf("process %d has no child", parent)
	return 0
}
