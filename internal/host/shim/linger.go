package shim

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// why is why a daemon ends.
type why int

const (
	// asked: by containerd, or a signal.
	asked why = iota
	// forgotten: nobody will ask, see the package's comment.
	forgotten
)

// lookShare is how many looks there are in the time that a daemon lingers.
const lookShare = 8

// vigil finds out that nobody needs a daemon any more.
type vigil struct {
	linger time.Duration
	bundle string
	// over tells that there is no pod to be lost; nil: it never is.
	over func() bool
	// alone is since when nobody is connected; zero when somebody is.
	alone func() time.Time

	since time.Time // the first look at which nothing would have been lost
}

// look tells why the daemon is not needed: an empty text while it is.
func (v *vigil) look(now time.Time) string {
	reason := ""
	switch {
	case missing(v.bundle):
		reason = "its pod's bundle is gone"
	case v.over != nil && v.over():
		reason = "its pod has ended, or was never made"
	}
	alone := v.alone()
	if reason == "" || alone.IsZero() {
		v.since = time.Time{}
		return ""
	}
	if v.since.IsZero() {
		v.since = now
	}
	if now.Sub(v.since) < v.linger || now.Sub(alone) < v.linger {
		return ""
	}
	return reason
}

// missing tells that there is nothing at a path. What cannot be looked at is there.
func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}
