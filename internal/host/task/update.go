package task

import (
	"context"
	"fmt"
	"math"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Update changes a container's limits: memory, CPU time and number of
// processes. What else the request has (CPU sets, shares, huge pages) means the
// host's cgroups, in which no process of the container is: it is left out. A
// limit can be changed, not lifted.
func (s *Service) Update(ctx context.Context, r *api.UpdateTaskRequest) error {
	c, err := s.container(r.GetID())
	if err != nil {
		return err
	}
	if c.virtual() {
		return unsupported("update", "the size of a pod's machine is fixed at its boot")
	}
	if r.GetResources() == nil {
		return nil
	}
	limits := new(specs.LinuxResources)
	if err := decode("resources", r.GetResources(), "LinuxResources", limits); err != nil {
		return err
	}
	if st, _ := c.init.now(); st != created && st != running {
		return c.init.wrong("update", st)
	}
	now := resources(limits)
	if now.GetMemoryBytes() == 0 && now.GetCpuMillis() == 0 && now.GetPids() == 0 {
		return nil
	}
	_, m, err := s.running()
	if err != nil {
		return err
	}
	ctx, cancel := bounded(ctx, s.o.Times.Call, "update")
	defer cancel()
	if _, err := m.Agent().Update(ctx, &agentapi.UpdateRequest{ContainerId: c.id, Resources: now}); err != nil {
		return fmt.Errorf("update container %q: %w", c.id, explain(err))
	}
	return nil
}

// resources says OCI limits in the guest's terms; what is not limited is 0.
func resources(l *specs.LinuxResources) *agentapi.Resources {
	out := &agentapi.Resources{}
	if l.Memory != nil && l.Memory.Limit != nil && *l.Memory.Limit > 0 {
		out.MemoryBytes = uint64(*l.Memory.Limit)
	}
	if l.Pids != nil && l.Pids.Limit != nil && *l.Pids.Limit > 0 {
		out.Pids = uint32(min(*l.Pids.Limit, math.MaxUint32))
	}
	if cpu := l.CPU; cpu != nil && cpu.Quota != nil && cpu.Period != nil && *cpu.Quota > 0 && *cpu.Period > 0 {
		millis := math.Ceil(float64(*cpu.Quota) / float64(*cpu.Period) * 1000)
		out.CpuMillis = uint32(min(millis, math.MaxUint32))
	}
	return out
}
