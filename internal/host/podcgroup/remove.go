package podcgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Remove removes, after a crash, what Enter said it would make (Options.Note):
// the pod's group with those in it, and those above it that Enter made, unless
// somebody else has groups there now. The processes of the pod have ended. What
// is not there is no error; a process in it is one. Root is where control groups
// are mounted.
func Remove(root string, made []string) error {
	if len(made) == 0 {
		return nil
	}
	t, err := openTree(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := hierarchies(t, nil)
	if err == nil {
		err = remove(t, all, made)
	}
	return errors.Join(err, t.Close())
}

func remove(t tree, trees []hierarchy, made []string) error {
	var errs []error
	end := time.Now().Add(emptyLimit)
	for i, p := range made {
		if clean, err := Parse(p); err != nil || clean != p {
			errs = append(errs, fmt.Errorf("control group to remove: expected a clean absolute path, got %.200q", p))
			continue
		}
		for _, h := range trees {
			err := removeOne(t, h.at(p), i == 0, end)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove the control group %s: %s: %w", p, h.name(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeOne removes the pod's group, or one above it that others may use now.
func removeOne(t tree, name string, own bool, end time.Time) error {
	if own {
		return removeBelow(t, name, maxDepth, end)
	}
	if err := t.Rmdir(name); !busy(err) {
		return err
	}
	return nil
}

func busy(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)
}

const (
	// maxDepth is how deep groups of containers are nested at most.
	maxDepth = 16
	// emptyLimit bounds the wait for processes that have just ended, lookTime is
	// between two looks.
	emptyLimit = time.Second
	lookTime   = 5 * time.Millisecond
)

func removeBelow(t tree, name string, depth int, end time.Time) error {
	below, err := t.Groups(name)
	if err != nil {
		return err
	}
	if len(below) > 0 && depth == 0 {
		return errors.New("its groups are nested too deeply")
	}
	for _, g := range below {
		if err := removeBelow(t, path.Join(name, g), depth-1, end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for {
		err := t.Rmdir(name)
		if !busy(err) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("it still has processes: %w", err)
		}
		<-time.After(lookTime) // version 1 has no event for it
	}
}
