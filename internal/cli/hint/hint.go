// Package hint attaches to an error what its reader can do about it.
package hint

import "errors"

type hinted struct {
	error
	hints []string
}

func (h *hinted) Unwrap() error { return h.error }

// New returns err with hints, or nil if err is nil.
func New(err error, hints ...string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hints}
}

// Of returns the hints along err's chain, outermost first.
func Of(err error) []string {
	var all []string
	for {
		h, ok := errors.AsType[*hinted](err)
		if !ok {
			return all
		}
		all = append(all, h.hints...)
		err = h.error
	}
}
