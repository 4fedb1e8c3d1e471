package trustee

import (
	"context"
	"sync"
	"time"
)

const (
	// readyTimeout bounds the question whether the database answers, which is
	// asked without the patience that requests have.
	readyTimeout = 2 * time.Second
	// readyFor is how long an answer is passed on. No limit of requests holds
	// for /readyz, and anyone can ask: the database must not hear of each.
	readyFor = 500 * time.Millisecond
)

// readiness is the database's last answer. The zero value has none.
type readiness struct {
	mu  sync.Mutex // held while it is asked: who comes meanwhile shares the answer
	at  time.Time
	err error
}

// check reports whether the database answered, and whether it was asked for
// this caller.
func (x *readiness) check(ctx context.Context, ping func(context.Context) error, now func() time.Time) (err error, asked bool) { //nolint:revive // the error is a value here
	x.mu.Lock()
	defer x.mu.Unlock()
	if age := now().Sub(x.at); !x.at.IsZero() && age >= 0 && age < readyFor {
		return x.err, false
	}
	// Whoever goes away must not leave a failure behind for the others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
	defer cancel()
	x.err = ping(ctx)
	x.at = now()
	return x.err, true
}
