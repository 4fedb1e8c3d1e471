package podstate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/notice"
)

// Cleaner removes what dead shims left.
type Cleaner struct {
	// Release removes what is neither a process nor a file, such as taps in a
	// network namespace that may be gone; the processes have ended. It may be
	// called again. nil: there is nothing.
	Release func(State) error
	// Lost removes what can be found without the state of a pod whose state is
	// lost. nil: nothing can.
	Lost   func(ctx context.Context, namespace, id string) error
	Logger *slog.Logger
}

// Clean kills the processes of the pod in dir, shim included, and removes all
// that is recorded there, then dir itself. A missing dir is no error. Callers
// that come at once wait for each other. What cannot be removed is reported
// and stays recorded, the rest goes.
func (c Cleaner) Clean(ctx context.Context, dir string) error {
	lock, err := lockDir(ctx, dir)
	if err != nil || lock == nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	state, err := Read(dir)
	if errors.Is(err, fs.ErrNotExist) { // nothing was made yet, or another was faster
		return errors.Join(c.lost(ctx, dir), removeDir(dir))
	}
	if errors.Is(err, ErrBroken) {
		c.Logger.WarnContext(ctx, "removing the directory of a pod whose state a loss of power has broken", "directory", dir, "error", err)
		return errors.Join(c.lost(ctx, dir), removeDir(dir))
	}
	if err != nil {
		return fmt.Errorf("pod state: %w", err)
	}
	return c.remove(ctx, dir, state)
}

func (c Cleaner) lost(ctx context.Context, dir string) error {
	if c.Lost == nil {
		return nil
	}
	return c.Lost(ctx, filepath.Base(filepath.Dir(dir)), filepath.Base(dir))
}

func (c Cleaner) remove(ctx context.Context, dir string, s State) error {
	var problems []error
	// The shim first: it could start another machine.
	for _, p := range append([]Process{s.Shim}, s.Machines...) {
		if p.Alive() {
			c.Logger.InfoContext(ctx, "killing a process of a pod that is gone", "role", p.Role, "pid", p.PID, "pod", s.ID)
		}
		if err := p.Signal(unix.SIGKILL); err != nil {
			problems = append(problems, err)
			continue
		}
		if err := p.Wait(ctx); err != nil {
			problems = append(problems, err)
		}
	}
	if c.Release != nil {
		problems = append(problems, c.Release(s))
	}
	if s.Socket != "" {
		if err := os.Remove(s.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	for _, path := range s.Files {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			problems = append(problems, fmt.Errorf("pod state: file to remove: expected a clean absolute path, got %q", path))
			continue
		}
		problems = append(problems, os.RemoveAll(path))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("clean up after pod %s: %w", s.ID, err)
	}
	return removeDir(dir)
}

// Sweep cleans up after pods below root whose shim is dead and whose bundle
// containerd has removed: nobody will ask for it any more. So it does after pods
// whose state was lost with the node's power.
func (c Cleaner) Sweep(ctx context.Context, root string) error {
	dirs, err := filepath.Glob(filepath.Join(root, "*", "*"))
	if err != nil {
		return err
	}
	var problems []error
	for _, dir := range dirs {
		if ctx.Err() != nil {
			break
		}
		state, err := Read(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if empty, err := abandoned(dir); !empty {
				problems = append(problems, err)
				continue
			}
		case errors.Is(err, ErrBroken):
		case err != nil || state.Shim.Alive() || state.Bundle == "":
			continue // no pod's directory, or one that is just being made
		default:
			if there, err := exists(state.Bundle); there || err != nil {
				continue
			}
		}
		c.Logger.WarnContext(ctx, "cleaning up after a pod that nobody asked to remove", "pod", state.ID, "directory", dir)
		problems = append(problems, c.Clean(ctx, dir))
	}
	return errors.Join(problems...)
}

// emptyAge is how old a pod's directory without a state is that nobody makes any
// more: who makes one writes its state at once.
const emptyAge = 10 * time.Minute

// abandoned tells such a directory, which has at the most the pod's notices in it,
// and files that were not written to their end.
func abandoned(dir string) (bool, error) {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || time.Since(info.ModTime()) < emptyAge {
		return false, nil //nolint:nilerr // it has gone
	}
	entries, err := os.ReadDir(dir)
	others := slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return e.Name() != "."+fileName && strings.TrimPrefix(e.Name(), ".") != notice.FileName
	})
	return err == nil && !others, err
}

// lockDir locks a directory against other cleaners; nil when it is gone.
// Closing the file unlocks.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	for {
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("pod directory: %w", err)
		}
		if err := flock(ctx, f); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		// Who held the lock may have removed the directory, and a new pod of
		// the same name made another.
		if same(f, dir) {
			return f, nil
		}
		_ = f.Close()
	}
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
