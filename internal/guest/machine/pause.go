package machine

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// PauseName is the name under which this program holds a PID namespace.
const PauseName = "coffer-pause"

// pauseID is the user and group of that process, which no container is likely
// to have: those who have it could send signals.
const pauseID = 1<<32 - 3

// readyFD is where the process says that it has given everything up.
const readyFD = 3

// Pause is PID 1 of a shared PID namespace: it collects orphans and does
// nothing else, until it is killed. Containers see it and one with
// CAP_SYS_PTRACE can look into it, so it keeps nothing of the agent's: no
// mount, no capability, not even the user. It returns only an error.
func Pause() error {
	// Sent by a container they would end it, and every container with it.
	signal.Ignore()
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	if err := giveUp(); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	ready := os.NewFile(readyFD, "ready")
	_, err := ready.Write([]byte{1})
	if err := errors.Join(err, ready.Close()); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	for {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		<-sigs
	}
}

// giveUp leaves the process, which has a mount namespace of its own, with an
// empty root and an unprivileged user.
func giveUp() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const dir = "/tmp"
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k"); err != nil {
		return fmt.Errorf("mount an empty root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	// The old root ends up on top of the new one, see pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change to an empty root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Package syscall changes all threads; capabilities go with the user.
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("drop groups: %w", err)
	}
	if err := syscall.Setgid(pauseID); err != nil {
		return fmt.Errorf("drop the group: %w", err)
	}
	if err := syscall.Setuid(pauseID); err != nil {
		return fmt.Errorf("drop the user: %w", err)
	}
	return nil
}
