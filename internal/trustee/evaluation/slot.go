package evaluation

import (
	"context"
	"sync"
)

// slot is one verification's place among those that run at once. It is given up
// while the verification waits for collateral: a vendor's service that answers
// slowly, or made-up chips that it has to be asked about, keep nobody else
// from being verified.
type slot struct {
	slots chan struct{}
	ctx   context.Context //nolint:containedctx // the verification's own, which the slot lives no longer than

	mu      sync.Mutex
	waiting int
	held    bool
}

// take waits for a place.
func take(ctx, wait context.Context, slots chan struct{}) (*slot, bool) {
	select {
	case slots <- struct{}{}:
		return &slot{slots: slots, ctx: ctx, held: true}, true
	case <-wait.Done():
		return nil, false
	}
}

// begin gives the place up until every wait is over.
func (s *slot) begin() (end func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting++; s.waiting == 1 {
		s.release()
	}
	return sync.OnceValue(s.end)
}

// end takes a place back when the last wait is over. It keeps the lock while it
// waits for one: only goroutines of the same verification ask for it, and they
// need the same place. Without it two of them could each wait for one of their own.
func (s *slot) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting--; s.waiting > 0 || s.held {
		return nil
	}
	select {
	case s.slots <- struct{}{}:
		s.held = true
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// leave gives the place up for good.
func (s *slot) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release()
}

// release is called with mu held.
func (s *slot) release() {
	if s.held {
		<-s.slots
		s.held = false
	}
}
