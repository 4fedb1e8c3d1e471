package task

import (
	"context"
	"fmt"
	"os"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// State tells what is known here; it asks nobody.
func (s *Service) State(_ context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	c, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	id := p.exec
	if id == "" {
		id = p.id
	}
	return &api.StateResponse{
		ID: id, ExecID: p.exec, Bundle: c.bundle, Pid: p.pid, Status: p.state.status(),
		Stdin: p.paths.Stdin, Stdout: p.paths.Stdout, Stderr: p.paths.Stderr, Terminal: p.paths.Terminal,
		ExitStatus: p.exit.status, ExitedAt: stamp(p.exit.at),
	}, nil
}

// Wait waits for the end of a process; it may be called before and after it,
// until the process is deleted.
func (s *Service) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	_, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if err := p.awaitEnd(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit.at.IsZero() {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("wait: %s was not created", p))
	}
	return &api.WaitResponse{ExitStatus: p.exit.status, ExitedAt: stamp(p.exit.at)}, nil
}

// Pids lists the processes that are known here. All of them show the machine's
// process, which is all that the host has of them. A container that has ended
// is listed until it is deleted: containerd, when it is restarted, removes what
// has no process (core/runtime/v2/shim_load.go), and would lose how it ended.
func (s *Service) Pids(_ context.Context, r *api.PidsRequest) (*api.PidsResponse, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	resp := &api.PidsResponse{}
	if st, _ := c.init.now(); st != creating && st != gone {
		resp.Processes = append(resp.Processes, &task.ProcessInfo{Pid: c.init.pidNow()})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.execs {
		if st, _ := p.now(); st != running {
			continue
		}
		info, err := anypb.New(&options.ProcessDetails{ExecID: p.exec})
		if err != nil {
			return nil, fmt.Errorf("pids: %w", err)
		}
		info.TypeUrl = string(info.MessageName()) // as containerd writes it
		resp.Processes = append(resp.Processes, &task.ProcessInfo{Pid: p.pidNow(), Info: info})
	}
	return resp, nil
}

// Connect tells the process ids of the shim and, of a container it knows, of
// its machine.
func (s *Service) Connect(_ context.Context, r *api.ConnectRequest) (*api.ConnectResponse, error) {
	resp := &api.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.container(r.GetID()); err == nil {
		resp.TaskPid = c.init.pidNow()
	}
	return resp, nil
}

// Shutdown asks for the shim's end. It is ignored while there are containers,
// or a pod that the Sandbox API has made: its own Shutdown ends that.
func (s *Service) Shutdown(context.Context, *api.ShutdownRequest) error {
	s.mu.Lock()
	ignore := len(s.containers) > 0 || s.host != nil && s.host.adopted
	s.mu.Unlock()
	if !ignore {
		s.o.Shutdown()
	}
	return nil
}

// ResizePty sets the size of a terminal; before the start, the size it will
// have. Without a terminal there is nothing to do.
func (s *Service) ResizePty(ctx context.Context, r *api.ResizePtyRequest) error {
	_, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return err
	}
	if !p.paths.Terminal {
		return nil
	}
	to := size{min(r.GetWidth(), 0xffff), min(r.GetHeight(), 0xffff)}
	p.mu.Lock()
	st := p.state
	if st == created || st == starting {
		p.size = &to
	}
	p.mu.Unlock()
	switch st {
	case created, starting:
		return nil
	case running:
	default:
		return p.wrong("resize", st)
	}
	_, m, err := s.running()
	if err != nil {
		return err
	}
	return s.resize(ctx, m, p, to)
}

func (s *Service) resize(ctx context.Context, m Machine, p *process, to size) error {
	ctx, cancel := bounded(ctx, s.o.Times.Call, "resize")
	defer cancel()
	err := s.within(ctx, func() error {
		_, err := m.Agent().Resize(ctx, &agentapi.ResizeRequest{ContainerId: p.id, ExecId: p.exec, Width: to.width, Height: to.height})
		return err
	})
	if err != nil {
		return fmt.Errorf("resize the terminal of %s: %w", p, explain(err))
	}
	return nil
}

// CloseIO ends a process's standard input, behind what was written to it. It
// returns when that is on its way to the process, or goes on without the
// caller when the process does not take it.
func (s *Service) CloseIO(ctx context.Context, r *api.CloseIORequest) error {
	_, p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return err
	}
	if st, _ := p.now(); !r.GetStdin() || p.io == nil || st == creating {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Times.CloseStdin)
	defer cancel()
	if err := p.io.CloseStdin(ctx); err != nil {
		s.log.DebugContext(ctx, "close standard input", "process", p.String(), "error", err)
	}
	return nil
}

// unsupported says why something is not done.
func unsupported(what, why string) error {
	return errdefs.ErrNotImplemented.WithMessage(what + ": " + why)
}

// Pause is not implemented.
func (s *Service) Pause() error {
	return unsupported("pause", "a confidential pod cannot be paused by its host")
}

// Resume is not implemented.
func (s *Service) Resume() error {
	return unsupported("resume", "a confidential pod cannot be paused by its host")
}

// Checkpoint is not implemented.
func (s *Service) Checkpoint() error {
	return unsupported("checkpoint", "the memory of a confidential machine cannot be read by its host")
}
