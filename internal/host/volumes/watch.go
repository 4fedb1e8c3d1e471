package volumes

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// watcher tells when the files of volumes are replaced. There is one for a pod,
// since a user has a bounded number of them (fs.inotify.max_user_instances).
type watcher struct {
	notify *fsnotify.Watcher
	done   chan struct{}

	mu   sync.Mutex
	dirs map[string]func()
}

func newWatcher() (*watcher, error) {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, watchError(err)
	}
	w := &watcher{notify: n, done: make(chan struct{}), dirs: map[string]func(){}}
	go w.run()
	return w, nil
}

func watchError(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EMFILE):
		hint = "; raise the node's sysctl fs.inotify.max_user_instances, of which each pod takes one (coffer doctor says to what)"
	case errors.Is(err, unix.ENOSPC):
		hint = "; raise the node's sysctl fs.inotify.max_user_watches"
	}
	return fmt.Errorf("changes of files cannot be watched for: %w%s", err, hint)
}

// add has changed called, which must not wait, whenever the link to the current
// files in a directory is replaced.
func (w *watcher) add(dir string, changed func()) error {
	w.mu.Lock()
	w.dirs[dir] = changed
	w.mu.Unlock()
	if err := w.notify.Add(dir); err != nil {
		w.remove(dir)
		return watchError(err)
	}
	return nil
}

// remove ends what add began.
func (w *watcher) remove(dir string) {
	w.mu.Lock()
	delete(w.dirs, dir)
	w.mu.Unlock()
	_ = w.notify.Remove(dir) // the directory may be gone, and its watch with it
}

// close ends everything and waits for it.
func (w *watcher) close() error {
	err := w.notify.Close()
	<-w.done
	return err
}

func (w *watcher) run() {
	defer close(w.done)
	for {
		select {
		case event, ok := <-w.notify.Events:
			if !ok {
				return
			}
			if filepath.Base(event.Name) == dataLink && event.Has(fsnotify.Create) {
				w.tell(filepath.Dir(event.Name))
			}
		case _, ok := <-w.notify.Errors:
			if !ok {
				return
			}
			// Events were lost: everything may have changed.
			w.tell("")
		}
	}
}

// tell calls those of one directory, or of all.
func (w *watcher) tell(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, changed := range w.dirs {
		if dir == "" || dir == name {
			changed()
		}
	}
}
