package podevents

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/pause"
)

// settle is how long after a change the files are looked at: more often comes
// with it.
const settle = 100 * time.Millisecond

// watcher tells when files of notices may have changed. Without inotify, of which
// a node has a bounded number of instances, everything is only slower.
type watcher struct {
	notify  *fsnotify.Watcher // nil without
	log     *slog.Logger
	changed chan struct{} // holds one token
	done    chan struct{}
	watched map[string]bool
	full    bool // it was told that not everything can be watched
}

func newWatcher(log *slog.Logger) *watcher {
	w := &watcher{log: log, changed: make(chan struct{}, 1), done: make(chan struct{}), watched: map[string]bool{}}
	n, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("what shims say of their pods is looked at from time to time only (raise the node's sysctl fs.inotify.max_user_instances)", "error", err)
		close(w.done)
		return w
	}
	w.notify = n
	go w.run()
	return w
}

// close ends everything and waits for it.
func (w *watcher) close() {
	if w.notify != nil {
		_ = w.notify.Close()
	}
	<-w.done
}

func (w *watcher) run() {
	defer close(w.done)
	for {
		select {
		case e, ok := <-w.notify.Events:
			if !ok {
				return
			}
			if !matters(e) {
				continue
			}
		case _, ok := <-w.notify.Errors:
			if !ok {
				return
			}
			// Of what was lost, anything may have been.
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// matters tells a new file of notices, or a new directory, from what else shims
// write. A file that is replaced is created.
func matters(e fsnotify.Event) bool {
	base := filepath.Base(e.Name)
	return e.Has(fsnotify.Create) && base[0] != '.' && base != "state.json"
}

// watch watches all directories in which something may come, and no others.
func (w *watcher) watch(stateDirs []string) {
	if w.notify == nil {
		return
	}
	// What is made in a directory before it is watched is in the next list.
	var now []string
	for dirs := places(stateDirs); !slices.Equal(dirs, now); dirs = places(stateDirs) {
		w.add(dirs)
		now = dirs
	}
	for dir := range w.watched {
		if _, there := slices.BinarySearch(now, dir); !there {
			delete(w.watched, dir)
			_ = w.notify.Remove(dir) // where a state directory was to come; others are gone
		}
	}
}

// places are directories in which something may come: those below state
// directories, and where a state directory is not there yet, the one it will be in.
func places(stateDirs []string) []string {
	var all []string
	for _, state := range stateDirs {
		dirs := notice.Dirs(state)
		if len(dirs) == 0 {
			dirs = []string{filepath.Dir(state)}
		}
		all = append(all, dirs...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (w *watcher) add(dirs []string) {
	for _, dir := range dirs {
		w.watched[dir] = true
		if err := w.notify.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !w.full {
			w.full = true
			w.log.Warn("a directory cannot be watched; it is looked at from time to time", "directory", dir, "error", err)
		}
	}
}

// wait waits for a change, and every at most; after a failure it waits for
// retry whatever changes. False: ctx has ended.
func (w *watcher) wait(ctx context.Context, retry, every time.Duration) bool {
	if retry > 0 {
		return pause.For(ctx, retry)
	}
	limit := time.NewTimer(every)
	defer limit.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-limit.C:
		return true
	case <-w.changed:
		return pause.For(ctx, settle)
	}
}
