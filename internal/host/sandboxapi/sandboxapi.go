// Package sandboxapi serves containerd's Sandbox API
// (containerd.runtime.sandbox.v1.Sandbox) on a pod: the way without a pause
// container, which a runtime handler chooses with sandboxer = "shim".
//
// CreateSandbox only reads what the pod is; StartSandbox boots it and hands it to
// the Task service ([Options.Booted]), whose containers run in it. WaitSandbox
// returns when the machine has ended, by StopSandbox or by itself, and
// ShutdownSandbox ends the shim. A call that fails says so in one sentence: it
// becomes the pod's event.
package sandboxapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/pod"
)

// Pod is the part of *pod.Pod that is needed here.
type Pod interface {
	Boot(ctx context.Context, s *cri.Sandbox) error
	Machine() pod.Machine
	Created() time.Time
	Done() <-chan struct{}
	Err() error
	Close(ctx context.Context) error
}

// Options of a Service.
type Options struct {
	// NewPod makes the pod; nothing of it is started.
	NewPod func(s *cri.Sandbox) (Pod, error)
	// Booted is told of a pod that runs, before StartSandbox returns. With an
	// error the pod is closed again.
	Booted func(p Pod) error
	// Closed is told when nothing is left of a pod that was booted; may be nil.
	Closed func(p Pod)
	// Shutdown ends the shim; it returns at once.
	Shutdown func()
	Logger   *slog.Logger
	// Now may be nil.
	Now func() time.Time
}

// Service is the Sandbox service of one shim, and so of one sandbox. It is safe
// for concurrent use.
type Service struct {
	o Options

	mu      sync.Mutex
	sandbox *cri.Sandbox
	pod     Pod // from StartSandbox on
	// state says what has been done.
	state  state
	exit   *exit
	exited chan struct{} // closed when exit is set

	background sync.WaitGroup
}

type state int

const (
	none state = iota
	created
	starting
	started
	ended
)

// exit is how a sandbox ended.
type exit struct {
	status uint32
	at     time.Time
}

// killed is the exit status of a machine that ended by itself: that of a process
// that was killed.
const killed = 137

// New makes the service.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{o: o, exited: make(chan struct{})}
}

var _ api.TTRPCSandboxService = (*Service)(nil)

// CreateSandbox implements the service.
func (s *Service) CreateSandbox(_ context.Context, r *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	config := r.GetOptions()
	if name := typeName(config.GetTypeUrl()); name != cri.ConfigType {
		return nil, fail(codes.InvalidArgument, "options: expected %s, got %.100q", cri.ConfigType, name)
	}
	sandbox, err := cri.FromConfig(config.GetValue(), r.GetSandboxID(), r.GetNetnsPath())
	if err != nil {
		return nil, fail(codes.InvalidArgument, "%w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != none {
		return nil, fail(codes.AlreadyExists, "sandbox %s: this shim has sandbox %s already", r.GetSandboxID(), s.sandbox.ID)
	}
	s.sandbox, s.state = sandbox, created
	return &api.CreateSandboxResponse{}, nil
}

// StartSandbox implements the service.
func (s *Service) StartSandbox(ctx context.Context, r *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	p, sandbox, err := s.begin(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	if err := p.Boot(ctx, sandbox); err != nil {
		s.end(p, killed)
		return nil, grpcError(err)
	}
	if err := s.o.Booted(p); err != nil {
		_ = p.Close(context.WithoutCancel(ctx))
		s.end(p, killed)
		return nil, grpcError(err)
	}
	s.mu.Lock()
	s.state = started
	s.mu.Unlock()
	s.background.Go(func() { s.watch(p) })
	return &api.StartSandboxResponse{Pid: pid(p), CreatedAt: timestamppb.New(p.Created())}, nil
}

// begin makes the pod.
func (s *Service) begin(id string) (Pod, *cri.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.known(id); err != nil {
		return nil, nil, err
	}
	if s.state != created {
		return nil, nil, fail(codes.FailedPrecondition, "sandbox %s: it was started before", id)
	}
	p, err := s.o.NewPod(s.sandbox)
	if err != nil {
		return nil, nil, grpcError(err)
	}
	s.pod, s.state = p, starting
	return p, s.sandbox, nil
}

// watch waits for the machine's end and removes what is left of the pod.
func (s *Service) watch(p Pod) {
	<-p.Done()
	status := uint32(0)
	if err := p.Err(); err != nil {
		s.o.Logger.Error("the sandbox has ended", "error", err)
		status = killed
	}
	// Bounded by the pod itself.
	if err := p.Close(context.Background()); err != nil {
		s.o.Logger.Error("not all of the sandbox could be removed", "error", err)
	}
	if s.o.Closed != nil {
		s.o.Closed(p)
	}
	s.end(p, status)
}

// end notes how it ended; the first time counts.
func (s *Service) end(p Pod, status uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exit != nil {
		return
	}
	s.pod, s.state = p, ended
	s.exit = &exit{status: status, at: s.o.Now()}
	close(s.exited)
}

// Platform implements the service.
func (s *Service) Platform(_ context.Context, r *api.PlatformRequest) (*api.PlatformResponse, error) {
	if _, err := s.get(r.GetSandboxID()); err != nil {
		return nil, err
	}
	return &api.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: runtime.GOARCH}}, nil
}

// StopSandbox implements the service. A sandbox that does not run is stopped.
func (s *Service) StopSandbox(ctx context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	p, err := s.get(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	if seconds := r.GetTimeoutSecs(); seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	if err := s.stop(ctx, p); err != nil {
		return nil, grpcError(err)
	}
	return &api.StopSandboxResponse{}, nil
}

// stop ends the pod and waits until that is known.
func (s *Service) stop(ctx context.Context, p Pod) error {
	if p == nil {
		s.end(nil, 0) // it was never started
		return nil
	}
	err := p.Close(ctx)
	select {
	case <-s.exited:
	case <-ctx.Done():
		// The pod is closed; what is left is to write that down.
	}
	return err
}

// WaitSandbox implements the service.
func (s *Service) WaitSandbox(ctx context.Context, r *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	if _, err := s.get(r.GetSandboxID()); err != nil {
		return nil, err
	}
	select {
	case <-s.exited:
	case <-ctx.Done():
		return nil, grpcError(ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &api.WaitSandboxResponse{ExitStatus: s.exit.status, ExitedAt: timestamppb.New(s.exit.at)}, nil
}

// ShutdownSandbox implements the service: it ends the pod, if that was not done,
// and the shim.
func (s *Service) ShutdownSandbox(ctx context.Context, r *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	s.mu.Lock()
	p, err := s.pod, error(nil)
	if s.state != none {
		err = s.known(r.GetSandboxID())
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := s.stop(ctx, p); err != nil {
		s.o.Logger.ErrorContext(ctx, "not all of the sandbox could be removed", "error", err)
	}
	s.o.Shutdown()
	return &api.ShutdownSandboxResponse{}, nil
}

// Close ends the pod if it runs, and waits for what the service does in the
// background. It is for the end of the shim.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	p := s.pod
	s.mu.Unlock()
	var err error
	if p != nil {
		err = p.Close(ctx)
	}
	s.background.Wait()
	return err
}

// get returns the pod of the sandbox; nil before it is started.
func (s *Service) get(id string) (Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pod, s.known(id)
}

// known refuses another sandbox. The caller holds mu.
func (s *Service) known(id string) error {
	if s.sandbox == nil || id != s.sandbox.ID {
		return fail(codes.NotFound, "sandbox %.100q is not of this shim", id)
	}
	return nil
}

// fail makes an error that containerd tells apart by its code.
func fail(code codes.Code, format string, args ...any) error {
	return status.Error(code, fmt.Errorf(format, args...).Error())
}

// grpcError keeps the text of an error as it is, and gives it the code of what
// errdefs or the guest calls it.
func grpcError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fail(codes.DeadlineExceeded, "%w", err)
	}
	code := status.Code(errgrpc.ToGRPC(err))
	if code == codes.Unimplemented || code == codes.OK {
		code = codes.Unknown // the former is for a service that is not there
	}
	return fail(code, "%w", err)
}
