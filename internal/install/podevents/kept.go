package podevents

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/notice"
)

// place is what there is below a state directory.
type place struct {
	dir   string
	live  []notice.Notice
	ended []notice.Ended
}

// look reads what there is. A problem is logged once.
func (p *Poster) look(ctx context.Context, dirs []string) []place {
	if p.known == nil {
		p.known = map[string]*attempt{}
	}
	if p.marked == nil {
		p.marked = map[string][]string{}
	}
	var all []place
	var problems []error
	for _, dir := range dirs {
		// In this order: a pod that ends meanwhile is seen twice rather than never.
		live, err := notice.Scan(dir)
		ended, kerr := notice.Kept(dir, time.Now())
		all, problems = append(all, place{dir, live, ended}), append(problems, err, kerr)
		problems = append(problems, p.recall(dir))
	}
	if err := errors.Join(problems...); changed(&p.problem, err) {
		p.Logger.WarnContext(ctx, "not all that shims say of their pods can be read", "error", err)
	}
	return all
}

// changed tells a problem that is not the last.
func changed(last *string, err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	different := text != "" && text != *last
	*last = text
	return different
}

func flat(places []place) []notice.Notice {
	var all []notice.Notice
	for _, at := range places {
		all = append(all, at.live...)
		for _, e := range at.ended {
			all = append(all, e.Notices...)
		}
	}
	return all
}

// settle drops what is kept of pods that have ended and has been posted, or is too
// old, and notes what was posted of the rest.
func (p *Poster) settle(ctx context.Context, places []place) {
	var problems []error
	for _, at := range places {
		keys := p.posted(at.live)
		for _, e := range at.ended {
			if !p.waits(e.Notices) {
				problems = append(problems, notice.Drop(at.dir, e.File))
				continue
			}
			keys = append(keys, p.posted(e.Notices)...)
		}
		problems = append(problems, notice.Prune(at.dir, time.Now()), p.mark(at.dir, keys))
	}
	if err := errors.Join(problems...); changed(&p.unkept, err) {
		p.Logger.WarnContext(ctx, "what was posted of pods could not be noted", "error", err)
	}
}

// waits tells that something has not been posted yet.
func (p *Poster) waits(all []notice.Notice) bool {
	return slices.ContainsFunc(all, func(n notice.Notice) bool {
		a := p.known[n.Key()]
		return n.Pod.Kubernetes() && (a == nil || !a.done)
	})
}

// posted are the keys of what has been posted, or is not to be.
func (p *Poster) posted(all []notice.Notice) []string {
	var keys []string
	for _, n := range all {
		if a := p.known[n.Key()]; a != nil && a.done {
			keys = append(keys, n.Key())
		}
	}
	return keys
}

// The file beside the notices of pods that have ended with the keys of what was
// posted, one in a line. A name with a dot is not watched.
const (
	marksName  = notice.KeptName + "/.posted"
	marksLimit = 1 << 20
)

var keyForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// recall reads what an earlier run has noted below a state directory, once.
func (p *Poster) recall(dir string) error {
	if _, known := p.marked[dir]; known {
		return nil
	}
	keys, err := readMarks(dir)
	if err != nil {
		return err // the next time
	}
	p.marked[dir] = keys
	for _, key := range keys {
		p.known[key] = &attempt{done: true}
	}
	return nil
}

func readMarks(dir string) ([]string, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // only read
	f, err := root.OpenFile(marksName, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, marksLimit))
	if err != nil {
		return nil, err
	}
	keys := strings.Fields(string(data))
	return slices.DeleteFunc(keys, func(key string) bool { return !keyForm.MatchString(key) }), nil
}

// mark notes what was posted, if that has changed.
func (p *Poster) mark(dir string, keys []string) error {
	slices.Sort(keys)
	keys = slices.Compact(keys)
	before, known := p.marked[dir]
	if !known || slices.Equal(keys, before) {
		return nil
	}
	if err := writeMarks(dir, keys); err != nil {
		return fmt.Errorf("%s/%s: %w", dir, marksName, err)
	}
	p.marked[dir] = keys
	return nil
}

func writeMarks(dir string, keys []string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) && len(keys) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // what is written was closed
	if err := root.Mkdir(notice.KeptName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if len(keys) == 0 {
		if err := root.Remove(marksName); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	temp := path.Join(notice.KeptName, ".posted.new")
	if err := root.WriteFile(temp, []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	return root.Rename(temp, marksName)
}
