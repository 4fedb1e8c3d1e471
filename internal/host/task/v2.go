package task

import (
	"context"

	v2 "github.com/containerd/containerd/api/runtime/task/v2"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// V2 is the service as containerd.task.v2.Task. Its messages are those of v3
// under another name, field for field, so they are read again as those.
type V2 struct{ v3 V3 }

var _ v2.TTRPCTaskService = V2{}

// RegisterV2 has a server offer containerd.task.v2.Task.
func (s *Service) RegisterV2(server *ttrpc.Server) { v2.RegisterTTRPCTaskService(server, V2{V3{s}}) }

// recode reads a message as one of another type with the same fields.
func recode(from, to proto.Message) error {
	b, err := proto.Marshal(from)
	if err == nil {
		err = proto.Unmarshal(b, to)
	}
	if err != nil {
		return errgrpc.ToGRPC(errdefs.ErrInvalidArgument.WithMessage("task API v2: " + err.Error()))
	}
	return nil
}

// as calls a method of v3 for one of v2: from is read as q, and the answer as to.
func as[Q, A, T proto.Message](ctx context.Context, from proto.Message, q Q, to T, call func(context.Context, Q) (A, error)) (T, error) {
	var none T
	if err := recode(from, q); err != nil {
		return none, err
	}
	a, err := call(ctx, q)
	if err != nil {
		return none, err
	}
	if err := recode(a, to); err != nil {
		return none, err
	}
	return to, nil
}

// State implements the API.
func (v V2) State(ctx context.Context, r *v2.StateRequest) (*v2.StateResponse, error) {
	return as(ctx, r, &api.StateRequest{}, &v2.StateResponse{}, v.v3.State)
}

// Create implements the API.
func (v V2) Create(ctx context.Context, r *v2.CreateTaskRequest) (*v2.CreateTaskResponse, error) {
	return as(ctx, r, &api.CreateTaskRequest{}, &v2.CreateTaskResponse{}, v.v3.Create)
}

// Start implements the API.
func (v V2) Start(ctx context.Context, r *v2.StartRequest) (*v2.StartResponse, error) {
	return as(ctx, r, &api.StartRequest{}, &v2.StartResponse{}, v.v3.Start)
}

// Delete implements the API.
func (v V2) Delete(ctx context.Context, r *v2.DeleteRequest) (*v2.DeleteResponse, error) {
	return as(ctx, r, &api.DeleteRequest{}, &v2.DeleteResponse{}, v.v3.Delete)
}

// Pids implements the API.
func (v V2) Pids(ctx context.Context, r *v2.PidsRequest) (*v2.PidsResponse, error) {
	return as(ctx, r, &api.PidsRequest{}, &v2.PidsResponse{}, v.v3.Pids)
}

// Pause implements the API.
func (v V2) Pause(ctx context.Context, r *v2.PauseRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.PauseRequest{}, &emptypb.Empty{}, v.v3.Pause)
}

// Resume implements the API.
func (v V2) Resume(ctx context.Context, r *v2.ResumeRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.ResumeRequest{}, &emptypb.Empty{}, v.v3.Resume)
}

// Checkpoint implements the API.
func (v V2) Checkpoint(ctx context.Context, r *v2.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.CheckpointTaskRequest{}, &emptypb.Empty{}, v.v3.Checkpoint)
}

// Kill implements the API.
func (v V2) Kill(ctx context.Context, r *v2.KillRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.KillRequest{}, &emptypb.Empty{}, v.v3.Kill)
}

// Exec implements the API.
func (v V2) Exec(ctx context.Context, r *v2.ExecProcessRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.ExecProcessRequest{}, &emptypb.Empty{}, v.v3.Exec)
}

// ResizePty implements the API.
func (v V2) ResizePty(ctx context.Context, r *v2.ResizePtyRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.ResizePtyRequest{}, &emptypb.Empty{}, v.v3.ResizePty)
}

// CloseIO implements the API.
func (v V2) CloseIO(ctx context.Context, r *v2.CloseIORequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.CloseIORequest{}, &emptypb.Empty{}, v.v3.CloseIO)
}

// Update implements the API.
func (v V2) Update(ctx context.Context, r *v2.UpdateTaskRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.UpdateTaskRequest{}, &emptypb.Empty{}, v.v3.Update)
}

// Wait implements the API.
func (v V2) Wait(ctx context.Context, r *v2.WaitRequest) (*v2.WaitResponse, error) {
	return as(ctx, r, &api.WaitRequest{}, &v2.WaitResponse{}, v.v3.Wait)
}

// Stats implements the API.
func (v V2) Stats(ctx context.Context, r *v2.StatsRequest) (*v2.StatsResponse, error) {
	return as(ctx, r, &api.StatsRequest{}, &v2.StatsResponse{}, v.v3.Stats)
}

// Connect implements the API.
func (v V2) Connect(ctx context.Context, r *v2.ConnectRequest) (*v2.ConnectResponse, error) {
	return as(ctx, r, &api.ConnectRequest{}, &v2.ConnectResponse{}, v.v3.Connect)
}

// Shutdown implements the API.
func (v V2) Shutdown(ctx context.Context, r *v2.ShutdownRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &api.ShutdownRequest{}, &emptypb.Empty{}, v.v3.Shutdown)
}
