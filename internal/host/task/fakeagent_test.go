package task

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/internal/agentapi"
)

func (f *fakePod) find(id, exec string) (*fakeProc, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.procs[id+"/"+exec]; p != nil {
		return p, nil
	}
	return nil, status.Error(codes.NotFound, fmt.Sprintf("process %q %q is not known", id, exec))
}

func (f *fakePod) Open(ctx context.Context, h *agentapi.StreamHeader) (net.Conn, error) {
	if err := f.enter(ctx, "Open", h.GetContainerId()); err != nil {
		return nil, err
	}
	p, err := f.find(h.GetContainerId(), h.GetExecId())
	if err != nil {
		return nil, err
	}
	switch h.GetKind() {
	case agentapi.StreamHeader_STDIN:
		return p.inR, nil
	case agentapi.StreamHeader_STDOUT:
		return p.outR, nil
	default:
		return p.errR, nil
	}
}

func (a fakeAgent) Start(ctx context.Context, r *agentapi.StartRequest) (*agentapi.StartResponse, error) {
	f := a.pod
	if err := f.enter(ctx, "Start", name(r)); err != nil {
		return nil, err
	}
	p, err := f.find(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p.started = true
	if !f.gone {
		f.wg.Go(func() { f.run(p, r.GetContainerId(), r.GetExecId()) })
	}
	return &agentapi.StartResponse{Pid: 7}, nil
}

// run is the program.
func (f *fakePod) run(p *fakeProc, id, exec string) {
	var code uint32
	switch arg := p.args[0]; {
	case arg == "false":
		code = 1
	case arg == "echo":
		_, _ = io.WriteString(p.out, strings.Join(p.args[1:], " ")+"\n")
	case arg == "cat":
		_, _ = io.Copy(p.out, p.in)
	case arg == "seq":
		n, _ := strconv.Atoi(p.args[1])
		for i := range n {
			if _, err := fmt.Fprintln(p.out, i+1); err != nil {
				break
			}
		}
	case arg == "sh" && strings.HasPrefix(p.args[2], "echo "):
		_, _ = io.WriteString(p.err, strings.TrimSuffix(strings.TrimPrefix(p.args[2], "echo "), " >&2")+"\n")
	case arg == "sh":
		n, _ := strconv.Atoi(strings.TrimPrefix(p.args[2], "exit "))
		code = uint32(n)
	case arg == "sleep":
		<-p.kill
	}
	f.mu.Lock()
	if p.code == 0 {
		p.code = code
	}
	var execs []*fakeProc
	if exec == "" {
		for name, e := range f.procs {
			if strings.HasPrefix(name, id+"/") && e != p && e.started {
				execs = append(execs, e)
			}
		}
	}
	f.mu.Unlock()
	for _, c := range []net.Conn{p.in, p.out, p.err} {
		_ = c.Close()
	}
	close(p.done)
	for _, e := range execs {
		f.end(e, 137)
	}
}

func (f *fakePod) end(p *fakeProc, code uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-p.kill:
	default:
		p.code = code
		close(p.kill)
		_ = p.in.Close()
		_ = p.out.Close()
	}
}

func (a fakeAgent) Signal(ctx context.Context, r *agentapi.SignalRequest) (*agentapi.SignalResponse, error) {
	f := a.pod
	if err := f.enter(ctx, "Signal", name(r)+" "+strconv.Itoa(int(r.GetSignal()))); err != nil {
		return nil, err
	}
	p, err := f.find(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	if p.over() {
		return nil, status.Error(codes.NotFound, "it has ended")
	}
	if r.GetSignal() == 9 || r.GetSignal() == 15 {
		f.end(p, 128+r.GetSignal())
	}
	return &agentapi.SignalResponse{}, nil
}

func (a fakeAgent) Wait(ctx context.Context, r *agentapi.WaitRequest) (*agentapi.WaitResponse, error) {
	f := a.pod
	if err := f.enter(ctx, "Wait", name(r)); err != nil {
		return nil, err
	}
	p, err := f.find(r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.dead:
		return nil, errDead
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &agentapi.WaitResponse{ExitCode: p.code, ExitedAt: time.Now().Add(time.Hour).UnixNano(), Reason: p.reason}, nil
}

func (a fakeAgent) Exec(ctx context.Context, r *agentapi.ExecRequest) (*agentapi.ExecResponse, error) {
	f := a.pod
	if err := f.enter(ctx, "Exec", name(r)); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.procs[r.GetContainerId()+"/"+r.GetExecId()] = newFakeProc(r.GetArgs(), r.GetTerminal())
	return &agentapi.ExecResponse{}, nil
}

func (a fakeAgent) Resize(ctx context.Context, r *agentapi.ResizeRequest) (*agentapi.ResizeResponse, error) {
	f := a.pod
	if err := f.enter(ctx, "Resize", name(r)); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sizes = append(f.sizes, fmt.Sprintf("%s %dx%d", name(r), r.GetWidth(), r.GetHeight()))
	return &agentapi.ResizeResponse{}, nil
}

func (a fakeAgent) Stats(ctx context.Context, r *agentapi.StatsRequest) (*agentapi.StatsResponse, error) {
	f := a.pod
	if err := f.enter(ctx, "Stats", r.GetContainerId()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return proto.CloneOf(f.stats), nil
}

func (a fakeAgent) Update(ctx context.Context, r *agentapi.UpdateRequest) (*agentapi.UpdateResponse, error) {
	f := a.pod
	res := r.GetResources()
	if err := f.enter(ctx, "Update", fmt.Sprintf("%s %d %d %d", r.GetContainerId(), res.GetMemoryBytes(), res.GetCpuMillis(), res.GetPids())); err != nil {
		return nil, err
	}
	return &agentapi.UpdateResponse{}, nil
}

func name(r interface {
	GetContainerId() string
	GetExecId() string
}) string {
	return strings.TrimSuffix(r.GetContainerId()+"/"+r.GetExecId(), "/")
}
