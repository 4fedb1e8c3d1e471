// Package blobcache is the host's cache of image blobs for its guests: files
// named by their digests in one directory, which several processes may share.
//
// A guest asks for blobs over streams of kind BLOBS and offers those it had to
// get from a registry. The host holds nothing that it could not have fetched
// itself, and no guest believes it: blobs are checked here so that the cache
// stays useful, and in the guest because it is the host's.
package blobcache

import (
	"bufio"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
)

// DefaultMaxBytes is how much a cache holds unless told otherwise.
const DefaultMaxBytes = 10 << 30

// reserve is the room on the file system that the cache leaves to others.
const reserve = 256 << 20

// ErrUnwanted says that a blob has no place in the cache.
var ErrUnwanted = errors.New("the cache does not want this blob")

// Options of a [Store].
type Options struct {
	// MaxBytes bounds the blobs in the cache; 0 means DefaultMaxBytes.
	MaxBytes int64
	// Now may be nil.
	Now func() time.Time
}

// Store is a cache. It is safe for concurrent use, also by several processes.
type Store struct {
	root *os.Root
	dir  string
	o    Options
}

// In the directory, blobs are ALGORITHM/HEX, and partial ones tmp/RANDOM, locked
// (flock) by whoever writes them.
const (
	partialDir = "tmp"
	lockFile   = "lock"
)

var algorithms = []string{"sha256", "sha512"}

// Open opens the cache in dir, which it makes if it is not there. The directory
// must be the caller's alone. What a crash has left unfinished is removed.
func Open(dir string, o Options) (_ *Store, err error) {
	o.MaxBytes = cmp.Or(o.MaxBytes, DefaultMaxBytes)
	if o.MaxBytes < 0 {
		return nil, fmt.Errorf("blob cache: size: expected a number of bytes, got %d", o.MaxBytes)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("blob cache: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("blob cache: %w", err)
	}
	s := &Store{root: root, dir: dir, o: o}
	defer func() {
		if err != nil {
			_ = root.Close()
		}
	}()
	if err := s.checkOwner(); err != nil {
		return nil, err
	}
	for _, sub := range append([]string{partialDir}, algorithms...) {
		if err := root.Mkdir(sub, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("blob cache: %w", err)
		}
	}
	s.sweep()
	return s, nil
}

// checkOwner refuses a directory that others can read or change.
func (s *Store) checkOwner() error {
	info, err := s.root.Stat(".")
	if err != nil {
		return fmt.Errorf("blob cache: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("blob cache: %s: expected a directory of user %d with mode 0700, got %v: images of others must not be put under your pods, nor yours shown to them",
			s.dir, os.Geteuid(), info.Mode().Perm())
	}
	return nil
}

// Close closes the cache; what it holds stays.
func (s *Store) Close() error { return s.root.Close() }

// sweep removes partial blobs that nobody writes any more.
func (s *Store) sweep() {
	for _, e := range s.list(partialDir) {
		name := path.Join(partialDir, e.Name())
		f, err := s.root.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = s.root.Remove(name)
		}
		_ = f.Close()
	}
}

func (s *Store) list(dir string) []os.DirEntry {
	d, err := s.root.Open(dir)
	if err != nil {
		return nil
	}
	defer func() { _ = d.Close() }()
	entries, _ := d.ReadDir(-1)
	return entries
}

func name(d oci.Digest) (string, error) {
	if _, err := oci.ParseDigest(string(d)); err != nil {
		return "", err
	}
	return path.Join(d.Algorithm(), d.Hex()), nil
}

// Get opens a blob and makes it the last that will be dropped. The error wraps
// [oci.ErrNotFound] when there is none. The reader ends with an error if the
// blob is no longer what its name says; it is then removed.
func (s *Store) Get(d oci.Digest) (_ io.ReadCloser, size int64, err error) {
	file, err := name(d)
	if err != nil {
		return nil, 0, err
	}
	f, err := s.root.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %s: %w", d, oci.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("blob cache: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("expected a file, got %v", info.Mode())
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("blob cache: %s: %w", file, err)
	}
	now := s.o.Now()
	_ = s.root.Chtimes(file, now, now)
	checked, err := oci.VerifyReader(f, oci.Descriptor{Digest: d, Size: info.Size()})
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return &blob{Reader: checked, Closer: f, spoilt: func() { _ = s.root.Remove(file) }}, info.Size(), nil
}

// blob removes itself when it is not what it should be.
type blob struct {
	io.Reader
	io.Closer
	spoilt func()
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if _, wrong := errors.AsType[*oci.MismatchError](err); wrong {
		b.spoilt()
	}
	return n, err
}

// Wants says whether a blob would be kept: it is not there yet, and there is
// room. The error wraps [ErrUnwanted] otherwise.
func (s *Store) Wants(d oci.Digest, size int64) error {
	file, err := name(d)
	if err != nil {
		return err
	}
	if size <= 0 || size > s.o.MaxBytes/2 {
		return fmt.Errorf("blob %s: %d bytes, a cache of %d bytes keeps at most half of it: %w", d, size, s.o.MaxBytes, ErrUnwanted)
	}
	if _, err := s.root.Stat(file); err == nil {
		return fmt.Errorf("blob %s: it is there already: %w", d, ErrUnwanted)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("blob cache: %s: %w", s.dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free-reserve < size {
		return fmt.Errorf("blob %s: %d bytes, the file system has %d free: %w", d, size, free, ErrUnwanted)
	}
	return nil
}

// Put stores a blob of so many bytes from r. It appears when it is whole, on
// disk, and what its digest says; else nothing of it stays.
func (s *Store) Put(d oci.Digest, size int64, r io.Reader) (err error) {
	file, err := name(d)
	if err != nil {
		return err
	}
	f, partial, err := s.begin(d, size)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = s.root.Remove(partial)
		}
	}()
	checked, err := oci.VerifyReader(io.LimitReader(r, size), oci.Descriptor{Digest: d, Size: size})
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	if _, err := io.Copy(struct{ io.Writer }{w}, checked); err != nil {
		return fmt.Errorf("blob %s: %w", d, err)
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return fmt.Errorf("blob cache: %w", err)
	}
	now := s.o.Now()
	if err := s.root.Chtimes(partial, now, now); err != nil {
		return fmt.Errorf("blob cache: %w", err)
	}
	if err := s.root.Rename(partial, file); err != nil {
		return fmt.Errorf("blob cache: %w", err)
	}
	_, err = s.Prune(s.o.MaxBytes)
	return err
}

// begin makes a partial blob, which holds the room that it will need: guests may
// offer many at once, and send none of them to the end.
func (s *Store) begin(d oci.Digest, size int64) (_ *os.File, partial string, err error) {
	lock, err := s.lock()
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = lock.Close() }()
	s.sweep() // what a process that has died had begun
	begun := int64(0)
	for _, e := range s.list(partialDir) {
		if info, err := e.Info(); err == nil {
			begun += info.Size()
		}
	}
	if size > s.o.MaxBytes-begun {
		return nil, "", fmt.Errorf("blob %s: %d bytes, and others of %d bytes are on their way into a cache of %d: %w", d, size, begun, s.o.MaxBytes, ErrUnwanted)
	}
	// Those that have been begun have their room already.
	if err := s.Wants(d, size); err != nil {
		return nil, "", err
	}
	partial = path.Join(partialDir, rand.Text())
	f, err := s.root.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("blob cache: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, size); errors.Is(err, unix.EOPNOTSUPP) {
			err = f.Truncate(size) // it counts, at least
		}
	}
	if err != nil {
		_, _ = f.Close(), s.root.Remove(partial)
		return nil, "", fmt.Errorf("blob cache: room for %d bytes: %w", size, err)
	}
	return f, partial, nil
}

// lock waits for the right to do what only one may do at a time; closing it gives
// it back.
func (s *Store) lock() (*os.File, error) {
	lock, err := s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("blob cache: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("blob cache: lock: %w", err)
	}
	return lock, nil
}

// Entry is a blob in the cache.
type Entry struct {
	Digest oci.Digest `json:"digest"`
	Size   int64      `json:"size"`
	// Used is when it was last asked for or stored.
	Used time.Time `json:"used"`
}

// List returns what is in the cache, the most recently used first.
func (s *Store) List() []Entry {
	var out []Entry
	for _, alg := range algorithms {
		for _, e := range s.list(alg) {
			d, err := oci.ParseDigest(alg + ":" + e.Name())
			if err != nil {
				continue
			}
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				out = append(out, Entry{Digest: d, Size: info.Size(), Used: info.ModTime()})
			}
		}
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(b.Used.Compare(a.Used), strings.Compare(string(a.Digest), string(b.Digest)))
	})
	return out
}

// Prune drops the blobs that were used least recently until at most so many
// bytes are left, and returns what it dropped. One that is being read stays
// readable.
func (s *Store) Prune(most int64) ([]Entry, error) {
	lock, err := s.lock() // two that prune at once would drop too much
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	var total int64
	var dropped []Entry
	var errs []error
	full := false
	for _, e := range s.List() {
		if full = full || total+e.Size > most; !full {
			total += e.Size
			continue
		}
		file, err := name(e.Digest)
		if err == nil {
			err = s.root.Remove(file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("blob cache: %w", err))
			continue
		}
		dropped = append(dropped, e)
	}
	return dropped, errors.Join(errs...)
}
