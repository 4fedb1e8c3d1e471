package serial

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxNameFile bounds what is read of a port's name in sysfs.
const maxNameFile = 4096

// Finder looks for ports.
type Finder struct {
	// Sys is /sys and Dev is /dev.
	Sys, Dev string
}

// System finds the ports of this machine.
func System() Finder { return Finder{Sys: "/sys", Dev: "/dev"} }

// errNoPort says that there is no port of that name, yet.
var errNoPort = errors.New("no virtio-serial port of that name")

// Has reports whether the port is there now.
func (f Finder) Has(name string) bool {
	_, err := f.find(name)
	return err == nil
}

// find returns the device's path. The kernel names devices vportNpM and gives
// the name that QEMU was told in sysfs.
func (f Finder) find(name string) (string, error) {
	dir := path.Join(f.Sys, "class/virtio-ports")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errNoPort
	}
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		raw, err := os.ReadFile(path.Join(dir, e.Name(), "name"))
		if err != nil || len(raw) > maxNameFile {
			continue // a port without a name has no such file
		}
		if strings.TrimSpace(string(raw)) == name {
			return path.Join(f.Dev, e.Name()), nil
		}
	}
	return "", errNoPort
}

// Open opens the port with the given name and waits for it to appear if need
// be, woken by the kernel's device events, until ctx ends.
func (f Finder) Open(ctx context.Context, name string) (*Port, error) {
	port, err := f.try(name)
	if port != nil || err != nil {
		return port, err
	}
	// Listen first, then look again: an event between the two is not lost.
	events, err := listenEvents()
	if err != nil {
		return nil, fmt.Errorf("serial port %s: %w", name, err)
	}
	defer events.Close() //nolint:errcheck // a netlink socket
	stop := context.AfterFunc(ctx, func() { _ = events.Close() })
	defer stop()
	buf := make([]byte, 8192)
	for {
		port, err := f.try(name)
		if port != nil || err != nil {
			return port, err
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			if cause := context.Cause(ctx); cause != nil {
				err = fmt.Errorf("it did not appear: %w", cause)
			}
			return nil, fmt.Errorf("serial port %s: %w", name, err)
		}
	}
}

// try returns nil, nil while the port or its device node is not there.
func (f Finder) try(name string) (*Port, error) {
	dev, err := f.find(name)
	if errors.Is(err, errNoPort) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	port, err := openDevice(name, dev)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return port, err
}

// listenEvents opens the kernel's device event socket (NETLINK_KOBJECT_UEVENT,
// multicast group 1). What the messages say is not used: each is a reason to
// look again.
func listenEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("device event socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("device event socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "uevent"), nil
}
