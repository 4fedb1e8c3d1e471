package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
)

// Result is what Apply and Uninstall did.
type Result struct {
	// Written and Removed are paths of the node.
	Written []string `json:"written,omitempty"`
	Removed []string `json:"removed,omitempty"`
	// Restart says that containerd has to be restarted to take it up.
	Restart bool `json:"restart"`
	// Checked says that containerd's program has read the configuration, and that
	// only our handlers have changed by it.
	Checked bool     `json:"checked"`
	Notes   []string `json:"notes,omitempty"`
	// Units are the services to restart.
	Units []string `json:"units,omitempty"`
}

// Apply writes what the plan says. version is the program's. When it fails, the
// node is as it was before, or the record says what an Uninstall has to remove.
func (p *Plan) Apply(ctx context.Context, version string) (*Result, error) {
	r := &Result{Notes: p.Notes, Units: p.Containerd.Units}
	if err := p.apply(ctx, version, r); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	return r, nil
}

func (p *Plan) apply(ctx context.Context, version string, r *Result) error {
	if p.settled(ctx, version, r) {
		return nil
	}
	record, err := p.begin(version)
	if err != nil {
		return err
	}
	earlier, _, err := readConfig(p.node, p.Containerd.DropIn)
	if err != nil {
		return err
	}
	err = p.writeFiles(r)
	if err == nil {
		err = p.writeEdit(r)
	}
	if err == nil {
		err = p.verify(ctx)
	}
	switch {
	case errors.Is(err, errNotChecked):
		r.Notes = append(r.Notes, err.Error())
	case err != nil:
		return p.back(ctx, record, earlier, err)
	default:
		r.Checked = true
	}
	if p.options.Restarts {
		r.Restart = r.Restart || p.old != nil && p.old.Restart
		record.Restart = r.Restart
	}
	return p.finish(record, r)
}

// begin writes down what is going to be written.
func (p *Plan) begin(version string) (*Record, error) {
	n := p.node
	record := &Record{Program: version, Handlers: p.Handlers, Containerd: p.Containerd, Directories: slices.Clone(p.Directories)}
	for _, f := range p.Files {
		rf := RecordedFile{Path: f.Path, Target: f.Target}
		if f.Target == "" {
			rf.SHA256 = []string{f.SHA256}
		}
		record.Files = append(record.Files, rf)
	}
	state, err := n.missing(path.Join(n.prefix, stateDir))
	if err != nil {
		return nil, err
	}
	for _, d := range state {
		if !slices.Contains(record.Directories, d) {
			record.Directories = append(record.Directories, d)
		}
	}
	if p.old != nil {
		record.union(p.old)
	} else {
		record.adopt(n)
	}
	if err := p.keepOriginal(record, state); err != nil {
		return nil, err
	}
	return record, n.store(record)
}

// adopt takes over directories that an installation has made which died before
// it had a record: the state directory without anything else, and the prefix
// with nothing but that.
func (r *Record) adopt(n *node) {
	ours := []string{recordName, originalName, path.Base(temporary(recordName)), path.Base(temporary(originalName))}
	for _, d := range []string{n.state(""), n.prefix} {
		entries, err := fs.ReadDir(n.FS(), rel(d))
		if errors.Is(err, fs.ErrNotExist) {
			ours = []string{stateDir}
			continue
		}
		if err != nil || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !slices.Contains(ours, e.Name()) }) {
			return
		}
		ours = []string{stateDir}
		if !slices.Contains(r.Directories, path.Clean(d)) {
			r.Directories = append(r.Directories, path.Clean(d))
		}
	}
	slices.Sort(r.Directories)
}

// union adds what an earlier installation wrote.
func (r *Record) union(old *Record) {
	for _, d := range old.Directories {
		if !slices.Contains(r.Directories, d) {
			r.Directories = append(r.Directories, d)
		}
	}
	slices.Sort(r.Directories) // parents first
	for _, f := range old.Files {
		if mine := r.file(f.Path); mine == nil {
			r.Files = append(r.Files, f)
		} else {
			for _, sum := range f.SHA256 {
				if !slices.Contains(mine.SHA256, sum) && mine.Target == "" {
					mine.SHA256 = append(mine.SHA256, sum)
				}
			}
		}
	}
	r.Edit, r.Restart = old.Edit, old.Restart
}

// keepOriginal makes the state directory and keeps the main file's bytes in it,
// for its owner's eyes only: it may hold credentials.
func (p *Plan) keepOriginal(record *Record, state []string) error {
	n := p.node
	for _, d := range state {
		mode := os.FileMode(0o755)
		if d == path.Join(n.prefix, stateDir) {
			mode = 0o700
		}
		if err := n.mkdir(d, mode); err != nil {
			return err
		}
	}
	if p.Edit == nil {
		return nil
	}
	e := &RecordedEdit{Path: p.Edit.Path, Import: p.Edit.Import, Existed: !p.Edit.Create, Before: digestOf(p.Edit.before), After: digestOf(p.Edit.after)}
	if p.Edit.Create {
		e.Before = ""
		record.Edit = e
		return nil
	}
	info, err := n.Stat(rel(p.Edit.Path))
	if err != nil {
		return fmt.Errorf("%s: %w", p.Edit.Path, cause(err))
	}
	e.Mode, e.Time = uint32(info.Mode().Perm()), info.ModTime()
	e.UID, e.GID = owner(info)
	record.Edit = e
	return n.write(n.state(originalName), 0o600, p.Edit.before)
}

func (n *node) mkdir(p string, mode os.FileMode) error {
	err := n.Mkdir(rel(p), mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = n.Chmod(rel(p), mode) // whatever the umask
	}
	if err != nil {
		return fmt.Errorf("make directory %s: %w", p, cause(err))
	}
	return nil
}

func (p *Plan) writeFiles(r *Result) error {
	n := p.node
	for _, d := range p.Directories {
		if err := n.mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for _, f := range p.Files {
		if f.Same {
			continue
		}
		if f.Path == p.Containerd.DropIn {
			r.Restart = true
		}
		if err := n.put(f); err != nil {
			return err
		}
		r.Written = append(r.Written, f.Path)
	}
	return nil
}

// put writes a file and compares what was written with the plan.
func (n *node) put(f File) error {
	if f.Target != "" {
		return n.link(f)
	}
	var from io.Reader = bytes.NewReader([]byte(f.Text))
	if f.source != "" {
		src, err := os.Open(f.source)
		if err != nil {
			return err
		}
		defer src.Close() //nolint:errcheck // only read
		from = src
	}
	sum, err := n.copy(f.Path, f.mode, from)
	if err != nil {
		return err
	}
	if sum != f.SHA256 {
		return fmt.Errorf("%s: expected digest %s, got %s (%s was changed meanwhile: try again)", f.Path, f.SHA256, sum, f.source)
	}
	return nil
}

func (n *node) link(f File) error {
	t := temporary(f.Path)
	if err := n.Remove(rel(t)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link %s: %w", f.Path, cause(err))
	}
	err := n.Symlink(f.Target, rel(t))
	if err == nil {
		err = n.Rename(rel(t), rel(f.Path))
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", f.Path, linkCause(err))
	}
	return nil
}

// writeEdit replaces the main file, with the mode and the owner it has.
func (p *Plan) writeEdit(r *Result) error {
	e, n := p.Edit, p.node
	if e == nil || bytes.Equal(e.before, e.after) {
		return nil
	}
	mode, uid, gid := os.FileMode(0o644), -1, -1
	if !e.Create {
		info, err := n.Stat(rel(e.Path))
		if err != nil {
			return fmt.Errorf("%s: %w", e.Path, cause(err))
		}
		mode = info.Mode().Perm()
		uid, gid = owner(info)
		if sum, err := n.digest(e.Path); err != nil || sum != digestOf(e.before) {
			return errors.Join(err, fmt.Errorf("%s was changed meanwhile (try again)", e.Path))
		}
	}
	if err := n.replace(e.Path, mode, uid, gid, e.after); err != nil {
		return err
	}
	r.Written, r.Restart = append(r.Written, e.Path), true
	return nil
}

// replace is write that keeps an owner.
func (n *node) replace(p string, mode os.FileMode, uid, gid int, data []byte) error {
	_, err := n.stage(p, mode, bytes.NewReader(data))
	if err == nil && uid >= 0 {
		err = n.Chown(rel(temporary(p)), uid, gid)
	}
	if err == nil {
		err = n.Rename(rel(temporary(p)), rel(p))
	}
	if err != nil {
		_ = n.Remove(rel(temporary(p)))
		return fmt.Errorf("write %s: %w", p, linkCause(err))
	}
	return nil
}

// finish removes what an earlier installation had besides, and completes the
// record.
func (p *Plan) finish(record *Record, r *Result) error {
	n := p.node
	keep := record.Files[:0:0]
	for _, f := range record.Files {
		if i := slices.IndexFunc(p.Files, func(x File) bool { return x.Path == f.Path }); i >= 0 {
			if f.Target == "" {
				f.SHA256 = []string{p.Files[i].SHA256}
			}
			keep = append(keep, f)
			continue
		}
		if err := n.removeFile(f, r); err != nil {
			return err
		}
		if left, err := n.exists(f.Path); err == nil && left {
			keep = append(keep, f)
		}
	}
	record.Files = keep
	record.Directories = slices.DeleteFunc(record.Directories, func(d string) bool {
		used := slices.ContainsFunc(keep, func(f RecordedFile) bool { return under(f.Path, d) }) || under(n.state(recordName), d) ||
			record.Edit != nil && under(record.Edit.Path, d)
		return !used && n.Remove(rel(d)) == nil
	})
	record.Complete = true
	return n.store(record)
}

func under(p, dir string) bool {
	for ; p != "/"; p = path.Dir(p) {
		if p == dir {
			return true
		}
	}
	return false
}

// back undoes a failed installation: of a first one nothing stays, of a later
// one containerd's files are as they were.
func (p *Plan) back(ctx context.Context, record *Record, dropIn []byte, failure error) error {
	n := p.node
	if p.old == nil {
		if err := n.remove(context.WithoutCancel(ctx), record, false, &Result{}); err != nil {
			return errors.Join(failure, fmt.Errorf("and what was written could not be taken back: %w (run coffer uninstall)", err))
		}
		return fmt.Errorf("%w (everything that was written has been taken back)", failure)
	}
	err := n.restore(newEdit(record.Edit, p.old.Edit), &Result{})
	if dropIn != nil && err == nil {
		err = n.write(p.Containerd.DropIn, 0o644, dropIn)
		record.file(p.Containerd.DropIn).SHA256 = append(record.file(p.Containerd.DropIn).SHA256, digestOf(dropIn))
	}
	if err == nil {
		record.Edit = p.old.Edit
		err = n.store(record)
	}
	return errors.Join(fmt.Errorf("%w (containerd's files are as they were; for the rest run coffer install again, or coffer uninstall)", failure), err)
}

// newEdit is an edit that the earlier installation did not make; nil: there is
// none.
func newEdit(now, before *RecordedEdit) *RecordedEdit {
	if now == before {
		return nil
	}
	return now
}
