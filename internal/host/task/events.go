package task

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Topics of events, as in containerd/containerd core/runtime/events.go.
const (
	topicCreate      = "/tasks/create"
	topicStart       = "/tasks/start"
	topicExit        = "/tasks/exit"
	topicDelete      = "/tasks/delete"
	topicOOM         = "/tasks/oom"
	topicExecAdded   = "/tasks/exec-added"
	topicExecStarted = "/tasks/exec-started"
)

type item struct {
	topic string
	event any
}

// queue publishes events one after the other. Putting one in never waits, so
// that it can be done under the lock of what it tells of: that makes the order.
// It is as long as containerd is slow, and grows only with what containerd asks
// for; what the guest tells is bounded before it comes here.
type queue struct {
	mu    sync.Mutex
	items []item
	busy  bool // one is being published
	ended bool
	more  chan struct{} // has a token when something has been put
	idle  chan struct{} // closed and replaced when nothing is left

	cancel context.CancelFunc
	done   chan struct{}
}

func newQueue(publish func(ctx context.Context, topic string, event any)) *queue {
	ctx, cancel := context.WithCancel(context.Background())
	q := &queue{more: make(chan struct{}, 1), idle: make(chan struct{}), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(q.done)
		for {
			for {
				i, ok := q.next()
				if !ok {
					break
				}
				publish(ctx, i.topic, i.event)
			}
			select {
			case <-q.more:
			case <-ctx.Done():
				return
			}
		}
	}()
	return q
}

func (q *queue) put(topic string, event any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	q.items = append(q.items, item{topic, event})
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *queue) next() (item, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy = len(q.items) > 0 && !q.ended
	if !q.busy {
		close(q.idle)
		q.idle = make(chan struct{})
		return item{}, false
	}
	i := q.items[0]
	q.items[0] = item{}
	q.items = q.items[1:]
	return i, true
}

// flush waits until everything has been published.
func (q *queue) flush(ctx context.Context) error {
	for {
		q.mu.Lock()
		left, idle := len(q.items), q.idle
		clear := left == 0 && !q.busy
		q.mu.Unlock()
		if clear {
			return nil
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return fmt.Errorf("%d events are not published: %w", left, context.Cause(ctx))
		}
	}
}

// close drops what is left.
func (q *queue) close() {
	q.mu.Lock()
	q.ended = true
	q.items = nil
	q.mu.Unlock()
	q.cancel()
	<-q.done
}

func (s *Service) tellStart(p *process, pid uint32) {
	if p.exec == "" {
		s.events.put(topicStart, &events.TaskStart{ContainerID: p.id, Pid: pid})
		return
	}
	s.events.put(topicExecStarted, &events.TaskExecStarted{ContainerID: p.id, ExecID: p.exec, Pid: pid})
}

// tellExit: a container's own process has the container's id.
func (s *Service) tellExit(p *process, e exit) {
	id := p.exec
	if id == "" {
		id = p.id
	}
	s.events.put(topicExit, &events.TaskExit{ContainerID: p.id, ID: id, Pid: p.pid, ExitStatus: e.status, ExitedAt: timestamppb.New(e.at)})
}

// oomInterval is how long the same container's want of memory is not told
// again; it doubles, because the guest says it as often as it likes.
const oomInterval = time.Second

// tellOOM is for events of the guest.
func (s *Service) tellOOM(c *container) {
	if c.virtual() || !c.stats.oom(time.Now()) {
		return
	}
	s.events.put(topicOOM, &events.TaskOOM{ContainerID: c.id})
}
