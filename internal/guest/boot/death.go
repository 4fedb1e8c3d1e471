package boot

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Time limits of an orderly death. A guest must end even if a process of
// the workload is stuck in the kernel.
const (
	termLimit = 2 * time.Second
	killLimit = 2 * time.Second
	syncLimit = 5 * time.Second
	// lastLimit is longer than syncLimit: closing the pod's disks waits until
	// all that is unwritten has gone through encryption to the host.
	lastLimit = 25 * time.Second
)

// PowerOff ends the machine: every process is asked to end, then killed,
// file systems are written out, and the power goes off; each step has a time
// limit. idle returns when no child process is left or ctx has ended; last is
// what remains to be done when nothing runs any more. It does not return; where
// the kernel refuses to power off it exits, which panics the kernel, and panic=-1
// resets the machine.
func PowerOff(log *slog.Logger, idle, last func(ctx context.Context)) {
	bounded := func(limit time.Duration, f func(ctx context.Context)) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); f(ctx) }()
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	// ESRCH says that there is nobody to signal.
	_ = unix.Kill(-1, unix.SIGTERM)
	bounded(termLimit, idle)
	_ = unix.Kill(-1, unix.SIGKILL)
	bounded(killLimit, idle)
	bounded(syncLimit, func(context.Context) { unix.Sync() })
	bounded(lastLimit, last)
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	log.Error("power off failed", "error", err)
	unix.Exit(1)
}
