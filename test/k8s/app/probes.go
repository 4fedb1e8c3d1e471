package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// call makes a system call that containers are mostly refused, and prints what
// came of it: "ok" or the name of the error.
func call(args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	calls := map[string]func() error{
		"unshare-user": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"unshare-net":  func() error { return unix.Unshare(unix.CLONE_NEWNET) },
		"mount":        func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
		"sethostname":  func() error { return unix.Sethostname([]byte("changed")) },
		"chroot":       func() error { return unix.Chroot("/") },
		"clock":        func() error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}) },
		"keyctl": func() error {
			_, err := unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, unix.KEY_SPEC_SESSION_KEYRING, 0, 0, 0)
			return err
		},
		"raw-socket": func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		},
		"mknod": func() error { return unix.Mknod("/tmp/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
		"chown": func() error {
			if err := os.WriteFile("/tmp/chown", nil, 0o600); err != nil {
				return err
			}
			return unix.Chown("/tmp/chown", 12345, 12345)
		},
	}
	f, ok := calls[args[0]]
	if !ok {
		return errUsage
	}
	err := f()
	if errno := unix.Errno(0); errors.As(err, &errno) {
		fmt.Println(unix.ErrnoName(errno))
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Println("ok")
	return nil
}

// watch prints the names of what changes in a directory.
func watch(args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(fd, args[0], unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_DELETE|unix.IN_ATTRIB); err != nil {
		return err
	}
	fmt.Println("watching")
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		fmt.Printf("changed %q\n", buf[:n])
	}
}
