package install

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
)

// settled says whether the plan changes nothing of what an earlier installation of
// the same version has written and recorded, and containerd reads it as before.
// The node's agent looks at the node every few minutes: then nothing is written,
// and there is no moment at which the record says that an installation is under way.
func (p *Plan) settled(ctx context.Context, version string, r *Result) bool {
	old := p.old
	if old == nil || !old.Complete || old.Program != version || !slices.Equal(old.Handlers, p.Handlers) || !sameContainerd(old.Containerd, p.Containerd) ||
		len(p.Directories) > 0 || len(p.Remove) > 0 || p.Edit != nil && !bytes.Equal(p.Edit.before, p.Edit.after) {
		return false
	}
	for _, f := range p.Files {
		// Several digests are those of an installation that was interrupted.
		if recorded := old.file(f.Path); !f.Same || recorded == nil || len(recorded.SHA256) > 1 {
			return false
		}
	}
	switch err := p.verify(ctx); {
	case errors.Is(err, errNotChecked):
		r.Notes = append(r.Notes, err.Error())
	case err != nil:
		return false // it is judged, and taken back, as any other
	default:
		r.Checked = true
	}
	r.Restart = p.options.Restarts && old.Restart
	return true
}

// sameContainerd compares what a record has of two; whether an import was missing
// is what the first installation has changed.
func sameContainerd(a, b Containerd) bool {
	for _, c := range []*Containerd{&a, &b} {
		c.Import, c.Major, c.Minor, c.main = "", 0, 0, nil
	}
	return reflect.DeepEqual(a, b)
}
