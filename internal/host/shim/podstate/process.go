package podstate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process names one process for ever: its id may be given to another later,
// its id and the moment it started may not.
type Process struct {
	// Role is for people: "shim", "qemu", "agent".
	Role string `json:"role"`
	PID  int    `json:"pid"`
	// Start is field 22 of /proc/PID/stat: clock ticks since the machine
	// started (proc_pid_stat(5)).
	Start uint64 `json:"start"`
	// Boot is /proc/sys/kernel/random/boot_id: ids and ticks begin anew with it.
	Boot string `json:"boot"`
}

// startField is the number of starttime in /proc/PID/stat, counted from the
// state, which follows the name in brackets.
const startField = 22 - 3

// Look records a running process.
func Look(role string, pid int) (Process, error) {
	start, err := started(pid)
	if err != nil {
		return Process{}, fmt.Errorf("look at the process %s: %w", role, err)
	}
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	return Process{Role: role, PID: pid, Start: start, Boot: boot}, nil
}

// Alive tells whether exactly this process runs. One that has ended and was
// not waited for does not.
func (p Process) Alive() bool {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	over, err := ended(fd, 0)
	return err == nil && !over
}

// Signal sends a signal to exactly this process. It is no error when it has
// ended.
func (p Process) Signal(sig unix.Signal) error {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal the process %s (pid %d): %w", p.Role, p.PID, err)
	}
	return nil
}

// Wait waits until it has ended, with all its threads and what they had open,
// or ctx has ended.
func (p Process) Wait(ctx context.Context) error {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		over, err := ended(fd, pollTime)
		if err != nil {
			return fmt.Errorf("wait for the end of the process %s (pid %d): %w", p.Role, p.PID, err)
		}
		if over {
			return nil
		}
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("wait for the end of the process %s (pid %d): %w", p.Role, p.PID, err)
		}
	}
}

// pollTime is how late Wait notices the end of its context.
const pollTime = 20 * time.Millisecond

// ended waits for the end of a process. Its descriptor becomes readable when
// the last thread is gone (pidfd_open(2)).
func ended(fd int, limit time.Duration) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if err == unix.EINTR {
		return false, nil
	}
	return n > 0, err
}

// open returns a descriptor of exactly this process; -1 when it is gone.
func (p Process) open() (int, error) {
	if p.PID <= 0 {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open the process %s (pid %d): %w", p.Role, p.PID, err)
	}
	// The descriptor holds whoever has the id now; only then is it compared.
	boot, err := bootID()
	start, serr := started(p.PID)
	if err != nil || serr != nil || boot != p.Boot || start != p.Start {
		return -1, unix.Close(fd)
	}
	return fd, nil
}

// started reads when a process started.
func started(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name may hold anything, brackets and blanks included.
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return 0, fmt.Errorf("/proc/%d/stat: no name in it", pid)
	}
	fields := strings.Fields(string(data[end+1:]))
	if len(fields) <= startField {
		return 0, fmt.Errorf("/proc/%d/stat: expected more than %d fields after the name, got %d", pid, startField, len(fields))
	}
	return strconv.ParseUint(fields[startField], 10, 64)
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(data))
	if id == "" {
		return "", errors.New("/proc/sys/kernel/random/boot_id is empty")
	}
	return id, nil
}
