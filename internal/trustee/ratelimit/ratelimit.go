// Package ratelimit keeps one client from taking the trustee for itself: a
// token bucket and a cap of concurrent requests per network address. Tenants
// share the limits, since a guest chooses the tenant it asks for.
//
// Memory is bounded: beyond [Options].MaxClients the client that was quiet for
// longest is forgotten, and one with requests under way never is.
package ratelimit

import (
	"container/list"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"
)

// shards is how many locks the clients are spread over.
const shards = 32

// Limits of [Options], to notice a wrong unit.
const (
	maxRate    = 1e6
	maxClients = 10_000_000
)

// Defaults of [Options].
const (
	DefaultRate       = 50
	DefaultBurst      = 200
	DefaultConcurrent = 64
	DefaultMaxClients = 100_000
)

// Options configure [New]. Zero fields get their defaults.
type Options struct {
	// Rate is how many requests per second a client may make in the long run.
	Rate float64
	// Burst is how many it may make at once after a pause.
	Burst int
	// Concurrent is how many of its requests may be under way.
	Concurrent int
	// MaxClients is how many clients are remembered.
	MaxClients int
	// Exempt are networks without limits, for example of health checks.
	Exempt []netip.Prefix
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Limiter limits clients. It is safe for concurrent use; nothing is locked
// while a request is served.
type Limiter struct {
	o    Options
	seed maphash.Seed
	sh   [shards]shard
}

type shard struct {
	mu sync.Mutex
	// clients are elements of order, most recently seen first.
	clients map[string]*list.Element
	order   *list.List
	max     int
}

type client struct {
	key    string
	tokens float64
	last   time.Time
	active int
}

// New checks the options.
func New(o Options) (*Limiter, error) {
	if o.Rate == 0 {
		o.Rate = DefaultRate
	}
	if o.Burst == 0 {
		o.Burst = DefaultBurst
	}
	if o.Concurrent == 0 {
		o.Concurrent = DefaultConcurrent
	}
	if o.MaxClients == 0 {
		o.MaxClients = DefaultMaxClients
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	switch {
	case math.IsNaN(o.Rate) || o.Rate <= 0 || o.Rate > maxRate:
		return nil, fmt.Errorf("ratelimit: rate: expected more than 0 and at most %g requests per second, got %g", maxRate, o.Rate)
	case o.Burst < 1 || float64(o.Burst) > maxRate:
		return nil, fmt.Errorf("ratelimit: burst: expected 1 to %g requests, got %d", maxRate, o.Burst)
	case o.Concurrent < 1:
		return nil, fmt.Errorf("ratelimit: concurrent: expected at least 1 request, got %d", o.Concurrent)
	case o.MaxClients < shards || o.MaxClients > maxClients:
		return nil, fmt.Errorf("ratelimit: max_clients: expected %d to %d, got %d", shards, maxClients, o.MaxClients)
	}
	l := &Limiter{o: o, seed: maphash.MakeSeed()}
	for i := range l.sh {
		l.sh[i] = shard{clients: make(map[string]*list.Element), order: list.New(), max: o.MaxClients / shards}
	}
	return l, nil
}

// Key is what a client is told apart by: its IPv4 address, or the /64 network
// of its IPv6 address, since a host usually owns a whole one. The invalid
// address, such as that of a Unix socket, is one client.
func Key(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		return netip.PrefixFrom(a, 64).Masked().String()
	}
	return a.String()
}

// Exempt reports whether an address has no limits.
func (l *Limiter) Exempt(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range l.o.Exempt {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Allow takes one request from the client's bucket. When it is empty,
// retryAfter is how long the client has to wait.
func (l *Limiter) Allow(key string) (ok bool, retryAfter time.Duration) {
	s := l.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.get(key, l)
	if c == nil {
		return false, time.Second
	}
	return l.take(c)
}

// Reason says which limit refused a request.
type Reason string

// Reasons.
const (
	Rate        Reason = "rate"
	Concurrency Reason = "concurrency"
	// Clients: every client that is remembered has requests under way.
	Clients Reason = "clients"
)

// Refusal is a request beyond the limits.
type Refusal struct {
	Reason     Reason
	RetryAfter time.Duration
}

// Acquire takes a request from the client's bucket and counts it as under way
// until release is called, which is harmless more than once. The refusal is
// nil when it may proceed; release is never nil.
func (l *Limiter) Acquire(key string) (release func(), refused *Refusal) {
	s := l.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.get(key, l)
	if c == nil {
		return func() {}, &Refusal{Clients, time.Second}
	}
	// The cap comes first: what it refuses costs the client no token.
	if c.active >= l.o.Concurrent {
		return func() {}, &Refusal{Concurrency, time.Second}
	}
	if ok, wait := l.take(c); !ok {
		return func() {}, &Refusal{Rate, wait}
	}
	c.active++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.active--
	}), nil
}

// Clients is how many clients are remembered.
func (l *Limiter) Clients() int {
	n := 0
	for i := range l.sh {
		s := &l.sh[i]
		s.mu.Lock()
		n += len(s.clients)
		s.mu.Unlock()
	}
	return n
}

func (l *Limiter) shard(key string) *shard {
	return &l.sh[maphash.String(l.seed, key)%shards]
}

// get returns the client, made room for where it is new; nil when there is
// none.
//
// Preconditions: s.mu is held.
func (s *shard) get(key string, l *Limiter) *client {
	if e, ok := s.clients[key]; ok {
		s.order.MoveToFront(e)
		c, _ := e.Value.(*client)
		return c
	}
	for len(s.clients) >= s.max {
		if !s.forget() {
			return nil
		}
	}
	c := &client{key: key, tokens: float64(l.o.Burst), last: l.o.Now()}
	s.clients[key] = s.order.PushFront(c)
	return c
}

// maxSkip is how many clients with requests under way are passed over in the
// search for one to forget.
const maxSkip = 64

// forget drops the client that was quiet for longest.
func (s *shard) forget() bool {
	for range maxSkip {
		e := s.order.Back()
		if e == nil {
			return false
		}
		c, _ := e.Value.(*client)
		if c.active == 0 {
			s.order.Remove(e)
			delete(s.clients, c.key)
			return true
		}
		s.order.MoveToFront(e)
	}
	return false
}

// take refills the bucket and takes a token. A clock that jumps back refills
// nothing.
func (l *Limiter) take(c *client) (bool, time.Duration) {
	now := l.o.Now()
	if d := now.Sub(c.last); d > 0 {
		c.tokens = min(float64(l.o.Burst), c.tokens+d.Seconds()*l.o.Rate)
	}
	c.last = now
	if c.tokens >= 1 {
		c.tokens--
		return true, 0
	}
	return false, time.Duration(math.Ceil((1 - c.tokens) / l.o.Rate * float64(time.Second)))
}
