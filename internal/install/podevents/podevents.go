// Package podevents makes events in Kubernetes of the notices that shims keep of
// their pods (internal/host/notice), so that `kubectl describe pod` shows them.
//
// A [Poster] looks at the files whenever one changes, and from time to time, and
// posts what it has not posted yet. The name of an event is made of pod and
// notice: after a restart it is posted again, and the API server says that it
// exists. What cannot be posted is tried again, ever more rarely, while the file
// is there: of a pod that has ended it stays, within bounds, until all of it was
// posted, so that nothing is lost while the API server or this program is away.
// What was posted of files that are still there is noted beside them, so that an
// event is not posted again after the API server has forgotten it.
package podevents

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/install/kubeapi"
)

// API is the part of the Kubernetes API that is needed; *kubeapi.Client
// implements it.
type API interface {
	CreateEvent(ctx context.Context, e kubeapi.Event) error
}

// Poster is one node's. It is run once.
type Poster struct {
	// Dirs are the shims' state directories at this moment. They need not be
	// there.
	Dirs func() []string
	API  API
	// Node is the node's name.
	Node string
	// Every is how often the files are looked at when nothing seems to change.
	// Default 10 s.
	Every  time.Duration
	Logger *slog.Logger

	known   map[string]*attempt // by the notice's key
	marked  map[string][]string // by state directory: keys, as they were noted last
	problem string              // with the files, as it was logged last
	unkept  string              // with the notes, likewise
}

// Pauses after a failure, which grow.
const (
	firstRetry = time.Second
	lastRetry  = 2 * time.Minute
)

// Run posts until ctx ends.
func (p *Poster) Run(ctx context.Context) {
	if p.Every == 0 {
		p.Every = 10 * time.Second
	}
	w := newWatcher(p.Logger)
	defer w.close()
	var pause time.Duration
	for {
		// First watched, then read: what comes in between is seen again.
		dirs := p.Dirs()
		w.watch(dirs)
		places := p.look(ctx, dirs)
		well := p.round(ctx, flat(places))
		p.settle(ctx, places)
		if well {
			pause = 0
		} else {
			pause = min(max(2*pause, firstRetry), lastRetry)
		}
		if !w.wait(ctx, pause, p.Every) {
			return
		}
	}
}

// attempt is what became of a notice.
type attempt struct {
	done bool
	// next is when to try again, after a refusal that may end.
	next  time.Time
	pause time.Duration
	// seen is set when the notice is still there.
	seen bool
}

// round posts what is new. It is false when the API server does not answer as it
// should: then nothing more is asked of it for some time.
func (p *Poster) round(ctx context.Context, all []notice.Notice) bool {
	if p.known == nil {
		p.known = map[string]*attempt{}
	}
	for _, a := range p.known {
		a.seen = false
	}
	well := true
	for _, n := range all {
		if !n.Pod.Kubernetes() {
			continue
		}
		a := p.known[n.Key()]
		if a == nil {
			a = &attempt{}
			p.known[n.Key()] = a
		}
		a.seen = true
		if well && !a.done && !time.Now().Before(a.next) {
			well = p.post(ctx, n, a)
		}
	}
	maps.DeleteFunc(p.known, func(_ string, a *attempt) bool { return !a.seen })
	return well
}

// post posts one; false: the API server does not answer as it should.
func (p *Poster) post(ctx context.Context, n notice.Notice, a *attempt) bool {
	err := p.API.CreateEvent(ctx, p.event(n))
	log := p.Logger.With("pod", n.Pod.Namespace+"/"+n.Pod.Name, "reason", n.Reason)
	switch {
	case err == nil:
		a.done = true
		log.InfoContext(ctx, "posted an event of a pod", "message", n.Message)
	case errors.Is(err, kubeapi.ErrExists), errors.Is(err, kubeapi.ErrNotFound):
		a.done = true // an earlier run's; or the pod is gone with its namespace
	case errors.Is(err, kubeapi.ErrInvalid):
		a.done = true
		log.ErrorContext(ctx, "an event of a pod is not taken", "error", err, "message", n.Message)
	case errors.Is(err, kubeapi.ErrForbidden):
		// A namespace that is being deleted, or a right that is missing, which
		// somebody may give.
		a.pause = min(max(2*a.pause, firstRetry), lastRetry)
		a.next = time.Now().Add(a.pause)
		log.WarnContext(ctx, "an event of a pod is refused", "error", err, "next", a.pause)
	case ctx.Err() == nil:
		log.WarnContext(ctx, "an event of a pod could not be posted", "error", err)
		return false
	}
	return ctx.Err() == nil
}

// event is a notice as Kubernetes has it.
func (p *Poster) event(n notice.Notice) kubeapi.Event {
	at := n.At
	if now := time.Now(); at.IsZero() || at.After(now) {
		at = now
	}
	return kubeapi.Event{
		Name: eventName(n), Namespace: n.Pod.Namespace, Pod: n.Pod.Name, UID: n.Pod.UID,
		Warning: n.Reason.Warning(), Reason: string(n.Reason), Message: n.Message, At: at, Node: p.Node,
	}
}

// eventName is a DNS subdomain of at most 253 characters: the pod's name, as with
// other events, and the notice's key.
func eventName(n notice.Notice) string {
	const limit = 253 - 1 - 32
	name := n.Pod.Name
	for len(name) > limit || name != "" && !alphanumeric(name[len(name)-1]) {
		name = name[:min(len(name)-1, limit)]
	}
	if name == "" {
		return n.Key()
	}
	return name + "." + n.Key()
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
}
