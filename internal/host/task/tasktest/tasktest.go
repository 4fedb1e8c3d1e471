// Package tasktest is a conformance suite for Task services: what containerd,
// its CRI plugin and ctr rely on, as cases that talk to a service only as
// containerd does, by its API, its events and FIFOs. It runs against the
// service in this process as well as against a shim behind its socket, with a
// guest or without.
//
// The programs that its containers run are those of every busybox: true, cat,
// echo, sleep, seq and sh.
package tasktest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/anypb"
)

// Environment is a shim of its own for the suite.
type Environment struct {
	// Task is the service; see V2 for one that speaks that version.
	Task api.TTRPCTaskService
	// Sandbox is the id of the pod.
	Sandbox string
	// Bundle makes the bundle of the sandbox (no args), or of a container of the
	// pod that runs args.
	Bundle func(id string, args []string, terminal bool) (dir string, err error)
	// Events are all events of containerd/api/events so far, oldest first, as
	// pointers.
	Events func() []any
	// Options of a Create; may be nil.
	Options *anypb.Any
	// Dir is where FIFOs may be made.
	Dir string
	// Patience bounds the wait for events; 0 stands for 10 s.
	Patience time.Duration

	ids atomic.Int64
}

// Case is one property.
type Case struct {
	Name string
	// Run returns what does not hold.
	Run func(ctx context.Context, e *Environment) error
}

// Cases returns the suite. They are to be run in this order in one
// environment: the first starts the pod, the last ends it. If the first fails
// the others are of no use.
func Cases() []Case {
	return slices.Concat(
		[]Case{{"sandbox starts", sandboxStarts}},
		lifeCases(), ioCases(), execCases(),
		[]Case{{"sandbox ends", sandboxEnds}},
	)
}

// id is a new one.
func (e *Environment) id(name string) string { return fmt.Sprintf("%s-%d", name, e.ids.Add(1)) }

// path is a new one for a FIFO.
func (e *Environment) path(name string) string { return filepath.Join(e.Dir, e.id(name)) }

// remove is for deferred calls.
func remove(paths ...string) {
	for _, p := range paths {
		_ = os.Remove(p)
	}
}

// task is a container or exec of a case.
type task struct {
	e        *Environment
	id, exec string
}

// process says what a container or exec of a case is.
type process struct {
	args                  []string
	terminal              bool
	stdin, stdout, stderr string
}

func (e *Environment) create(ctx context.Context, p process) (*task, error) {
	id := e.id(p.args[0])
	dir, err := e.Bundle(id, p.args, p.terminal)
	if err != nil {
		return nil, err
	}
	_, err = e.Task.Create(ctx, &api.CreateTaskRequest{
		ID: id, Bundle: dir, Terminal: p.terminal, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, Options: e.Options,
	})
	if err != nil {
		return nil, fmt.Errorf("create: %w", native(err))
	}
	return &task{e: e, id: id}, nil
}

// run creates and starts.
func (e *Environment) run(ctx context.Context, p process) (*task, error) {
	t, err := e.create(ctx, p)
	if err == nil {
		err = t.start(ctx)
	}
	return t, err
}

func (t *task) start(ctx context.Context) error {
	r, err := t.e.Task.Start(ctx, &api.StartRequest{ID: t.id, ExecID: t.exec})
	if err != nil {
		return fmt.Errorf("start: %w", native(err))
	}
	if r.GetPid() == 0 {
		return fmt.Errorf("start: expected a pid, got 0")
	}
	return nil
}

func (t *task) kill(ctx context.Context, signal uint32) error {
	if _, err := t.e.Task.Kill(ctx, &api.KillRequest{ID: t.id, ExecID: t.exec, Signal: signal}); err != nil {
		return fmt.Errorf("signal %d: %w", signal, native(err))
	}
	return nil
}

// wait expects an exit status.
func (t *task) wait(ctx context.Context, want uint32) (time.Time, error) {
	r, err := t.e.Task.Wait(ctx, &api.WaitRequest{ID: t.id, ExecID: t.exec})
	if err != nil {
		return time.Time{}, fmt.Errorf("wait: %w", native(err))
	}
	if r.GetExitStatus() != want {
		return time.Time{}, fmt.Errorf("wait: expected exit status %d, got %d", want, r.GetExitStatus())
	}
	at := r.GetExitedAt().AsTime()
	if now := time.Now(); at.After(now) || now.Sub(at) > time.Hour {
		return at, fmt.Errorf("wait: expected a time of exit shortly before %s, got %s", now, at)
	}
	return at, nil
}

// delete expects an exit status, and the time that Wait told if it is not zero.
func (t *task) delete(ctx context.Context, want uint32, at time.Time) error {
	r, err := t.e.Task.Delete(ctx, &api.DeleteRequest{ID: t.id, ExecID: t.exec})
	if err != nil {
		return fmt.Errorf("delete: %w", native(err))
	}
	if r.GetExitStatus() != want {
		return fmt.Errorf("delete: expected exit status %d, got %d", want, r.GetExitStatus())
	}
	if got := r.GetExitedAt().AsTime(); !at.IsZero() && !got.Equal(at) {
		return fmt.Errorf("delete: expected the time of exit that Wait told, %s, got %s", at, got)
	}
	return nil
}

// waitDelete is the end of what ends by itself.
func (t *task) waitDelete(ctx context.Context, want uint32) error {
	at, err := t.wait(ctx, want)
	if err != nil {
		return err
	}
	return t.delete(ctx, want, at)
}

// end kills, waits and deletes.
func (t *task) end(ctx context.Context) error {
	if err := t.kill(ctx, 9); err != nil {
		return err
	}
	return t.waitDelete(ctx, 137)
}

// native gives an error its class of errdefs back.
func native(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}

// expect wants an error of a class.
func expect(what string, err error, is func(error) bool) error {
	switch {
	case err == nil:
		return fmt.Errorf("%s: expected an error, got none", what)
	case !is(err) && !is(native(err)):
		return fmt.Errorf("%s: expected another error, got %w", what, err)
	}
	return nil
}

// describe names an event and what it is about.
func describe(event any) (id, what string) {
	switch e := event.(type) {
	case *events.TaskCreate:
		return e.GetContainerID(), "create"
	case *events.TaskStart:
		return e.GetContainerID(), "start"
	case *events.TaskExit:
		if e.GetID() == e.GetContainerID() {
			return e.GetContainerID(), fmt.Sprintf("exit %d", e.GetExitStatus())
		}
		return e.GetContainerID(), fmt.Sprintf("exit %s %d", e.GetID(), e.GetExitStatus())
	case *events.TaskDelete:
		return e.GetContainerID(), fmt.Sprintf("delete %d", e.GetExitStatus())
	case *events.TaskExecAdded:
		return e.GetContainerID(), "exec-added " + e.GetExecID()
	case *events.TaskExecStarted:
		return e.GetContainerID(), "exec-started " + e.GetExecID()
	case *events.TaskOOM:
		return e.GetContainerID(), "oom"
	}
	return "", fmt.Sprintf("%T", event)
}

// expectEvents waits until the events of a container are these.
func (e *Environment) expectEvents(ctx context.Context, id string, want ...string) error {
	patience := e.Patience
	if patience == 0 {
		patience = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var got []string
		for _, event := range e.Events() {
			if of, what := describe(event); of == id {
				got = append(got, what)
			}
		}
		if slices.Equal(got, want) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("events of %s: expected %q, got %q", id, want, got)
		}
	}
}

func sandboxStarts(ctx context.Context, e *Environment) error {
	dir, err := e.Bundle(e.Sandbox, nil, false)
	if err != nil {
		return err
	}
	r, err := e.Task.Create(ctx, &api.CreateTaskRequest{ID: e.Sandbox, Bundle: dir, Options: e.Options})
	if err != nil {
		return fmt.Errorf("create: %w", native(err))
	}
	t := &task{e: e, id: e.Sandbox}
	if err := t.start(ctx); err != nil {
		return err
	}
	c, err := e.Task.Connect(ctx, &api.ConnectRequest{ID: e.Sandbox})
	if err != nil {
		return fmt.Errorf("connect: %w", native(err))
	}
	if c.GetShimPid() == 0 || c.GetTaskPid() == 0 || c.GetTaskPid() != r.GetPid() {
		return fmt.Errorf("connect: expected the pids of the shim and of the task (%d), got %d and %d", r.GetPid(), c.GetShimPid(), c.GetTaskPid())
	}
	return e.expectEvents(ctx, e.Sandbox, "create", "start")
}

func sandboxEnds(ctx context.Context, e *Environment) error {
	t := &task{e: e, id: e.Sandbox}
	// What still runs ends with the machine.
	left, err := e.run(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	if err := t.end(ctx); err != nil {
		return err
	}
	if err := left.waitDelete(ctx, 137); err != nil {
		return fmt.Errorf("a container of the sandbox: %w", err)
	}
	if err := e.expectEvents(ctx, e.Sandbox, "create", "start", "exit 137", "delete 137"); err != nil {
		return err
	}
	if err := e.expectEvents(ctx, left.id, "create", "start", "exit 137", "delete 137"); err != nil {
		return err
	}
	_, err = e.Task.State(ctx, &api.StateRequest{ID: e.Sandbox})
	return expect("state of what was deleted", err, errdefs.IsNotFound)
}
