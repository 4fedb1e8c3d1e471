package directory

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/secret"
)

func (b *Backend) put(ctx context.Context, dir string, content secret.Bytes) (version int64, err error) {
	err = b.locked(ctx, dir, true, func(sub *os.Root) error {
		s, err := load(sub)
		if err != nil {
			return err
		}
		if version = s.newest + 1; version > maxVersion {
			return fmt.Errorf("expected a version below %d: remove the file of that name", int64(maxVersion))
		}
		h := header(b.o.Now(), content.Len())
		sealed, err := b.o.Box.Seal(sealedName(dir, version, h), content.Expose())
		if err != nil {
			return err
		}
		if len(sealed) > content.Len()+overhead {
			return fmt.Errorf("seal: expected at most %d bytes more, got %d", overhead, len(sealed)-content.Len())
		}
		if version == 1 {
			// The directories on the way may be as new as the resource.
			if err := b.syncDirs(dir); err != nil {
				return err
			}
		}
		if err := b.publish(ctx, sub, fileName(version), append(h, sealed...)); err != nil {
			return err
		}
		// The version is there. What could not be tidied up now is tidied up by
		// the next writer.
		stale := s.stale
		for i, v := range s.live {
			if i >= b.o.Versions-1 {
				stale = append(stale, fileName(v))
			}
		}
		_ = erase(sub, stale)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return version, nil
}

// remove hides the resource with one file, then erases its contents. A crash
// in between leaves contents that nobody can read and the next writer erases.
func (b *Backend) remove(ctx context.Context, dir string) (was bool, err error) {
	err = b.locked(ctx, dir, false, func(sub *os.Root) error {
		s, err := load(sub)
		if err != nil {
			return err
		}
		stale := s.stale
		if len(s.live) > 0 {
			if s.newest >= maxVersion {
				return fmt.Errorf("expected a version below %d: remove the file of that name", int64(maxVersion))
			}
			if err := b.publish(ctx, sub, fileName(s.newest+1)+deleted, header(b.o.Now(), 0)); err != nil {
				return err
			}
			was = true
			for _, v := range s.live {
				stale = append(stale, fileName(v))
			}
			if s.mark > 0 {
				stale = append(stale, fileName(s.mark)+deleted)
			}
		}
		if err := erase(sub, stale); err != nil {
			return fmt.Errorf("it cannot be read any more, but its sealed contents are still on the disk; delete it again: %w", err)
		}
		return nil
	})
	if errors.Is(err, resource.ErrNotFound) {
		return false, nil
	}
	return was, err
}

// publish makes a file appear under its name, whole and durable, or not at all.
func (b *Backend) publish(ctx context.Context, dir *os.Root, name string, data []byte) (err error) {
	var id [16]byte
	if _, err := io.ReadFull(b.o.Rand, id[:]); err != nil {
		return fmt.Errorf("random numbers: %w", err)
	}
	tmp := temp + hex.EncodeToString(id[:])
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// On success too: the file has its other name by then.
	defer func() { err = errors.Join(err, dir.Remove(tmp), syncDir(dir, ".")) }()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close(), ctx.Err()); err != nil {
		return err
	}
	// Unlike rename(2), link(2) never replaces what is there.
	if err := dir.Link(tmp, name); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	return nil
}

func erase(dir *os.Root, names []string) error {
	if len(names) == 0 {
		return nil
	}
	var errs []error
	for _, name := range names {
		if err := dir.Remove(name); err != nil && !missing(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, syncDir(dir, "."))...)
}

// makeDirs creates the directories of a resource.
func (b *Backend) makeDirs(dir string) error { return b.root.MkdirAll(dir, 0o700) }

// syncDirs makes the directories down to a resource durable.
func (b *Backend) syncDirs(dir string) error {
	for d := path.Dir(dir); ; d = path.Dir(d) {
		if err := syncDir(b.root, d); err != nil {
			return err
		}
		if d == "." {
			return nil
		}
	}
}

func syncDir(root *os.Root, dir string) (err error) {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// flock waits for the lock on a directory. The kernel's own wait could not be
// given up, so it is asked again and again.
func flock(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	const first, longest = time.Millisecond, 20 * time.Millisecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := first; ; pause = min(2*pause, longest) {
		var lockErr error
		if err := raw.Control(func(fd uintptr) { lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
			return err
		}
		switch {
		case lockErr == nil:
			return nil
		case !errors.Is(lockErr, unix.EWOULDBLOCK) && !errors.Is(lockErr, unix.EINTR):
			return fmt.Errorf("lock the directory: %w", lockErr)
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for another writer: %w", ctx.Err())
		}
	}
}

// classify marks the errors of a disk that may serve again later, and takes
// from file errors what a client needs not know.
func classify(err error) error {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.ESTALE, unix.ENOTCONN, unix.ETIMEDOUT, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, e) && !errors.Is(err, resource.ErrUnavailable) {
			return fmt.Errorf("%w: %w", resource.ErrUnavailable, err)
		}
	}
	return err
}
