package task

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// HostHasCgroupV1 reports whether the cgroup file system at root (usually
// /sys/fs/cgroup) is not the unified one. containerd's own collectors expect
// metrics of the host's kind; its CRI plugin reads both.
func HostHasCgroupV1(root string) bool {
	var st unix.Statfs_t
	return unix.Statfs(root, &st) == nil && st.Type != unix.CGROUP2_SUPER_MAGIC
}

// lastStats is what is known of a container's use of the machine.
type lastStats struct {
	asking atomic.Bool // the guest has not answered yet

	mu      sync.Mutex
	last    *agentapi.StatsResponse // nil before the first answer
	ooms    uint64                  // told by other ways than statistics
	nextOOM time.Time
	oomWait time.Duration
}

// oom notes a want of memory and reports whether it is to be told.
func (l *lastStats) oom(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ooms = max(l.ooms, 1)
	if now.Before(l.nextOOM) {
		return false
	}
	l.oomWait = max(oomInterval, 2*l.oomWait)
	l.nextOOM = now.Add(l.oomWait)
	return true
}

// put takes new figures. Counters never go back, whatever the guest says.
func (l *lastStats) put(now *agentapi.StatsResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.last; old != nil {
		now.CpuUsageNs = max(now.GetCpuUsageNs(), old.GetCpuUsageNs())
		now.CpuUserNs = max(now.GetCpuUserNs(), old.GetCpuUserNs())
		now.CpuSystemNs = max(now.GetCpuSystemNs(), old.GetCpuSystemNs())
		now.OomKills = max(now.GetOomKills(), old.GetOomKills())
		now.PageFaults = max(now.GetPageFaults(), old.GetPageFaults())
		now.MajorPageFaults = max(now.GetMajorPageFaults(), old.GetMajorPageFaults())
		now.CpuPeriods = max(now.GetCpuPeriods(), old.GetCpuPeriods())
		now.CpuThrottledPeriods = max(now.GetCpuThrottledPeriods(), old.GetCpuThrottledPeriods())
		now.CpuThrottledNs = max(now.GetCpuThrottledNs(), old.GetCpuThrottledNs())
	}
	// containerd subtracts these from each other.
	if limit := now.GetMemoryLimitBytes(); limit != 0 {
		now.MemoryBytes = min(now.GetMemoryBytes(), limit)
	}
	now.MemoryInactiveFileBytes = min(now.GetMemoryInactiveFileBytes(), now.GetMemoryBytes())
	l.last = now
}

// get returns a copy of the last figures; nil if there are none.
func (l *lastStats) get() *agentapi.StatsResponse {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		return nil
	}
	now := proto.CloneOf(l.last)
	now.OomKills = max(now.GetOomKills(), l.ooms)
	return now
}

// Stats tells what a container uses, as typed metrics of the host's kind of
// cgroups. A guest that does not answer within the limit leaves the last
// figures standing, and so does the container's end. The sandbox uses nothing
// itself.
func (s *Service) Stats(ctx context.Context, r *api.StatsRequest) (*api.StatsResponse, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	if c.virtual() {
		return s.metrics(&agentapi.StatsResponse{})
	}
	st, _ := c.init.now()
	switch st {
	case created, starting, running:
		var m Machine
		if _, m, err = s.running(); err == nil {
			err = s.refreshStats(ctx, m, c)
		}
	case creating:
		err = c.init.wrong("stats", st)
	default:
		err = errdefs.ErrNotFound.WithMessage(fmt.Sprintf("stats: %s has ended", c.init))
	}
	if last := c.stats.get(); last != nil {
		return s.metrics(last)
	}
	return nil, err
}

// refreshStats asks the guest.
func (s *Service) refreshStats(ctx context.Context, m Machine, c *container) error {
	ctx, cancel := bounded(ctx, s.o.Times.Stats, "stats")
	defer cancel()
	if !c.stats.asking.CompareAndSwap(false, true) {
		return fmt.Errorf("stats of container %q: the guest has not answered the last question yet", c.id)
	}
	err := s.within(ctx, func() error {
		defer c.stats.asking.Store(false)
		now, err := m.Agent().Stats(ctx, &agentapi.StatsRequest{ContainerId: c.id})
		if err == nil {
			c.stats.put(now)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("stats of container %q: %w", c.id, explain(err))
	}
	return nil
}

func (s *Service) metrics(now *agentapi.StatsResponse) (*api.StatsResponse, error) {
	m := proto.Message(metricsV2(now))
	if s.o.CgroupV1 {
		m = metricsV1(now)
	}
	value, err := anypb.New(m)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	value.TypeUrl = string(value.MessageName()) // as containerd writes it
	return &api.StatsResponse{Stats: value}, nil
}

func metricsV2(now *agentapi.StatsResponse) *cgroup2.Metrics {
	return &cgroup2.Metrics{
		Pids: &cgroup2.PidsStat{Current: now.GetPids(), Limit: now.GetPidsLimit()},
		CPU: &cgroup2.CPUStat{
			UsageUsec: now.GetCpuUsageNs() / 1000, UserUsec: now.GetCpuUserNs() / 1000, SystemUsec: now.GetCpuSystemNs() / 1000,
			NrPeriods: now.GetCpuPeriods(), NrThrottled: now.GetCpuThrottledPeriods(), ThrottledUsec: now.GetCpuThrottledNs() / 1000,
		},
		Memory: &cgroup2.MemoryStat{
			Usage: now.GetMemoryBytes(), UsageLimit: limitOr(now.GetMemoryLimitBytes(), math.MaxUint64),
			Anon: now.GetMemoryAnonBytes(), File: now.GetMemoryFileBytes(), InactiveFile: now.GetMemoryInactiveFileBytes(),
			Pgfault: now.GetPageFaults(), Pgmajfault: now.GetMajorPageFaults(),
		},
		MemoryEvents: &cgroup2.MemoryEvents{Oom: now.GetOomKills(), OomKill: now.GetOomKills()},
	}
}

// unlimitedV1 is what cgroup v1 shows for no limit: the largest number of pages.
const unlimitedV1 = math.MaxInt64 &^ 4095

func metricsV1(now *agentapi.StatsResponse) *cgroup1.Metrics {
	limit := limitOr(now.GetMemoryLimitBytes(), unlimitedV1)
	return &cgroup1.Metrics{
		Pids: &cgroup1.PidsStat{Current: now.GetPids(), Limit: now.GetPidsLimit()},
		CPU: &cgroup1.CPUStat{
			Usage: &cgroup1.CPUUsage{Total: now.GetCpuUsageNs(), User: now.GetCpuUserNs(), Kernel: now.GetCpuSystemNs()},
			Throttling: &cgroup1.Throttle{
				Periods: now.GetCpuPeriods(), ThrottledPeriods: now.GetCpuThrottledPeriods(), ThrottledTime: now.GetCpuThrottledNs(),
			},
		},
		Memory: &cgroup1.MemoryStat{
			Cache: now.GetMemoryFileBytes(), TotalCache: now.GetMemoryFileBytes(),
			RSS: now.GetMemoryAnonBytes(), TotalRSS: now.GetMemoryAnonBytes(),
			InactiveFile: now.GetMemoryInactiveFileBytes(), TotalInactiveFile: now.GetMemoryInactiveFileBytes(),
			PgFault: now.GetPageFaults(), TotalPgFault: now.GetPageFaults(),
			PgMajFault: now.GetMajorPageFaults(), TotalPgMajFault: now.GetMajorPageFaults(),
			HierarchicalMemoryLimit: limit,
			Usage:                   &cgroup1.MemoryEntry{Usage: now.GetMemoryBytes(), Limit: limit},
		},
		MemoryOomControl: &cgroup1.MemoryOomControl{OomKill: now.GetOomKills()},
	}
}

func limitOr(limit, none uint64) uint64 {
	if limit == 0 {
		return none
	}
	return limit
}
