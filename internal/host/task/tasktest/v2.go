package tasktest

import (
	"context"

	v2 "github.com/containerd/containerd/api/runtime/task/v2"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// V2 has the suite talk to a service by version 2 of the API, as containerd 1.6
// does: the messages are the same under another name.
func V2(s v2.TTRPCTaskService) api.TTRPCTaskService { return older{s} }

type older struct{ s v2.TTRPCTaskService }

func recode[T proto.Message](from proto.Message, to T) (T, error) {
	b, err := proto.Marshal(from)
	if err == nil {
		err = proto.Unmarshal(b, to)
	}
	return to, err
}

func as[Q, A, T proto.Message](ctx context.Context, from proto.Message, q Q, to T, call func(context.Context, Q) (A, error)) (T, error) {
	if _, err := recode(from, q); err != nil {
		return to, err
	}
	a, err := call(ctx, q)
	if err != nil {
		return to, err
	}
	return recode(a, to)
}

func (o older) State(ctx context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	return as(ctx, r, &v2.StateRequest{}, &api.StateResponse{}, o.s.State)
}

func (o older) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	return as(ctx, r, &v2.CreateTaskRequest{}, &api.CreateTaskResponse{}, o.s.Create)
}

func (o older) Start(ctx context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	return as(ctx, r, &v2.StartRequest{}, &api.StartResponse{}, o.s.Start)
}

func (o older) Delete(ctx context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	return as(ctx, r, &v2.DeleteRequest{}, &api.DeleteResponse{}, o.s.Delete)
}

func (o older) Pids(ctx context.Context, r *api.PidsRequest) (*api.PidsResponse, error) {
	return as(ctx, r, &v2.PidsRequest{}, &api.PidsResponse{}, o.s.Pids)
}

func (o older) Pause(ctx context.Context, r *api.PauseRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.PauseRequest{}, &emptypb.Empty{}, o.s.Pause)
}

func (o older) Resume(ctx context.Context, r *api.ResumeRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.ResumeRequest{}, &emptypb.Empty{}, o.s.Resume)
}

func (o older) Checkpoint(ctx context.Context, r *api.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.CheckpointTaskRequest{}, &emptypb.Empty{}, o.s.Checkpoint)
}

func (o older) Kill(ctx context.Context, r *api.KillRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.KillRequest{}, &emptypb.Empty{}, o.s.Kill)
}

func (o older) Exec(ctx context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.ExecProcessRequest{}, &emptypb.Empty{}, o.s.Exec)
}

func (o older) ResizePty(ctx context.Context, r *api.ResizePtyRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.ResizePtyRequest{}, &emptypb.Empty{}, o.s.ResizePty)
}

func (o older) CloseIO(ctx context.Context, r *api.CloseIORequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.CloseIORequest{}, &emptypb.Empty{}, o.s.CloseIO)
}

func (o older) Update(ctx context.Context, r *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.UpdateTaskRequest{}, &emptypb.Empty{}, o.s.Update)
}

func (o older) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	return as(ctx, r, &v2.WaitRequest{}, &api.WaitResponse{}, o.s.Wait)
}

func (o older) Stats(ctx context.Context, r *api.StatsRequest) (*api.StatsResponse, error) {
	return as(ctx, r, &v2.StatsRequest{}, &api.StatsResponse{}, o.s.Stats)
}

func (o older) Connect(ctx context.Context, r *api.ConnectRequest) (*api.ConnectResponse, error) {
	return as(ctx, r, &v2.ConnectRequest{}, &api.ConnectResponse{}, o.s.Connect)
}

func (o older) Shutdown(ctx context.Context, r *api.ShutdownRequest) (*emptypb.Empty, error) {
	return as(ctx, r, &v2.ShutdownRequest{}, &emptypb.Empty{}, o.s.Shutdown)
}
