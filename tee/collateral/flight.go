package collateral

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
)

// flight is one fetch of an item, for all who ask.
type flight struct {
	done   chan struct{}
	entry  *Entry
	err    *tee.CollateralError
	cancel context.CancelFunc
	// waiters are those who still want the item, and sending whether the
	// request is on its way, after which it is not worth while to give up.
	// Both are guarded by Client.mu.
	waiters int
	sending bool
}

var errClosed = errors.New("the client is closed")

// join returns the flight of an item and counts the caller in, starting one
// where there is none; or the error that the item had a moment ago.
func (c *Client) join(ctx context.Context, q query) (*flight, *tee.CollateralError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.refusals[q.item]; ok {
		if left := time.Until(r.until); left > 0 {
			err := *r.err
			err.RetryAfter = max(err.RetryAfter, left)
			return nil, &err
		}
		delete(c.refusals, q.item)
	}
	if c.closed {
		return nil, &tee.CollateralError{Item: q.item.words(), Reason: tee.CollateralUnreachable, Err: errClosed}
	}
	f := c.flights[q.item]
	if f == nil {
		// The caller's values stay, for tracing, its end does not.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.patience)
		f = &flight{done: make(chan struct{}), cancel: cancel}
		c.flights[q.item] = f
		c.work.Go(func() {
			defer cancel()
			c.fly(ctx, q, f)
		})
	}
	f.waiters++
	return f, nil
}

// leave counts a caller out. A flight that nobody wants any more is given up,
// unless its request is on its way.
func (c *Client) leave(i Item, f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.waiters--
	c.abandon(i, f)
}

// abandon is called with mu held.
func (c *Client) abandon(i Item, f *flight) {
	if f.waiters > 0 || f.sending {
		return
	}
	f.cancel()
	if c.flights[i] == f {
		delete(c.flights, i)
	}
}

// fetch waits for the item's flight.
func (c *Client) fetch(ctx context.Context, q query) (*Entry, error) {
	f, refused := c.join(ctx, q)
	if refused != nil {
		return nil, refused
	}
	defer c.leave(q.item, f)
	// Who verifies gives its place to others meanwhile.
	resume := tee.Waiting(ctx)
	select {
	case <-f.done:
	case <-ctx.Done():
		_ = resume() // there is nothing to go on with
		c.mu.Lock()
		sending := f.sending
		c.mu.Unlock()
		if sending {
			return nil, c.failure(q, ctx.Err())
		}
		return nil, c.failure(q, &waitError{ctx.Err()})
	}
	if err := resume(); err != nil {
		return nil, c.failure(q, &waitError{err})
	}
	if f.err != nil {
		return nil, f.err
	}
	return f.entry, nil
}

// refresh fetches an item in the background, unless that is under way already.
func (c *Client) refresh(q query) {
	c.mu.Lock()
	_, flying := c.flights[q.item]
	c.mu.Unlock()
	if flying {
		return
	}
	_, _ = c.join(context.Background(), q) // counted in for good: the client itself wants it
}

// fly gets the item and tells everybody.
func (c *Client) fly(ctx context.Context, q query, f *flight) {
	entry, err := c.obtain(ctx, q, f)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flights[q.item] == f {
		delete(c.flights, q.item)
	}
	f.entry, f.err = entry, err
	if err != nil && ctx.Err() == nil {
		c.refuse(q.item, err)
	}
	close(f.done)
}

// refuse remembers for a moment that an item could not be had. mu is held.
func (c *Client) refuse(i Item, err *tee.CollateralError) {
	now := time.Now()
	if len(c.refusals) >= maxMemory {
		for other, r := range c.refusals {
			if now.After(r.until) || len(c.refusals) >= maxMemory {
				delete(c.refusals, other)
			}
		}
	}
	span := c.negative
	if err.Reason == tee.CollateralUnknown {
		span *= unknownFor
	}
	c.refusals[i] = refusal{err, now.Add(span)}
}

// obtain looks whether an earlier flight or another process was faster, and
// else asks the service.
func (c *Client) obtain(ctx context.Context, q query, f *flight) (*Entry, *tee.CollateralError) {
	c.mu.Lock()
	e := c.memory[q.item]
	c.mu.Unlock()
	if e == nil || c.due(e, c.now()) {
		if e = c.load(q.item); e != nil {
			c.remember(e)
		}
	}
	if e != nil && !c.due(e, c.now()) {
		c.event(Event{Type: EventHit, Item: q.item, Source: e.Source})
		return e, nil
	}
	a, err := c.download(ctx, q, func(sending bool) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		f.sending = sending
		if !sending {
			c.abandon(q.item, f)
		}
		return ctx.Err() == nil
	})
	if err == nil {
		var e *Entry
		if e, err = c.accept(q, a); err == nil {
			return e, nil
		}
		err = &contentError{err}
	}
	failure := c.failure(q, err)
	c.event(Event{Type: EventFailed, Item: q.item, Source: q.url, Err: failure})
	return nil, failure
}

// accept checks an answer and keeps it.
func (c *Client) accept(q query, a answer) (*Entry, error) {
	e, err := c.checks.check(q.item, a.body, a.chain)
	if err != nil {
		return nil, err
	}
	e.Source, e.Fetched = q.url, c.now().UTC().Truncate(time.Second)
	c.mu.Lock()
	old := c.memory[q.item]
	c.mu.Unlock()
	if old != nil && dated(q.item.Kind) && old.Issued.After(e.Issued) {
		return nil, fmt.Errorf("the document is of %s, older than the one of %s that is known", e.Issued.UTC().Format(time.RFC3339), old.Issued.UTC().Format(time.RFC3339))
	}
	c.remember(e)
	c.keep(e)
	return e, nil
}

// keep writes an item to the directory. That it cannot is no reason not to use
// it.
func (c *Client) keep(e *Entry) {
	kind, err := EventStored, error(nil)
	if c.store != nil {
		if err = c.store.save(e); err != nil {
			kind = EventNotStored
		}
	}
	c.event(Event{Type: kind, Item: e.Item, Source: e.Source, Err: err})
}

// dated reports whether a later document replaces an earlier one.
func dated(k Kind) bool {
	switch k {
	case VCEK, AMDChain, RIM, HSKCEK:
		return false
	}
	return true
}
