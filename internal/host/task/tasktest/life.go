package tasktest

import (
	"context"
	"errors"
	"fmt"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	apitask "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

var sleeper = []string{"sleep", "1000"}

func lifeCases() []Case {
	return []Case{
		{"exit status", exitStatus},
		{"wait before and after the exit", waitTwice},
		{"states", states},
		{"kill", kill},
		{"kill before start", killBeforeStart},
		{"start twice", startTwice},
		{"delete of what runs", deleteRunning},
		{"ids", ids},
		{"shutdown is ignored", shutdownIgnored},
		{"stats and pids", statsAndPids},
		{"what is not implemented", notImplemented},
		{"containers side by side", sideBySide},
	}
}

func exitStatus(ctx context.Context, e *Environment) error {
	t, err := e.run(ctx, process{args: []string{"sh", "-c", "exit 3"}})
	if err != nil {
		return err
	}
	if err := t.waitDelete(ctx, 3); err != nil {
		return err
	}
	return e.expectEvents(ctx, t.id, "create", "start", "exit 3", "delete 3")
}

func waitTwice(ctx context.Context, e *Environment) error {
	t, err := e.create(ctx, process{args: []string{"sh", "-c", "exit 7"}})
	if err != nil {
		return err
	}
	early := make(chan error, 1)
	go func() {
		_, err := t.wait(ctx, 7)
		early <- err
	}()
	if err := t.start(ctx); err != nil {
		return err
	}
	if err := <-early; err != nil {
		return fmt.Errorf("before the start: %w", err)
	}
	first, err := t.wait(ctx, 7)
	if err != nil {
		return err
	}
	second, err := t.wait(ctx, 7)
	if err != nil {
		return err
	}
	if !first.Equal(second) {
		return fmt.Errorf("two times of one exit: %s and %s", first, second)
	}
	return t.delete(ctx, 7, first)
}

func (t *task) state(ctx context.Context, want apitask.Status) error {
	r, err := t.e.Task.State(ctx, &api.StateRequest{ID: t.id, ExecID: t.exec})
	if err != nil {
		return fmt.Errorf("state: %w", native(err))
	}
	if r.GetStatus() != want {
		return fmt.Errorf("state: expected %s, got %s", want, r.GetStatus())
	}
	if ended := want == apitask.Status_STOPPED; ended != (r.GetExitedAt().AsTime().Unix() > 0) {
		return fmt.Errorf("state %s: a time of exit belongs to what has ended, and to nothing else; got %v", want, r.GetExitedAt())
	}
	return nil
}

func states(ctx context.Context, e *Environment) error {
	t, err := e.create(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	for _, step := range []struct {
		do   func() error
		want apitask.Status
	}{
		{func() error { return nil }, apitask.Status_CREATED},
		{func() error { return t.start(ctx) }, apitask.Status_RUNNING},
		{func() error {
			_, err := t.wait(ctx, 137)
			return err
		}, apitask.Status_STOPPED},
	} {
		if step.want == apitask.Status_STOPPED {
			if err := t.kill(ctx, 9); err != nil {
				return err
			}
		}
		if err := step.do(); err != nil {
			return err
		}
		if err := t.state(ctx, step.want); err != nil {
			return err
		}
	}
	return t.waitDelete(ctx, 137)
}

func kill(ctx context.Context, e *Environment) error {
	t, err := e.run(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	if err := t.kill(ctx, 9); err != nil {
		return err
	}
	if _, err := t.wait(ctx, 137); err != nil {
		return err
	}
	for _, signal := range []uint32{9, 15} {
		if err := t.kill(ctx, signal); err != nil {
			return fmt.Errorf("to what has ended: %w", err)
		}
	}
	if err := expect("SIGHUP to what has ended", t.kill(ctx, 1), errdefs.IsNotFound); err != nil {
		return err
	}
	if err := t.waitDelete(ctx, 137); err != nil {
		return err
	}
	return expect("SIGKILL to what was deleted", t.kill(ctx, 9), errdefs.IsNotFound)
}

func killBeforeStart(ctx context.Context, e *Environment) error {
	t, err := e.create(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	if err := t.end(ctx); err != nil {
		return err
	}
	return e.expectEvents(ctx, t.id, "create", "exit 137", "delete 137")
}

func startTwice(ctx context.Context, e *Environment) error {
	t, err := e.run(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	if err := expect("a second start", t.start(ctx), errdefs.IsFailedPrecondition); err != nil {
		return err
	}
	if err := t.end(ctx); err != nil {
		return err
	}
	return e.expectEvents(ctx, t.id, "create", "start", "exit 137", "delete 137")
}

func deleteRunning(ctx context.Context, e *Environment) error {
	t, err := e.run(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	_, err = e.Task.Delete(ctx, &api.DeleteRequest{ID: t.id})
	if err := expect("delete of what runs", err, errdefs.IsFailedPrecondition); err != nil {
		return err
	}
	return t.end(ctx)
}

func ids(ctx context.Context, e *Environment) error {
	t, err := e.create(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	r, err := e.Task.State(ctx, &api.StateRequest{ID: t.id})
	if err != nil {
		return err
	}
	_, err = e.Task.Create(ctx, &api.CreateTaskRequest{ID: t.id, Bundle: r.GetBundle(), Options: e.Options})
	if err := expect("create under an id that is taken", err, errdefs.IsAlreadyExists); err != nil {
		return err
	}
	none := &task{e: e, id: e.id("none")}
	if err := expect("kill of nothing", none.kill(ctx, 9), errdefs.IsNotFound); err != nil {
		return err
	}
	_, err = e.Task.Delete(ctx, &api.DeleteRequest{ID: none.id})
	if err := expect("delete of nothing", err, errdefs.IsNotFound); err != nil {
		return err
	}
	if _, err := e.Task.Delete(ctx, &api.DeleteRequest{ID: t.id}); err != nil {
		return fmt.Errorf("delete of what was not started: %w", native(err))
	}
	return nil
}

func shutdownIgnored(ctx context.Context, e *Environment) error {
	if _, err := e.Task.Shutdown(ctx, &api.ShutdownRequest{ID: e.Sandbox}); err != nil {
		return fmt.Errorf("shutdown: %w", native(err))
	}
	return (&task{e: e, id: e.Sandbox}).state(ctx, apitask.Status_RUNNING)
}

func statsAndPids(ctx context.Context, e *Environment) error {
	t, err := e.run(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	r, err := e.Task.Stats(ctx, &api.StatsRequest{ID: t.id})
	if err != nil {
		return fmt.Errorf("stats: %w", native(err))
	}
	v, err := typeurl.UnmarshalAny(r.GetStats())
	if err != nil {
		return fmt.Errorf("stats: %w", err)
	}
	var used uint64 // of memory or CPU time; a kernel may not account for both
	switch m := v.(type) {
	case *cgroup1.Metrics:
		used = m.GetMemory().GetUsage().GetUsage() + m.GetCPU().GetUsage().GetTotal()
	case *cgroup2.Metrics:
		used = m.GetMemory().GetUsage() + m.GetCPU().GetUsageUsec()
	default:
		return fmt.Errorf("stats: expected metrics of cgroups, got %T", v)
	}
	if used == 0 {
		return fmt.Errorf("stats: expected something in use, got %v", v)
	}
	pids, err := e.Task.Pids(ctx, &api.PidsRequest{ID: t.id})
	if err != nil {
		return fmt.Errorf("pids: %w", native(err))
	}
	if len(pids.GetProcesses()) == 0 || pids.GetProcesses()[0].GetPid() == 0 {
		return fmt.Errorf("pids: expected one at least, got %v", pids)
	}
	return t.end(ctx)
}

func notImplemented(ctx context.Context, e *Environment) error {
	_, pause := e.Task.Pause(ctx, &api.PauseRequest{ID: e.Sandbox})
	_, resume := e.Task.Resume(ctx, &api.ResumeRequest{ID: e.Sandbox})
	_, checkpoint := e.Task.Checkpoint(ctx, &api.CheckpointTaskRequest{ID: e.Sandbox})
	return errors.Join(
		expect("pause", pause, errdefs.IsNotImplemented),
		expect("resume", resume, errdefs.IsNotImplemented),
		expect("checkpoint", checkpoint, errdefs.IsNotImplemented),
	)
}

func sideBySide(ctx context.Context, e *Environment) error {
	const n = 4
	results := make(chan error, n)
	for i := range uint32(n) {
		go func() {
			t, err := e.run(ctx, process{args: []string{"sh", "-c", fmt.Sprintf("exit %d", i)}})
			if err == nil {
				err = t.waitDelete(ctx, i)
			}
			results <- err
		}()
	}
	var err error
	for range n {
		err = errors.Join(err, <-results)
	}
	return err
}
