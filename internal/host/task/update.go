package task

import (
	"context"
	"fmt"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
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
	now := cri.Limits(limits)
	if now.GetMemoryBytes() == 0 && now.GetCpuMillis() == 0 && now.GetPids() == 0 {
		return nil
	}
	_, m, err := s.running()
	if err != nil {
		return err
	}
	ctx, cancel := bounded(ctx, s.o.Times.Call, "update")
	defer cancel()
	err = s.within(ctx, func() error {
		_, err := m.Agent().Update(ctx, &agentapi.UpdateRequest{ContainerId: c.id, Resources: now})
		return err
	})
	if err != nil {
		return fmt.Errorf("update container %q: %w", c.id, explain(err))
	}
	return nil
}
