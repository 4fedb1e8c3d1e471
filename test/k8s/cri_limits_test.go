package k8s

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func itoa[T ~uint16 | ~int | ~int64](n T) string { return strconv.FormatInt(int64(n), 10) }

func criLimitRows() []criRow {
	return []criRow{
		{id: "stats", on: onAll, asserts: "statistics of the container, one and in a list, have its memory and processor time", run: containerStats},
		{id: "sandbox-stats", on: onAll, asserts: "statistics of the sandbox, one and in a list, have the pod's memory and processor time", run: sandboxStats,
			not: map[string]string{"1.6": "containerd 1.6 has no statistics of sandboxes"}},
		{id: "update", on: onAll, asserts: "UpdateContainerResources changes the limits of a container that runs", run: updateLimits},
	}
}

// limits says whether a container's cgroup is there: an agent that is a process
// needs cgroup v2 of the node for it.
func (c *criClient) limits() bool { return kindOf(c.name) != onProcess }

func (c *criClient) measured(s *runtimeapi.ContainerStats, id string) error {
	if s.GetAttributes().GetId() != id {
		return fmt.Errorf("statistics of %q, expected %q", s.GetAttributes().GetId(), id)
	}
	if c.limits() && (s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() < 20<<20) {
		return fmt.Errorf("processor %v, memory %v", s.GetCpu(), s.GetMemory())
	}
	return nil
}

func containerStats(t *testing.T, c *criClient) {
	p := c.common(t)
	id := p.start(t, "eats", nil, "/app", "eat", "24")
	c.eventually(t, "the container's statistics", func(ctx context.Context) error {
		r, err := c.runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			return err
		}
		return c.measured(r.GetStats(), id)
	})
	c.eventually(t, "the same in a list", func(ctx context.Context) error {
		r, err := c.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: p.id, LabelSelector: map[string]string{"io.kubernetes.container.name": "eats"}}})
		if err != nil {
			return err
		}
		if len(r.GetStats()) != 1 {
			return fmt.Errorf("statistics of %d containers, expected 1", len(r.GetStats()))
		}
		return c.measured(r.GetStats()[0], id)
	})
}

func sandboxStats(t *testing.T, c *criClient) {
	p := c.common(t)
	id := p.start(t, "counted", nil, "/app", "eat", "24")
	check := func(s *runtimeapi.PodSandboxStats) error {
		if s.GetAttributes().GetId() != p.id || s.GetLinux().GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetLinux().GetMemory().GetWorkingSetBytes().GetValue() < 10<<20 {
			return fmt.Errorf("sandbox %q, processor %v, memory %v", s.GetAttributes().GetId(), s.GetLinux().GetCpu(), s.GetLinux().GetMemory())
		}
		for _, of := range s.GetLinux().GetContainers() {
			if of.GetAttributes().GetId() == id {
				return nil
			}
		}
		return errors.New("the container is not in it")
	}
	c.eventually(t, "the sandbox's statistics", func(ctx context.Context) error {
		r, err := c.runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
		if err != nil {
			return err
		}
		return check(r.GetStats())
	})
	c.eventually(t, "the same in a list", func(ctx context.Context) error {
		r, err := c.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: p.id}})
		if err != nil {
			return err
		}
		if len(r.GetStats()) != 1 {
			return fmt.Errorf("statistics of %d sandboxes, expected 1", len(r.GetStats()))
		}
		return check(r.GetStats()[0])
	})
}

func updateLimits(t *testing.T, c *criClient) {
	id := c.common(t).start(t, "limited", func(q *runtimeapi.ContainerConfig) {
		q.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 25000}
	}, "sleep", "1000")
	look := func(memory, quota string) {
		t.Helper()
		if !c.limits() {
			return
		}
		r, err := c.exec(c.call(t), id, 30, "sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max 2>/dev/null || cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us")
		if got := strings.Fields(string(r.GetStdout())); err != nil || len(got) < 2 || got[0] != memory || got[1] != quota {
			t.Errorf("limits %q, %v; expected %s and %s", got, err, memory, quota)
		}
	}
	look("67108864", "25000")
	if _, err := c.runtime.UpdateContainerResources(c.call(t), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuPeriod: 100000, CpuQuota: 50000}}); err != nil {
		t.Fatal(err)
	}
	look("100663296", "50000")
}
