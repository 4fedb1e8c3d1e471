package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a caller may want to tell apart.
var (
	// ErrHostNetwork refuses a pod with hostNetwork: true.
	ErrHostNetwork = errors.New("the pod asks for the host's network (hostNetwork: true), which a virtual machine cannot have; " +
		"remove hostNetwork from the pod, or run it without this runtime class")
	// ErrNoNamespace: there is no network namespace at the path.
	ErrNoNamespace = errors.New("there is no such network namespace")
	// ErrNoAddress: the CNI plugin gave the pod nothing.
	ErrNoAddress = errors.New("no interface has an address")
	// ErrInUse: another machine has the namespace's network.
	ErrInUse = errors.New("another virtual machine is connected to it")
)

// Open opens a pod's network namespace, and refuses the host's: errors are
// ErrHostNetwork, ErrNoNamespace or the kernel's. The caller closes it.
func Open(path string) (*os.File, error) {
	if path == "" {
		return nil, ErrHostNetwork
	}
	// Whatever it is, opening it must not block.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w (it was taken down, or the node was started anew; the kubelet makes the pod again)", path, ErrNoNamespace)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	if err := check(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

func check(f *os.File) error {
	var kind unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &kind); err != nil {
		return err
	}
	if kind.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("%w: it is a file on which no namespace is mounted (as after a restart of the node; the kubelet makes the pod again)", ErrNoNamespace)
	}
	if t, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || t != unix.CLONE_NEWNET {
		return fmt.Errorf("%w: it is a namespace of another kind", ErrNoNamespace)
	}
	var got unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &got); err != nil {
		return err
	}
	for _, host := range []string{"/proc/thread-self/ns/net", "/proc/1/ns/net"} {
		var st unix.Stat_t
		// Process 1 of a container may be hidden; our own never is.
		if err := unix.Stat(host, &st); err == nil && st.Dev == got.Dev && st.Ino == got.Ino {
			return ErrHostNetwork
		}
	}
	return nil
}

// Inside calls f on a thread that is in the namespace, and waits for it. No other
// goroutine ever runs on the thread there: one that cannot come back ends.
func Inside(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- visit(ns, f) }()
	return <-done
}

// visit is the body of Inside's goroutine, which ends with it: then the runtime
// drops the thread if it is still locked.
func visit(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer home.Close() //nolint:errcheck // only read
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave the network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// handle opens a netlink socket in the namespace. Its answers are about the
// namespace whatever thread asks.
func handle(ns *os.File) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := Inside(ns, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}
