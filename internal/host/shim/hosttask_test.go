package shim_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coffer-project/coffer/internal/host/shim"
	"github.com/coffer-project/coffer/internal/host/shim/events"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

// hostTasks is the smallest Task service that `ctr` can use: containers are
// processes of the host. It has the two versions of the service, whose messages
// are the same.
type hostTasks struct {
	d *shim.Daemon

	mu    sync.Mutex
	procs map[string]*hostProc // by container, or container/exec
}

type hostProc struct {
	id, exec       string
	args           []string
	stdin          string
	stdout, stderr string
	terminal       bool
	cmd            *exec.Cmd
	pid            atomic.Int32 // 0 before it was started
	done           chan struct{}
	status         uint32
	exited         time.Time
}

func newHostTasks(d *shim.Daemon) *hostTasks { return &hostTasks{d: d, procs: map[string]*hostProc{}} }

func method[Q any, P interface {
	*Q
	proto.Message
}, R proto.Message](f func(context.Context, P) (R, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var q P = new(Q)
		if err := unmarshal(q); err != nil {
			return nil, err
		}
		r, err := f(ctx, q)
		if err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
		return r, nil
	}
}

func (h *hostTasks) register(s *ttrpc.Server) {
	desc := &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State": method(h.State), "Create": method(h.Create), "Start": method(h.Start), "Delete": method(h.Delete),
		"Pids": method(h.Pids), "Kill": method(h.Kill), "Exec": method(h.Exec), "Wait": method(h.Wait),
		"Connect": method(h.Connect), "Shutdown": method(h.Shutdown), "CloseIO": method(h.CloseIO),
	}}
	s.RegisterService("containerd.task.v2.Task", desc)
	s.RegisterService("containerd.task.v3.Task", desc)
}

func key(id, execID string) string { return id + "/" + execID }

func (h *hostTasks) get(id, execID string) (*hostProc, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.procs[key(id, execID)]; p != nil {
		return p, nil
	}
	return nil, errdefs.ErrNotFound
}

func (h *hostTasks) put(p *hostProc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p.done = make(chan struct{})
	h.procs[key(p.id, p.exec)] = p
}

func (h *hostTasks) Create(ctx context.Context, r *taskv2.CreateTaskRequest) (*taskv2.CreateTaskResponse, error) {
	data, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, err
	}
	h.put(&hostProc{id: r.ID, args: spec.Process.Args, stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, terminal: r.Terminal})
	return &taskv2.CreateTaskResponse{Pid: uint32(os.Getpid())},
		h.d.Publisher.Publish(ctx, events.TopicCreate, &eventsapi.TaskCreate{ContainerID: r.ID, Bundle: r.Bundle, Pid: uint32(os.Getpid())})
}

func (h *hostTasks) Exec(ctx context.Context, r *taskv2.ExecProcessRequest) (*emptypb.Empty, error) {
	var spec specs.Process
	if err := json.Unmarshal(r.Spec.GetValue(), &spec); err != nil {
		return nil, err
	}
	h.put(&hostProc{id: r.ID, exec: r.ExecID, args: spec.Args, stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, terminal: r.Terminal})
	return &emptypb.Empty{}, h.d.Publisher.Publish(ctx, events.TopicExecAdded, &eventsapi.TaskExecAdded{ContainerID: r.ID, ExecID: r.ExecID})
}

// pipe opens a FIFO of containerd's.
func pipe(path string, closers *[]io.Closer) *os.File {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	*closers = append(*closers, f)
	return f
}

func (h *hostTasks) Start(ctx context.Context, r *taskv2.StartRequest) (*taskv2.StartResponse, error) {
	p, err := h.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	var closers []io.Closer
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if f := pipe(p.stdout, &closers); f != nil {
		p.cmd.Stdout = f
	}
	if f := pipe(p.stderr, &closers); f != nil {
		p.cmd.Stderr = f
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.pid.Store(int32(p.cmd.Process.Pid))
	if p.exec == "" {
		if err := h.note(p); err != nil {
			return nil, err
		}
		err = h.d.Publisher.Publish(ctx, events.TopicStart, &eventsapi.TaskStart{ContainerID: p.id, Pid: uint32(p.pid.Load())})
	} else {
		err = h.d.Publisher.Publish(ctx, events.TopicExecStarted, &eventsapi.TaskExecStarted{ContainerID: p.id, ExecID: p.exec, Pid: uint32(p.pid.Load())})
	}
	go h.wait(p, closers)
	return &taskv2.StartResponse{Pid: uint32(p.pid.Load())}, err
}

// note records the process as if it were the pod's machine.
func (h *hostTasks) note(p *hostProc) error {
	proc, err := podstate.Look("machine", int(p.pid.Load()))
	if err != nil {
		return err
	}
	return h.d.State.Update(func(s *podstate.State) { s.Machines = append(s.Machines, proc) })
}

func (h *hostTasks) wait(p *hostProc, closers []io.Closer) {
	_ = p.cmd.Wait()
	for _, c := range closers {
		_ = c.Close()
	}
	p.exited = time.Now()
	ws, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	p.status = uint32(ws.ExitStatus())
	if ws.Signaled() {
		p.status = 128 + uint32(ws.Signal())
	}
	id := p.exec
	if id == "" {
		id = p.id
		_ = h.d.State.Update(func(s *podstate.State) {
			s.Machines = nil
			if s.Exits == nil {
				s.Exits = map[string]podstate.Exit{}
			}
			s.Exits[p.id] = podstate.Exit{Status: p.status, PID: uint32(p.pid.Load()), At: p.exited}
		})
	}
	close(p.done)
	_ = h.d.Publisher.Publish(context.Background(), events.TopicExit, &eventsapi.TaskExit{
		ContainerID: p.id, ID: id, Pid: uint32(p.pid.Load()), ExitStatus: p.status, ExitedAt: timestamppb.New(p.exited),
	})
}

func (h *hostTasks) Kill(_ context.Context, r *taskv2.KillRequest) (*emptypb.Empty, error) {
	p, err := h.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if p.pid.Load() == 0 {
		close(p.done)
		return &emptypb.Empty{}, nil
	}
	if err := syscall.Kill(int(p.pid.Load()), syscall.Signal(r.Signal)); err != nil && !errors.Is(err, syscall.ESRCH) {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (h *hostTasks) Wait(ctx context.Context, r *taskv2.WaitRequest) (*taskv2.WaitResponse, error) {
	p, err := h.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		return &taskv2.WaitResponse{ExitStatus: p.status, ExitedAt: timestamppb.New(p.exited)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *hostTasks) State(_ context.Context, r *taskv2.StateRequest) (*taskv2.StateResponse, error) {
	p, err := h.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	s := &taskv2.StateResponse{ID: p.id, ExecID: p.exec, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, Terminal: p.terminal, Status: tasktypes.Status_CREATED}
	if p.pid.Load() != 0 {
		s.Pid, s.Status = uint32(p.pid.Load()), tasktypes.Status_RUNNING
	}
	select {
	case <-p.done:
		s.Status, s.ExitStatus, s.ExitedAt = tasktypes.Status_STOPPED, p.status, timestamppb.New(p.exited)
	default:
	}
	return s, nil
}

func (h *hostTasks) Delete(ctx context.Context, r *taskv2.DeleteRequest) (*taskv2.DeleteResponse, error) {
	p, err := h.get(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	delete(h.procs, key(r.ID, r.ExecID))
	h.mu.Unlock()
	resp := &taskv2.DeleteResponse{ExitStatus: p.status, ExitedAt: timestamppb.New(p.exited)}
	if p.pid.Load() != 0 {
		resp.Pid = uint32(p.pid.Load())
	}
	if p.exec != "" {
		return resp, nil
	}
	return resp, h.d.Publisher.Publish(ctx, events.TopicDelete, &eventsapi.TaskDelete{ContainerID: p.id, Pid: resp.Pid, ExitStatus: p.status, ExitedAt: resp.ExitedAt})
}

func (h *hostTasks) Pids(_ context.Context, r *taskv2.PidsRequest) (*taskv2.PidsResponse, error) {
	p, err := h.get(r.ID, "")
	if err != nil {
		return nil, err
	}
	if p.pid.Load() == 0 {
		return &taskv2.PidsResponse{}, nil
	}
	return &taskv2.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: uint32(p.pid.Load())}}}, nil
}

func (h *hostTasks) CloseIO(context.Context, *taskv2.CloseIORequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (h *hostTasks) Connect(_ context.Context, r *taskv2.ConnectRequest) (*taskv2.ConnectResponse, error) {
	resp := &taskv2.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "2"}
	if p, err := h.get(r.ID, ""); err == nil {
		resp.TaskPid = uint32(p.pid.Load())
	}
	return resp, nil
}

func (h *hostTasks) Shutdown(context.Context, *taskv2.ShutdownRequest) (*emptypb.Empty, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.procs) == 0 {
		h.d.Shutdown()
	}
	return &emptypb.Empty{}, nil
}

// over tells that nothing runs.
func (h *hostTasks) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.procs {
		if p.pid.Load() == 0 {
			continue
		}
		select {
		case <-p.done:
		default:
			return false
		}
	}
	return true
}

// Close kills what still runs.
func (h *hostTasks) Close(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.procs {
		if p.pid.Load() == 0 {
			continue
		}
		_ = syscall.Kill(int(p.pid.Load()), syscall.SIGKILL)
		select {
		case <-p.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
