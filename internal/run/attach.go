package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Machine is what attaching needs of a running guest.
type Machine interface {
	Agent() agentapi.AgentService
	// Open opens a stream of the guest.
	Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error)
}

// Stdio connects a container's process with the caller.
type Stdio struct {
	Stdin            *os.File
	Stdout, Stderr   io.Writer
	Terminal, Attach bool // Attach: connect Stdin
	// Signals are those to forward, see CatchSignals; nil for none.
	Signals <-chan os.Signal
}

// errInterrupted ends a run that was interrupted twice.
var errInterrupted = errors.New("interrupted")

// errOutput is wrapped by the error of a run whose output the caller did not take.
var errOutput = errors.New("the container's output")

// Exit is how a container ended.
type Exit struct {
	// Code is its exit code, or 128 + the signal that ended it.
	Code int
	// OutOfMemory: the kernel ended it for want of memory.
	OutOfMemory bool
}

// RunContainer starts a created container, connects its streams, forwards
// signals, and returns how it ended when its output is drained.
func RunContainer(ctx context.Context, m Machine, id string, s Stdio) (Exit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Opened before the start, so that nothing of the output is lost.
	outputs, err := openOutputs(ctx, m, id, s, cancel)
	if err != nil {
		return Exit{}, err
	}
	defer outputs.close()
	if s.Attach {
		stdin, err := m.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDIN, ContainerId: id})
		if err != nil {
			return Exit{}, err
		}
		defer func() { _ = stdin.Close() }()
		restore, err := rawTerminal(s)
		if err != nil {
			return Exit{}, err
		}
		defer restore()
		defer copyInput(stdin, s.Stdin)()
	}
	// Before the start, so that a program that asks at once gets it.
	resize(ctx, m, id, s)
	if _, err := m.Agent().Start(ctx, &agentapi.StartRequest{ContainerId: id}); err != nil {
		return Exit{}, fmt.Errorf("start: %w", err)
	}
	stopSignals := forwardSignals(ctx, m, id, s, cancel)
	defer stopSignals()
	ended, err := m.Agent().Wait(ctx, &agentapi.WaitRequest{ContainerId: id})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Exit{}, err
	}
	if err := outputs.drain(ctx); err != nil {
		return Exit{}, err
	}
	return Exit{Code: int(ended.GetExitCode()), OutOfMemory: ended.GetReason() == "oom"}, nil
}

// outputStreams are the container's output on its way to the caller.
type outputStreams struct {
	conns []net.Conn
	group sync.WaitGroup
}

// openOutputs opens them; an output that the caller does not take ends the run,
// because the guest would go on and drain it.
func openOutputs(ctx context.Context, m Machine, id string, s Stdio, cancel context.CancelCauseFunc) (*outputStreams, error) {
	o := &outputStreams{}
	// Both may be the same writer.
	var mu sync.Mutex
	kinds := map[agentapi.StreamHeader_Kind]io.Writer{agentapi.StreamHeader_STDOUT: syncWriter{&mu, s.Stdout}}
	if !s.Terminal {
		kinds[agentapi.StreamHeader_STDERR] = syncWriter{&mu, s.Stderr}
	}
	for kind, w := range kinds {
		conn, err := m.Open(ctx, &agentapi.StreamHeader{Kind: kind, ContainerId: id})
		if err != nil {
			o.close()
			return nil, err
		}
		o.conns = append(o.conns, conn)
		o.group.Go(func() {
			if _, err := io.Copy(writeErrors{w, cancel}, conn); err != nil {
				_ = conn.Close()
			}
		})
	}
	return o, nil
}

// writeErrors ends the run with the error of a write.
type writeErrors struct {
	io.Writer
	cancel context.CancelCauseFunc
}

func (w writeErrors) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		w.cancel(fmt.Errorf("%w: %w", errOutput, err))
	}
	return n, err
}

func (o *outputStreams) close() {
	for _, c := range o.conns {
		_ = c.Close()
	}
}

// drain waits until both streams have ended.
func (o *outputStreams) drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() { o.group.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// copyInput copies the caller's input into the stream until it ends or the
// returned function is called; a pending read of a terminal is given up.
func copyInput(stdin net.Conn, from *os.File) (stop func()) {
	wake, waker, err := os.Pipe()
	if err != nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 32<<10)
		for {
			if !readable(from, wake) {
				return
			}
			n, err := from.Read(buf)
			if n > 0 {
				if _, err := stdin.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				_ = stdin.Close()
				return
			}
		}
	}()
	return func() {
		_ = waker.Close()
		<-done
		_ = wake.Close()
	}
}

// readable waits until f can be read (true) or wake is closed (false).
func readable(f, wake *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && fds[1].Revents == 0
	}
}

// rawTerminal hands the caller's terminal to the container's.
func rawTerminal(s Stdio) (restore func(), err error) {
	fd := int(s.Stdin.Fd())
	if !s.Terminal || !term.IsTerminal(fd) {
		return func() {}, nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = term.Restore(fd, state) }, nil
}

// forwarded are the signals that a container gets in the caller's place.
var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

// CatchSignals takes the signals that RunContainer forwards away from the
// process. stop gives them back. An output that nobody reads any more becomes an
// error of the write instead of the process's death.
func CatchSignals() (signals <-chan os.Signal, stop func()) {
	c, pipe := make(chan os.Signal, 16), make(chan os.Signal, 1)
	signal.Notify(c, forwarded...)
	signal.Notify(pipe, syscall.SIGPIPE)
	return c, func() { signal.Stop(c); signal.Stop(pipe) }
}

// untilStarted lets an ending signal cancel what is done before the container
// runs; the returned function ends that.
func untilStarted(signals <-chan os.Signal, cancel context.CancelCauseFunc) (stop func()) {
	started, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-started:
				return
			case sig := <-signals:
				if sig == syscall.SIGINT || sig == syscall.SIGTERM || sig == syscall.SIGHUP || sig == syscall.SIGQUIT {
					cancel(errInterrupted)
				}
			}
		}
	}()
	return func() {
		close(started)
		<-done
	}
}

// forwardSignals sends the caller's signals to the container. A second
// interrupt or termination ends the run: a process that is PID 1 of its
// namespace ignores what it has no handler for.
func forwardSignals(ctx context.Context, m Machine, id string, s Stdio, cancel context.CancelCauseFunc) (stop func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ends := 0
		for {
			var sig os.Signal
			select {
			case <-ctx.Done():
				return
			case <-ended:
				return
			case sig = <-s.Signals:
			}
			if sig == syscall.SIGWINCH {
				resize(ctx, m, id, s)
				continue
			}
			if sig == syscall.SIGINT || sig == syscall.SIGTERM {
				if ends++; ends > 1 {
					cancel(errInterrupted)
					return
				}
			}
			number, _ := sig.(syscall.Signal)
			_, _ = m.Agent().Signal(ctx, &agentapi.SignalRequest{ContainerId: id, Signal: uint32(number)})
		}
	}()
	return func() {
		close(ended)
		<-done
	}
}

func resize(ctx context.Context, m Machine, id string, s Stdio) {
	if !s.Terminal {
		return
	}
	width, height, err := term.GetSize(int(s.Stdin.Fd()))
	if err != nil {
		return
	}
	_, _ = m.Agent().Resize(ctx, &agentapi.ResizeRequest{ContainerId: id, Width: uint32(width), Height: uint32(height)})
}
