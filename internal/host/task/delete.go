package task

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Delete removes what has ended or was not started; what is being created is
// given up first. The machine goes with its sandbox or single container: then
// Delete returns when nothing of the pod is left on the host. A Delete whose
// caller gives up may be repeated.
func (s *Service) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	c, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if p.abandon(errDeleted) {
		if err := p.awaitEnd(ctx); err != nil {
			return nil, err
		}
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("delete: %s was not created; its creation is cancelled", p))
	}
	if err := s.claimDelete(ctx, c, p); err != nil {
		return nil, err
	}
	if err := s.remove(ctx, c, p); err != nil {
		p.mu.Lock()
		p.set(stopped)
		p.mu.Unlock()
		return nil, err
	}
	resp := &api.DeleteResponse{Pid: p.pid, ExitStatus: p.exit.status, ExitedAt: timestamppb.New(p.exit.at)}
	if p.exec != "" {
		c.removeExec(p)
		p.setGone()
		return resp, nil
	}
	s.events.put(topicDelete, &events.TaskDelete{ContainerID: c.id, Pid: p.pid, ExitStatus: p.exit.status, ExitedAt: resp.GetExitedAt()})
	s.forget(c)
	p.setGone()
	return resp, nil
}

// claimDelete takes a process from created, by way of its end, or from stopped
// to deleting.
func (s *Service) claimDelete(ctx context.Context, c *container, p *process) error {
	for {
		st, changed := p.now()
		switch st {
		case created:
			s.finish(c, p, killedStatus)
			if st, _ := p.now(); st != created {
				continue
			}
		case running:
			if !p.isEnding() {
				return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("delete: %s is running; kill it first", p))
			}
		case starting:
			if !p.isEnding() {
				return p.wrong("delete", st)
			}
		case stopped:
			p.mu.Lock()
			ok := p.state == stopped
			if ok {
				p.set(deleting)
			}
			p.mu.Unlock()
			if ok {
				return nil
			}
			continue
		case gone:
			return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("delete: %s is gone", p))
		case creating, deleting:
		}
		// Its end, or another Delete, is under way.
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("delete: %s is %s: %w", p, st, context.Cause(ctx))
		}
	}
}

// remove takes a process off guest and host. An error is the caller's
// impatience only: it may be repeated.
func (s *Service) remove(ctx context.Context, c *container, p *process) error {
	h := s.hostNow()
	if h != nil && h.owner == c && p.exec == "" {
		// It is torn down since the end was recorded.
		select {
		case <-h.closed:
			s.dropHost(h)
			return nil
		case <-ctx.Done():
			return fmt.Errorf("delete: the pod's machine is still being removed: %w", context.Cause(ctx))
		}
	}
	if c.virtual() {
		return nil
	}
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	s.deleteInGuest(work, h, c.id, p.exec)
	if ctx.Err() != nil && (h == nil || !h.over()) {
		return fmt.Errorf("delete: the guest has not deleted %s yet: %w", p, context.Cause(ctx))
	}
	return nil
}

// stoppedTime is the zero timestamp of what has not ended.
func stamp(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at)
}
