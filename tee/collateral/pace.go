package collateral

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Bounds of the pace.
const (
	maxLane     = 4    // requests for one kind at a time, once the host takes them
	maxQueue    = 1024 // requests that wait for one kind
	minBackOff  = time.Second
	maxBackOff  = 10 * time.Minute
	maxInterval = time.Minute
	// forget is how long nobody asks before a pace that was learnt counts as
	// history.
	forget = 10 * time.Minute
	// margin makes up for a service that rounds its Retry-After down.
	margin = 50 * time.Millisecond
)

var errQueueFull = errors.New("too many requests wait for this service already")

// pacer sends requests to each host as fast as it takes them: in the order of
// asking, one at a time at first, none while the host wants to be left alone,
// and not faster than it was seen to allow. Waiting follows the machine's clock.
type pacer struct {
	mu    sync.Mutex
	hosts map[string]*host
	known map[Kind]time.Duration // intervals that the caller knows
}

// host is a service. Its lanes, one for each kind of item, have a pace each;
// a wish to be left alone holds for all of them.
type host struct {
	notBefore time.Time
	lanes     map[Kind]*lane
}

type lane struct {
	interval time.Duration // least time between two requests; 0: none is known
	learnt   bool
	next     time.Time // not before
	last     time.Time // when an answer came that was none of "too many"
	active   int       // requests on their way
	good     int       // such answers in a row, up to maxLane
	queue    []*turn
	timer    *time.Timer
}

// turn is a place in the queue.
type turn struct {
	host *host
	kind Kind
	lane *lane
	now  chan struct{} // closed when it is this turn's turn
	sent time.Time
}

func (p *pacer) lane(name string, k Kind) (*host, *lane) {
	h := p.hosts[name]
	if h == nil {
		h = &host{lanes: map[Kind]*lane{}}
		p.hosts[name] = h
	}
	l := h.lanes[k]
	if l == nil {
		l = &lane{interval: p.known[k]}
		h.lanes[k] = l
	}
	if l.learnt && len(l.queue) == 0 && time.Since(l.last) > max(forget, 10*l.interval) {
		l.interval, l.learnt = p.known[k], false
	}
	return h, l
}

// enqueue takes a place at the end.
func (p *pacer) enqueue(name string, k Kind) (*turn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, l := p.lane(name, k)
	if len(l.queue) >= maxQueue {
		return nil, errQueueFull
	}
	t := &turn{host: h, kind: k, lane: l, now: make(chan struct{})}
	l.queue = append(l.queue, t)
	p.pump(h, l)
	return t, nil
}

// again takes a place at the front, for a request that was refused.
func (p *pacer) again(t *turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.now = make(chan struct{})
	t.lane.queue = slices.Insert(t.lane.queue, 0, t)
	p.pump(t.host, t.lane)
}

// wait returns when the request may be sent; done or refused has to follow. An
// error gives the place up.
func (p *pacer) wait(ctx context.Context, t *turn) error {
	select {
	case <-t.now:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(t.lane.queue, t); i >= 0 {
		t.lane.queue = slices.Delete(t.lane.queue, i, i+1)
	} else { // it was about to start
		t.lane.active--
	}
	p.pump(t.host, t.lane)
	return ctx.Err()
}

// limit is how many requests may be on their way: one until the host has
// answered two, so that a host that refuses has to do so only once, and one
// always where the pace is known.
func (l *lane) limit() int {
	if l.interval > 0 {
		return 1
	}
	return min(maxLane, max(1, l.good))
}

// pump starts what may start, and sets the timer for the rest. p.mu is held.
func (p *pacer) pump(h *host, l *lane) {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	for len(l.queue) > 0 && l.active < l.limit() {
		now, at := time.Now(), l.next
		if h.notBefore.After(at) {
			at = h.notBefore
		}
		if wait := at.Sub(now); wait > 0 {
			l.timer = time.AfterFunc(wait, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.pump(h, l)
			})
			return
		}
		t := l.queue[0]
		l.queue = slices.Delete(l.queue, 0, 1)
		l.active++
		t.sent = now
		l.next = now.Add(l.interval)
		close(t.now)
	}
}

// done ends a request that was answered, or that failed otherwise than for
// being too many. waited is how long the host had to be left alone before it
// took this request after refusing it without saying how long.
func (p *pacer) done(t *turn, blind bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, now := t.lane, time.Now()
	l.active--
	l.good = min(maxLane, l.good+1)
	if blind && !l.last.IsZero() {
		l.learn(t.sent.Sub(l.last))
	}
	l.last = now
	l.next = now.Add(l.interval)
	p.pump(t.host, l)
}

// refused ends a request that was one too many. pace is false where the service
// is overloaded rather than keeping a rate. after is what it asks for, 0 if it
// does not say, and blind how often in a row it did not say.
func (p *pacer) refused(t *turn, pace bool, after time.Duration, blind int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, now := t.lane, time.Now()
	l.active--
	l.good = 0
	wait := after + margin
	if after <= 0 {
		wait = minBackOff << min(blind, 20)
	}
	wait = min(max(wait, minBackOff), maxBackOff)
	if pace && after > 0 && !l.last.IsZero() {
		l.learn(t.sent.Sub(l.last) + wait)
	}
	if until := now.Add(wait); until.After(t.host.notBefore) {
		t.host.notBefore = until
	}
	return wait
}

// learn keeps the longest interval that was seen to be needed. One that is too
// long to be a rate is not kept.
func (l *lane) learn(interval time.Duration) {
	if interval <= maxInterval && interval > l.interval {
		l.interval, l.learnt = interval, true
	}
}

// estimate is how long a request that is made now would wait.
func (p *pacer) estimate(name string, k Kind) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, l := p.lane(name, k)
	at := l.next
	if h.notBefore.After(at) {
		at = h.notBefore
	}
	return max(0, time.Until(at)+time.Duration(len(l.queue))*l.interval)
}

// stop ends the timers. Nobody waits any more.
func (p *pacer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.hosts {
		for _, l := range h.lanes {
			if l.timer != nil {
				l.timer.Stop()
			}
		}
	}
}
