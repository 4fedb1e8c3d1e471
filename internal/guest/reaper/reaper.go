// Package reaper collects the exit status of every child process, as PID 1
// must, in one loop, and hands each to whoever waits for it.
//
// A process of the operating system may be waited for once only, and a
// PID 1 gets children it never started. So in a program that uses a [Reaper]
// every child is started through [Reaper.Start] or, when another program
// starts it, watched through a [Claim]; os/exec's Wait must not be used.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrExited says that a process has ended and been collected.
var ErrExited = errors.New("process has exited")

// Status is how a process ended.
type Status struct {
	// Code is the exit code, or 128 + signal.
	Code int
	// Signal is the signal that killed it, else 0.
	Signal unix.Signal
	// At is when the status was collected.
	At time.Time
}

// Process is a child of this program. Its methods are safe for concurrent use.
type Process struct {
	// PID is its id as this program sees it.
	PID int

	r      *Reaper
	done   chan struct{}
	status Status
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is valid once Done is closed.
func (p *Process) Status() Status { return p.status }

// Wait waits for the process to end or ctx to.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
		return p.status, nil
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
}

// Signal sends sig. It never reaches another process that was given the same
// id since: it returns [ErrExited] once the status has been collected.
func (p *Process) Signal(sig unix.Signal) error {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if p.r.watched[p.PID] != p {
		return ErrExited
	}
	if err := unix.Kill(p.PID, sig); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return ErrExited
		}
		return fmt.Errorf("signal %d to process %d: %w", sig, p.PID, err)
	}
	return nil
}

// PIDNamespace opens the namespace that the process is in. As with Signal, it is
// never another process's: it returns [ErrExited] once the status has been
// collected.
func (p *Process) PIDNamespace() (*os.File, error) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if p.r.watched[p.PID] != p {
		return nil, ErrExited
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/pid", p.PID))
}

// Reaper is the one collector of a program. Make it with [New] and let one
// goroutine call [Reaper.Run].
type Reaper struct {
	now func() time.Time

	mu      sync.Mutex // held over fork and over wait4
	watched map[int]*Process
	claims  map[*Claim]struct{}
}

// New returns a reaper; now gives the time of an exit. It makes this program the
// one that orphans among its descendants become children of, as PID 1 is anyway.
func New(now func() time.Time) (*Reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become a child subreaper: %w", err)
	}
	return &Reaper{now: now, watched: map[int]*Process{}, claims: map[*Claim]struct{}{}}, nil
}

// Run collects until ctx ends.
func (r *Reaper) Run(ctx context.Context) error {
	// One pending signal is enough: each round collects everything.
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		r.collect()
		select {
		case <-sigs:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// collect takes every status there is. The lock makes sure that no child is
// between its fork and its registration.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return // ECHILD: no children; 0: none has ended
		}
		status := Status{Code: ws.ExitStatus(), At: r.now()}
		if ws.Signaled() {
			status.Signal = ws.Signal()
			status.Code = 128 + int(ws.Signal())
		}
		if p, ok := r.watched[pid]; ok {
			delete(r.watched, pid)
			p.status = status
			close(p.done)
			continue
		}
		for c := range r.claims {
			c.seen[pid] = status
		}
	}
}

// Start starts a program; attr.Files are its first descriptors, and what is
// missing of them is closed, as with [os.StartProcess].
func (r *Reaper) Start(path string, argv []string, attr *os.ProcAttr) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, err
	}
	p := &Process{PID: op.Pid, r: r, done: make(chan struct{})}
	r.watched[p.PID] = p
	// The handle is of no use: its Wait would race with the loop.
	_ = op.Release()
	return p, nil
}

// Idle returns when no child is left, or ctx has ended.
func (r *Reaper) Idle(ctx context.Context) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		r.collect()
		if !haveChildren() {
			return
		}
		select {
		case <-sigs:
		case <-ctx.Done():
			return
		}
	}
}

// haveChildren looks for any child, ended or not, and collects none.
func haveChildren() bool {
	return !errors.Is(unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil), unix.ECHILD)
}

// Claim keeps the status of processes that another program is about to start
// on our behalf, so that one which ends at once is not missed.
type Claim struct {
	r    *Reaper
	seen map[int]Status
}

// Claim starts to keep statuses; the caller must Release it.
func (r *Reaper) Claim() *Claim {
	c := &Claim{r: r, seen: map[int]Status{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims[c] = struct{}{}
	return c
}

// Watch returns the child with the given id, which was started after the
// claim was made. It may have ended.
func (c *Claim) Watch(pid int) (*Process, error) {
	r := c.r
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &Process{PID: pid, r: r, done: make(chan struct{})}
	if status, ok := c.seen[pid]; ok {
		p.status = status
		close(p.done)
		return p, nil
	}
	if _, ok := r.watched[pid]; ok {
		return nil, fmt.Errorf("process %d is watched already", pid)
	}
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return nil, fmt.Errorf("process %d is not a child of this program: %w", pid, err)
	}
	r.watched[pid] = p
	return p, nil
}

// Release ends the claim.
func (c *Claim) Release() {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	delete(c.r.claims, c)
}
