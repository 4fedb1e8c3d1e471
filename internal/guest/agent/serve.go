package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/podpolicy"
)

// Transport brings hosts.
type Transport interface {
	// Next waits for the next connection. The agent owns it; it has at most
	// one at a time from a transport that can carry no more.
	Next(ctx context.Context) (io.ReadWriteCloser, error)
}

// ErrShutdown says that the host asked for the end and has gone.
var ErrShutdown = errors.New("shut down by the host")

// Serve serves hosts, one after the other, until ctx ends, the transport fails,
// or a host that has called Shutdown leaves ([ErrShutdown]).
func (a *Agent) Serve(ctx context.Context, t Transport) error {
	for {
		conn, err := t.Next(ctx)
		if err != nil {
			return fmt.Errorf("agent channel: %w", err)
		}
		session, err := channel.Accept(ctx, conn, a.o.BootID)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.log.WarnContext(ctx, "no session", "error", err)
			continue
		}
		a.log.DebugContext(ctx, "host connected")
		a.serveSession(ctx, session)
		a.log.DebugContext(ctx, "host gone")
		if a.ending.Load() {
			return ErrShutdown
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// serveSession serves every stream of one session until it ends. Calls and
// streams still under way are cancelled; the next session does not wait for
// them, since every change is made under the lock of what it changes.
func (a *Agent) serveSession(ctx context.Context, s *channel.Session) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	for {
		conn, err := s.AcceptStream()
		if err != nil {
			break
		}
		go func() {
			defer conn.Close() //nolint:errcheck // both ends are done with it
			if err := a.serveStream(ctx, s, conn); err != nil {
				a.log.DebugContext(ctx, "stream ended", "error", err)
			}
		}()
	}
	cancel()
	_ = s.Close()
}

func (a *Agent) serveStream(ctx context.Context, s *channel.Session, conn net.Conn) error {
	header, err := channel.ReadHeader(conn)
	if err != nil {
		return err
	}
	switch kind := header.GetKind(); kind {
	case agentapi.StreamHeader_CONTROL:
		if err := channel.WriteReply(conn, nil); err != nil {
			return err
		}
		return a.serveControl(ctx, conn)
	case agentapi.StreamHeader_EVENTS:
		if err := channel.WriteReply(conn, nil); err != nil {
			return err
		}
		return a.serveEvents(ctx, conn)
	case agentapi.StreamHeader_STDIN:
		return a.serveStdio(ctx, s, conn, header, podpolicy.Stdin)
	case agentapi.StreamHeader_STDOUT:
		return a.serveStdio(ctx, s, conn, header, podpolicy.Stdout)
	case agentapi.StreamHeader_STDERR:
		return a.serveStdio(ctx, s, conn, header, podpolicy.Stderr)
	case agentapi.StreamHeader_FILES:
		return a.serveFiles(ctx, conn, header)
	case agentapi.StreamHeader_BLOBS:
		if err := channel.WriteReply(conn, nil); err != nil {
			return err
		}
		return a.blobs.Serve(ctx, conn)
	case agentapi.StreamHeader_PORT_FORWARD:
		return a.servePort(ctx, conn, header)
	default:
		return channel.WriteReply(conn, fmt.Errorf("stream kind %d is not known", kind))
	}
}

// serveControl runs ttrpc on one stream, until it ends.
func (a *Agent) serveControl(ctx context.Context, conn net.Conn) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	agentapi.RegisterAgentService(server, a)
	l := &oneConn{conn: make(chan net.Conn, 1), ended: make(chan struct{})}
	l.conn <- &watchedConn{Conn: conn, l: l}
	err = server.Serve(ctx, l)
	_ = server.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// oneConn is a listener of a single connection, which ends with it.
type oneConn struct {
	conn  chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "stream", Net: "unix"} }

// watchedConn ends its listener when the server closes it.
type watchedConn struct {
	net.Conn
	l *oneConn
}

func (c *watchedConn) Close() error {
	_ = c.l.Close()
	return c.Conn.Close()
}

// serveEvents sends what was kept and then what comes.
func (a *Agent) serveEvents(ctx context.Context, conn net.Conn) error {
	// A host that closes its side is told by a read; it sends nothing.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, conn)
	}()
	var seq uint64
	for {
		events, err := a.events.after(ctx, seq)
		if err != nil {
			return nil // the end of the stream
		}
		for _, e := range events {
			if err := channel.WriteMessage(conn, e); err != nil {
				return err
			}
			seq = e.GetSequence()
		}
	}
}

// forbidden tells the host that a stream carries nothing, and why.
func (a *Agent) forbidden(ctx context.Context, conn net.Conn, h *agentapi.StreamHeader, kind podpolicy.StreamKind) error {
	path := "allow.logs"
	switch {
	case h.GetExecId() != "":
		path = "allow.exec"
	case kind == podpolicy.Stdin:
		path = "allow.stdin"
	}
	return channel.WriteRefusal(conn, a.refusedStream(ctx, &podpolicy.Refusal{
		Rule: RuleStream, Path: path, Expected: "a stream that the policy allows", Got: h.GetKind().String() + " of " + clip(h.GetContainerId()),
		Help: "the stream is accepted and drained inside the guest; nothing of it is sent",
	}))
}

// refusedStream tells log and event stream of a stream that the policy forbids,
// and returns what the host may know of it.
func (a *Agent) refusedStream(ctx context.Context, r *podpolicy.Refusal) *agentapi.Refusal {
	public := a.public(ctx, r)
	a.log.WarnContext(ctx, "stream forbidden", "rule", r.Rule, "path", r.Path)
	a.events.add(&agentapi.Event{Body: &agentapi.Event_Refusal{Refusal: public}})
	return public
}

// serveStdio joins a host's stream to a process. One that the policy forbids is
// taken, what comes is thrown away, nothing is sent but by which rule, and it
// ends when the process does.
func (a *Agent) serveStdio(ctx context.Context, s *channel.Session, conn net.Conn, h *agentapi.StreamHeader, kind podpolicy.StreamKind) error {
	p, guard, err := a.process(h.GetContainerId(), h.GetExecId())
	if err != nil {
		return channel.WriteReply(conn, err)
	}
	allowed := guard.Stream(h.GetContainerId(), h.GetExecId(), kind)
	if allowed {
		err = channel.WriteReply(conn, nil)
	} else {
		err = a.forbidden(ctx, conn, h, kind)
	}
	if err != nil {
		return err
	}
	alive := func() bool {
		select {
		case <-s.Done():
			return false
		default:
			return ctx.Err() == nil
		}
	}
	switch {
	case kind == podpolicy.Stdin && allowed:
		return p.stdin.copyFrom(ctx, conn, alive)
	case kind == podpolicy.Stdin:
		_, err := io.Copy(io.Discard, conn)
		return err
	case !allowed:
		left := make(chan struct{})
		go func() {
			defer close(left)
			_, _ = io.Copy(io.Discard, conn)
		}()
		select {
		case <-p.done:
		case <-left:
		case <-ctx.Done():
		}
		return nil
	case kind == podpolicy.Stdout:
		return p.stdout.attach(ctx, conn)
	}
	return p.stderr.attach(ctx, conn)
}
