package hosttest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that ends with the test. It has no name, so
// nothing is left of it.
type Namespace struct {
	t    testing.TB
	file *os.File
	// Netlink is a socket in the namespace.
	Netlink *netlink.Handle
}

// NewNamespace makes a network namespace, or skips the test where that is not
// allowed.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		unsupported(t, "network namespaces need root")
	}
	n := &Namespace{t: t}
	err := away(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err == nil {
			n.Netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		return err
	})
	if err != nil {
		unsupported(t, fmt.Sprintf("no network namespace can be made: %v", err))
	}
	t.Cleanup(func() {
		n.Netlink.Close()
		_ = n.file.Close()
	})
	lo, err := n.Netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return n
}

// Path names the namespace in this process.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/self/fd/%d", n.file.Fd()) }

// File is the namespace, for netlink and for child processes.
func (n *Namespace) File() *os.File { return n.file }

// Do runs f on a thread that is in the namespace meanwhile.
func (n *Namespace) Do(f func() error) error {
	return away(func() error { return unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET) }, f)
}

// away leaves the thread's namespace, runs f and comes back. A thread that
// cannot come back is not used again. (It must not simply end: the process's
// first thread never does, and is what /proc/self shows.)
func away(leave, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err = leave(); err == nil {
			err = f()
		}
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, back)
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Sysctl writes a value below /proc/sys/net of the namespace.
func (n *Namespace) Sysctl(name, value string) {
	n.t.Helper()
	err := n.Do(func() error {
		return os.WriteFile("/proc/sys/net/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0o644)
	})
	if err != nil {
		n.t.Fatalf("sysctl %s: %v", name, err)
	}
}

// Veth makes a pair of interfaces, the first here and the second in peer, and
// turns both on.
func (n *Namespace) Veth(name string, peer *Namespace, peerName string, mtu int) {
	n.t.Helper()
	err := n.Netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu}, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.file.Fd()),
	})
	if err != nil {
		unsupported(n.t, fmt.Sprintf("no veth pair can be made: %v", err))
	}
	n.Up(name)
	peer.Up(peerName)
}

// Link returns the interface.
func (n *Namespace) Link(name string) netlink.Link {
	n.t.Helper()
	l, err := n.Netlink.LinkByName(name)
	if err != nil {
		n.t.Fatalf("interface %s: %v", name, err)
	}
	return l
}

// Up turns the interface on.
func (n *Namespace) Up(name string) {
	n.t.Helper()
	if err := n.Netlink.LinkSetUp(n.Link(name)); err != nil {
		n.t.Fatal(err)
	}
}

// Address gives the interface addresses, which are usable at once.
func (n *Namespace) Address(name string, addresses ...string) {
	n.t.Helper()
	for _, a := range addresses {
		address, err := netlink.ParseAddr(a)
		if err != nil {
			n.t.Fatal(err)
		}
		if address.IP.To4() == nil {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := n.Netlink.AddrAdd(n.Link(name), address); err != nil {
			n.t.Fatalf("address %s: %v", a, err)
		}
	}
}

// Route adds a route. An empty gateway: the destination is on the link.
func (n *Namespace) Route(name, destination, gateway string) {
	n.t.Helper()
	r := &netlink.Route{LinkIndex: n.Link(name).Attrs().Index}
	dst, err := netlink.ParseIPNet(destination)
	if err != nil {
		n.t.Fatal(err)
	}
	r.Dst = dst
	if gateway == "" {
		r.Scope = netlink.SCOPE_LINK
	} else {
		address, err := netlink.ParseAddr(gateway + "/32")
		if strings.Contains(gateway, ":") {
			address, err = netlink.ParseAddr(gateway + "/128")
		}
		if err != nil {
			n.t.Fatal(err)
		}
		r.Gw = address.IP
	}
	if err := n.Netlink.RouteReplace(r); err != nil {
		n.t.Fatalf("route to %s via %q: %v", destination, gateway, err)
	}
}
