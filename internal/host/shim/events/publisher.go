// Package events tells containerd what happens to the tasks of a shim.
//
// A [Publisher] has one queue and one sender: events arrive in the order in
// which they were published, and publishing never waits for containerd. While
// containerd is away, as it is when it restarts, the sender tries the oldest
// event again until it gets through; the rest waits behind it.
package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// queueLimit bounds what waits for containerd. A pod makes some ten events
	// in its life and four for each probe that executes a program.
	queueLimit = 4096
	// callTime bounds one attempt.
	callTime = 5 * time.Second
	// firstPause and lastPause bound the growing pause between attempts.
	firstPause = 20 * time.Millisecond
	lastPause  = 2 * time.Second
	// refusals is how often containerd may answer with an error before an
	// event is dropped. A missing answer does not count.
	refusals = 5
	// namespaceHeader carries containerd's namespace: containerd/containerd v2
	// pkg/namespaces/ttrpc.go.
	namespaceHeader = "containerd-namespace-ttrpc"
)

// ErrClosed is what Publish returns after Close.
var ErrClosed = errors.New("the events' publisher is closed")

// Options of a publisher.
type Options struct {
	// Address is containerd's ttrpc socket: a path, or a path after unix://.
	Address string
	// Namespace is containerd's.
	Namespace string
	Logger    *slog.Logger
	// Now is the clock of the events' times; nil is time.Now.
	Now func() time.Time
}

// Publisher sends events to containerd. Its methods are safe for concurrent
// use.
type Publisher struct {
	options Options
	client  *ttrpc.Client // of the sender's goroutine; nil without a connection

	mu      sync.Mutex
	queue   []*types.Envelope
	dropped int
	closed  bool

	wake   chan struct{} // capacity 1: the queue has changed
	closes chan struct{} // closed by Close
	done   chan struct{} // closed when the sender has ended
	cancel context.CancelFunc
}

// New starts a publisher. It connects when there is something to say.
func New(o Options) *Publisher {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Address = strings.TrimPrefix(o.Address, "unix://")
	ctx, cancel := context.WithCancel(context.Background())
	p := &Publisher{
		options: o, cancel: cancel,
		wake: make(chan struct{}, 1), closes: make(chan struct{}), done: make(chan struct{}),
	}
	go p.send(ctx)
	return p
}

// Publish queues an event and returns; event is a message of the package
// containerd/api/events. The error is about the event, never about
// containerd. When the queue is full the oldest event goes.
func (p *Publisher) Publish(_ context.Context, topic string, event any) error {
	message, ok := event.(proto.Message)
	if !ok {
		return fmt.Errorf("event %s: expected a message of containerd/api/events, got %T", topic, event)
	}
	value, err := proto.Marshal(message)
	if err != nil {
		return fmt.Errorf("event %s: %w", topic, err)
	}
	envelope := &types.Envelope{
		Timestamp: timestamppb.New(p.options.Now()), Namespace: p.options.Namespace, Topic: topic,
		// As package typeurl writes it: the bare name.
		Event: &anypb.Any{TypeUrl: string(message.ProtoReflect().Descriptor().FullName()), Value: value},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("event %s: %w", topic, ErrClosed)
	}
	if len(p.queue) == queueLimit {
		p.queue = p.queue[1:]
		p.dropped++
	}
	p.queue = append(p.queue, envelope)
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return nil
}

// Close takes no more events and returns when those that wait are sent, or
// ctx ends; the error counts what is lost.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.mu.Unlock()
	if first {
		close(p.closes)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	p.cancel()
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.queue); n > 0 {
		return fmt.Errorf("events for containerd at %s: %d not delivered", p.options.Address, n)
	}
	return nil
}

// send is the sender. It ends when ctx does, or the queue is empty after Close.
func (p *Publisher) send(ctx context.Context) {
	defer close(p.done)
	defer p.disconnect()
	for {
		envelope, dropped := p.head()
		if dropped > 0 {
			p.options.Logger.WarnContext(ctx, "containerd was away for long: its oldest events are dropped", "count", dropped)
		}
		if envelope == nil {
			select {
			case <-p.wake:
			case <-p.closes:
				if e, _ := p.head(); e == nil {
					return
				}
			case <-ctx.Done():
				return
			}
			continue
		}
		if !p.deliver(ctx, envelope) {
			return
		}
		p.pop(envelope)
	}
}

func (p *Publisher) head() (envelope *types.Envelope, dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dropped, p.dropped = p.dropped, 0
	if len(p.queue) == 0 {
		p.queue = nil // gives the memory of a long queue back
		return nil, dropped
	}
	return p.queue[0], dropped
}

// pop removes the head, unless it was dropped in the meantime.
func (p *Publisher) pop(envelope *types.Envelope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 && p.queue[0] == envelope {
		p.queue[0] = nil
		p.queue = p.queue[1:]
	}
}

// deliver sends one event until it is taken, or refused for good. It returns
// false when ctx has ended.
func (p *Publisher) deliver(ctx context.Context, envelope *types.Envelope) bool {
	pause, refused := firstPause, 0
	for {
		err := p.forward(ctx, envelope)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if answered(err) {
			if refused++; refused == refusals {
				p.options.Logger.ErrorContext(ctx, "containerd refuses an event; it is dropped", "topic", envelope.GetTopic(), "error", err)
				return true
			}
		} else {
			p.disconnect()
		}
		if pause == firstPause {
			p.options.Logger.DebugContext(ctx, "an event did not reach containerd; trying again", "topic", envelope.GetTopic(), "error", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
		pause = min(2*pause, lastPause)
	}
}

// answered tells an answer of containerd from a lost connection.
func answered(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ttrpc.ErrClosed) {
		return false
	}
	s, ok := status.FromError(err)
	return ok && s.Code() != codes.DeadlineExceeded && s.Code() != codes.Unavailable
}

func (p *Publisher) forward(ctx context.Context, envelope *types.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if p.client == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.options.Address)
		if err != nil {
			return err
		}
		p.client = ttrpc.NewClient(conn)
	}
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{namespaceHeader: {p.options.Namespace}})
	_, err := eventsapi.NewTTRPCEventsClient(p.client).Forward(ctx, &eventsapi.ForwardRequest{Envelope: envelope})
	return err
}

func (p *Publisher) disconnect() {
	if p.client != nil {
		_ = p.client.Close()
		p.client = nil
	}
}
