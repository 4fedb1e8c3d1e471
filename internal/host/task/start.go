package task

import (
	"context"
	"fmt"
	"net"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/pause"
)

// Start starts a container's process or an exec. It goes on when the caller
// gives up; State then tells how it went.
func (s *Service) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	c, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if p.exec != "" && c.isEnding() {
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("start: container %q has ended", c.id))
	}
	if err := p.beginStart(); err != nil {
		return nil, err
	}
	result := make(chan error, 1)
	if !s.spawn(func() {
		work, cancel := bounded(s.life, s.o.Times.Start, "start")
		defer cancel()
		result <- s.start(work, c, p)
	}) {
		return nil, errEnding()
	}
	select {
	case err = <-result:
	case <-ctx.Done():
		err = fmt.Errorf("start: the caller gave up: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, err
	}
	return &api.StartResponse{Pid: p.pidNow()}, nil
}

func (s *Service) start(ctx context.Context, c *container, p *process) error {
	if p.exec == "" && c.virtual() {
		p.setRunning(func() { s.tellStart(p, p.pid) })
		return nil
	}
	h, m, err := s.running()
	if err == nil {
		err = s.within(ctx, func() error { return s.startInGuest(ctx, m, p) })
	}
	if err != nil {
		err = fmt.Errorf("start %s: %w", p, explain(err))
		p.mu.Lock()
		p.failed = err
		p.mu.Unlock()
		if ctx.Err() != nil && h != nil && !h.over() {
			s.spawn(func() { s.killLate(m, p) }) // it may have been started all the same
		}
		s.finish(c, p, startFailedStatus)
		return err
	}
	asked := p.setRunning(func() { s.tellStart(p, p.pid) })
	if asked != nil {
		if err := s.resize(ctx, m, p, *asked); err != nil {
			// It may have ended by now.
			s.log.DebugContext(ctx, "the terminal does not have the size that was asked for", "error", err)
		}
	}
	s.spawn(func() { s.watch(h, m, c, p) })
	return nil
}

func (s *Service) startInGuest(ctx context.Context, m Machine, p *process) error {
	// Before the start, so that nothing of the output waits for a reader.
	if err := s.openStreams(ctx, m, p); err != nil {
		return err
	}
	_, err := m.Agent().Start(ctx, &agentapi.StartRequest{ContainerId: p.id, ExecId: p.exec})
	if err != nil && errdefs.IsPermissionDenied(explain(err)) {
		p.io.Close() // no process was started, and so nothing ends the streams
	}
	return err
}

// openStreams connects a process's streams with the guest. A guest that is well
// takes a stream at once, whatever the process does. If it fails they are
// closed: a process that was not started has no last output to wait for.
func (s *Service) openStreams(ctx context.Context, m Machine, p *process) error {
	limit := s.o.Times.Open
	ctx, cancel := context.WithTimeoutCause(ctx, limit, &explained{context.DeadlineExceeded, fmt.Sprintf(
		"the guest did not open the streams of its input and output within %s: its agent hangs; delete the pod, so that it gets another machine", limit)})
	defer cancel()
	err := p.io.Connect(ctx, func(ctx context.Context, kind agentapi.StreamHeader_Kind) (net.Conn, error) {
		return m.Open(ctx, &agentapi.StreamHeader{Kind: kind, ContainerId: p.id, ExecId: p.exec})
	})
	if err == nil {
		return nil
	}
	p.io.Close()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// killLate kills what was started after its start had been given up.
func (s *Service) killLate(m Machine, p *process) {
	ctx, cancel := bounded(s.life, s.o.Times.Call, "kill")
	defer cancel()
	_, _ = m.Agent().Signal(ctx, &agentapi.SignalRequest{ContainerId: p.id, ExecId: p.exec, Signal: uint32(unix.SIGKILL), All: p.exec == ""})
}

// How often the end of a process is asked for again when the guest's answer
// was an error.
const (
	waitAttempts = 5
	waitPause    = time.Second
)

// watch waits for the end of a process that was started.
func (s *Service) watch(h *host, m Machine, c *container, p *process) {
	ctx, cancel := s.while(s.life, h)
	defer cancel()
	s.spawn(func() {
		select {
		case <-p.ended: // by other means
			cancel()
		case <-ctx.Done():
		}
	})
	for attempt := 1; ; attempt++ {
		resp, err := m.Agent().Wait(ctx, &agentapi.WaitRequest{ContainerId: p.id, ExecId: p.exec})
		if err == nil {
			// The guest's word for a status; the time is the host's.
			if resp.GetReason() == "oom" && p.exec == "" {
				s.tellOOM(c)
			}
			s.finish(c, p, min(resp.GetExitCode(), 255))
			return
		}
		if ctx.Err() != nil {
			return // the machine's end, or another's word, has it
		}
		if attempt == waitAttempts || errdefs.IsNotFound(explain(err)) {
			s.log.Error("the guest does not tell how a process ends; it is recorded with status 255", "process", p.String(), "error", explain(err))
			s.killLate(m, p)
			s.finish(c, p, lostStatus)
			return
		}
		if !pause.For(ctx, waitPause) {
			return
		}
	}
}
