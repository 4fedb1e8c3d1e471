package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// maxSignal is the last signal of Linux, SIGRTMAX.
const maxSignal = 64

// ending reports whether a signal is meant to end a process.
func ending(signal unix.Signal) bool {
	return signal == unix.SIGKILL || signal == unix.SIGTERM
}

// Kill sends a signal. SIGKILL and SIGTERM end what was not started yet, cancel
// what is being created, and are no error for what has ended.
func (s *Service) Kill(ctx context.Context, r *api.KillRequest) error {
	if r.GetSignal() == 0 || r.GetSignal() > maxSignal {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("signal: expected 1 to %d, got %d", maxSignal, r.GetSignal()))
	}
	signal := unix.Signal(r.GetSignal())
	c, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return err
	}
	for {
		st, changed := p.now()
		switch {
		case st == starting, st == creating && !ending(signal):
			if p.isEnding() {
				return nil // it has been killed before
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return fmt.Errorf("kill: %s is %s: %w", p, st, context.Cause(ctx))
			}
		case st == creating:
			if p.abandon(errKilled) {
				return nil
			}
		case st == created && ending(signal):
			s.finish(c, p, 128+uint32(signal))
			return nil
		case st == created:
			return p.wrong("kill", st)
		case st == running && c.virtual():
			if ending(signal) || signal == unix.SIGINT { // what a pause container ends by
				s.finish(c, p, 128+uint32(signal))
			}
			return nil
		case st == running:
			return s.signal(ctx, c, p, signal, r.GetAll())
		case st != gone && ending(signal):
			return nil
		default:
			return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("kill: %s has ended", p))
		}
	}
}

// signal passes a signal on to the guest.
func (s *Service) signal(ctx context.Context, c *container, p *process, signal unix.Signal, all bool) error {
	_, m, err := s.running()
	if err != nil {
		// The machine has just ended, and its tasks are about to.
		if ending(signal) {
			return nil
		}
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("kill: %s has ended", p))
	}
	if signal == unix.SIGKILL {
		s.insist(c, p)
	}
	ctx, cancel := bounded(ctx, s.o.Times.Call, "kill")
	defer cancel()
	err = s.within(ctx, func() error {
		_, err := m.Agent().Signal(ctx, &agentapi.SignalRequest{
			ContainerId: p.id, ExecId: p.exec, Signal: uint32(signal), All: all && p.exec == "",
		})
		return err
	})
	_, dead := errors.AsType[*vmm.End](err) // and with the machine all that ran in it
	switch err := explain(err); {
	case err == nil:
		return nil
	case dead, errdefs.IsNotFound(err), p.isOver():
		if ending(signal) {
			return nil // its end is on its way
		}
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("kill: %s has ended", p))
	default:
		return fmt.Errorf("kill %s: %w", p, err)
	}
}

// insist has a process ended that was told to be killed and does not go, or
// whose guest does not answer: a guest must not keep its pod from being
// removed.
func (s *Service) insist(c *container, p *process) {
	p.mu.Lock()
	again := p.killing
	p.killing = true
	p.mu.Unlock()
	if again {
		return
	}
	s.spawn(func() {
		t := time.NewTimer(s.o.Times.Kill)
		defer t.Stop()
		select {
		case <-p.ended:
			return
		case <-s.life.Done():
			return
		case <-t.C:
		}
		if st, _ := p.now(); st == running && !p.isEnding() {
			s.log.Error("the guest has not ended a process that was killed; it is recorded as killed, and goes with the machine",
				"process", p.String(), "after", s.o.Times.Kill)
		}
		s.finish(c, p, killedStatus)
	})
}

func (p *process) isEnding() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ending
}
