package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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
func (p *proc) attach(process *container.Process, outputAllowed bool) {
	p.mu.Lock()
	p.process = process
	p.mu.Unlock()
	p.stdin.start(process.Stdin)
	p.stdout.start(process.Stdout, outputAllowed)
	p.stderr.start(process.Stderr, outputAllowed)
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

// Start implements the protocol.
func (a *Agent) Start(ctx context.Context, req *agentapi.StartRequest) (*agentapi.StartResponse, error) {
	p, c, sb, err := a.find(req.GetContainerId(), req.GetExecId())
	if err == nil {
		err = a.start(ctx, p, c, sb)
	}
	if err != nil {
		return nil, a.fail(ctx, "Start", err)
	}
	return &agentapi.StartResponse{Pid: uint32(p.get().PID)}, nil
}

func (a *Agent) start(ctx context.Context, p *proc, c *ctr, sb *sandbox) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if p.exec != "" && c.command(p.exec) != p {
		return notFound("%s is gone", p)
	}
	err := p.begin(func() error { return sb.guard.Started(p.container, p.exec) })
	if errors.Is(err, errBegun) {
		if p.failed || p.get() == nil {
			return unready("%s could not be started", p)
		}
		return nil // the call is repeated
	}
	if err != nil {
		return err
	}
	// From here on it must be brought to its end, whatever happens to the call.
	if p.exec == "" {
		err := sb.measureStart(ctx, c.name, c.image)
		if err == nil {
			err = c.c.Start(ctx)
		}
		if err != nil {
			p.failed = true
			_ = c.c.KillAll()
		}
		return err
	}
	err = sb.measureExec(ctx, c.name, p.config.Args)
	var process *container.Process
	if err == nil {
		process, err = c.exec(ctx, p)
	}
	if err != nil {
		a.end(sb, p, reaper.Status{Code: startFailed, At: a.o.Now()}, "exited")
		p.stdin.start(nil)
		p.stdout.start(nil, false)
		p.stderr.start(nil, false)
		return failed("runtime", err)
	}
	p.attach(process, p.config.Output)
	go a.watch(sb, c, p, process)
	return nil
}

func (c *ctr) exec(ctx context.Context, p *proc) (*container.Process, error) {
	e := p.config
	config := c.config
	config.UID, config.GID, config.Groups = e.User.UID, e.User.GID, e.User.Groups
	config.Capabilities, config.NoNewPrivileges = e.Capabilities, e.NoNewPrivileges
	env, err := environment(e.Env, func(v podpolicy.EnvVar) (string, error) {
		if value, ok := c.resolved[v.Name]; ok {
			return value, nil
		}
		return "", fmt.Errorf("env.%s: its value was not fetched with the container's", v.Name)
	})
	if err != nil {
		return nil, err
	}
	process, err := container.ExecProcess(config, e.Args, env, e.Cwd, e.Terminal)
	if err != nil {
		return nil, err
	}
	return c.c.Exec(ctx, p.exec, process, container.IO{Terminal: e.Terminal, Stdin: e.Stdin})
}

// Exec implements the protocol.
func (a *Agent) Exec(ctx context.Context, req *agentapi.ExecRequest) (*agentapi.ExecResponse, error) {
	if err := a.prepareExec(ctx, req); err != nil {
		return nil, a.fail(ctx, "Exec", err)
	}
	return &agentapi.ExecResponse{}, nil
}

func (a *Agent) prepareExec(ctx context.Context, req *agentapi.ExecRequest) error {
	if err := checkID("exec_id", req.GetExecId()); err != nil {
		return err
	}
	c, sb, err := a.lookup(req.GetContainerId())
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	config, err := sb.guard.Exec(c.id, execProposal(req))
	if err != nil {
		return err
	}
	p := newProc(c.id, config.ID)
	p.config = config
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs[config.ID] = p
	return nil
}

// Signal implements the protocol.
func (a *Agent) Signal(ctx context.Context, req *agentapi.SignalRequest) (*agentapi.SignalResponse, error) {
	if err := a.signal(req); err != nil {
		return nil, a.fail(ctx, "Signal", err)
	}
	return &agentapi.SignalResponse{}, nil
}

func (a *Agent) signal(req *agentapi.SignalRequest) error {
	p, c, sb, err := a.find(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return err
	}
	if p.ended() {
		return notFound("%s has ended", p)
	}
	if err := sb.guard.Signal(p.container, p.exec, req.GetSignal()); err != nil {
		return err
	}
	sig := unix.Signal(req.GetSignal())
	if req.GetAll() && p.exec == "" {
		return c.c.SignalAll(sig)
	}
	process := p.get()
	if process == nil {
		return unready("%s is not started", p)
	}
	if err := process.Signal(sig); errors.Is(err, reaper.ErrExited) {
		return notFound("%s has ended", p)
	} else if err != nil {
		return err
	}
	return nil
}

// Resize implements the protocol.
func (a *Agent) Resize(ctx context.Context, req *agentapi.ResizeRequest) (*agentapi.ResizeResponse, error) {
	p, _, sb, err := a.find(req.GetContainerId(), req.GetExecId())
	if err == nil {
		err = sb.guard.Resize(p.container, p.exec)
	}
	if err == nil {
		switch process := p.get(); {
		case process == nil:
			err = unready("%s is not started", p)
		case req.GetWidth() > 0xffff || req.GetHeight() > 0xffff:
			err = invalid("width, height: expected at most 65535, got %d, %d", req.GetWidth(), req.GetHeight())
		default:
			err = process.Resize(uint16(req.GetWidth()), uint16(req.GetHeight()))
		}
	}
	if err != nil {
		return nil, a.fail(ctx, "Resize", err)
	}
	return &agentapi.ResizeResponse{}, nil
}

// CloseStdin implements the protocol. While a STDIN stream is open, standard
// input ends with that stream, so that nothing on its way is lost.
func (a *Agent) CloseStdin(ctx context.Context, req *agentapi.CloseStdinRequest) (*agentapi.CloseStdinResponse, error) {
	p, _, sb, err := a.find(req.GetContainerId(), req.GetExecId())
	if err == nil {
		err = sb.guard.Ask(podpolicy.AskCloseStdin, p.container, p.exec)
	}
	if err == nil {
		err = p.stdin.close()
	}
	if err != nil {
		return nil, a.fail(ctx, "CloseStdin", err)
	}
	return &agentapi.CloseStdinResponse{}, nil
}

// Wait implements the protocol.
func (a *Agent) Wait(ctx context.Context, req *agentapi.WaitRequest) (*agentapi.WaitResponse, error) {
	p, _, sb, err := a.find(req.GetContainerId(), req.GetExecId())
	if err == nil {
		err = sb.guard.Ask(podpolicy.AskWait, p.container, p.exec)
	}
	if err != nil {
		return nil, a.fail(ctx, "Wait", err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, a.fail(ctx, "Wait", ctx.Err())
	}
	return &agentapi.WaitResponse{
		ExitCode: uint32(p.status.Code), ExitedAt: p.status.At.UnixNano(), Reason: p.reason,
	}, nil
}

// Update implements the protocol.
func (a *Agent) Update(ctx context.Context, req *agentapi.UpdateRequest) (*agentapi.UpdateResponse, error) {
	c, sb, err := a.lookup(req.GetContainerId())
	if err == nil {
		var limits *podpolicy.Resources
		if limits, err = sb.guard.Update(c.id, resources(req.GetResources())); err == nil {
			err = c.c.Update(container.Limits(*limits))
		}
	}
	if err != nil {
		return nil, a.fail(ctx, "Update", err)
	}
	return &agentapi.UpdateResponse{}, nil
}

// Stats implements the protocol.
func (a *Agent) Stats(ctx context.Context, req *agentapi.StatsRequest) (*agentapi.StatsResponse, error) {
	c, sb, err := a.lookup(req.GetContainerId())
	var s container.Stats
	if err == nil {
		err = sb.guard.Ask(podpolicy.AskStats, c.id, "")
	}
	if err == nil {
		s, err = c.c.Stats()
	}
	if err != nil {
		return nil, a.fail(ctx, "Stats", err)
	}
	return &agentapi.StatsResponse{
		MemoryBytes: s.MemoryBytes, MemoryLimitBytes: s.MemoryLimitBytes, MemoryInactiveFileBytes: s.InactiveFileBytes, MemoryAnonBytes: s.AnonBytes, MemoryFileBytes: s.FileBytes,
		PageFaults: s.PageFaults, MajorPageFaults: s.MajorPageFaults, OomKills: s.OOMKills,
		CpuUsageNs: s.CPUUsageNS, CpuUserNs: s.CPUUserNS, CpuSystemNs: s.CPUSystemNS, CpuPeriods: s.CPUPeriods, CpuThrottledPeriods: s.CPUThrottledPeriods, CpuThrottledNs: s.CPUThrottledNS,
		Pids: s.PIDs, PidsLimit: s.PIDsLimit,
	}, nil
}

// Delete implements the protocol. What runs cannot be deleted; what is gone
// already is NOT_FOUND, which a host that repeats the call takes as done.
func (a *Agent) Delete(ctx context.Context, req *agentapi.DeleteRequest) (*agentapi.DeleteResponse, error) {
	p, c, sb, err := a.find(req.GetContainerId(), req.GetExecId())
	if err == nil {
		err = sb.guard.Ask(podpolicy.AskDelete, p.container, p.exec)
	}
	if err == nil {
		err = a.delete(ctx, p, c, sb)
	}
	if err != nil {
		return nil, a.fail(ctx, "Delete", err)
	}
	resp := &agentapi.DeleteResponse{}
	if p.ended() {
		resp.ExitCode, resp.ExitedAt = uint32(p.status.Code), p.status.At.UnixNano()
	}
	return resp, nil
}

func (a *Agent) delete(ctx context.Context, p *proc, c *ctr, sb *sandbox) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if p.exec != "" && c.command(p.exec) != p {
		return notFound("%s is gone", p)
	}
	if p.begun() && !p.ended() {
		return unready("%s is running; end it by a signal first", p)
	}
	if p.exec != "" {
		if err := sb.guard.Deleted(c.id, p.exec); err != nil {
			return err
		}
		p.closeIO()
		c.mu.Lock()
		delete(c.execs, p.exec)
		c.mu.Unlock()
		return nil
	}
	if err := a.remove(ctx, sb, c); err != nil {
		return err
	}
	if err := sb.guard.Deleted(c.id, ""); err != nil {
		return err
	}
	a.forget(c)
	return nil
}

// forget gives a container's id free; the caller has its turn.
func (a *Agent) forget(c *ctr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.gone = true
	delete(a.containers, c.id)
}

// remove takes a container off the machine.
func (a *Agent) remove(ctx context.Context, sb *sandbox, c *ctr) error {
	if err := c.c.Delete(ctx); err != nil {
		return err
	}
	c.stop()
	if err := c.settle(ctx); err != nil {
		return err
	}
	c.lastWords.close()
	return sb.images.Unmount(c.id)
}

// settle waits until the ends of a container's processes, which are dead, have
// been recorded: later they would be taken for those of others that have the
// same ids then. It closes their streams.
func (c *ctr) settle(ctx context.Context) error {
	c.mu.Lock()
	all := append(slices.Collect(maps.Values(c.execs)), c.init)
	c.mu.Unlock()
	for _, p := range all {
		if p.begun() || p.exec == "" {
			select {
			case <-p.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		p.closeIO()
	}
	return nil
}
