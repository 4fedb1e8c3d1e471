package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/podpolicy"
)

// ctr is a container. Its turn is held by whoever changes it.
type ctr struct {
	id      string
	request [32]byte
	turn    chan struct{}
	gone    bool // it was deleted, or could not be made; under the turn

	// Set once it is created, under the turn; read after created is closed.
	created  chan struct{}
	response *agentapi.CreateContainerResponse
	// name is the container's in the policy, image the digest of its manifest.
	name, image string
	config      container.Config
	resolved    map[string]string // values of secrets by variable
	c           *container.Container
	init        *proc
	stop        context.CancelFunc // ends what watches it

	lastWords lastWords // under the turn

	oomMu sync.Mutex
	oom   uint64 // kills that were told

	mu    sync.Mutex
	execs map[string]*proc
}

// proc is a container's first process, or a command in it.
type proc struct {
	container, exec string
	stdin           *input
	stdout, stderr  *output
	config          *podpolicy.ExecConfig // a command's

	mu       sync.Mutex
	process  *container.Process // nil until a command is started
	starting bool               // the guard was told that it starts
	failed   bool               // it was begun, and could not be started; under the container's turn
	over     bool               // the guard was told, or need not be, that it has ended

	done   chan struct{} // closed when it has ended and status is set
	status reaper.Status
	reason string
}

func newProc(containerID, exec string) *proc {
	return &proc{container: containerID, exec: exec, stdin: newInput(), stdout: newOutput(), stderr: newOutput(), done: make(chan struct{})}
}

func (p *proc) get() *container.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process
}

func (p *proc) String() string {
	if p.exec == "" {
		return fmt.Sprintf("container %q", p.container)
	}
	return fmt.Sprintf("command %q in container %q", p.exec, p.container)
}

func (p *proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// attach gives the process's streams their ends.
func (p *proc) attach(process *container.Process, outputAllowed bool, log *slog.Logger) {
	p.mu.Lock()
	p.process = process
	p.mu.Unlock()
	p.stdin.start(process.Stdin)
	log = log.With("process", p.String())
	p.stdout.start(process.Stdout, outputAllowed, log.With("stream", "stdout"))
	p.stderr.start(process.Stderr, outputAllowed, log.With("stream", "stderr"))
}

// errBegun says that a process was started before.
var errBegun = errors.New("started already")

// begin has started say that the process may be started, at most once and
// never after its end: a container's first process is there before it is
// started, and may die at any time.
func (p *proc) begin(started func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.starting:
		return errBegun
	case p.over:
		return unready("%s ended before it was started", p)
	}
	if err := started(); err != nil {
		return err
	}
	p.starting = true
	return nil
}

func (p *proc) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starting
}

// finish calls exited if the process was started; begin fails from then on.
func (p *proc) finish(exited func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if !p.starting {
		return nil
	}
	return exited()
}

// closeIO ends the streams whatever is left in them.
func (p *proc) closeIO() {
	p.stdout.close()
	p.stderr.close()
	if process := p.get(); process != nil {
		process.CloseIO()
	}
}

// checkID keeps identifiers usable as names of files and arguments of
// programs: they begin with a letter or digit.
func checkID(field, id string) error {
	ok := id != "" && len(id) <= 64
	for i, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && (r == '.' || r == '_' || r == '-'))
	}
	if !ok {
		return invalid("%s: expected 1 to 64 characters of [a-zA-Z0-9._-], a letter or digit first, got %q", field, clip(id))
	}
	return nil
}

// lookup returns a container that was created.
func (a *Agent) lookup(id string) (*ctr, *sandbox, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sandbox == nil {
		return nil, nil, noSandbox()
	}
	c := a.containers[id]
	if c == nil {
		return nil, nil, notFound("container %q is not known", clip(id))
	}
	select {
	case <-c.created:
		return c, a.sandbox, nil
	default:
		return nil, nil, notFound("container %q is being created", id)
	}
}

// find returns a process, its container and the sandbox; an empty exec is the
// container's own.
func (a *Agent) find(id, exec string) (*proc, *ctr, *sandbox, error) {
	c, sb, err := a.lookup(id)
	if err != nil {
		return nil, nil, nil, err
	}
	if exec == "" {
		return c.init, c, sb, nil
	}
	p := c.command(exec)
	if p == nil {
		return nil, nil, nil, notFound("command %q in container %q is not known", clip(exec), id)
	}
	return p, c, sb, nil
}

func (c *ctr) command(exec string) *proc {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.execs[exec]
}

// process is find for streams.
func (a *Agent) process(id, exec string) (*proc, *podpolicy.Guard, error) {
	p, _, sb, err := a.find(id, exec)
	if err != nil {
		return nil, nil, err
	}
	return p, sb.guard, nil
}

// lock waits for the turn. Who waits may have found what is deleted meanwhile:
// its id may be another's by then.
func (c *ctr) lock(ctx context.Context) error {
	select {
	case <-c.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.gone {
		c.unlock()
		return errGone
	}
	return nil
}

// errGone says that a container was deleted before a call had its turn.
var errGone = notFound("the container is gone")

func (c *ctr) unlock() { c.turn <- struct{}{} }

// watch records the end of a process that has been started.
func (a *Agent) watch(sb *sandbox, c *ctr, p *proc, process *container.Process) {
	<-process.Done()
	status := process.Status()
	reason := "exited"
	if status.Signal != 0 {
		reason = "signalled"
	}
	if p.exec == "" {
		if kills, err := c.c.OOMKills(); err == nil && kills > 0 {
			// Before the end is told, so that the host knows why.
			a.reportOOM(c, kills)
			if status.Signal == unix.SIGKILL {
				reason = "oom"
			}
		}
		// With a shared PID namespace the kernel leaves the others running.
		if err := c.c.KillAll(); err != nil {
			a.log.Warn("kill what is left of a container", "container", c.id, "error", err)
		}
	}
	a.end(sb, p, status, reason)
}

// reportOOM tells of what the kernel has killed for want of memory, each once.
func (a *Agent) reportOOM(c *ctr, kills uint64) {
	c.oomMu.Lock()
	defer c.oomMu.Unlock()
	for ; c.oom < kills; c.oom++ {
		a.events.add(&agentapi.Event{Body: &agentapi.Event_Oom{Oom: &agentapi.OOM{ContainerId: c.id}}})
	}
}

// end makes the end of a process known.
func (a *Agent) end(sb *sandbox, p *proc, status reaper.Status, reason string) {
	if err := p.finish(func() error { return sb.guard.Exited(p.container, p.exec, status.Code) }); err != nil {
		a.log.Warn("record the end of a process", "process", p.String(), "error", err)
	}
	p.status, p.reason = status, reason
	close(p.done)
	a.events.add(&agentapi.Event{Body: &agentapi.Event_Exit{Exit: &agentapi.Exit{
		ContainerId: p.container, ExecId: p.exec, ExitCode: uint32(status.Code),
	}}})
}

// startFailed is the exit code of what could not be started, as shells have it.
const startFailed = 126
