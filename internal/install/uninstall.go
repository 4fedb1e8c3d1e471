package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"github.com/coffer-project/coffer/internal/install/conffile"
)

// ErrNotInstalled means that there is nothing to uninstall.
var ErrNotInstalled = errors.New("nothing is installed here")

// Uninstall removes what the record names. Files that were changed since are
// left, with a note, unless o.Replace is set. It may be called again after it
// has died.
func Uninstall(ctx context.Context, o Options) (*Result, error) {
	o, err := o.prepare()
	if err != nil {
		return nil, err
	}
	n, err := o.open()
	if err != nil {
		return nil, err
	}
	defer n.Close() //nolint:errcheck // a directory
	record, err := n.load()
	if err != nil {
		return nil, fmt.Errorf("uninstall: %w", err)
	}
	if record == nil {
		// All that can be there is what was made before the record was.
		_ = n.Remove(rel(temporary(n.state(recordName))))
		_ = n.Remove(rel(temporary(n.state(originalName))))
		_ = n.Remove(rel(n.state(originalName)))
		_ = n.Remove(rel(path.Join(n.prefix, stateDir)))
		_ = n.Remove(rel(n.prefix))
		return nil, fmt.Errorf("uninstall: %w: no record at %s", ErrNotInstalled, path.Join(o.Root, n.state(recordName)))
	}
	if !o.Force {
		if err := n.idle(); err != nil {
			return nil, fmt.Errorf("uninstall: %w", err)
		}
	}
	r := &Result{Units: record.Containerd.Units}
	if err := n.remove(ctx, record, o.Replace, r); err != nil {
		return nil, fmt.Errorf("uninstall: %w (the rest is still recorded: run it again)", err)
	}
	return r, nil
}

// remove undoes a record: containerd's files first, so that it never names what
// is gone, and the record last.
func (n *node) remove(ctx context.Context, record *Record, force bool, r *Result) error {
	if record.Complete {
		record.Complete = false
		if err := n.store(record); err != nil {
			return err
		}
	}
	if err := n.restore(record.Edit, r); err != nil {
		return err
	}
	var left []string
	for _, f := range slices.Backward(record.Files) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if force {
			f.SHA256 = nil
		}
		if err := n.removeFile(f, r); err != nil {
			return err
		}
		if there, err := n.exists(f.Path); err != nil {
			return err
		} else if there {
			left = append(left, f.Path)
		}
	}
	r.Restart = r.Restart || slices.Contains(r.Removed, record.Containerd.DropIn)
	return n.removeRest(record, left, r)
}

// removeRest removes the directories, and the record as late as can be. left are
// files that stay.
func (n *node) removeRest(record *Record, left []string, r *Result) error {
	for _, d := range slices.Backward(record.Directories) {
		if under(n.state(recordName), d) {
			continue // once the record is gone
		}
		if err := n.removeDirectory(d, left, r); err != nil {
			return err
		}
	}
	for _, p := range []string{n.state(originalName), temporary(n.state(originalName)), temporary(n.state(recordName)), n.state(recordName)} {
		if err := n.Remove(rel(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", p, cause(err))
		}
	}
	for _, d := range slices.Backward(record.Directories) {
		if !under(n.state(recordName), d) {
			continue
		}
		if err := n.removeDirectory(d, left, r); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) removeDirectory(d string, left []string, r *Result) error {
	switch err := n.Remove(rel(d)); {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, syscall.ENOTEMPTY):
		if !slices.ContainsFunc(left, func(p string) bool { return under(p, d) }) {
			r.Notes = append(r.Notes, "left "+d+": it holds files that coffer install did not write")
		}
	default:
		return fmt.Errorf("remove %s: %w", d, cause(err))
	}
	return nil
}

// removeFile removes a file or a link if it is as it was written.
func (n *node) removeFile(f RecordedFile, r *Result) error {
	if err := n.Remove(rel(temporary(f.Path))); err != nil && !errors.Is(err, fs.ErrNotExist) && !isNotDir(err) {
		return fmt.Errorf("remove %s: %w", temporary(f.Path), cause(err))
	}
	there, err := n.exists(f.Path)
	if err != nil || !there {
		return err
	}
	if f.Target != "" {
		if target, err := n.Readlink(rel(f.Path)); err != nil || target != f.Target {
			r.Notes = append(r.Notes, "left "+f.Path+": it is not the link that was written")
			return nil //nolint:nilerr // what is there is not ours
		}
	} else if f.SHA256 != nil {
		sum, err := n.digest(f.Path)
		if err != nil || !slices.Contains(f.SHA256, sum) {
			r.Notes = append(r.Notes, "left "+f.Path+": it was changed since it was written")
			return nil //nolint:nilerr // what is there is not ours
		}
	}
	if err := n.Remove(rel(f.Path)); err != nil {
		return fmt.Errorf("remove %s: %w", f.Path, cause(err))
	}
	r.Removed = append(r.Removed, f.Path)
	return nil
}

// restore takes our import from containerd's main file: byte for byte as it was
// where nobody has edited it since, else without our import.
func (n *node) restore(e *RecordedEdit, r *Result) error {
	if e == nil {
		return nil
	}
	if err := n.Remove(rel(temporary(e.Path))); err != nil && !errors.Is(err, fs.ErrNotExist) && !isNotDir(err) {
		return fmt.Errorf("remove %s: %w", temporary(e.Path), cause(err))
	}
	data, there, err := readConfig(n, e.Path)
	if err != nil {
		return err
	}
	sum := digestOf(data)
	switch {
	case !there, sum == e.Before && e.Existed:
		return nil
	case sum == e.After && !e.Existed:
		r.Removed, r.Restart = append(r.Removed, e.Path), true
		return linkCause(n.Remove(rel(e.Path)))
	case sum == e.After:
		return n.restoreOriginal(e, r)
	}
	rest, err := conffile.Remove(data, e.Import)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	if len(rest) == len(data) {
		return nil
	}
	info, err := n.Stat(rel(e.Path))
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, cause(err))
	}
	uid, gid := owner(info)
	r.Written, r.Restart = append(r.Written, e.Path), true
	r.Notes = append(r.Notes, e.Path+" was edited since: only our import was taken from it")
	return n.replace(e.Path, info.Mode().Perm(), uid, gid, rest)
}

func (n *node) restoreOriginal(e *RecordedEdit, r *Result) error {
	data, there, err := readConfig(n, n.state(originalName))
	if err != nil {
		return err
	}
	if !there || digestOf(data) != e.Before {
		// Without the bytes that were kept: the edit is undone instead.
		current, _, err := readConfig(n, e.Path)
		if err != nil {
			return err
		}
		if data, err = conffile.Remove(current, e.Import); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	info, err := n.Stat(rel(e.Path))
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, cause(err))
	}
	mode := info.Mode().Perm()
	uid, gid := owner(info)
	if err := n.replace(e.Path, mode, uid, gid, data); err != nil {
		return err
	}
	r.Written, r.Restart = append(r.Written, e.Path), true
	return n.Chtimes(rel(e.Path), e.Time, e.Time)
}

// owner of a file.
func owner(info os.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return -1, -1
}
