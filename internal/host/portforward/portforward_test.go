package portforward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/portforward"
)

// namespace is a network namespace of a test's own.
type namespace struct{ f *os.File }

func (n namespace) path() string { return fmt.Sprintf("/proc/self/fd/%d", n.f.Fd()) }

// in runs f on a thread in the namespace, which ends with it.
func (n namespace) in(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (n namespace) dial(network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.in(func() (err error) {
		c, err = net.DialTimeout(network, address, 5*time.Second)
		return err
	})
	return c, err
}

// newNamespace has the loopback up, and 10.9.8.7 on it as an address of the pod's.
func newNamespace(t *testing.T) namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	made := make(chan error, 1)
	var n namespace
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		var err error
		n.f, err = os.Open("/proc/thread-self/ns/net")
		lo, lerr := netlink.LinkByName("lo")
		err = errors.Join(err, lerr)
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 8, 7), Mask: net.CIDRMask(32, 32)}})
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.f.Close() })
	return n
}

// half is one end of a pipe whose Close is the end of what is written.
type half struct {
	net.Conn
	closed atomic.Bool
}

func (h *half) Close() error {
	if h.closed.CompareAndSwap(false, true) {
		return h.Conn.(*net.UnixConn).CloseWrite()
	}
	return h.Conn.Close()
}

// answers is a pod each port of which says its number, and then what it was told.
func answers(t *testing.T) func(ctx context.Context, port uint16) (net.Conn, error) {
	return func(_ context.Context, port uint16) (net.Conn, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		var ends [2]net.Conn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "pod")
			ends[i], err = net.FileConn(f)
			_ = f.Close()
			if err != nil {
				return nil, err
			}
		}
		go func() {
			defer ends[1].Close()
			told, err := io.ReadAll(ends[1])
			if err != nil {
				t.Error(err)
			}
			_, _ = fmt.Fprintf(ends[1], "port %d was told %s", port, told)
		}()
		return &half{Conn: ends[0]}, nil
	}
}

func listen(t *testing.T, n namespace, o portforward.Options) *portforward.Forwarder {
	t.Helper()
	f, err := portforward.Listen(n.path(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// TestEveryPort of the loopback is the pod's, of both families, and half a
// connection can be closed.
func TestEveryPort(t *testing.T) {
	n := newNamespace(t)
	f := listen(t, n, portforward.Options{Open: answers(t)})
	for address, port := range map[string]int{"127.0.0.1:80": 80, "127.3.4.5:443": 443, "[::1]:65535": 65535, "127.0.0.1:1": 1} {
		c, err := n.dial("tcp", address)
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("port %d was told hello", port); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; expected %q", address, got, err, want)
		}
		_ = c.Close()
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := n.dial("tcp", "127.0.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Close: %v, %v", c, err)
	}
}

// TestNothingElse is taken: other addresses, and other protocols.
func TestNothingElse(t *testing.T) {
	n := newNamespace(t)
	listen(t, n, portforward.Options{Open: answers(t)})
	if _, err := n.dial("tcp", "10.9.8.7:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("an address that is not the loopback's: %v", err)
	}
	c, err := n.dial("udp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("UDP: %v", err)
	}
	if c, err := net.DialTimeout("tcp", "127.0.0.1:1", time.Second); err == nil {
		t.Errorf("the node's own loopback answers: %v", c.RemoteAddr())
	}
}

// TestRefused has an error at the client and a reason for the node.
func TestRefused(t *testing.T) {
	n := newNamespace(t)
	reasons := make(chan string, 1)
	listen(t, n, portforward.Options{
		Open:   func(context.Context, uint16) (net.Conn, error) { return nil, errors.New("nothing answers") },
		Failed: func(port uint16, err error) { reasons <- fmt.Sprint(port, " ", err) },
	})
	c, err := n.dial("tcp", "127.0.0.1:8080")
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client has %v, expected a reset", err)
	}
	if got := <-reasons; got != "8080 nothing answers" {
		t.Error(got)
	}
}

// TestCloseWithConnections ends those that are open, and those being opened.
func TestCloseWithConnections(t *testing.T) {
	n := newNamespace(t)
	entered := make(chan struct{})
	open := answers(t)
	f := listen(t, n, portforward.Options{Open: func(ctx context.Context, port uint16) (net.Conn, error) {
		if port == 1 {
			close(entered)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return open(ctx, port)
	}})
	var clients []net.Conn
	for _, port := range []string{"1", "2", "3"} {
		c, err := n.dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	<-entered
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a connection outlives its forwarder")
		}
	}
}

// TestLimit resets what is more than the limit, and serves again afterwards.
func TestLimit(t *testing.T) {
	n := newNamespace(t)
	full := make(chan string, 8)
	listen(t, n, portforward.Options{Open: answers(t), Failed: func(_ uint16, err error) { full <- err.Error() }})
	var held []net.Conn
	for range portforward.MaxConnections {
		c, err := n.dial("tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	one, err := n.dial("tcp", "127.0.0.1:80")
	if err == nil {
		_, err = one.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) || !strings.Contains(<-full, "256 connections") {
		t.Errorf("one too many: %v", err)
	}
	for _, c := range held {
		_ = c.(*net.TCPConn).CloseWrite()
		// Its place is free before its end is seen.
		if got, err := io.ReadAll(c); err != nil || string(got) != "port 80 was told " {
			t.Fatalf("%q, %v", got, err)
		}
		_ = c.Close()
	}
	if c, err := n.dial("tcp", "127.0.0.1:81"); err != nil {
		t.Fatal(err)
	} else {
		_ = c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "port 81 was told " {
			t.Errorf("after the others: %q, %v", got, err)
		}
		_ = c.Close()
	}
}

// TestNoNamespace names the path.
func TestNoNamespace(t *testing.T) {
	if _, err := portforward.Listen("/no/such/netns", portforward.Options{Open: answers(t)}); err == nil || !strings.Contains(err.Error(), "/no/such/netns") {
		t.Error(err)
	}
}
