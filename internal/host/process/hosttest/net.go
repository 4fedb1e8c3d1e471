package hosttest

import (
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// address is what the test's servers have in the namespace. It is of a block for
// documentation (RFC 5737).
const address = "198.51.100.1"

// Net is a network namespace of a test's own, with a loopback device, in which
// its servers listen. It goes with the test.
type Net struct {
	// Path of the namespace, for this process.
	Path string
	file *os.File
}

// NewNet makes one.
func NewNet(t testing.TB) *Net {
	t.Helper()
	Need(t)
	n := &Net{}
	if err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address), Mask: net.CIDRMask(32, 32)}}); err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}); err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() { _ = n.file.Close() })
	n.Path = "/proc/self/fd/" + strconv.Itoa(int(n.file.Fd()))
	return n
}

// Network is what a pod in the namespace is to be told: under which name it
// finds the test's servers.
func (n *Net) Network() *agentapi.Network {
	return &agentapi.Network{Hosts: []*agentapi.HostEntry{{Address: address, Names: []string{"host.coffer.internal"}}}}
}

func (n *Net) listen(t testing.TB) net.Listener {
	t.Helper()
	var l net.Listener
	if err := onThread(func() (err error) {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address+":0")
		return err
	}); err != nil {
		t.Fatalf("listen in the network namespace: %v", err)
	}
	return l
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
