package agent

import (
	"context"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// maxEvents is how many events are kept for a host that is not there. The
// numbers of later ones show a gap.
const maxEvents = 512

// eventLog keeps the last events and wakes whoever follows them.
type eventLog struct {
	now func() time.Time

	mu     sync.Mutex
	next   uint64 // sequence number of the next event
	events []*agentapi.Event
	more   chan struct{} // closed when an event is added
}

func newEventLog(now func() time.Time) *eventLog {
	return &eventLog{now: now, next: 1, more: make(chan struct{})}
}

// add takes ownership of e and numbers it.
func (l *eventLog) add(e *agentapi.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Sequence, e.At = l.next, l.now().UnixNano()
	l.next++
	if len(l.events) == maxEvents {
		copy(l.events, l.events[1:])
		l.events = l.events[:maxEvents-1]
	}
	l.events = append(l.events, e)
	close(l.more)
	l.more = make(chan struct{})
}

// after waits for events with a number above seq and returns those.
func (l *eventLog) after(ctx context.Context, seq uint64) ([]*agentapi.Event, error) {
	for {
		l.mu.Lock()
		more := l.more
		for i, e := range l.events {
			if e.GetSequence() > seq {
				out := append([]*agentapi.Event(nil), l.events[i:]...)
				l.mu.Unlock()
				return out, nil
			}
		}
		l.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
