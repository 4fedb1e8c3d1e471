// Package task is containerd's Task service (containerd.task.v2.Task and
// containerd.task.v3.Task) for the containers of one pod in one machine.
//
// A [Service] keeps a container for each Create and in it its execs; each of
// them is a process with a small state machine (process.go) and a lock that is
// never held across a call to the guest. What takes time (a boot, a pull, a
// start) runs in a goroutine of the service; the call that asked for it waits
// for its result or gives up, and everything else goes on.
//
// There are three kinds of Create (cri.Kind). The pause container of a pod boots
// the machine and is a task in name only: no process in the guest belongs to
// it, and its end is the machine's. A container of a pod is created in that
// machine. A single container, as ctr makes them, is both.
//
// The end of a process goes one way whatever brings it about (exit.go): its
// output is drained within a bound, its status is recorded by the host's clock,
// TaskExit is queued, and only then anything slow is torn down. Events leave by
// one queue in the order of what they tell (events.go).
//
// The guest is not trusted: its exit codes, times, counters, texts and numbers
// of events are bounded, and a guest that does not answer cannot keep a task
// from ending.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/stdio"
)

// Options configure a Service. NewPod, Publish, Shutdown and Logger are
// required; a zero duration stands for its default.
type Options struct {
	// Read reads the bundle of a Create; nil stands for cri.ReadBundle.
	Read func(dir, id string) (*cri.Bundle, error)
	// NewPod makes the pod of the first Create, of a sandbox or a single
	// container. It starts nothing: Pod.Boot does.
	NewPod func(ctx context.Context, b *cri.Bundle) (Pod, error)
	// Publish hands an event of containerd/api/events over, one at a time and
	// in order. It may block; an error is logged and the event is lost.
	Publish func(ctx context.Context, topic string, event any) error
	// Shutdown is called when containerd asks for the end and nothing is left.
	// It returns at once, and may be called more than once.
	Shutdown func()
	Logger   *slog.Logger
	// Notice, when not nil, is told what a person should know of the pod: what
	// its policy has refused. It must not wait.
	Notice func(reason notice.Reason, message string)
	// Namespace is containerd's; programs that take output are told.
	Namespace string
	// CgroupV1 has Stats tell the metrics of cgroup v1, see [HostHasCgroupV1].
	CgroupV1 bool

	Times Times
}

// Times bound what the guest and others can hold up.
type Times struct {
	// Drain bounds how long output is waited for after a process's end. Default
	// 10 s for the next byte, 1 min in all.
	Drain stdio.Bound
	// Call bounds a call to the agent that should be quick. Default 60 s.
	Call time.Duration
	// Start bounds the start of a process. Default 2 min.
	Start time.Duration
	// Open bounds the opening of a process's streams, before its start. Default
	// 45 s.
	Open time.Duration
	// Stats bounds the wait for the guest's figures. Default 1 s.
	Stats time.Duration
	// Kill bounds how long a process may live on after the guest was told to
	// kill it; then it is recorded as killed. Default 60 s.
	Kill time.Duration
	// Delete bounds the guest's part of a Delete. Default 30 s.
	Delete time.Duration
	// Close bounds the end of the machine. Default 60 s.
	Close time.Duration
	// LastWords bounds what is done between a container's end and its TaskExit:
	// its termination message and last figures. Default 5 s.
	LastWords time.Duration
	// CloseStdin bounds how long CloseIO waits for input on its way. Default 10 s.
	CloseStdin time.Duration
}

func (t Times) withDefaults() Times {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&t.Drain.Idle, 10 * time.Second}, {&t.Drain.Total, time.Minute}, {&t.Call, time.Minute}, {&t.Start, 2 * time.Minute},
		{&t.Open, 45 * time.Second}, {&t.Stats, time.Second}, {&t.Kill, time.Minute}, {&t.Delete, 30 * time.Second}, {&t.Close, time.Minute},
		{&t.LastWords, 5 * time.Second}, {&t.CloseStdin, 10 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	return t
}

// Service is the Task service of one shim. Its methods are safe for concurrent
// use.
type Service struct {
	o      Options
	log    *slog.Logger
	life   context.Context // ends with the service
	end    context.CancelCauseFunc
	events *queue

	background sync.WaitGroup

	mu         sync.Mutex
	closed     bool  // nothing new is created
	stopped    bool  // no goroutine begins
	host       *host // nil without a pod
	containers map[string]*container
}

// errClosed is the cause of the service's end.
var errClosed = errors.New("the shim is ending")

// New starts a service; Close ends it.
func New(o Options) *Service {
	o.Times = o.Times.withDefaults()
	if o.Read == nil {
		o.Read = cri.ReadBundle
	}
	life, end := context.WithCancelCause(context.Background())
	s := &Service{o: o, log: o.Logger, life: life, end: end, containers: map[string]*container{}}
	s.events = newQueue(func(ctx context.Context, topic string, event any) {
		if err := o.Publish(ctx, topic, event); err != nil {
			s.log.WarnContext(ctx, "an event was not taken by containerd", "topic", topic, "error", err)
		}
	})
	return s
}

// Close ends the machine if it runs, waits until every end is recorded and
// published, and ends the service's goroutines. ctx bounds the orderly part of
// it. It may be called again.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	h := s.host
	s.mu.Unlock()
	for _, c := range s.list() {
		c.init.abandon(errClosed)
	}
	var err error
	if h != nil && !h.adopted {
		s.tearDown(h)
		select {
		case <-h.closed:
		case <-ctx.Done():
			err = fmt.Errorf("the machine still runs: %w", context.Cause(ctx))
		}
	}
	if h != nil && err == nil {
		for _, c := range s.list() {
			if perr := c.init.awaitEnd(ctx); perr != nil {
				err = perr
			}
		}
	}
	err = errors.Join(err, s.events.flush(ctx))
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.end(errClosed)
	s.background.Wait()
	s.events.close()
	return err
}

// spawn runs f in the background; false when the service has ended.
func (s *Service) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.background.Go(f)
	return true
}

func errEnding() error { return errdefs.ErrUnavailable.WithMessage(errClosed.Error()) }

// list is all containers at this moment.
func (s *Service) list() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	return all
}

func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("container %q is not known to this shim", id))
	}
	return c, nil
}

// process finds a container and one of its processes: the container's own for
// an empty exec.
func (s *Service) process(id, exec string) (*container, *process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	p := c.process(exec)
	if p == nil {
		return nil, nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("exec %q of container %q is not known to this shim", exec, id))
	}
	return c, p, nil
}

// forget removes a container, if it is still the one of that id.
func (s *Service) forget(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] == c {
		delete(s.containers, c.id)
	}
}

// bounded is a context for a call to the guest: as long as the caller waits,
// and d at most.
func bounded(ctx context.Context, d time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%s: the guest did not answer within %s: %w", what, d, context.DeadlineExceeded))
}

// within makes a call and waits for it as long as ctx allows, also where the
// call itself does not look at it: a guest that reads nothing any more holds up
// who writes to it. Such a call goes on until its machine ends.
func (s *Service) within(ctx context.Context, call func() error) error {
	done := make(chan error, 1)
	if !s.spawn(func() { done <- call() }) {
		return errEnding()
	}
	select {
	case err := <-done:
		if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return context.Cause(ctx)
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
