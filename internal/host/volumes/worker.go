package volumes

import (
	"context"
	"errors"
	"time"
)

// pace is how a worker keeps time.
type pace struct {
	// settle is how long changes are collected before they are looked at.
	settle time.Duration
	// retry is the first wait after a failure; it doubles up to most.
	retry, most time.Duration
	// attempt bounds one run, if it is not zero: the guest may have to attest and
	// to fetch secrets.
	attempt time.Duration
}

func defaultPace() pace {
	return pace{settle: 50 * time.Millisecond, retry: 500 * time.Millisecond, most: time.Minute, attempt: 3 * time.Minute}
}

// errStopped says that a container was released while it waited.
var errStopped = errors.New("the container or the pod is ending")

// worker brings one volume into the guest and keeps it there. One goroutine does
// all of it, so that nothing needs a lock while the guest is waited for.
type worker struct {
	pace pace
	// work does it; the worker calls it once at a time.
	work func(context.Context) error
	// failed is told of a failure after a change and the time until the next
	// attempt, zero for none, and of a success after failures with a nil error. It
	// may be nil.
	failed func(err error, next time.Duration)
	// final tells that it is pointless to try again before the next change.
	final func(error) bool

	requests chan chan error
	changes  chan struct{}
	stop     context.CancelFunc
	done     chan struct{}
}

// start begins; before, if not nil, is a worker of the same volume that has been
// stopped, and whose end is waited for.
func (w *worker) start(ctx context.Context, before *worker) {
	w.requests, w.changes, w.done = make(chan chan error), make(chan struct{}, 1), make(chan struct{})
	ctx, w.stop = context.WithCancel(ctx)
	go func() {
		defer close(w.done)
		defer w.stop()
		if before != nil {
			<-before.done
		}
		w.run(ctx)
	}()
}

// changed tells that there may be something new. It does not wait.
func (w *worker) changed() {
	select {
	case w.changes <- struct{}{}:
	default:
	}
}

// do has the work done once more, and returns how that went.
func (w *worker) do(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case w.requests <- answer:
	case <-w.done:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	wait, settling, failing := time.Duration(0), false, false
	for {
		select {
		case <-ctx.Done():
			return
		case answer := <-w.requests:
			answer <- w.attempt(ctx)
		case <-w.changes: // which also end the wait after a failure
			if !settling {
				settling, wait = true, 0
				timer.Reset(w.pace.settle)
			}
		case <-timer.C:
			settling = false
			err := w.attempt(ctx)
			if ctx.Err() != nil {
				return
			}
			wait = w.next(err, wait)
			if err != nil || failing {
				w.failed(err, wait)
			}
			if failing = err != nil; wait > 0 {
				timer.Reset(wait)
			}
		}
	}
}

func (w *worker) attempt(ctx context.Context) error {
	if w.pace.attempt > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.pace.attempt)
		defer cancel()
	}
	return w.work(ctx)
}

// next is the wait before the next attempt, zero for none.
func (w *worker) next(err error, before time.Duration) time.Duration {
	switch {
	case err == nil || w.final(err):
		return 0
	case before == 0:
		return w.pace.retry
	}
	return min(2*before, w.pace.most)
}
