// Package collateral gets what verifiers of evidence need beside the evidence:
// AMD's chip certificates and revocation lists, Intel's TCB info, identities of
// quoting enclaves and revocation lists, NVIDIA's reference manifests and
// certificate status, and Hygon's chip certificates.
//
// A [Client] answers from memory, then from its directory, then from further
// stores, and only then asks the vendor's service. Everything is checked before
// it is kept or returned ([Checks]): signed by the vendor, for the chip, patch
// level or platform that was asked for, not older than what is known already.
// Dates are left to the verifier, because an old revocation list is better than
// none where nothing fresher can be had.
//
// # Manners
//
// There is one request for an item at a time, however many ask for it; a caller
// who gives up does not end it for the others. Requests to a service that wants
// to be left alone (status 429 or 503, Retry-After) wait in order; what pace the
// service allows is learnt from its first refusal, so that there are hardly any
// more. An item that could not be had is not asked for again for a moment, so
// that evidence with made-up chips is no load for the service.
//
// # Lifetimes
//
// Certificates are kept until they expire. Dated documents are fetched anew in
// the background after [Options].MaxAge, or half of what is left of their
// lifetime; meanwhile the known one is returned. Past its date a document is
// fetched in the foreground, and returned all the same where that fails.
//
// docs/collateral.md describes the files.
package collateral

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/coffer-project/coffer/tee"
)

// Defaults of [Options].
const (
	DefaultMaxAge   = 24 * time.Hour
	DefaultTimeout  = 30 * time.Second
	DefaultNegative = 10 * time.Second
	DefaultPatience = 30 * time.Minute

	maxMemory = 4096
	// staleWait is how long a caller waits for a fresher document than a stale
	// one that is known.
	staleWait  = 10 * time.Second
	undatedAge = 7 * 24 * time.Hour // of manifests, which have no date
	unknownFor = 6                  // times Negative: an item that the service does not know
)

// Options configure a client. Checks are needed, all else has defaults.
type Options struct {
	// Dir is the directory where what is fetched is kept; it is made where it
	// is missing. Empty: in memory only.
	Dir string
	// Stores are looked at in order for what Dir does not have, or has an older
	// one of. They are not written.
	Stores []Source
	// Offline: nothing is fetched.
	Offline bool
	// Endpoints are the services.
	Endpoints Endpoints
	// Update is Intel's track; empty: Standard.
	Update Update
	// Checks verify what arrives.
	Checks Checks
	// HTTP has the transport; redirects follow rules of their own. Nil: the
	// default transport.
	HTTP *http.Client
	// Now is the clock that dates are compared with. Nil: time.Now. Waiting
	// always follows the machine's clock.
	Now func() time.Time
	// MaxAge is after how long a dated document is fetched anew though it is
	// still valid. 0: DefaultMaxAge.
	MaxAge time.Duration
	// Timeout bounds one request. 0: DefaultTimeout.
	Timeout time.Duration
	// Negative is for how long an item is not asked for again that could not
	// be had; six times that long where the service says that there is no such
	// thing. 0: DefaultNegative.
	Negative time.Duration
	// Patience bounds all the waiting and trying for one item. 0:
	// DefaultPatience.
	Patience time.Duration
	// VCEKInterval is the least time between two requests for VCEKs, where it
	// is known. 0: it is learnt.
	VCEKInterval time.Duration
	// OnEvent is told what happens; it must be quick and safe for concurrent
	// use. May be nil.
	OnEvent func(Event)
}

// Source is a place where collateral is, unverified. [Store] and [Files] are
// sources.
type Source interface {
	// Load returns an error that is fs.ErrNotExist for what it does not have.
	Load(Item) (*Entry, error)
}

// Client gets collateral. It is safe for concurrent use. Close ends it.
type Client struct {
	now       func() time.Time
	http      *http.Client
	endpoints Endpoints
	update    Update
	checks    Checks
	offline   bool
	maxAge    time.Duration
	timeout   time.Duration
	negative  time.Duration
	patience  time.Duration
	onEvent   func(Event)
	store     *Store // nil: none
	stores    []Source
	pacer     *pacer

	work sync.WaitGroup
	mu   sync.Mutex
	// memory holds what was checked; flights what is being fetched; refusals
	// what could not be had.
	memory   map[Item]*Entry
	flights  map[Item]*flight
	refusals map[Item]refusal
	closed   bool
}

type refusal struct {
	err   *tee.CollateralError
	until time.Time
}

// New returns a client.
func New(o Options) (*Client, error) {
	endpoints, err := o.Endpoints.normalize()
	if err != nil {
		return nil, err
	}
	if o.Update == "" {
		o.Update = Standard
	}
	if o.Update != Standard && o.Update != Early {
		return nil, fmt.Errorf("collateral: update: expected standard or early, got %.32q", string(o.Update))
	}
	c := &Client{
		now: o.Now, endpoints: endpoints, update: o.Update, checks: o.Checks, offline: o.Offline, onEvent: o.OnEvent, stores: o.Stores,
		pacer:  &pacer{hosts: map[string]*host{}, known: map[Kind]time.Duration{VCEK: o.VCEKInterval}},
		memory: map[Item]*Entry{}, flights: map[Item]*flight{}, refusals: map[Item]refusal{},
	}
	for _, d := range []struct {
		to              *time.Duration
		value, fallback time.Duration
	}{
		{&c.maxAge, o.MaxAge, DefaultMaxAge}, {&c.timeout, o.Timeout, DefaultTimeout},
		{&c.negative, o.Negative, DefaultNegative}, {&c.patience, o.Patience, DefaultPatience},
	} {
		if *d.to = d.value; d.value == 0 {
			*d.to = d.fallback
		}
		if d.value < 0 || o.VCEKInterval < 0 {
			return nil, errors.New("collateral: a negative duration")
		}
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.http = harden(o.HTTP)
	if o.Dir != "" {
		if c.store, err = openDir(o.Dir, o.Offline); err != nil {
			return nil, fmt.Errorf("collateral: %w", err)
		}
	}
	return c, nil
}

func openDir(dir string, offline bool) (*Store, error) {
	if offline {
		return OpenStore(dir)
	}
	return createStore(dir)
}

// Close ends what is under way and waits for it.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, f := range c.flights {
		f.cancel()
	}
	c.mu.Unlock()
	c.work.Wait()
	c.pacer.stop()
	c.http.CloseIdleConnections()
	if c.store != nil {
		return c.store.Close()
	}
	return nil
}

func (c *Client) event(e Event) {
	if c.onEvent != nil {
		c.onEvent(e)
	}
}

// Get returns an item, of any kind but OCSP, which needs certificates. The
// error is a *[tee.CollateralError].
func (c *Client) Get(ctx context.Context, i Item) (*Entry, error) {
	if i.Kind == OCSP {
		return nil, &tee.CollateralError{Item: i.words(), Reason: tee.CollateralMissing, Err: errors.New("a status is asked for with its certificates")}
	}
	url, err := c.endpoints.url(i)
	if err != nil {
		return nil, &tee.CollateralError{Item: i.words(), Reason: tee.CollateralMissing, Err: err}
	}
	return c.get(ctx, query{item: i, url: url})
}

// Fetch is [Client.Get] for those who fetch beforehand: where it is time to fetch
// the item anew, it waits for that, and fails where that fails. fresh is false
// where what is known will do.
func (c *Client) Fetch(ctx context.Context, i Item) (e *Entry, fresh bool, err error) {
	url, err := c.endpoints.url(i)
	if err != nil || i.Kind == OCSP || c.offline {
		e, err = c.Get(ctx, i)
		return e, false, err
	}
	q := query{item: i, url: url}
	if e := c.known(q); e != nil && !c.due(e, c.now()) {
		c.event(Event{Type: EventHit, Item: i, Source: e.Source})
		return e, false, nil
	}
	e, err = c.fetch(ctx, q)
	return e, err == nil, err
}

// get answers a query.
func (c *Client) get(ctx context.Context, q query) (*Entry, error) {
	now := c.now()
	e := c.known(q)
	switch {
	case e != nil && !c.due(e, now):
		c.event(Event{Type: EventHit, Item: q.item, Source: e.Source})
		return e, nil
	case c.offline && e == nil:
		err := &tee.CollateralError{Item: q.item.words(), Reason: tee.CollateralMissing}
		c.event(Event{Type: EventFailed, Item: q.item, Err: err})
		return nil, err
	case e != nil && (c.offline || !e.Stale(now)):
		if !c.offline {
			c.refresh(q)
		}
		kind := EventHit
		if e.Stale(now) {
			kind = EventStale
		}
		c.event(Event{Type: kind, Item: q.item, Source: e.Source})
		return e, nil
	}
	if e != nil { // somebody waits for it, but not for long, and the fetch goes on
		c.refresh(q)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, staleWait)
		defer cancel()
	}
	fresh, err := c.fetch(ctx, q)
	if err == nil {
		return fresh, nil
	}
	if e != nil {
		c.event(Event{Type: EventStale, Item: q.item, Source: e.Source, Err: err})
		return e, nil
	}
	return nil, err
}

// due reports whether it is time to fetch the item anew.
func (c *Client) due(e *Entry, now time.Time) bool {
	if e.Stale(now) {
		return true
	}
	age := now.Sub(e.Fetched)
	switch e.Item.Kind {
	case VCEK, AMDChain, HSKCEK:
		return false
	case RIM:
		return age >= max(undatedAge, c.maxAge)
	}
	return age >= min(c.maxAge, e.NextUpdate.Sub(e.Fetched)/2)
}

// known is what memory has, or else the stores.
func (c *Client) known(q query) *Entry {
	c.mu.Lock()
	e := c.memory[q.item]
	c.mu.Unlock()
	if e != nil {
		return e
	}
	if e = c.load(q.item); e != nil {
		c.remember(e)
	}
	return e
}

// remember keeps an entry in memory, unless that has a newer one.
func (c *Client) remember(e *Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.memory[e.Item]
	if ok && newer(old, e) {
		return
	}
	if !ok && len(c.memory) >= maxMemory {
		for other := range c.memory {
			delete(c.memory, other)
			break
		}
	}
	c.memory[e.Item] = e
}

// newer reports whether a is the later document.
func newer(a, b *Entry) bool {
	if !a.Issued.Equal(b.Issued) {
		return a.Issued.After(b.Issued)
	}
	return a.Fetched.After(b.Fetched)
}

// load returns the newest that the directory and the stores have and that passes
// the checks, or nil.
func (c *Client) load(i Item) *Entry {
	var best *Entry
	if c.store != nil {
		best = c.loadFrom(c.store, i)
	}
	for _, s := range c.stores {
		if e := c.loadFrom(s, i); e != nil && (best == nil || newer(e, best)) {
			best = e
		}
	}
	return best
}

func (c *Client) loadFrom(s Source, i Item) *Entry {
	raw, err := s.Load(i)
	if err == nil {
		var e *Entry
		if e, err = c.checks.check(i, raw.Body, raw.Chain); err == nil {
			e.Source, e.Fetched = raw.Source, raw.Fetched
			return e
		}
		err = &damagedError{raw.Source, err}
	}
	if damaged, ok := errors.AsType[*damagedError](err); ok {
		if s == Source(c.store) && !c.offline {
			_ = c.store.setAside(i) // where that fails, the next writer replaces it
		}
		c.event(Event{Type: EventDamaged, Item: i, Source: damaged.file, Err: damaged.err})
	}
	return nil
}
