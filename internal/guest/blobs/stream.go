package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// stream is one of the host's. It is used by one request at a time.
type stream struct {
	conn    net.Conn
	watched chan error // of the watch over an idle stream

	once  sync.Once
	ended chan struct{} // closed when err is set
	err   error
}

// end gives the stream up.
func (s *stream) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.ended)
		_ = s.conn.Close()
	})
}

// watch waits for the end of an idle stream, or for bytes that nobody has asked
// for.
func (s *stream) watch() {
	_ = s.conn.SetDeadline(time.Time{})
	watched := make(chan error, 1)
	s.watched = watched
	go func() {
		var b [1]byte
		_, err := s.conn.Read(b[:])
		switch {
		case err == nil:
			err = errors.New("blob stream: the host sent more than was asked for")
			s.end(err)
		case timedOut(err):
			err = errIdle
		default:
			s.end(err)
		}
		watched <- err
	}()
}

// unwatch ends the watch and says whether the stream can be used.
func (s *stream) unwatch() bool {
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	if err := <-s.watched; !errors.Is(err, errIdle) {
		return false
	}
	_ = s.conn.SetReadDeadline(time.Time{})
	return true
}

func timedOut(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// within gives f, which uses the connection, so much time. If that does not
// suffice, or ctx ends, the stream is given up; f may then still be running,
// since a host that takes nothing at all holds a write until it ends.
func (s *stream) within(ctx context.Context, limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var err error
	select {
	case err = <-done:
		if err == nil {
			return nil
		}
	case <-timer.C:
		err = errStalled(limit)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	s.end(err)
	return err
}

func errStalled(limit time.Duration) error {
	return fmt.Errorf("the host did nothing for %v", limit.Round(time.Millisecond))
}

// reader is a blob on its way from the host.
type reader struct {
	ctx  context.Context
	pool *Pool
	s    *stream // nil when it has been given back or has ended
	left int64
	// patience is how long all reads together may still wait.
	patience time.Duration
	err      error
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.left == 0 {
		r.finish()
		return 0, io.EOF
	}
	limit := min(r.pool.limits.stall, max(r.patience, time.Millisecond))
	started := time.Now()
	conn := r.s.conn
	_ = conn.SetReadDeadline(started.Add(limit))
	stop := context.AfterFunc(r.ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	n, err := conn.Read(p[:min(int64(len(p)), r.left)])
	if !stop() && err == nil {
		err = context.Cause(r.ctx)
	}
	r.patience -= time.Since(started)
	r.left -= int64(n)
	if err != nil {
		r.fail(err, limit)
		if n > 0 {
			return n, nil
		}
		return 0, r.err
	}
	return n, nil
}

// fail keeps why no more comes.
func (r *reader) fail(err error, limit time.Duration) {
	switch {
	case r.ctx.Err() != nil:
		err = context.Cause(r.ctx)
	case timedOut(err):
		err = errStalled(limit)
	case err == io.EOF:
		err = fmt.Errorf("%w: the host's stream ended %d bytes early", io.ErrUnexpectedEOF, r.left)
	}
	r.err = err
	r.s.end(err)
	r.s = nil
}

// finish gives back a stream whose content was read to its end.
func (r *reader) finish() {
	if r.s != nil {
		r.pool.put(r.s)
		r.s = nil
	}
}

// Close implements io.Closer. A stream in the middle of a blob is of no more
// use.
func (r *reader) Close() error {
	if r.s == nil {
		return nil
	}
	if r.left == 0 {
		r.finish()
	} else {
		r.s.end(errors.New("blob stream: given up in the middle of a blob"))
		r.s = nil
	}
	if r.err == nil {
		r.err = net.ErrClosed
	}
	return nil
}
