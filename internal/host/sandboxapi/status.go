package sandboxapi

import (
	"context"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// States of a sandbox, as the CRI calls them (runtime.v1.PodSandboxState).
const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
)

// typeName is the last part of a type URL.
func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// pid is that of the machine; 0 without one.
func pid(p Pod) uint32 {
	if p == nil {
		return 0
	}
	if m := p.Machine(); m != nil {
		return uint32(max(m.PID(), 0))
	}
	return 0
}

// SandboxStatus implements the service.
func (s *Service) SandboxStatus(_ context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	p, err := s.get(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	resp := &api.SandboxStatusResponse{SandboxID: r.GetSandboxID(), Pid: pid(p), State: notReady}
	s.mu.Lock()
	if s.state == started {
		resp.State = ready
	}
	if s.exit != nil {
		resp.ExitedAt = timestamppb.New(s.exit.at)
	}
	s.mu.Unlock()
	if p == nil {
		return resp, nil
	}
	select {
	case <-p.Done():
		resp.State = notReady
	default:
	}
	if at := p.Created(); !at.IsZero() {
		resp.CreatedAt = timestamppb.New(at)
	}
	if r.GetVerbose() {
		resp.Info = info(p)
	}
	return resp, nil
}

// info is for people (crictl inspectp).
func info(p Pod) map[string]string {
	text := map[string]string{}
	if err := p.Err(); err != nil {
		text["error"] = err.Error()
	}
	m := p.Machine()
	if m == nil {
		return text
	}
	i := m.Info()
	text["tee"], text["teeReason"] = string(i.Kind), i.KindReason
	text["accelerator"], text["boot"] = string(i.Accelerator.Accelerator), i.Boot.String()
	text["sealed"] = strconv.FormatBool(i.Hello.GetSealed())
	if i.Measurement != nil {
		text["measurement"] = hex.EncodeToString(i.Measurement)
	}
	return text
}

// PingSandbox implements the service.
func (s *Service) PingSandbox(_ context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	p, err := s.get(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	if p == nil {
		return &api.PingResponse{}, nil
	}
	select {
	case <-p.Done():
		if err := p.Err(); err != nil {
			return nil, fail(codes.Unavailable, "the sandbox has ended: %w", err)
		}
		return nil, fail(codes.Unavailable, "the sandbox has ended")
	default:
		return &api.PingResponse{}, nil
	}
}

// SandboxMetrics implements the service: what the machine costs the node, by the
// node's own accounts. The guest is not asked.
func (s *Service) SandboxMetrics(_ context.Context, r *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	p, err := s.get(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	id := pid(p)
	if id == 0 {
		return nil, fail(codes.Unavailable, "the sandbox has no machine that runs")
	}
	u, err := processUsage(id)
	if err != nil {
		return nil, fail(codes.Unavailable, "the sandbox's machine: %w", err)
	}
	data, err := typeurl.MarshalAnyToProto(&stats.Metrics{
		Pids: &stats.PidsStat{Current: u.threads},
		CPU:  &stats.CPUStat{UsageUsec: u.userUsec + u.systemUsec, UserUsec: u.userUsec, SystemUsec: u.systemUsec},
		Memory: &stats.MemoryStat{
			Usage: u.rssBytes, Anon: u.rssBytes, Pgfault: u.minorFaults + u.majorFaults, Pgmajfault: u.majorFaults,
		},
	})
	if err != nil {
		return nil, grpcError(err)
	}
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{Timestamp: timestamppb.New(s.o.Now()), ID: r.GetSandboxID(), Data: data}}, nil
}
