package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/podpolicy"
)

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
		p.stdout.start(nil, false, a.log)
		p.stderr.start(nil, false, a.log)
		return failed("runtime", err)
	}
	p.attach(process, p.config.Output, a.log)
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
