package task

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/stdio"
)

// state is where a process is in its life:
//
//	creating → created → starting → running → stopped → deleting → gone
//	creating → gone               not created, or the caller gave up
//	created, starting → stopped   killed, failed, or the machine ended
//	created, stopped → deleting; deleting → stopped when the caller gave up
type state int

const (
	creating state = iota
	created
	starting
	running
	stopped
	deleting
	gone
)

func (s state) String() string {
	return [...]string{"being created", "created", "being started", "running", "stopped", "being deleted", "deleted"}[s]
}

// status is the state as containerd has it. What is being created is created
// to those who list tasks: there is nothing closer.
func (s state) status() task.Status {
	switch s {
	case creating, created, starting:
		return task.Status_CREATED
	case running:
		return task.Status_RUNNING
	default:
		return task.Status_STOPPED
	}
}

// exit is how and, by the host's clock, when a process ended.
type exit struct {
	status uint32
	at     time.Time
}

// size of a terminal in characters.
type size struct{ width, height uint32 }

// process is a container's first process, or an exec.
type process struct {
	id, exec string
	paths    stdio.Paths

	// Set by whoever creates it, before it is created.
	io *stdio.Streams // nil for a task in name only

	mu        sync.Mutex
	state     state
	changed   chan struct{} // closed and replaced when state changes
	cancel    context.CancelCauseFunc
	abandoned error // why its creation was given up
	ending    bool  // its end has begun to be recorded, once
	announced bool  // containerd has been told of it
	killing   bool  // the guest was told to kill it
	failed    error // why it could not be started
	pid       uint32
	size      *size // asked for before it was started
	exit      exit
	ended     chan struct{} // closed when exit is set or it was never created
}

func newProcess(id, exec string, paths stdio.Paths, cancel context.CancelCauseFunc) *process {
	return &process{id: id, exec: exec, paths: paths, cancel: cancel, changed: make(chan struct{}), ended: make(chan struct{})}
}

func (p *process) String() string {
	if p.exec == "" {
		return fmt.Sprintf("container %q", p.id)
	}
	return fmt.Sprintf("exec %q of container %q", p.exec, p.id)
}

// set changes the state; the caller has the lock.
func (p *process) set(to state) {
	p.state = to
	close(p.changed)
	p.changed = make(chan struct{})
	if to == stopped || to == gone {
		select {
		case <-p.ended:
		default:
			close(p.ended)
		}
	}
}

// now is the state and what is closed when it changes.
func (p *process) now() (state, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.changed
}

// wrong says that something does not go in a state.
func (p *process) wrong(what string, st state) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s: %s is %s", what, p, st))
}

// abandon gives a creation up: it is undone. It returns false if the process
// is created, or gone, already.
func (p *process) abandon(cause error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != creating {
		return false
	}
	if p.abandoned == nil {
		p.abandoned = cause
		p.cancel(cause)
	}
	return true
}

// isAbandoned reports whether the creation is being undone.
func (p *process) isAbandoned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == creating && p.abandoned != nil
}

// setCreated ends a creation that nobody gave up; tell is called, under the
// lock, to announce it.
func (p *process) setCreated(ctx context.Context, pid uint32, tell func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.abandoned != nil {
		return p.abandoned
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p.pid = pid
	p.set(created)
	p.announced = p.exec == ""
	tell()
	return nil
}

// setGone ends a creation that failed, or a deletion.
func (p *process) setGone() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(gone)
}

// setRunning ends a start; tell announces it, unless the process has come to
// its end meanwhile. It returns the size that was asked for before.
func (p *process) setRunning(tell func()) *size {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending || p.state != starting {
		return nil
	}
	p.set(running)
	p.announced = true
	tell()
	return p.size
}

// beginStart claims the start.
func (p *process) beginStart() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.failed != nil:
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("start: %s could not be started before: %s", p, p.failed))
	case p.state != created || p.ending:
		return p.wrong("start", p.state)
	}
	p.set(starting)
	return nil
}

// beginEnd claims the recording of the end, and returns the state so far.
func (p *process) beginEnd() (was state, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending || p.state != created && p.state != starting && p.state != running {
		return p.state, false
	}
	p.ending = true
	return p.state, true
}

// setStopped records the end; tell announces it if the process was.
func (p *process) setStopped(e exit, tell func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exit = e
	p.set(stopped)
	if p.announced {
		tell()
	}
}

// awaitEnd waits until the process is no more, or was never.
func (p *process) awaitEnd(ctx context.Context) error {
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", p, context.Cause(ctx))
	}
}

// isOver reports whether it has ended or was never.
func (p *process) isOver() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// container is a Create and its execs.
type container struct {
	id, bundle string
	kind       cri.Kind // set before it is created
	user       userOf
	init       *process
	stats      lastStats

	mu     sync.Mutex
	ending bool // no exec may begin
	execs  map[string]*process
}

func (c *container) process(exec string) *process {
	if exec == "" {
		return c.init
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.execs[exec]
}

// virtual reports whether no process of the guest belongs to it.
func (c *container) virtual() bool { return c.kind == cri.KindSandbox }

// owner reports whether the machine ends with it.
func (c *container) owner() bool { return c.kind == cri.KindSandbox || c.kind == cri.KindSingle }

// addExec claims an exec's id.
func (c *container) addExec(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ending:
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("exec: container %q has ended", c.id))
	case c.execs[p.exec] != nil:
		return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("exec: %q exists already in container %q", p.exec, c.id))
	}
	if c.execs == nil {
		c.execs = map[string]*process{}
	}
	c.execs[p.exec] = p
	return nil
}

func (c *container) removeExec(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.exec] == p {
		delete(c.execs, p.exec)
	}
}

// endExecs lets no exec begin any more, and returns those there are.
func (c *container) endExecs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending = true
	all := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		all = append(all, p)
	}
	return all
}

func (c *container) isEnding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending
}
