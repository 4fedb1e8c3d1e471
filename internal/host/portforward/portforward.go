// Package portforward makes the loopback of a pod's network namespace on the
// node that of the pod's machine.
//
// The CRI has no request for port-forwarding that reaches a shim: containerd
// enters the pod's network namespace and connects to localhost, where the
// programs of a pod without a machine would listen. [Listen] has every TCP
// connection to 127.0.0.0/8 and ::1 in there arrive at a listener of this process
// instead, whatever its port, by a program of the kernel's socket lookup
// (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9), so that neither netfilter nor connection
// tracking is needed. Each connection becomes a stream to the guest's agent, which
// connects to the port if the pod's policy allows it.
//
// Everything ends with the process: the kernel detaches the program with the last
// descriptor of its link. Only the node's root can be in the namespace; a
// connection is no sign of anybody's right, and the guest decides.
package portforward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/host/network"
	"github.com/coffer-project/coffer/internal/host/pause"
)

// MaxConnections is how many connections of a pod are forwarded at once; more are
// reset.
const MaxConnections = 256

// openTime bounds how long the guest may take to connect to a port.
const openTime = 15 * time.Second

// Options of Listen.
type Options struct {
	// Open connects to a TCP port of the pod. The connection's Close may leave its
	// reading side open, as that of a stream to the agent does: the end of what the
	// client sends is passed on with it. Required.
	Open func(ctx context.Context, port uint16) (net.Conn, error)
	// Failed, when not nil, is told why a connection could not be forwarded. It may
	// be called by several goroutines at once.
	Failed func(port uint16, err error)
	// Logger may be nil.
	Logger *slog.Logger
}

// Forwarder forwards the connections of one namespace until Close. Its method is
// safe for concurrent use.
type Forwarder struct {
	o    Options
	life context.Context //nolint:containedctx // of the connections, not of a call
	end  context.CancelFunc

	hook      io.Closer
	listeners []*net.TCPListener
	// room has a place for each connection.
	room  chan struct{}
	work  sync.WaitGroup
	close func() error
}

// Listen takes over the loopback of the network namespace at a path; its loopback
// interface must be up. Listeners that others have there are not reached any more
// by way of the loopback. Errors name what the node lacks.
func Listen(netns string, o Options) (*Forwarder, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ns, err := network.Open(netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // only read
	f := &Forwarder{o: o, room: make(chan struct{}, MaxConnections)}
	f.life, f.end = context.WithCancel(context.Background())
	f.close = sync.OnceValue(f.stop)
	if err := f.listen(ns); err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", netns, err), f.Close())
	}
	for _, l := range f.listeners {
		f.work.Go(func() { f.serve(l) })
	}
	return f, nil
}

// serve accepts connections until the listener is closed.
func (f *Forwarder) serve(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// For want of descriptors or memory: the client is still in the queue.
			f.o.Logger.Warn("port-forward: accept", "error", err)
			if !pause.For(f.life, 100*time.Millisecond) {
				return
			}
			continue
		}
		select {
		case f.room <- struct{}{}:
			f.work.Go(func() {
				defer func() { <-f.room }()
				f.forward(c)
			})
		default:
			reset(c)
			f.failed(port(c), fmt.Errorf("%d connections are forwarded to this pod already", MaxConnections))
		}
	}
}

// forward joins a connection with the pod's port of the number it was made to.
// One that cannot be joined is reset: it must not look like an empty answer.
func (f *Forwarder) forward(c *net.TCPConn) {
	to := port(c)
	ctx, cancel := context.WithTimeout(f.life, openTime)
	pod, err := f.o.Open(ctx, to)
	cancel()
	if err != nil {
		reset(c)
		f.failed(to, err)
		return
	}
	stop := context.AfterFunc(f.life, func() { _, _ = c.Close(), pod.Close() })
	defer stop()
	f.work.Go(func() {
		// The end of what the client sends is the guest's end of input.
		_, _ = io.Copy(pod, c)
		_ = pod.Close()
	})
	_, err = io.Copy(c, pod)
	if err != nil {
		reset(c)
	}
	_, _ = c.Close(), pod.Close()
}

func (f *Forwarder) failed(port uint16, err error) {
	f.o.Logger.Warn("port-forward: a connection is refused", "port", port, "error", err)
	if f.o.Failed != nil {
		f.o.Failed(port, err)
	}
}

// Close ends all connections and gives the loopback back. It may be called again.
func (f *Forwarder) Close() error { return f.close() }

func (f *Forwarder) stop() error {
	f.end()
	var errs []error
	if f.hook != nil {
		errs = append(errs, f.hook.Close())
	}
	for _, l := range f.listeners {
		errs = append(errs, l.Close())
	}
	f.work.Wait()
	return errors.Join(errs...)
}

// port is the one that a client wanted: the socket of a connection that the
// kernel looked up by the program has the address it was made to.
func port(c *net.TCPConn) uint16 {
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		return uint16(a.Port) //nolint:gosec // a port of TCP
	}
	return 0
}

// reset closes a connection so that its client gets an error.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
