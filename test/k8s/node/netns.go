package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

var errDown = errors.New("the node is down")

// inside calls f on a thread that is in the node's network namespace. Sockets
// that f makes stay there.
func (n *Node) inside(f func() error) error {
	pid := n.PID()
	if pid == 0 {
		return errDown
	}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and nothing else
		// ever runs in the wrong namespace.
		runtime.LockOSThread()
		done <- func() error {
			fd, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return err
			}
			defer func() { _ = fd.Close() }()
			if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("entering the node's network: %w", err)
			}
			return f()
		}()
	}()
	return <-done
}

// Dial connects from inside the node. The address is numeric.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := n.inside(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listener accepts connections inside the node, over reboots.
type Listener struct {
	n       *Node
	address string

	mu     sync.Mutex
	inner  net.Listener
	opened chan struct{}
	closed bool
}

// Listen listens on a TCP address of the node, for a server of this process;
// after a reboot it goes on. Close of the node closes it.
func (n *Node) Listen(address string) (*Listener, error) {
	l := &Listener{n: n, address: address, opened: make(chan struct{})}
	if err := l.open(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners = append(n.listeners, l)
	return l, nil
}

func (l *Listener) open() error {
	var inner net.Listener
	err := l.n.inside(func() (err error) {
		var c net.ListenConfig
		inner, err = c.Listen(context.Background(), "tcp", l.address)
		return err
	})
	if err != nil {
		return fmt.Errorf("listening on %s in the node: %w", l.address, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return inner.Close()
	}
	// The same port after a reboot.
	l.address = inner.Addr().String()
	l.inner = inner
	close(l.opened)
	return nil
}

// shut ends listening until open.
func (l *Listener) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inner != nil {
		_ = l.inner.Close()
		l.inner, l.opened = nil, make(chan struct{})
	}
}

// Accept waits for a connection; it goes on waiting while the node reboots.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		inner, opened, closed := l.inner, l.opened, l.closed
		l.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		if inner == nil {
			<-opened
			continue
		}
		c, err := inner.Accept()
		if errors.Is(err, net.ErrClosed) {
			continue
		}
		return c, err
	}
}

// Close ends the listener for good.
func (l *Listener) Close() error {
	l.mu.Lock()
	l.closed = true
	select {
	case <-l.opened:
	default:
		close(l.opened)
	}
	inner := l.inner
	l.inner = nil
	l.mu.Unlock()
	if inner != nil {
		return inner.Close()
	}
	return nil
}

// Addr is where it listens, inside the node.
func (l *Listener) Addr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", l.address)
	if err != nil {
		return &net.TCPAddr{}
	}
	return a
}

// proxy hands connections to a port of this machine's loopback on to the node.
type proxy struct {
	l    net.Listener
	dial func(context.Context) (net.Conn, error)
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func newProxy(dial func(context.Context) (net.Conn, error)) (*proxy, error) {
	var c net.ListenConfig
	l, err := c.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &proxy{l: l, dial: dial, stop: stop}
	p.wg.Go(func() { p.serve(ctx) })
	return p, nil
}

func (p *proxy) Address() string { return p.l.Addr().String() }

func (p *proxy) serve(ctx context.Context) {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() {
			defer func() { _ = c.Close() }()
			up, err := p.dial(ctx)
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			stop := context.AfterFunc(ctx, func() { _, _ = c.Close(), up.Close() })
			defer stop()
			join(c, up)
		})
	}
}

// Forward hands connections to an address of this machine's loopback on to one
// inside the node, until close is called.
func (n *Node) Forward(inner string) (outer string, closes func(), err error) {
	p, err := newProxy(func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, "tcp", inner) })
	if err != nil {
		return "", nil, err
	}
	return p.Address(), p.Close, nil
}

// join copies both ways until both have ended.
func join(a, b net.Conn) {
	half := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if w, ok := to.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { half(a, b) })
	half(b, a)
	wg.Wait()
}

func (p *proxy) Close() {
	_ = p.l.Close()
	p.stop()
	p.wg.Wait()
}
