package pull

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci/crypt"
)

// punchEvery is how much is read before its storage is given back, in bytes.
const punchEvery = 8 << 20

// spool is a file without a name through which a layer goes from the goroutine
// that fetches it to the one that unpacks it. What has been read is given back
// to the file system, so that a layer that is unpacked as it comes takes little
// room. One goroutine writes, one other reads.
type spool struct {
	file *os.File
	stop func() bool

	mu      sync.Mutex
	changed sync.Cond
	written int64
	done    bool
	// verified and err are the outcome of the fetch, once done.
	verified *crypt.Verified
	err      error
	aborted  error

	// Of the reader only.
	offset, punched int64
}

func newSpool(ctx context.Context, dir string) (*spool, error) {
	f, err := unnamedFile(dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &spool{file: f}
	s.changed.L = &s.mu
	s.stop = context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.aborted = context.Cause(ctx)
		s.changed.Broadcast()
	})
	return s, nil
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

// Write appends.
func (s *spool) Write(p []byte) (int, error) {
	n, err := s.file.WriteAt(p, s.written) // only the writer changes written
	s.mu.Lock()
	s.written += int64(n)
	s.changed.Broadcast()
	s.mu.Unlock()
	if err != nil {
		return n, fmt.Errorf("spool: %w", err)
	}
	return n, nil
}

// finish ends the writing. err says that what was written is not to be used.
func (s *spool) finish(v *crypt.Verified, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done, s.verified, s.err = true, v, err
	s.changed.Broadcast()
}

// wait waits until all has been written and checked.
func (s *spool) wait() (*crypt.Verified, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.done {
		if s.aborted != nil {
			return nil, s.aborted
		}
		s.changed.Wait()
	}
	return s.verified, s.err
}

// Read reads what has been written, waiting for more. It returns io.EOF only
// if everything has been checked.
func (s *spool) Read(p []byte) (int, error) {
	s.mu.Lock()
	for s.offset == s.written && !s.done && s.aborted == nil {
		s.changed.Wait()
	}
	available, done, err := s.written-s.offset, s.done, s.err
	if err == nil {
		err = s.aborted
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case available > 0:
	case done:
		return 0, io.EOF
	}
	n, err := s.file.ReadAt(p[:min(int64(len(p)), available)], s.offset)
	s.offset += int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the file has less than was written
	}
	if s.offset-s.punched >= punchEvery {
		// Only to save room: not every file system can.
		_ = unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.punched, s.offset-s.punched)
		s.punched = s.offset
	}
	return n, err
}

// close frees the file. The fetch must have ended, or its writes fail.
func (s *spool) close() {
	s.stop()
	_ = s.file.Close()
}
