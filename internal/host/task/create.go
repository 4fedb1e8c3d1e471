package task

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/stdio"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Causes of a creation that was given up.
var (
	errKilled  = errdefs.ErrAborted.WithMessage("it was killed before it was created")
	errDeleted = errdefs.ErrAborted.WithMessage("it was deleted before it was created")
)

// Create creates a container and, where it is the pod's first, the pod. It ends
// when the caller gives up, which undoes it; a Create that comes meanwhile
// under the same id waits for that.
func (s *Service) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	if err := checkCreate(r); err != nil {
		return nil, err
	}
	work, cancel := context.WithCancelCause(ctx)
	c := &container{id: r.GetID(), bundle: r.GetBundle()}
	c.init = newProcess(c.id, "", stdio.Paths{
		Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal(), ID: r.GetID(), Namespace: s.o.Namespace,
	}, cancel)
	if err := s.claim(ctx, c); err != nil {
		cancel(err)
		return nil, err
	}
	result := make(chan error, 1)
	if !s.spawn(func() {
		defer cancel(nil)
		result <- s.create(work, c, r)
	}) {
		cancel(errClosed)
		s.forget(c)
		c.init.setGone()
		return nil, errEnding()
	}
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		c.init.abandon(gaveUp(ctx))
		err = gaveUp(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("create container %q: %w", c.id, err)
	}
	return &api.CreateTaskResponse{Pid: c.init.pidNow()}, nil
}

// gaveUp says why a caller waits no more.
func gaveUp(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the caller's time limit has passed and the creation was cancelled (a boot or a pull may need a larger runtimeRequestTimeout of the kubelet): %w", err)
	}
	return fmt.Errorf("the caller gave up and the creation was cancelled: %w", err)
}

func checkCreate(r *api.CreateTaskRequest) error {
	if err := checkID("id", r.GetID()); err != nil {
		return err
	}
	if r.GetCheckpoint() != "" {
		return errdefs.ErrInvalidArgument.WithMessage("checkpoint: expected none, because the memory of a confidential machine cannot be restored; got " + quote(r.GetCheckpoint()))
	}
	return nil
}

// claim takes a container's id, after a creation under that id that is being
// undone.
func (s *Service) claim(ctx context.Context, c *container) error {
	for {
		s.mu.Lock()
		old := s.containers[c.id]
		switch {
		case s.closed:
			s.mu.Unlock()
			return errEnding()
		case old == nil:
			s.containers[c.id] = c
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if !old.init.isAbandoned() && !old.init.isOver() {
			return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("create: container %q exists already", c.id))
		}
		if st, _ := old.init.now(); st != creating && st != gone {
			return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("create: container %q exists already; it is %s", c.id, st))
		}
		if err := old.init.awaitEnd(ctx); err != nil {
			return err
		}
		s.forget(old) // its own end may not have come to that yet
	}
}

// create does it, or undoes what it did.
func (s *Service) create(ctx context.Context, c *container, r *api.CreateTaskRequest) error {
	undo, err := s.build(ctx, c, r)
	if err == nil {
		pid := s.machinePID()
		err = c.init.setCreated(ctx, pid, func() {
			s.events.put(topicCreate, &events.TaskCreate{
				ContainerID: c.id, Bundle: c.bundle, Rootfs: r.GetRootfs(), Pid: pid,
				IO: &events.TaskIO{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal()},
			})
		})
	}
	if err == nil {
		return nil
	}
	// What was given up has said why; the rest is its consequence.
	end, dead := errors.AsType[*vmm.End](err)
	switch cause := context.Cause(ctx); {
	case dead && !c.owner():
		// Of a boot the error says at which stage; here the end says everything.
		err = errdefs.ErrFailedPrecondition.WithMessage("the pod's machine has ended: " + explain(end).Error())
	case cause != nil && ctx.Err() != nil && strings.HasPrefix(err.Error(), cause.Error()):
		err = cause // it was said below
	case cause != nil && ctx.Err() != nil:
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	undo()
	s.forget(c)
	c.init.setGone()
	return err
}

// build makes what a container needs; undo, never nil, takes it back.
func (s *Service) build(ctx context.Context, c *container, r *api.CreateTaskRequest) (undo func(), err error) {
	undo = func() {}
	b, err := s.o.Read(r.GetBundle(), r.GetID())
	if err != nil {
		return undo, err
	}
	c.kind = b.Kind
	if b.Container != nil {
		// A task's creation decides these, not the bundle.
		b.Container.Terminal, b.Container.Stdin = r.GetTerminal(), r.GetStdin() != ""
		if spec := b.Container.Spec; spec != nil && spec.Process != nil {
			c.user = userOf{&spec.Process.User}
		}
	}
	if !c.virtual() {
		if c.init.io, err = stdio.Open(c.init.paths, s.log.With("container", c.id)); err != nil {
			return undo, err
		}
		undo = c.init.io.Close
	}
	if !c.owner() {
		h, _, err := s.running()
		if err != nil {
			return undo, err
		}
		return s.buildIn(ctx, h, b, undo)
	}
	h, err := s.claimHost(ctx, c, b)
	if err != nil {
		return undo, err
	}
	closeIO := undo
	undo = func() {
		s.tearDown(h)
		<-h.closed
		s.dropHost(h)
		closeIO()
	}
	if err := h.pod.Boot(ctx, b.Sandbox); err != nil {
		return undo, err
	}
	close(h.booted)
	s.follow(h)
	if c.virtual() {
		return undo, nil
	}
	return undo, h.pod.Create(ctx, b.Container)
}

// buildIn creates a container in a machine that runs.
func (s *Service) buildIn(ctx context.Context, h *host, b *cri.Bundle, undo func()) (func(), error) {
	// The machine's end ends the creation, whatever the pod waits for.
	err := h.pod.Create(ctx, b.Container)
	if err != nil {
		return undo, err
	}
	return func() {
		undo()
		// Created, but for nobody.
		s.deleteInGuest(context.WithoutCancel(ctx), h, b.Container.ID, "")
	}, nil
}

// deleteInGuest removes what is not wanted any more. A guest that cannot or
// will not do so keeps it until its machine ends: that holds up nobody.
func (s *Service) deleteInGuest(ctx context.Context, h *host, id, exec string) {
	if h == nil || h.over() {
		return
	}
	ctx, cancel := bounded(ctx, s.o.Times.Delete, "delete")
	defer cancel()
	start := time.Now()
	if err := s.within(ctx, func() error { return h.pod.Delete(ctx, id, exec) }); err != nil && !errdefs.IsNotFound(explain(err)) && !h.over() {
		s.log.WarnContext(ctx, "the guest did not delete what has ended; it goes with the machine",
			"container", id, "exec", exec, "after", time.Since(start), "error", explain(err))
	}
}

func (s *Service) machinePID() uint32 {
	h := s.hostNow()
	if h == nil {
		return 0
	}
	if m := h.pod.Machine(); m != nil {
		return uint32(m.PID())
	}
	return 0
}

func (p *process) pidNow() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}
