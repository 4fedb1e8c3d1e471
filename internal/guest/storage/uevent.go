package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// uevents are what the kernel tells of the machine's devices.
type uevents struct{ socket *os.File }

// kernelEvents is the group of uevents that come from the kernel itself
// (lib/kobject_uevent.c).
const kernelEvents = 1

// openUevents begins to listen: what happens from now on is told.
func openUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("device events: %w", err)
	}
	return &uevents{os.NewFile(uintptr(fd), "uevents")}, nil
}

func (u *uevents) close() { _ = u.socket.Close() }

// wait returns when something has happened to a block device, or may have: when
// limit has passed, too.
func (u *uevents) wait(ctx context.Context, limit time.Duration) error {
	if err := u.socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = u.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 8<<10)
	for {
		n, err := u.socket.Read(buf)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ENOBUFS):
			return nil
		case err != nil:
			return fmt.Errorf("device events: %w", err)
		case bytes.Contains(buf[:n], []byte("\x00SUBSYSTEM=block\x00")):
			return nil
		}
	}
}
