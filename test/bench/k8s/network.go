package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nodeAddress is where the registry listens, for all pods: of a block for
// documentation (RFC 5737).
const nodeAddress = "198.51.100.1"

// linkUp gives an interface an address and starts it.
func linkUp(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

// podNetwork makes the nth pod's network namespace, as a CNI plugin of kind ptp
// does, and returns its path.
func podNetwork(ctx context.Context, dir string, n int) (path string, err error) {
	path = fmt.Sprintf("%s/netns-%d", dir, n)
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	if err := file.Close(); err != nil {
		return "", err
	}
	if err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}); err != nil {
		return "", fmt.Errorf("network namespace: %w", err)
	}
	ns, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer ns.Close() //nolint:errcheck // only read
	host, pod := fmt.Sprintf("veth%d", n), fmt.Sprintf("pod%d", n)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: pod}); err != nil {
		return "", fmt.Errorf("veth: %w", err)
	}
	peer, err := netlink.LinkByName(pod)
	if err != nil {
		return "", err
	}
	if err := netlink.LinkSetNsFd(peer, int(ns.Fd())); err != nil {
		return "", err
	}
	if err := linkUp(host, fmt.Sprintf("10.%d.%d.1/24", 88+n/200, n%200)); err != nil {
		return "", err
	}
	return path, onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		link, err := netlink.LinkByName(pod)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(link, "eth0"); err != nil {
			return err
		}
		if err := linkUp("lo", "127.0.0.2/8"); err != nil {
			return err
		}
		if err := linkUp("eth0", fmt.Sprintf("10.%d.%d.2/24", 88+n/200, n%200)); err != nil {
			return err
		}
		_, everywhere, err := net.ParseCIDR("0.0.0.0/0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Gw: net.IPv4(10, byte(88+n/200), byte(n%200), 1)})
	})
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}
