package tasktest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

func execCases() []Case {
	return []Case{
		{"exec", exec},
		{"exec with input", execInput},
		{"exec with a terminal", execTerminal},
		{"execs end with their container", execsEnd},
		{"exec after the end", execAfterEnd},
	}
}

// exec adds one to a container.
func (t *task) add(ctx context.Context, p process) (*task, error) {
	spec, err := json.Marshal(specs.Process{
		Args: p.args, Cwd: "/", Terminal: p.terminal, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	})
	if err != nil {
		return nil, err
	}
	x := &task{e: t.e, id: t.id, exec: t.e.id("exec")}
	_, err = t.e.Task.Exec(ctx, &api.ExecProcessRequest{
		ID: t.id, ExecID: x.exec, Terminal: p.terminal, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec},
	})
	if err != nil {
		return nil, fmt.Errorf("exec: %w", native(err))
	}
	return x, nil
}

// in runs one in a sleeper, which it returns too.
func (e *Environment) in(ctx context.Context, p process) (t, x *task, err error) {
	if t, err = e.run(ctx, process{args: sleeper}); err != nil {
		return nil, nil, err
	}
	if x, err = t.add(ctx, p); err != nil {
		return nil, nil, err
	}
	return t, x, x.start(ctx)
}

func exec(ctx context.Context, e *Environment) error {
	t, x, err := e.in(ctx, process{args: []string{"sh", "-c", "exit 5"}})
	if err != nil {
		return err
	}
	if err := x.waitDelete(ctx, 5); err != nil {
		return err
	}
	_, err = e.Task.State(ctx, &api.StateRequest{ID: x.id, ExecID: x.exec})
	if err := expect("state of an exec that was deleted", err, errdefs.IsNotFound); err != nil {
		return err
	}
	if err := t.end(ctx); err != nil {
		return err
	}
	return e.expectEvents(ctx, t.id, "create", "start", "exec-added "+x.exec, "exec-started "+x.exec, "exit "+x.exec+" 5", "exit 137", "delete 137")
}

func execInput(ctx context.Context, e *Environment) error {
	in, out, err := e.pipes()
	if err != nil {
		return err
	}
	defer done(in, out)
	t, x, err := e.in(ctx, process{args: []string{"cat"}, stdin: in.Name(), stdout: out.Name()})
	if err != nil {
		return err
	}
	if err := x.feed(ctx, in, out); err != nil {
		return err
	}
	return t.end(ctx)
}

func execTerminal(ctx context.Context, e *Environment) error {
	t, err := e.run(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	out, err := e.pipe("out", os.O_RDONLY)
	if err != nil {
		return err
	}
	defer done(out)
	x, err := t.add(ctx, process{args: []string{"echo", "on a terminal"}, terminal: true, stdout: out.Name()})
	if err != nil {
		return err
	}
	size := &api.ResizePtyRequest{ID: x.id, ExecID: x.exec, Width: 132, Height: 50}
	if _, err := e.Task.ResizePty(ctx, size); err != nil {
		return fmt.Errorf("resize before the start: %w", native(err))
	}
	if err := x.start(ctx); err != nil {
		return err
	}
	b, err := io.ReadAll(out)
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), "on a terminal") {
		return fmt.Errorf("output: got %q", b)
	}
	if err := x.waitDelete(ctx, 0); err != nil {
		return err
	}
	return t.end(ctx)
}

func execsEnd(ctx context.Context, e *Environment) error {
	t, x, err := e.in(ctx, process{args: sleeper})
	if err != nil {
		return err
	}
	if err := t.kill(ctx, 9); err != nil {
		return err
	}
	if _, err := t.wait(ctx, 137); err != nil {
		return err
	}
	if err := e.expectEvents(ctx, t.id, "create", "start", "exec-added "+x.exec, "exec-started "+x.exec, "exit "+x.exec+" 137", "exit 137"); err != nil {
		return err
	}
	if err := x.waitDelete(ctx, 137); err != nil {
		return err
	}
	return t.waitDelete(ctx, 137)
}

func execAfterEnd(ctx context.Context, e *Environment) error {
	t, err := e.run(ctx, process{args: []string{"true"}})
	if err != nil {
		return err
	}
	if _, err := t.wait(ctx, 0); err != nil {
		return err
	}
	_, err = t.add(ctx, process{args: []string{"true"}})
	if err := expect("exec in what has ended", err, errdefs.IsFailedPrecondition); err != nil {
		return err
	}
	return t.waitDelete(ctx, 0)
}
