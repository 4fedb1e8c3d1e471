package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// outputChunk is how much is read from a process at once.
const outputChunk = 32 << 10

// output carries one output stream of a process to whichever host is attached.
// While none is, the process may write until its pipe is full, as with any
// reader that is slow; output that the host may not have is thrown away.
type output struct {
	mu      sync.Mutex
	sink    *sink         // the attached host
	changed chan struct{} // closed when sink changes
	source  io.ReadCloser // nil until the process exists
	unread  int           // bytes that were in source when it was closed
	ended   chan struct{} // closed when all output was read and taken
}

// sink is one attached stream; failed is closed when it can take no more.
type sink struct {
	w      io.Writer
	failed chan struct{}
}

func newOutput() *output {
	return &output{changed: make(chan struct{}), ended: make(chan struct{})}
}

// start begins to read. A process's output is started once; a stream that does
// not exist (nil) has ended. log is told of what is lost.
func (o *output) start(source io.ReadCloser, allowed bool, log *slog.Logger) {
	if source == nil {
		close(o.ended)
		return
	}
	o.mu.Lock()
	o.source = source
	o.mu.Unlock()
	go func() {
		defer close(o.ended)
		defer source.Close() //nolint:errcheck // read to its end
		if !allowed {
			_, _ = io.Copy(io.Discard, source)
			return
		}
		buf := make([]byte, outputChunk)
		for {
			n, err := source.Read(buf)
			left := o.deliver(buf[:n])
			if left+o.cut() > 0 {
				log.Warn("the end of a process's output is lost: it was deleted before a host had taken it", "bytes_at_most", left+o.cut())
				return
			}
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
					log.Warn("a process's output cannot be read any more; what follows is lost", "error", err)
				}
				return
			}
		}
	}()
}

// cut is how many bytes were in the source when it was closed.
func (o *output) cut() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.unread
}

// deliver gives b to a host, waiting for one. It returns how much is left when
// the process's streams were closed meanwhile. What a host's stream took and the
// host has not read is lost with their session; nobody here can know how much.
func (o *output) deliver(b []byte) (left int) {
	for len(b) > 0 {
		o.mu.Lock()
		s, changed, closed := o.sink, o.changed, o.source == nil
		o.mu.Unlock()
		if closed {
			return len(b)
		}
		if s == nil {
			<-changed
			continue
		}
		n, err := s.w.Write(b)
		b = b[n:]
		if err != nil {
			o.detach(s)
		}
	}
	return 0
}

func (o *output) detach(s *sink) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sink == s {
		o.setSink(nil)
	}
}

// setSink needs the lock.
func (o *output) setSink(s *sink) {
	if o.sink != nil {
		close(o.sink.failed)
	}
	o.sink = s
	close(o.changed)
	o.changed = make(chan struct{})
}

// attach sends output to conn until all was sent, the host leaves, or another
// stream takes its place.
func (o *output) attach(ctx context.Context, conn io.ReadWriteCloser) error {
	s := &sink{w: conn, failed: make(chan struct{})}
	o.mu.Lock()
	o.setSink(s)
	o.mu.Unlock()
	// The host sends nothing; its close, or the session's end, is seen here.
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = io.Copy(io.Discard, conn)
	}()
	select {
	case <-o.ended:
	case <-s.failed:
	case <-left:
	case <-ctx.Done():
	}
	o.detach(s)
	return nil
}

// close ends the stream even if nobody takes what is left of it.
func (o *output) close() {
	o.mu.Lock()
	source := o.source
	o.source = nil
	if source != nil {
		o.unread = unread(source)
	}
	o.setSink(nil)
	o.mu.Unlock()
	if source != nil {
		_ = source.Close()
	}
}

// unread is how many bytes a pipe holds (FIONREAD, which is TIOCINQ); none that is
// closed, as one is that was read to its end.
func unread(source io.Reader) (n int) {
	pipe, ok := source.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := pipe.SyscallConn()
	if err != nil {
		return 0
	}
	if raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) != nil || err != nil {
		return 0
	}
	return n
}

// input is the standard input of a process.
type input struct {
	mu sync.Mutex
	w  io.WriteCloser
	// streaming is whether a host's stream feeds it; closeAfter whether it is
	// to be closed when that ends.
	streaming, closeAfter bool
	ready                 chan struct{} // closed when w is set
	turn                  chan struct{} // holds one token: the right to write
}

func newInput() *input {
	i := &input{ready: make(chan struct{}), turn: make(chan struct{}, 1)}
	i.turn <- struct{}{}
	return i
}

// start gives the input its pipe; nil if the process has none.
func (i *input) start(w io.WriteCloser) {
	i.mu.Lock()
	i.w = w
	i.mu.Unlock()
	close(i.ready)
}

// errNoStdin says that nothing can be written.
var errNoStdin = errors.New("the process has no standard input")

// copyFrom feeds the process from conn. The end of the stream is the end of
// the input, unless the whole session broke off: then the input stays open.
func (i *input) copyFrom(ctx context.Context, conn io.Reader, alive func() bool) error {
	select {
	case <-i.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	// A stream whose session is gone may still be writing what it had read.
	select {
	case <-i.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { i.turn <- struct{}{} }()
	i.mu.Lock()
	w := i.w
	i.streaming = true
	i.mu.Unlock()
	if w == nil {
		_, _ = io.Copy(io.Discard, conn)
		return errNoStdin
	}
	_, err := io.Copy(w, conn)
	if err != nil && alive() {
		// The process reads no more: take the rest, so that the host is not
		// held up.
		_, _ = io.Copy(io.Discard, conn)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.streaming = false
	if alive() || i.closeAfter {
		return i.closeLocked()
	}
	return err
}

// close ends the input, after what a stream still brings.
func (i *input) close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.streaming {
		i.closeAfter = true
		return nil
	}
	return i.closeLocked()
}

func (i *input) closeLocked() error {
	if i.w == nil {
		return nil
	}
	err := i.w.Close()
	i.w = nil
	return err
}
