package pull

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// chunk is how much of a layer is fetched at once, in bytes.
	chunk = 128 << 10
	// punchEvery is how much of a spool is read before its storage is given
	// back, in bytes.
	punchEvery = 8 << 20
)

// window is what has been fetched of a layer and not been used yet. One
// goroutine fetches, one other uses. The first waits when there are as many
// chunks in memory as the window may have, unless there is a spool for more.
// Every layer has a window of its own, so that layers which wait for their turn
// cannot take what the one whose turn it is needs.
type window struct {
	most  int    // chunks in memory
	spool *spool // nil: only memory

	mu      sync.Mutex
	changed sync.Cond
	parts   []part // what is to be read, in order
	memory  int    // of these, those in memory, and those being filled or read
	free    [][]byte
	done    bool
	err     error // of the fetch, once done
	aborted error
	waited  bool // the fetch had to wait since it was last asked

	stop func() bool
	// Of the reader only.
	current, rest []byte
}

// part is data in memory, or where it is in the spool.
type part struct {
	data []byte
	at   int64
	n    int
}

// newWindow makes a window that ends with ctx. If dir is not empty, a spool
// there takes what memory has no room for, up to spoolLimit bytes.
func newWindow(ctx context.Context, most int, dir string, spoolLimit int64) (*window, error) {
	w := &window{most: max(most, 2)}
	if dir != "" {
		f, err := unnamedFile(dir)
		if err != nil {
			return nil, fmt.Errorf("spool: %w", err)
		}
		w.spool = &spool{file: f, limit: spoolLimit}
	}
	w.changed.L = &w.mu
	w.stop = context.AfterFunc(ctx, func() { w.abort(context.Cause(ctx)) })
	return w, nil
}

func (w *window) abort(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.aborted == nil {
		w.aborted = err
	}
	w.changed.Broadcast()
}

// buffer gives the fetching goroutine something to fill, when there is room.
func (w *window) buffer() ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.full() && w.aborted == nil {
		w.waited = true
		w.changed.Wait()
	}
	if w.aborted != nil {
		return nil, w.aborted
	}
	w.memory++
	if n := len(w.free); n > 0 {
		b := w.free[n-1]
		w.free = w.free[:n-1]
		return b, nil
	}
	return make([]byte, chunk), nil
}

func (w *window) full() bool {
	return w.memory >= w.most && (w.spool == nil || w.spool.size() >= w.spool.limit)
}

// put adds the first n bytes of a buffer.
func (w *window) put(buf []byte, n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case n == 0:
		w.release(buf)
		return nil
	case w.memory >= w.most && w.spool != nil:
		at := w.spool.written
		w.mu.Unlock()
		err := w.spool.write(buf[:n])
		w.mu.Lock()
		w.release(buf)
		if err != nil {
			return err
		}
		w.parts = append(w.parts, part{at: at, n: n})
	default:
		w.parts = append(w.parts, part{data: buf[:n], n: n})
	}
	w.changed.Broadcast()
	return nil
}

// release gives a buffer back; w.mu is held.
func (w *window) release(buf []byte) {
	w.memory--
	w.free = append(w.free, buf[:chunk])
	w.changed.Broadcast()
}

// hasWaited says whether the fetch had to wait since the last call.
func (w *window) hasWaited() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	waited := w.waited
	w.waited = false
	return waited
}

// finish ends the fetch. err says that nothing of it is to be used.
func (w *window) finish(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done, w.err = true, err
	w.changed.Broadcast()
}

// Read implements io.Reader. It returns io.EOF only if everything has been
// fetched and checked, and the fetch's error as soon as there is one.
func (w *window) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(w.rest) == 0 {
		if err := w.advance(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

func (w *window) advance() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != nil {
		w.release(w.current)
		w.current = nil
	}
	for len(w.parts) == 0 && !w.done && w.aborted == nil {
		w.changed.Wait()
	}
	switch {
	case w.done && w.err != nil:
		return w.err
	case w.aborted != nil:
		return w.aborted
	case len(w.parts) == 0:
		return io.EOF
	}
	next := w.parts[0]
	w.parts = w.parts[1:]
	if next.data == nil {
		// One more than the window may have, for as long as it is read.
		w.memory++
		buf := make([]byte, chunk)
		if n := len(w.free); n > 0 {
			buf, w.free = w.free[n-1], w.free[:n-1]
		}
		w.mu.Unlock()
		err := w.spool.read(buf[:next.n], next.at)
		w.mu.Lock()
		w.changed.Broadcast()
		if err != nil {
			w.release(buf)
			return err
		}
		next.data = buf[:next.n]
	}
	w.current, w.rest = next.data, next.data
	return nil
}

// close frees what the window holds. The fetch ends, if it has not, when it
// next asks for a buffer.
func (w *window) close() {
	w.stop()
	w.abort(os.ErrClosed)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts, w.free = nil, nil
	if w.spool != nil {
		_ = w.spool.file.Close()
	}
}

// spool is a file without a name on a disk. What has been read is given back to
// the file system.
type spool struct {
	file    *os.File
	limit   int64
	written int64 // of the fetching goroutine, which alone writes
	mu      sync.Mutex
	held    int64 // bytes that were written and not read
	punched int64 // of the reader
}

func (s *spool) size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

func (s *spool) write(p []byte) error {
	if _, err := s.file.WriteAt(p, s.written); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	s.written += int64(len(p))
	s.mu.Lock()
	s.held += int64(len(p))
	s.mu.Unlock()
	return nil
}

func (s *spool) read(p []byte, at int64) error {
	if n, err := s.file.ReadAt(p, at); n < len(p) {
		return fmt.Errorf("spool: %w", err)
	}
	s.mu.Lock()
	s.held -= int64(len(p))
	s.mu.Unlock()
	if end := at + int64(len(p)); end-s.punched >= punchEvery {
		// Only to save room: not every file system can.
		_ = unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.punched, end-s.punched)
		s.punched = end
	}
	return nil
}

func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	f, err := os.CreateTemp(dir, "layer-*") // a file system without O_TMPFILE
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
