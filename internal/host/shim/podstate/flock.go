package podstate

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// flock waits for an exclusive lock on f until ctx ends.
func flock(ctx context.Context, f *os.File) error {
	const again = 5 * time.Millisecond
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return err
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}
