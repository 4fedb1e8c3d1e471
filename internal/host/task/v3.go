package task

import (
	"context"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// V3 is the service as containerd.task.v3.Task: errors as statuses.
type V3 struct{ s *Service }

var _ api.TTRPCTaskService = V3{}

// V3 is the service for callers in this process.
func (s *Service) V3() V3 { return V3{s} }

// RegisterV3 has a server offer containerd.task.v3.Task.
func (s *Service) RegisterV3(server *ttrpc.Server) { api.RegisterTTRPCTaskService(server, V3{s}) }

// answer and done end a call: their errors are what the user reads.
func answer[T any](v T, err error) (T, error) {
	if err != nil {
		var none T
		return none, errgrpc.ToGRPC(explain(err))
	}
	return v, nil
}

func done(err error) (*emptypb.Empty, error) { return answer(&emptypb.Empty{}, err) }

// State implements the API.
func (v V3) State(ctx context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	return answer(v.s.State(ctx, r))
}

// Create implements the API.
func (v V3) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	return answer(v.s.Create(ctx, r))
}

// Start implements the API.
func (v V3) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	return answer(v.s.Start(ctx, r))
}

// Delete implements the API.
func (v V3) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	return answer(v.s.Delete(ctx, r))
}

// Pids implements the API.
func (v V3) Pids(ctx context.Context, r *api.PidsRequest) (*api.PidsResponse, error) {
	return answer(v.s.Pids(ctx, r))
}

// Pause implements the API.
func (v V3) Pause(context.Context, *api.PauseRequest) (*emptypb.Empty, error) {
	return done(v.s.Pause())
}

// Resume implements the API.
func (v V3) Resume(context.Context, *api.ResumeRequest) (*emptypb.Empty, error) {
	return done(v.s.Resume())
}

// Checkpoint implements the API.
func (v V3) Checkpoint(context.Context, *api.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return done(v.s.Checkpoint())
}

// Kill implements the API.
func (v V3) Kill(ctx context.Context, r *api.KillRequest) (*emptypb.Empty, error) {
	return done(v.s.Kill(ctx, r))
}

// Exec implements the API.
func (v V3) Exec(ctx context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	return done(v.s.Exec(ctx, r))
}

// ResizePty implements the API.
func (v V3) ResizePty(ctx context.Context, r *api.ResizePtyRequest) (*emptypb.Empty, error) {
	return done(v.s.ResizePty(ctx, r))
}

// CloseIO implements the API.
func (v V3) CloseIO(ctx context.Context, r *api.CloseIORequest) (*emptypb.Empty, error) {
	return done(v.s.CloseIO(ctx, r))
}

// Update implements the API.
func (v V3) Update(ctx context.Context, r *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	return done(v.s.Update(ctx, r))
}

// Wait implements the API.
func (v V3) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	return answer(v.s.Wait(ctx, r))
}

// Stats implements the API.
func (v V3) Stats(ctx context.Context, r *api.StatsRequest) (*api.StatsResponse, error) {
	return answer(v.s.Stats(ctx, r))
}

// Connect implements the API.
func (v V3) Connect(ctx context.Context, r *api.ConnectRequest) (*api.ConnectResponse, error) {
	return answer(v.s.Connect(ctx, r))
}

// Shutdown implements the API.
func (v V3) Shutdown(ctx context.Context, r *api.ShutdownRequest) (*emptypb.Empty, error) {
	return done(v.s.Shutdown(ctx, r))
}
