// Package stdio carries the standard streams of a process in the guest to and
// from where containerd wants them on the host: FIFOs, or files.
//
// [Open] opens the host's side of a process, before anything slow is done for
// it, so that a wrong path is told at once. [Streams.Connect] opens the guest's
// side and begins to copy; each stream has a goroutine of its own, so that a
// reader who does not read holds up nothing else. [Streams.Drain] waits after
// the process's end until its output has been taken, within a [Bound], and
// [Streams.Close] ends what is left.
//
// Output is taken when its reader has read it, not when it is in the FIFO. It
// must be so before anybody is told of the process's end: containerd before
// 1.6.22, and 1.7 before 1.7.3, closes its end of the FIFOs as soon as it learns
// of it, and only then waits for those who read them (task.Delete;
// containerd@b27f7daa mends that), so that what is still in a FIFO is lost.
// Where output is cut off all the same, the log says what and how much.
//
// A FIFO is opened for reading and writing, whichever is needed: then the other
// side may go away and come back, as it does when containerd is restarted, and
// neither an end of file nor a broken pipe is seen here. For that reason the
// end of standard input is told by [Streams.CloseStdin] alone.
package stdio

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

// chunk is how much is copied at once, in bytes: a frame of the guest's channel.
const chunk = 32 << 10

// Paths say where the streams of a process go on the host: paths of FIFOs or
// files, URIs with the scheme fifo or file, or empty for nowhere. A terminal
// has no standard error. Output may go to a program, binary:///PATH?NAME=VALUE,
// which then takes both streams.
type Paths struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
	// ID of the container or exec, and containerd's namespace: what a program that
	// takes output is told.
	ID, Namespace string
}

// Opener opens a stream of the process in the guest. Kind is STDIN, STDOUT or
// STDERR.
type Opener func(ctx context.Context, kind agentapi.StreamHeader_Kind) (net.Conn, error)

// Bound limits [Streams.Drain].
type Bound struct {
	// Idle is how long it waits for the next byte, Total for all of them.
	Idle, Total time.Duration
}

// Streams are the streams of one process. Its methods may be called
// concurrently; Connect once at most.
type Streams struct {
	log *slog.Logger

	stdin          *input // nil without
	stdout, stderr *output
	logger         *logger // nil without

	moved atomic.Uint64 // bytes of output taken by the host's side
	all   sync.WaitGroup

	mu      sync.Mutex
	conns   []net.Conn
	closed  bool
	outputs int           // that have not ended
	drained chan struct{} // closed when the last of them ends
}

// Open opens the host's side. Where it fails, nothing is left open. Output that
// goes nowhere is read nevertheless, so that the process is not held up.
func Open(p Paths, log *slog.Logger) (*Streams, error) {
	s := &Streams{log: log, drained: make(chan struct{})}
	var err error
	if p.Stdin != "" {
		if s.stdin, err = openInput(p.Stdin); err != nil {
			return nil, err
		}
	}
	if err = s.openOutputs(p); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Streams) openOutputs(p Paths) error {
	program, err := loggerOf(p)
	if err != nil {
		return err
	}
	if program != nil {
		if s.logger, err = startLogger(program, p); err != nil {
			return err
		}
		s.stdout = &output{name: "stdout", file: s.logger.stdout}
		if p.Terminal {
			return s.logger.stderr.Close() // its end, from the beginning
		}
		s.stderr = &output{name: "stderr", file: s.logger.stderr}
		return nil
	}
	s.stdout, err = openOutput("stdout", p.Stdout)
	if err == nil && !p.Terminal {
		s.stderr, err = openOutput("stderr", p.Stderr)
	}
	return err
}

// Connect opens the guest's side and begins to copy. The process must not have
// been started yet, or the beginning of its output may be missed by nobody but
// waits in the guest. ctx bounds the opening only. After an error, Close is
// still to be called.
func (s *Streams) Connect(ctx context.Context, open Opener) error {
	if s.stdin != nil {
		err := s.connect(ctx, open, agentapi.StreamHeader_STDIN, func(conn net.Conn) {
			s.stdin.begun.Store(true)
			s.all.Go(func() { s.stdin.copy(conn, s.log) })
		})
		if err != nil {
			return err
		}
	}
	for kind, out := range map[agentapi.StreamHeader_Kind]*output{
		agentapi.StreamHeader_STDOUT: s.stdout, agentapi.StreamHeader_STDERR: s.stderr,
	} {
		if out == nil {
			continue
		}
		err := s.connect(ctx, open, kind, func(conn net.Conn) {
			s.outputs++
			if r := channel.Refusal(conn); r != nil {
				out.withheld = true
				if kind == agentapi.StreamHeader_STDERR || s.stderr.closer() == nil {
					out.notice = notice(r, s.stderr == nil)
				}
			}
			s.all.Go(func() {
				defer s.outputEnded()
				out.copy(conn, &s.moved, s.log)
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// connect opens one; begin is called under the lock, and not any more when the
// streams are closed.
func (s *Streams) connect(ctx context.Context, open Opener, kind agentapi.StreamHeader_Kind, begin func(net.Conn)) error {
	conn, err := open(ctx, kind)
	if err != nil {
		return fmt.Errorf("open %s of the guest: %w", kind, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close()
		return fmt.Errorf("open %s of the guest: %w", kind, net.ErrClosed)
	}
	s.conns = append(s.conns, conn)
	begin(conn)
	return nil
}

func (s *Streams) outputEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outputs--; s.outputs == 0 {
		close(s.drained)
		s.drained = make(chan struct{})
	}
}

// drainedNow is closed when the output that there is has ended.
func (s *Streams) drainedNow() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outputs == 0 {
		none := make(chan struct{})
		close(none)
		return none
	}
	return s.drained
}

// CloseStdin ends standard input behind what has been written to its FIFO so
// far. It returns when all of that is on its way to the process, or when ctx
// ends; the input ends in either case. Before Connect it returns at once.
func (s *Streams) CloseStdin(ctx context.Context) error {
	if s.stdin == nil {
		return nil
	}
	return s.stdin.close(ctx)
}

// Drain waits until the process's output has ended and its readers have taken it,
// or until the bound or ctx has run out: then it returns an error, which says
// what is left, and Close cuts that off.
func (s *Streams) Drain(ctx context.Context, b Bound) error {
	done := s.drainedNow()
	total := time.NewTimer(b.Total)
	defer total.Stop()
	idle := time.NewTimer(b.Idle)
	defer idle.Stop()
	seen := s.moved.Load()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("output not taken to its end: %w: %s", context.Cause(ctx), s.left())
		case <-total.C:
			return fmt.Errorf("output not taken to its end within %s: %s", b.Total, s.left())
		case <-idle.C:
			now := s.moved.Load()
			if now == seen {
				return fmt.Errorf("output not taken to its end: nothing moved for %s: %s", b.Idle, s.left())
			}
			seen = now
			idle.Reset(b.Idle)
		}
	}
}

// left says where output is that was not taken.
func (s *Streams) left() string {
	var all []string
	for _, out := range []*output{s.stdout, s.stderr} {
		if out != nil {
			all = append(all, out.left())
		}
	}
	return strings.Join(all, "; ")
}

// closeTime bounds the wait for goroutines that write to a guest, or tell it
// that a stream is closed: one that reads nothing any more holds them up until
// its machine ends.
const closeTime = 2 * time.Second

// Close ends all streams at once and waits for their goroutines, for a short
// time. It may be called again.
func (s *Streams) Close() {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for _, c := range conns {
		// Its own Close does not end a Read: the guest may still have to say something.
		_ = c.SetDeadline(time.Unix(1, 0))
		s.all.Go(func() { _ = c.Close() })
	}
	for _, f := range []io.Closer{s.stdin.closer(), s.stdout.closer(), s.stderr.closer()} {
		if f != nil {
			_ = f.Close()
		}
	}
	s.logger.close()
	done := make(chan struct{})
	go func() { s.all.Wait(); close(done) }()
	limit := time.NewTimer(closeTime)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		s.log.Warn("the guest takes nothing any more; its streams end with its machine")
		return
	}
	select {
	case <-s.logger.ended():
	case <-limit.C:
		s.log.Warn("the program that takes a container's output has not ended with it; it will be told to", "after", flushTime)
	}
}
