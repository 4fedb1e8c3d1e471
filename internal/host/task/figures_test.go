package task

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
)

// metrics asks for figures and reads them as containerd does.
func metrics[T any](w *world, id string) T {
	w.t.Helper()
	r := must[*api.StatsResponse](w.t)(w.v3.Stats(w.t.Context(), &api.StatsRequest{ID: id}))
	v, err := typeurl.UnmarshalAny(r.GetStats())
	if err != nil {
		w.t.Fatal(err)
	}
	m, ok := v.(T)
	if !ok {
		w.t.Fatalf("expected %T, got %T", m, v)
	}
	return m
}

func (f *fakePod) setStats(s *agentapi.StatsResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats = s
}

func TestStats(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		w.pod.setStats(&agentapi.StatsResponse{MemoryBytes: 1 << 20, MemoryInactiveFileBytes: 1 << 10, CpuUsageNs: 5e6, Pids: 3})
		m := metrics[*cgroup2.Metrics](w, "web")
		if m.GetMemory().GetUsage() != 1<<20 || m.GetMemory().GetInactiveFile() != 1<<10 || m.GetMemory().GetUsageLimit() != math.MaxUint64 ||
			m.GetCPU().GetUsageUsec() != 5000 || m.GetPids().GetCurrent() != 3 {
			t.Errorf("got %v", m)
		}
		// A counter does not go back, and what is subtracted is not larger.
		w.pod.setStats(&agentapi.StatsResponse{MemoryBytes: 1 << 40, MemoryLimitBytes: 1 << 30, MemoryInactiveFileBytes: 1 << 50, CpuUsageNs: 1})
		m = metrics[*cgroup2.Metrics](w, "web")
		if m.GetCPU().GetUsageUsec() != 5000 || m.GetMemory().GetUsage() != 1<<30 || m.GetMemory().GetInactiveFile() != 1<<30 || m.GetMemory().GetUsageLimit() != 1<<30 {
			t.Errorf("got %v", m)
		}
		// A guest that does not answer: the last value, within a second.
		w.slow("Stats")
		begin := time.Now()
		m = metrics[*cgroup2.Metrics](w, "web")
		if d := time.Since(begin); d != time.Second || m.GetCPU().GetUsageUsec() != 5000 {
			t.Errorf("after %s: got %v", d, m)
		}
		// There is none of a container that was never asked about.
		w.run("new", "sleep")
		if _, err := w.v3.Stats(t.Context(), &api.StatsRequest{ID: "new"}); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "did not answer within 1s") {
			t.Errorf("got %v", err)
		}
		if m := metrics[*cgroup2.Metrics](w, "pod"); m.GetCPU().GetUsageUsec() != 0 {
			t.Errorf("the sandbox: got %v", m)
		}
	})
}

// containerd 2.4 looks for OOM kills in the figures of what has ended.
func TestStatsAfterTheEnd(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		w.pod.setStats(&agentapi.StatsResponse{CpuUsageNs: 7e6, OomKills: 2})
		_ = w.kill("web", "", 9)
		w.wait("web", "")
		w.pod.setHook(func(_ context.Context, call, _ string) error {
			if call == "Stats" {
				t.Error("the guest was asked about what has ended")
			}
			return nil
		})
		m := metrics[*cgroup2.Metrics](w, "web")
		if m.GetCPU().GetUsageUsec() != 7000 || m.GetMemoryEvents().GetOomKill() != 2 {
			t.Errorf("got %v", m)
		}
	})
}

func TestStatsOfCgroupV1(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		w.pod.setStats(&agentapi.StatsResponse{MemoryBytes: 1 << 20, MemoryInactiveFileBytes: 1 << 10, CpuUsageNs: 5e6, CpuUserNs: 3e6, CpuSystemNs: 2e6, Pids: 3, OomKills: 1})
		m := metrics[*cgroup1.Metrics](w, "web")
		if m.GetMemory().GetUsage().GetUsage() != 1<<20 || m.GetMemory().GetTotalInactiveFile() != 1<<10 || m.GetMemory().GetUsage().GetLimit() != 0x7FFFFFFFFFFFF000 ||
			m.GetCPU().GetUsage().GetTotal() != 5e6 || m.GetCPU().GetUsage().GetKernel() != 2e6 || m.GetPids().GetCurrent() != 3 || m.GetMemoryOomControl().GetOomKill() != 1 {
			t.Errorf("got %v", m)
		}
	}, func(o *Options) { o.CgroupV1 = true })
}

func TestPids(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		if err := w.exec("web", "e1", "sleep"); err != nil {
			t.Fatal(err)
		}
		w.start("web", "e1")
		r := must[*api.PidsResponse](t)(w.v3.Pids(t.Context(), &api.PidsRequest{ID: "web"}))
		if len(r.GetProcesses()) != 2 || r.GetProcesses()[0].GetPid() != 4242 {
			t.Fatalf("got %v", r)
		}
		info, err := typeurl.UnmarshalAny(r.GetProcesses()[1].GetInfo())
		if d, ok := info.(*options.ProcessDetails); err != nil || !ok || d.GetExecID() != "e1" {
			t.Errorf("got %v, %v", info, err)
		}
		// A containerd that is restarted drops what has no process.
		_ = w.kill("web", "", 9)
		w.wait("web", "")
		if r := must[*api.PidsResponse](t)(w.v3.Pids(t.Context(), &api.PidsRequest{ID: "web"})); len(r.GetProcesses()) != 1 {
			t.Errorf("after the end: got %v", r)
		}
	})
}

func TestUpdate(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		update := func(r any) error {
			return second(w.v3.Update(t.Context(), &api.UpdateTaskRequest{ID: "web", Resources: anyOf(t, "LinuxResources", r)}))
		}
		memory, quota, period, pids, shares := int64(1<<30), int64(150000), uint64(100000), int64(99), uint64(2)
		if err := update(specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}, Pids: &specs.LinuxPids{Limit: &pids},
		}); err != nil {
			t.Error(err)
		}
		if w.pod.called("Update web 1073741824 1500 99") != 1 {
			t.Errorf("calls: %q", w.pod.calls)
		}
		// What has no meaning in the guest is no error, and not passed on.
		before := len(w.pod.calls)
		unlimited := int64(-1)
		if err := update(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &unlimited}, CPU: &specs.LinuxCPU{Shares: &shares, Cpus: "0-1"}}); err != nil {
			t.Error(err)
		}
		if len(w.pod.calls) != before {
			t.Errorf("calls: %q", w.pod.calls)
		}
		if err := update("nonsense"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
		if err := second(w.v3.Update(t.Context(), &api.UpdateTaskRequest{ID: "web", Resources: anyOf(t, "Process", 1)})); status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
	})
}

// The size that is asked for before the start is the terminal's from its start.
func TestResize(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.bundle(cri.KindContainer, "web", "sleep")
		must[*api.CreateTaskResponse](t)(w.v3.Create(t.Context(), &api.CreateTaskRequest{ID: "web", Terminal: true}))
		resize := func(id string, width uint32) {
			t.Helper()
			if _, err := w.v3.ResizePty(t.Context(), &api.ResizePtyRequest{ID: id, Width: width, Height: 24}); err != nil {
				t.Error(err)
			}
		}
		resize("web", 80)
		if len(w.pod.sizes) != 0 {
			t.Errorf("sizes: %q", w.pod.sizes)
		}
		w.start("web", "")
		resize("web", 1<<20)
		w.run("plain", "sleep")
		resize("plain", 80)
		if want := []string{"web 80x24", "web 65535x24"}; !slices.Equal(w.pod.sizes, want) {
			t.Errorf("expected %q, got %q", want, w.pod.sizes)
		}
	})
}

func TestExecAsSomebodyElse(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.sandbox()
		w.run("web", "sleep")
		err := second(w.v3.Exec(t.Context(), &api.ExecProcessRequest{ID: "web", ExecID: "e", Spec: anyOf(t, "Process", specs.Process{Args: []string{"true"}, User: specs.User{UID: 1}})}))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "expected the container's user 0:0, got 1:0") {
			t.Errorf("got %v", err)
		}
		if w.pod.called("Exec web/e") != 0 {
			t.Error("it was run")
		}
	})
}

// FuzzDecode: whatever is in a request, decode answers.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"args":["a"],"user":{"uid":1}}`))
	f.Add([]byte(`{"memory":{"limit":-1},"cpu":{"quota":9223372036854775807,"period":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := anyOf(t, "LinuxResources", nil)
		a.Value = b
		limits := new(specs.LinuxResources)
		if decode("resources", a, "LinuxResources", limits) == nil {
			cri.Limits(limits)
		}
		a = anyOf(t, "Process", nil)
		a.Value = b
		p := new(specs.Process)
		if decode("spec", a, "Process", p) == nil {
			_ = userOf{&specs.User{}}.same(p.User)
		}
	})
}

// FuzzExplain: whatever a guest answers, the user gets a bounded text that does
// nothing to a terminal.
func FuzzExplain(f *testing.F) {
	f.Add(uint32(7), "refused", "container.args", "args[1]", "a", "b", "run coffer prepare")
	f.Add(uint32(99), "\x1b[2J\xff\n", "", "\x00", "\u202e", "", "")
	f.Fuzz(func(t *testing.T, code uint32, message, rule, path, expected, got, help string) {
		st := status.New(codes.Code(code), message)
		for _, s := range []*string{&rule, &path, &expected, &got, &help} {
			*s = strings.ToValidUTF8(*s, "?")
		}
		detailed, err := st.WithDetails(&agentapi.Refusal{Rule: rule, Path: path, Expected: expected, Got: got, Help: help})
		for _, err := range []error{st.Err(), detailed.Err(), err} {
			if err == nil {
				continue
			}
			text := explain(fmt.Errorf("start: %w", err)).Error()
			if len(text) > maxMessage+8 || strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) && r != unicode.ReplacementChar }) {
				t.Errorf("%q", text)
			}
		}
	})
}
