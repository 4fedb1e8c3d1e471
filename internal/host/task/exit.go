package task

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/stdio"
)

// Statuses of processes whose own is not known.
const (
	// killedStatus: by SIGKILL, or with the machine.
	killedStatus = 128 + uint32(unix.SIGKILL)
	// startFailedStatus: a command that could not be run, as shells have it.
	startFailedStatus = 126
	// lostStatus: the guest does not tell.
	lostStatus = 255
)

// finish records the end of a process, once; whoever comes later does nothing.
// It returns when the end has been recorded and published, before what is slow.
func (s *Service) finish(c *container, p *process, status uint32) {
	was, ok := p.beginEnd()
	if !ok {
		return
	}
	e := exit{status: status, at: time.Now()}
	var before sync.WaitGroup
	if p.exec == "" {
		before.Go(func() { s.lastWords(c, was) })
	}
	s.drain(p)
	before.Wait()
	p.setStopped(e, func() { s.tellExit(p, e) })
	if p.exec == "" && c.owner() {
		if h := s.hostNow(); h != nil && h.owner == c {
			s.tearDown(h)
		}
	}
}

// drain takes what is left of a process's output and closes its streams.
func (s *Service) drain(p *process) {
	if p.io == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	if err := p.io.Drain(ctx, s.drainBound()); err != nil {
		s.log.WarnContext(ctx, "the end of a process's output is cut off", "process", p.String(), "error", err)
	}
	p.io.Close()
}

// lastWords does what has to be done for a container between the end of its
// process and the moment that others are told of it: its execs end before it,
// and what only the guest knows of it is asked.
func (s *Service) lastWords(c *container, was state) {
	execs := c.endExecs()
	limit, cancel := context.WithTimeout(s.life, s.o.Times.LastWords)
	defer cancel()
	ctx, stop := limit, cancel
	h, m, err := s.running()
	alive := err == nil
	if alive {
		ctx, stop = s.while(limit, h)
	}
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	for _, p := range execs {
		all.Go(func() {
			if st, _ := p.now(); alive && st == running {
				// The guest has ended them with the container and tells so.
				_ = p.awaitEnd(ctx)
			}
			s.finish(c, p, killedStatus)
			// Another may be at it; its drain is bounded.
			_ = p.awaitStop(s.life)
		})
	}
	if was != running || c.virtual() {
		return
	}
	if alive {
		all.Go(func() { _ = s.refreshStats(ctx, m, c) })
	}
	if h := s.hostNow(); h != nil {
		all.Go(func() {
			if err := s.within(ctx, func() error { return h.pod.Exited(ctx, c.id) }); err != nil {
				s.log.WarnContext(ctx, "the container's termination message is lost", "container", c.id, "error", explain(err))
			}
		})
	}
}

// awaitStop waits until an end that has begun to be recorded is recorded.
func (p *process) awaitStop(ctx context.Context) error {
	p.mu.Lock()
	ending := p.ending
	p.mu.Unlock()
	if !ending {
		return nil
	}
	return p.awaitEnd(ctx)
}

// drainBound is shorter for what no machine is behind any more.
func (s *Service) drainBound() stdio.Bound {
	b := s.o.Times.Drain
	if _, _, err := s.running(); err != nil {
		b.Idle, b.Total = min(b.Idle, deadDrain), min(b.Total, deadDrain)
	}
	return b
}

// deadDrain is how long the last output of a dead machine may take: all of it
// is on this side already.
const deadDrain = time.Second
