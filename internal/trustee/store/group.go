package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Appending to a chain is one after the other by its nature, and a commit
// waits for a disk. So one goroutine writes for all: while one transaction is
// being committed, what comes in is queued, and the next takes all of it.

const (
	maxQueue = 8192
	maxBatch = 512
	// maxBatchBytes bounds one transaction's records and tokens.
	maxBatchBytes = 8 << 20
)

var errClosed = errors.New("the store is closed")

// op is one record to append, with or without a session to finish.
type op struct {
	ctx    context.Context // of who waits
	tenant tenant.Name
	finish *Finished
	columns
	body []byte
	// again: it may be in the database already.
	again bool
	done  chan result // holds one
}

// columns are what queries go by.
type columns struct {
	record, kind, resource, initdata, session, subject string
	at, granted                                        int64
}

func (o *op) size() int {
	n := len(o.body)
	if o.finish != nil {
		n += len(o.finish.Token)
	}
	return n
}

type result struct {
	entry audit.Entry
	err   error
}

// group is the queue and the goroutine that empties it.
type group struct {
	s     *Store
	wake  chan struct{} // holds one
	quit  chan struct{}
	ended chan struct{}

	mu     sync.Mutex
	queue  []*op
	closed bool
}

func (g *group) start(s *Store) {
	g.s, g.wake, g.quit, g.ended = s, make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go g.run()
}

func (g *group) stop() {
	if g.s == nil {
		return
	}
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.quit)
	}
	g.mu.Unlock()
	<-g.ended
}

// submit queues an operation and waits for its outcome. Where ctx ends first
// the outcome is open: it may still be written.
func (g *group) submit(ctx context.Context, o *op) (_ audit.Entry, err error) {
	start := time.Now()
	defer func() { g.s.o.Observer.Operation("append", time.Since(start), err) }()
	g.mu.Lock()
	switch {
	case g.closed:
		g.mu.Unlock()
		return audit.Entry{}, fmt.Errorf("%w: %w", ErrUnavailable, errClosed)
	case len(g.queue) >= maxQueue:
		g.mu.Unlock()
		return audit.Entry{}, fmt.Errorf("%w: %d records are waiting to be written", ErrUnavailable, maxQueue)
	}
	one, cancel := context.WithTimeout(ctx, g.s.o.RetryFor)
	defer cancel()
	o.ctx = one
	g.queue = append(g.queue, o)
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default: // it will look
	}
	select {
	case r := <-o.done:
		return r.entry, r.err
	case <-one.Done():
	}
	if err := ctx.Err(); err != nil {
		return audit.Entry{}, err
	}
	return audit.Entry{}, fmt.Errorf("%w: not written within %v", ErrUnavailable, g.s.o.RetryFor)
}

func (g *group) run() {
	defer close(g.ended)
	for {
		select {
		case <-g.wake:
		case <-g.quit:
			for _, o := range g.rest() {
				o.done <- result{err: fmt.Errorf("%w: %w", ErrUnavailable, errClosed)}
			}
			return
		}
		for batch := g.take(); len(batch) > 0; batch = g.take() {
			g.commit(batch)
			if g.quitting() {
				break // what is left is failed above
			}
		}
	}
}

func (g *group) quitting() bool {
	select {
	case <-g.quit:
		return true
	default:
		return false
	}
}

func (g *group) rest() []*op {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queue
	g.queue = nil
	return q
}

// take removes what fits into one transaction from the queue.
func (g *group) take() []*op {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, 0
	for n < min(len(g.queue), maxBatch) {
		if bytes += g.queue[n].size(); n > 0 && bytes > maxBatchBytes {
			break
		}
		n++
	}
	batch := g.queue[:n:n]
	if g.queue = g.queue[n:]; len(g.queue) == 0 {
		g.queue = nil
	}
	return batch
}

// commit writes a batch and answers each of its operations. It tries again as
// long as anyone waits.
func (g *group) commit(batch []*op) {
	pause := firstPause
	for {
		if batch = waiting(batch); len(batch) == 0 {
			return
		}
		checked := allAgain(batch)
		ctx, cancel := context.WithTimeout(context.Background(), g.s.o.RetryFor/2)
		results, err := g.s.append(ctx, batch)
		timedOut := ctx.Err() != nil
		cancel()
		if err == nil {
			g.s.o.Observer.Batch(len(batch))
			for i, o := range batch {
				o.done <- results[i]
			}
			return
		}
		for _, o := range batch {
			o.again = true
		}
		if unique(err) && !checked {
			continue // one of them is there already: look first
		}
		err, again := g.s.judge(context.Background(), err, timedOut)
		switch {
		case again && g.pause(jitter(pause)):
			g.s.o.Observer.Retry()
			pause = min(2*pause, maxPause)
			continue
		case again:
			err = fmt.Errorf("%w: %w: %w", ErrUnavailable, errClosed, err)
		case len(batch) > 1 && !errors.Is(err, ErrUnavailable):
			// One of them is to blame, and the others are not to suffer for it.
			for i := range batch {
				g.commit(batch[i : i+1])
			}
			return
		}
		for _, o := range batch {
			o.done <- result{err: err}
		}
		return
	}
}

// waiting leaves out operations whose callers have gone.
func waiting(batch []*op) []*op {
	out := make([]*op, 0, len(batch))
	for _, o := range batch {
		if o.ctx.Err() == nil {
			out = append(out, o)
		}
	}
	return out
}

func allAgain(batch []*op) bool {
	for _, o := range batch {
		if !o.again {
			return false
		}
	}
	return true
}

func (g *group) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-g.quit:
		return false
	case <-t.C:
		return true
	}
}
