package datahub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// untilClosed is a lifetime without an end.
const untilClosed = time.Duration(-1)

// limits bound a cache.
type limits struct {
	// lifetime is how long a value is kept; 0: not at all.
	lifetime       time.Duration
	entries, bytes int
}

// cache keeps resources for a while, and makes one request of those that come
// together. Nobody but the cache has the memory of what it keeps: values are
// copied in and out, and wiped when they leave.
type cache struct {
	limits

	mu      sync.Mutex
	entries map[kbs.ResourceURI]*entry
	order   []*entry // oldest first
	size    int
	flights map[kbs.ResourceURI]*flight
	// purges counts those of each trustee: what was asked for before one is
	// not kept after it.
	purges map[string]uint64
	closed bool
}

// entry is a value that is kept.
type entry struct {
	uri   kbs.ResourceURI
	value secret.Bytes
	dead  time.Time // zero: never
	timer *time.Timer
}

// flight is a request under way.
type flight struct {
	purges  uint64
	waiters map[chan result]bool
}

// result is what a waiter gets, the value a copy of its own.
type result struct {
	value secret.Bytes
	err   error
	// abandoned is true when the request ended because its caller did.
	abandoned bool
}

func newCache(l limits) *cache {
	return &cache{
		limits: l, entries: map[kbs.ResourceURI]*entry{},
		flights: map[kbs.ResourceURI]*flight{}, purges: map[string]uint64{},
	}
}

func clone(s secret.Bytes) secret.Bytes { return secret.New(bytes.Clone(s.Expose())) }

// get returns what is kept under a URI, or what fetch returns for it.
func (c *cache) get(ctx context.Context, uri kbs.ResourceURI, fetch func(context.Context) (secret.Bytes, error)) (secret.Bytes, error) {
	for {
		c.mu.Lock()
		if value, ok := c.held(uri); ok {
			c.mu.Unlock()
			return value, nil
		}
		f, ok := c.flights[uri]
		if !ok {
			f = &flight{purges: c.purges[uri.Trustee()], waiters: map[chan result]bool{}}
			c.flights[uri] = f
			c.mu.Unlock()
			return c.lead(ctx, uri, f, fetch)
		}
		wait := make(chan result, 1)
		f.waiters[wait] = true
		c.mu.Unlock()
		r, err := c.join(ctx, f, wait)
		if err != nil {
			return secret.Bytes{}, err
		}
		if !r.abandoned {
			return r.value, r.err
		}
	}
}

// held returns a copy of what is kept. The caller holds the lock.
func (c *cache) held(uri kbs.ResourceURI) (secret.Bytes, bool) {
	e, ok := c.entries[uri]
	if !ok {
		return secret.Bytes{}, false
	}
	if !e.dead.IsZero() && !time.Now().Before(e.dead) {
		c.remove(e)
		return secret.Bytes{}, false
	}
	return clone(e.value), true
}

// lead makes a request and publishes its outcome, even if fetch panics.
func (c *cache) lead(ctx context.Context, uri kbs.ResourceURI, f *flight, fetch func(context.Context) (secret.Bytes, error)) (value secret.Bytes, err error) {
	err = errors.New("the request did not finish")
	defer func() {
		r := result{err: err, abandoned: err != nil && ctx.Err() != nil}
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.flights, uri)
		if err == nil && c.purges[uri.Trustee()] == f.purges {
			c.keep(uri, value)
		}
		for w := range f.waiters {
			if err == nil {
				r.value = clone(value)
			}
			w <- r
		}
	}()
	return fetch(ctx)
}

// join waits for a request that somebody else makes.
func (c *cache) join(ctx context.Context, f *flight, wait chan result) (result, error) {
	select {
	case r := <-wait:
		return r, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(f.waiters, wait)
	select {
	case r := <-wait: // it came too late
		r.value.Clear()
	default:
	}
	return result{}, fmt.Errorf("waiting for the resource: %w", context.Cause(ctx))
}

// keep keeps a copy of a value, and makes room for it. The caller holds the
// lock.
func (c *cache) keep(uri kbs.ResourceURI, value secret.Bytes) {
	if c.closed || c.lifetime == 0 || value.Len() > c.bytes || c.limits.entries < 1 {
		return
	}
	if old, ok := c.entries[uri]; ok {
		c.remove(old)
	}
	for len(c.order) >= c.limits.entries || c.size+value.Len() > c.bytes {
		c.remove(c.order[0])
	}
	e := &entry{uri: uri, value: clone(value)}
	c.order = append(c.order, e)
	c.entries[uri] = e
	c.size += value.Len()
	if c.lifetime == untilClosed {
		return
	}
	e.dead = time.Now().Add(c.lifetime)
	e.timer = time.AfterFunc(c.lifetime, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.entries[uri] == e {
			c.remove(e)
		}
	})
}

// remove wipes and drops an entry. The caller holds the lock.
func (c *cache) remove(e *entry) {
	delete(c.entries, e.uri)
	if i := slices.Index(c.order, e); i >= 0 {
		c.order = slices.Delete(c.order, i, i+1)
	}
	c.size -= e.value.Len()
	if e.timer != nil {
		e.timer.Stop()
	}
	e.value.Clear()
}

// purge drops everything of a trustee.
func (c *cache) purge(trustee string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.purges[trustee]++
	for uri, e := range c.entries {
		if uri.Trustee() == trustee {
			c.remove(e)
		}
	}
}

// close drops everything and keeps nothing from now on.
func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, e := range c.entries {
		c.remove(e)
	}
}
