package task

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/pause"
)

// host is the pod of this shim.
type host struct {
	pod     Pod
	owner   *container // whose end is the machine's; nil if it was adopted
	adopted bool

	tear   sync.Once
	ending chan struct{} // closed when its end was asked for here
	closed chan struct{} // closed when nothing is left of it
	// booted is closed when the machine runs.
	booted chan struct{}
}

func newHost(p Pod, owner *container) *host {
	return &host{
		pod: p, owner: owner, adopted: owner == nil,
		ending: make(chan struct{}), closed: make(chan struct{}), booted: make(chan struct{}),
	}
}

// over reports whether nothing can be asked of the guest any more.
func (h *host) over() bool {
	select {
	case <-h.pod.Done():
		return true
	case <-h.ending:
		return true
	default:
		return false
	}
}

// Adopt has containers created in a pod that was booted elsewhere, by the
// Sandbox API. It fails if there is a pod already. The pod is closed by whoever
// booted it; while it is adopted, Shutdown is ignored.
func (s *Service) Adopt(p Pod) error {
	h := newHost(p, nil)
	s.mu.Lock()
	if s.closed || s.host != nil {
		s.mu.Unlock()
		return errdefs.ErrFailedPrecondition.WithMessage("this shim has a pod already, or is ending")
	}
	s.host = h
	s.mu.Unlock()
	close(h.booted)
	s.follow(h)
	return nil
}

// Release ends what Adopt began, after the pod was closed.
func (s *Service) Release(p Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host != nil && s.host.pod == p {
		s.host = nil
	}
}

// running returns the pod if its machine runs.
func (s *Service) running() (*host, Machine, error) {
	h := s.hostNow()
	if h == nil {
		return nil, nil, errdefs.ErrFailedPrecondition.WithMessage("the pod's machine does not run: create its sandbox first")
	}
	select {
	case <-h.booted:
	default:
		return nil, nil, errdefs.ErrFailedPrecondition.WithMessage("the pod's machine is still booting")
	}
	if h.over() {
		return nil, nil, deadError(h)
	}
	m := h.pod.Machine()
	if m == nil {
		return nil, nil, errdefs.ErrFailedPrecondition.WithMessage("the pod's machine does not run")
	}
	return h, m, nil
}

// deadError says why nothing can be done in a pod any more.
func deadError(h *host) error {
	if err := h.pod.Err(); err != nil {
		return errdefs.ErrFailedPrecondition.WithMessage("the pod's machine has ended: " + explain(err).Error())
	}
	return errdefs.ErrFailedPrecondition.WithMessage("the pod's machine has ended")
}

// follow watches a machine that runs: its end, and what its guest tells.
func (s *Service) follow(h *host) {
	ctx, cancel := context.WithCancel(s.life)
	s.spawn(func() {
		defer cancel()
		select {
		case <-h.pod.Done():
			s.machineEnded(h)
		case <-s.life.Done():
		}
	})
	s.spawn(func() { s.readEvents(ctx, h) })
}

// machineEnded ends all tasks at once.
func (s *Service) machineEnded(h *host) {
	cause := deadError(h)
	select {
	case <-h.ending:
		s.log.Info("the pod's machine has ended, as it was asked to")
	default:
		s.log.Error("the pod's machine has ended; all its containers end with status 137", "error", h.pod.Err())
	}
	var all sync.WaitGroup
	for _, c := range s.list() {
		if !c.init.abandon(cause) && c != h.owner {
			all.Go(func() { s.finish(c, c.init, killedStatus) })
		}
	}
	all.Wait()
	if h.adopted {
		return
	}
	// The sandbox's end is the last, and what is left of it on the host goes.
	s.finish(h.owner, h.owner.init, killedStatus)
	s.tearDown(h)
}

// hostNow is the pod; nil if there is none.
func (s *Service) hostNow() *host {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host
}

// while is ctx as long as the machine runs.
func (s *Service) while(ctx context.Context, h *host) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	s.spawn(func() {
		select {
		case <-h.pod.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, cancel
}

// tearDown ends the machine in the background, once.
func (s *Service) tearDown(h *host) {
	h.tear.Do(func() {
		close(h.ending)
		s.spawn(func() {
			defer close(h.closed)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), s.o.Times.Close)
			defer cancel()
			if err := h.pod.Close(ctx); err != nil {
				s.log.ErrorContext(ctx, "the pod could not be removed from the host", "error", err)
			}
		})
	})
}

// Pauses between attempts to follow a guest's events, which grow.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// readEvents follows what the guest tells. Only its want of memory and what it
// has refused matter here; it proves nothing.
func (s *Service) readEvents(ctx context.Context, h *host) {
	m := h.pod.Machine()
	if m == nil {
		return
	}
	var seen uint64
	for wait := firstRetry; ctx.Err() == nil; wait = min(2*wait, lastRetry) {
		for e, err := range m.Events(ctx) {
			if err != nil {
				s.log.DebugContext(ctx, "the guest's events", "error", err)
				break
			}
			if e.GetSequence() <= seen {
				continue // told before the stream was opened again
			}
			seen = e.GetSequence()
			wait = firstRetry
			switch body := e.GetBody().(type) {
			case *agentapi.Event_Oom:
				if c, err := s.container(body.Oom.GetContainerId()); err == nil {
					s.tellOOM(c)
				}
			case *agentapi.Event_Refusal:
				s.tellRefusal(body.Refusal)
			}
		}
		if h.over() || !pause.For(ctx, wait) {
			return
		}
	}
}

// claimHost makes the pod of the first Create.
func (s *Service) claimHost(ctx context.Context, c *container, b *cri.Bundle) (*host, error) {
	p, err := s.o.NewPod(ctx, b)
	if err != nil {
		return nil, err
	}
	h := newHost(p, c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host != nil {
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("this shim has a pod already, got container %q as another", c.id))
	}
	s.host = h
	return h, nil
}

// dropHost forgets a pod that is closed.
func (s *Service) dropHost(h *host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == h {
		s.host = nil
	}
}
