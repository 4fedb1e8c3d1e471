// Package agentlink is a host's connection to the agent of one machine,
// whatever carries the bytes: control calls, streams, events, and the streams
// on which the guest asks for blobs.
//
// A connection that breaks because its machine has ended says so: every error
// of a [Link] is the machine's end where that explains it.
package agentlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

// endTime is how long a broken connection waits for the machine's end to
// explain it.
const endTime = 3 * time.Second

// build is what the host calls itself in Hello.
const build = "coffer"

// Machine is what an agent runs in.
type Machine interface {
	// Done is closed when it has ended.
	Done() <-chan struct{}
	// Ended says how it ended; nil while it runs.
	Ended() error
}

// Link is a connection to an agent. It is safe for concurrent use.
type Link struct {
	machine Machine
	log     *slog.Logger
	session *channel.Session
	client  *ttrpc.Client
	agent   agentapi.AgentService
	hello   *agentapi.HelloResponse

	background sync.WaitGroup
	closing    atomic.Bool
}

// Connect waits for the agent at the other end of conn, which the link owns
// from then on, and asks who it is. It ends when ctx or the machine does.
// answered, when not nil, is called when the other end has answered.
func Connect(ctx context.Context, conn net.Conn, m Machine, log *slog.Logger, answered func()) (*Link, error) {
	l := &Link{machine: m, log: log}
	if err := l.connect(ctx, conn, answered); err != nil {
		_ = conn.Close()
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Link) connect(ctx context.Context, conn net.Conn, answered func()) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-l.machine.Done():
			stop(l.machine.Ended())
		case <-ctx.Done():
		}
	}()
	var err error
	if l.session, err = channel.Dial(ctx, conn); err != nil {
		return l.explain(err)
	}
	if answered != nil {
		answered()
	}
	control, err := l.session.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_CONTROL})
	if err != nil {
		return l.explain(err)
	}
	l.client = ttrpc.NewClient(control, ttrpc.WithUnaryClientInterceptor(l.intercept))
	l.agent = Cancelling(agentapi.NewAgentClient(l.client), l.Open, l.intercept)
	if l.hello, err = l.agent.Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{channel.MaxVersion}, Build: build}); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // says which limit was reached
		}
		return l.explain(err)
	}
	if v := l.hello.GetVersion(); v < channel.MinVersion || v > channel.MaxVersion {
		return fmt.Errorf("guest agent: protocol version: expected %d to %d, got %d (build the guest image with this program)", channel.MinVersion, channel.MaxVersion, v)
	}
	return nil
}

// Hello is the agent's account of itself. The guest may be anything.
func (l *Link) Hello() *agentapi.HelloResponse { return l.hello }

// Agent makes control calls.
func (l *Link) Agent() agentapi.AgentService { return l.agent }

// explain replaces an error by the machine's end where that is the reason. The
// connection may break shortly before the end is known.
func (l *Link) explain(err error) error {
	if end := l.machine.Ended(); end != nil {
		return end
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if l.session != nil {
		select {
		case <-l.session.Done():
		default:
			return err // a refusal, not a broken connection
		}
	}
	timer := time.NewTimer(endTime)
	defer timer.Stop()
	select {
	case <-l.machine.Done():
		return l.machine.Ended()
	case <-timer.C:
		return err
	}
}

// intercept explains a call that failed because the machine has ended.
func (l *Link) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, req, resp)
	if err == nil || !Broken(err) {
		return err
	}
	return fmt.Errorf("%s: %w", info.FullMethod, l.explain(err))
}

// Broken tells a lost connection from an answer.
func Broken(err error) bool {
	return errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// Open opens a stream to the agent. A stream that the policy forbids opens
// like any other and stays empty.
func (l *Link) Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error) {
	conn, err := l.session.Open(ctx, header)
	if err != nil {
		if end := l.machine.Ended(); end != nil {
			return nil, end
		}
		return nil, err
	}
	return conn, nil
}

// Events yields what the agent reports, oldest first. It ends with the stream
// (machine ended, ctx ended, Close), after an error if there was one. Events
// come from the guest and prove nothing.
func (l *Link) Events(ctx context.Context) iter.Seq2[*agentapi.Event, error] {
	return func(yield func(*agentapi.Event, error) bool) {
		conn, err := l.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_EVENTS})
		if err != nil {
			yield(nil, err)
			return
		}
		defer conn.Close() //nolint:errcheck // nothing was written
		stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		for {
			event := new(agentapi.Event)
			if err := channel.ReadMessage(conn, event); err != nil {
				if !errors.Is(err, io.EOF) && ctx.Err() == nil && !l.closing.Load() {
					yield(nil, fmt.Errorf("agent events: %w", err))
				}
				return
			}
			if !yield(event, nil) {
				return
			}
		}
	}
}

// Shutdown asks the agent to end its machine and waits for that; the caller
// bounds it with ctx.
func (l *Link) Shutdown(ctx context.Context) error {
	if l.machine.Ended() != nil {
		return nil //nolint:nilerr // how it ended is not this call's matter
	}
	// The answer may be lost with the machine; its end is what counts.
	_, err := l.agent.Shutdown(ctx, &agentapi.ShutdownRequest{})
	if err != nil && !Broken(err) && l.machine.Ended() == nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	// The guest waits a moment for its host to have the answer, or to leave.
	_ = l.session.Close()
	select {
	case <-l.machine.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shutdown: it still runs: %w", context.Cause(ctx))
	}
}

// Close ends the connection and everything started for it. It may be called
// again.
func (l *Link) Close() {
	l.closing.Store(true)
	if l.client != nil {
		_ = l.client.Close()
	}
	if l.session != nil {
		_ = l.session.Close()
	}
	l.background.Wait()
}
