package shim

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/pause"
)

// graceTime is how long an ended child is left to whoever started it.
const graceTime = 2 * time.Second

// becomeSubreaper makes orphans below this process its children, instead of
// PID 1's: they are still found, and end with the pod.
func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a child subreaper: %w", err)
	}
	return nil
}

// reap waits for children that nobody else waits for, until ctx ends. Children
// that this program started are waited for by package os/exec as soon as they
// end; one that is still a zombie after graceTime was adopted.
func reap(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		for old := ended(); len(old) > 0; old = collect(old) {
			if !pause.For(ctx, graceTime) {
				return
			}
		}
	}
}

// collect waits for those that are still there, and returns those that are
// new, whose time is yet to come.
func collect(old []int) (young []int) {
	for _, pid := range ended() {
		if slices.Contains(old, pid) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		} else {
			young = append(young, pid)
		}
	}
	return young
}

// ended lists the children that have ended and were not waited for.
func ended() []int {
	var pids []int
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		// Children belong to the thread that forked or adopted them
		// (proc_pid_task(5), children).
		data, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && zombie(pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func zombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(data[bytes.LastIndexByte(data, ')')+1:], []byte(" "))
	return ok && len(rest) > 0 && rest[0] == 'Z'
}
