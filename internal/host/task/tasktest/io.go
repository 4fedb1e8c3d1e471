package tasktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
)

func ioCases() []Case {
	return []Case{
		{"output", output},
		{"much output", muchOutput},
		{"output until the end is told", outputBeforeEnd},
		{"output that nobody reads", unreadOutput},
		{"input", input},
		{"containerd is restarted", restarted},
		{"a FIFO that is not there", missingFIFO},
	}
}

// pipe makes a FIFO and opens its other end as containerd does.
func (e *Environment) pipe(name string, flags int) (*os.File, error) {
	path := e.path(name)
	if err := unix.Mkfifo(path, 0o700); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
}

// pipes makes those of a process's input and output.
func (e *Environment) pipes() (in, out *os.File, err error) {
	if in, err = e.pipe("in", os.O_RDWR); err != nil {
		return nil, nil, err
	}
	out, err = e.pipe("out", os.O_RDONLY)
	return in, out, err
}

// done closes files and removes them.
func done(files ...*os.File) {
	for _, f := range files {
		_ = f.Close()
		remove(f.Name())
	}
}

func output(ctx context.Context, e *Environment) error {
	for _, test := range []struct {
		args           []string
		stdout, stderr string
	}{
		{[]string{"echo", "hello", "there"}, "hello there\n", ""},
		{[]string{"sh", "-c", "echo problem >&2"}, "", "problem\n"},
	} {
		out, err := e.pipe("out", os.O_RDONLY)
		if err != nil {
			return err
		}
		errs, err := e.pipe("err", os.O_RDONLY)
		if err != nil {
			return err
		}
		t, err := e.run(ctx, process{args: test.args, stdout: out.Name(), stderr: errs.Name()})
		if err == nil {
			err = expectOutput(out, test.stdout)
		}
		if err == nil {
			err = expectOutput(errs, test.stderr)
		}
		if err == nil {
			err = t.waitDelete(ctx, 0)
		}
		done(out, errs)
		if err != nil {
			return fmt.Errorf("%q: %w", test.args, err)
		}
	}
	return nil
}

// expectOutput reads to the end.
func expectOutput(f *os.File, want string) error {
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if got := string(b); got != want {
		return fmt.Errorf("output: expected %s, got %s", excerpt(want), excerpt(got))
	}
	return nil
}

func excerpt(s string) string {
	const limit = 200
	if len(s) > limit {
		return fmt.Sprintf("%q… (%d bytes)", s[:limit], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// muchOutput is more than all pipes on the way hold.
func muchOutput(ctx context.Context, e *Environment) error {
	const n = 200_000
	out, err := e.pipe("out", os.O_RDONLY)
	if err != nil {
		return err
	}
	defer done(out)
	t, err := e.run(ctx, process{args: []string{"seq", fmt.Sprint(n)}, stdout: out.Name()})
	if err != nil {
		return err
	}
	var want strings.Builder
	for i := range n {
		fmt.Fprintln(&want, i+1)
	}
	if err := expectOutput(out, want.String()); err != nil {
		return err
	}
	return t.waitDelete(ctx, 0)
}

// outputBeforeEnd: a reader that takes its time, and closes as soon as the end is
// told, whatever is in the FIFO, as containerd before 1.6.22 and 1.7.3 does, has
// everything by then.
func outputBeforeEnd(ctx context.Context, e *Environment) error {
	const n = 50_000
	out, err := e.pipe("out", os.O_RDONLY)
	if err != nil {
		return err
	}
	defer done(out)
	t, err := e.run(ctx, process{args: []string{"seq", fmt.Sprint(n)}, stdout: out.Name()})
	if err != nil {
		return err
	}
	var got strings.Builder
	read := make(chan error, 1)
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := out.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				read <- err
				return
			}
			time.Sleep(5 * time.Millisecond) //nolint:forbidigo // it is what makes it slow
		}
	}()
	if err := t.waitDelete(ctx, 0); err != nil {
		return err
	}
	_ = out.Close()
	if err := <-read; !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
		return err
	}
	var want strings.Builder
	for i := range n {
		fmt.Fprintln(&want, i+1)
	}
	if got.String() != want.String() {
		return fmt.Errorf("output: %d bytes of %d had been read when the end was told", got.Len(), want.Len())
	}
	return nil
}

// unreadOutput is on its way when the process is killed.
func unreadOutput(ctx context.Context, e *Environment) error {
	out, err := e.pipe("out", os.O_RDONLY)
	if err != nil {
		return err
	}
	defer done(out)
	t, err := e.run(ctx, process{args: []string{"seq", "10000000"}, stdout: out.Name()})
	if err != nil {
		return err
	}
	return t.end(ctx)
}

func input(ctx context.Context, e *Environment) error {
	in, out, err := e.pipes()
	if err != nil {
		return err
	}
	defer done(in, out)
	t, err := e.run(ctx, process{args: []string{"cat"}, stdin: in.Name(), stdout: out.Name()})
	if err != nil {
		return err
	}
	return t.feed(ctx, in, out)
}

// feed has a cat repeat its input to the last byte, and end with it.
func (t *task) feed(ctx context.Context, in, out *os.File) error {
	text := strings.Repeat("to the last byte ", 20000)
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(in, text)
		if err == nil {
			_, err = t.e.Task.CloseIO(ctx, &api.CloseIORequest{ID: t.id, ExecID: t.exec, Stdin: true})
		}
		written <- err
	}()
	if err := expectOutput(out, text); err != nil {
		return err
	}
	if err := <-written; err != nil {
		return fmt.Errorf("input: %w", native(err))
	}
	return t.waitDelete(ctx, 0)
}

// restarted: neither the process nor its streams notice that the other ends
// were closed and opened again.
func restarted(ctx context.Context, e *Environment) error {
	in, out, err := e.pipes()
	if err != nil {
		return err
	}
	defer remove(in.Name(), out.Name())
	t, err := e.run(ctx, process{args: []string{"cat"}, stdin: in.Name(), stdout: out.Name()})
	if err != nil {
		return err
	}
	if err := errors.Join(out.Close(), in.Close()); err != nil {
		return err
	}
	if in, err = os.OpenFile(in.Name(), os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	if out, err = os.OpenFile(out.Name(), os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	defer done(in, out)
	return t.feed(ctx, in, out)
}

func missingFIFO(ctx context.Context, e *Environment) error {
	path := e.path("missing")
	_, err := e.create(ctx, process{args: sleeper, stdout: path})
	return expect("a FIFO that is not there", err, func(err error) bool { return strings.Contains(err.Error(), path) })
}
