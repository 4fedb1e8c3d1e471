package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	slabBytes  = 256 << 10
	slabPieces = 64
	slabs      = 6
	maxWorkers = 4
	// holeBytes is the unit in which zeros of a sparse file become holes.
	holeBytes = 4 << 10
)

// filler writes what files hold, and then sets what is to be said about them,
// on goroutines of its own. It is given files that have their names already: all
// that a name or the order of entries can decide happens before, on the
// unpacker's goroutine, and the filler has nothing but descriptors. A layer that
// fits into one slab is written by the unpacker itself.
type filler struct {
	workers int // 0: everything is written by the unpacker
	made    int // slabs
	current *slab
	free    chan *slab
	work    chan *slab // nil until the workers are started
	ended   sync.WaitGroup
	pending sync.WaitGroup

	skipped atomic.Int64 // extended attributes

	failed atomic.Bool
	mu     sync.Mutex
	err    *Error // the first, once failed
}

// slab is a piece of work: parts of files, and their bytes.
type slab struct {
	buf    []byte
	used   int
	pieces []piece
}

type piece struct {
	file *newFile
	at   int64
	data []byte
}

// newFile is a file that has been made and not been filled.
type newFile struct {
	fd     int
	hdr    *tar.Header
	sparse bool
	// parts counts the pieces that are not written, and the unpacker while it
	// has more of them. Who counts it to zero finishes the file.
	parts atomic.Int32
	// broken says that the file is not to be finished.
	broken atomic.Bool
}

func newFiller() *filler {
	w := min(runtime.GOMAXPROCS(0), maxWorkers)
	if w == 1 {
		w = 0
	}
	return &filler{workers: w, free: make(chan *slab, slabs)}
}

// fill takes the file fd, with what content gives. The descriptor belongs to
// the filler from now on.
func (f *filler) fill(fd int, hdr *tar.Header, content io.Reader) error {
	file := &newFile{fd: fd, hdr: hdr, sparse: isSparse(hdr)}
	file.parts.Store(1)
	err := f.read(file, content)
	if err != nil {
		file.broken.Store(true)
	}
	f.done(file)
	if err == nil {
		err = f.failure()
	}
	return err
}

func (f *filler) read(file *newFile, content io.Reader) error {
	for at := int64(0); ; {
		s := f.slab()
		n, err := content.Read(s.buf[s.used:])
		if n > 0 {
			file.parts.Add(1)
			s.pieces = append(s.pieces, piece{file, at, s.buf[s.used : s.used+n]})
			s.used += n
			at += int64(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if f.failed.Load() {
			return nil
		}
	}
}

// slab gives the current slab, with room in it.
func (f *filler) slab() *slab {
	if s := f.current; s != nil && (s.used == len(s.buf) || len(s.pieces) == slabPieces) {
		f.submit()
	}
	if f.current != nil {
		return f.current
	}
	select {
	case f.current = <-f.free:
	default:
		if f.made < slabs {
			f.made++
			f.current = &slab{buf: make([]byte, slabBytes), pieces: make([]piece, 0, slabPieces)}
		} else {
			f.current = <-f.free
		}
	}
	return f.current
}

// submit gives the current slab to the workers.
func (f *filler) submit() {
	s := f.current
	f.current = nil
	if f.workers == 0 {
		f.write(s)
		f.free <- s
		return
	}
	if f.work == nil {
		f.work = make(chan *slab, slabs)
		for range f.workers {
			f.ended.Go(f.run)
		}
	}
	f.pending.Add(1)
	f.work <- s
}

func (f *filler) run() {
	for s := range f.work {
		f.write(s)
		f.free <- s
		f.pending.Done()
	}
}

// flush waits until all that was given to the filler has been written.
func (f *filler) flush() error {
	if f.current != nil {
		if f.work == nil { // a small layer
			f.write(f.current)
			f.free <- f.current
			f.current = nil
		} else {
			f.submit()
		}
	}
	f.pending.Wait()
	return f.failure()
}

// close ends the workers. What has not been written yet still is.
func (f *filler) close() {
	_ = f.flush()
	if f.work != nil {
		close(f.work)
		f.ended.Wait()
	}
}

func (f *filler) failure() error {
	if !f.failed.Load() {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *filler) fail(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = &Error{Entry: name, Err: err}
	}
	f.failed.Store(true)
}

// write writes a slab's pieces and empties it.
func (f *filler) write(s *slab) {
	for _, p := range s.pieces {
		if !f.failed.Load() {
			if err := p.write(); err != nil {
				f.fail(p.file.hdr.Name, fmt.Errorf("write: %w", err))
			}
		}
		f.done(p.file)
	}
	clear(s.pieces)
	s.pieces, s.used = s.pieces[:0], 0
}

func (p piece) write() error {
	if !p.file.sparse {
		return pwrite(p.file.fd, p.data, p.at)
	}
	for data, at := p.data, p.at; len(data) > 0; {
		n := min(holeBytes-int(at%holeBytes), len(data))
		if !isZero(data[:n]) {
			if err := pwrite(p.file.fd, data[:n], at); err != nil {
				return err
			}
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}

func pwrite(fd int, data []byte, at int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("nothing was written")
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}

// done ends one part of a file, and the file with the last.
func (f *filler) done(file *newFile) {
	if file.parts.Add(-1) > 0 {
		return
	}
	if !file.broken.Load() && !f.failed.Load() {
		if err := f.finish(file); err != nil {
			f.fail(file.hdr.Name, err)
		}
	}
	if err := unix.Close(file.fd); err != nil && err != unix.EINTR {
		f.fail(file.hdr.Name, fmt.Errorf("close: %w", err)) // some file systems say so late that a disk is full
	}
}

// finish sets size, owner, mode, extended attributes and times. The order
// matters: a change of owner clears set-user-ID bits and capabilities, and all
// of these change no modification time.
func (f *filler) finish(file *newFile) error {
	hdr := file.hdr
	if file.sparse {
		if err := unix.Ftruncate(file.fd, hdr.Size); err != nil {
			return fmt.Errorf("set size: %w", err)
		}
	}
	if err := unix.Fchown(file.fd, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := unix.Fchmod(file.fd, mode(hdr)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	skipped, err := setXattrs(file.fd, hdr)
	f.skipped.Add(skipped)
	if err != nil {
		return err
	}
	return setFileTime(file.fd, hdr.ModTime)
}

// isSparse says whether the entry was stored without its holes: GNU tar's old
// format, or its PAX records.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
