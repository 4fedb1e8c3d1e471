package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// loggerScheme begins the URI of a program that takes a process's output.
const loggerScheme = "binary://"

// Times of a program that takes output.
const (
	// readyTime bounds the wait until it says that it is ready.
	readyTime = 10 * time.Second
	// flushTime is what it has at the end of the output before it is told to end,
	// and once more before it is killed.
	flushTime = 10 * time.Second
)

// logger is a program that takes the output of a process, as containerd's shim
// for runc starts it (containerd@v2.2.9 cmd/containerd-shim-runc-v2/process, and
// the documentation of core/runtime/v2): descriptors 3 and 4 are the process's
// standard output and error, 5 is closed, or written to, when it is ready. Its
// arguments are the URI's query. The end of the output ends it.
type logger struct {
	stdout, stderr *os.File // our ends
	cmd            *exec.Cmd
	kill           context.CancelFunc
	done           chan struct{} // closed when it has been waited for
	once           sync.Once
}

// loggerOf tells whether the output of a process goes to a program.
func loggerOf(p Paths) (*url.URL, error) {
	toProgram := func(s string) bool { return strings.HasPrefix(s, loggerScheme) }
	if !toProgram(p.Stdout) {
		if toProgram(p.Stderr) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("stderr: got %q: a program takes both streams: give it as standard output, too", p.Stderr))
		}
		return nil, nil
	}
	if p.Stderr != "" && p.Stderr != p.Stdout {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("stderr: expected the program that takes standard output, %q, or nothing, got %q", p.Stdout, p.Stderr))
	}
	u, err := url.Parse(p.Stdout)
	if err != nil || u.Host != "" || !filepath.IsAbs(u.Path) {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("stdout: expected binary:///ABSOLUTE/PATH, got %q", p.Stdout))
	}
	return u, nil
}

// loggerArgs are the names and values of a query, in its order; of a name that is
// there again the first counts.
func loggerArgs(query string) ([]string, error) {
	var args, names []string
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(key)
		if err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return nil, err
		}
		if slices.Contains(names, name) {
			continue
		}
		names = append(names, name)
		args = append(args, name, value)
	}
	return args, nil
}

// startLogger starts the program, and waits until it is ready.
func startLogger(u *url.URL, p Paths) (_ *logger, err error) {
	args, err := loggerArgs(u.RawQuery)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("stdout: expected binary:///PATH?NAME=VALUE&…, got %q: %v", p.Stdout, err))
	}
	var theirs, ours []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
		if err != nil {
			for _, f := range ours {
				_ = f.Close()
			}
		}
	}()
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("stdout: %w", err)
		}
		theirs, ours = append(theirs, r), append(ours, w)
	}
	theirs[2], ours[2] = ours[2], theirs[2] // readiness comes from there
	ctx, kill := context.WithCancel(context.Background())
	l := &logger{stdout: ours[0], stderr: ours[1], kill: kill, done: make(chan struct{})}
	l.cmd = exec.CommandContext(ctx, u.Path, args...)
	l.cmd.Env = []string{"CONTAINER_ID=" + p.ID, "CONTAINER_NAMESPACE=" + p.Namespace}
	l.cmd.ExtraFiles = theirs
	l.cmd.Cancel = func() error { return syscall.Kill(-l.cmd.Process.Pid, syscall.SIGKILL) } // its group
	// A shim that is killed leaves nothing behind, and nothing waits for its end.
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := l.run(); err != nil {
		return nil, fmt.Errorf("stdout: the program that takes the log: %w", err)
	}
	for _, f := range theirs {
		_ = f.Close()
	}
	theirs = nil
	if err := l.awaitReady(ours[2]); err != nil {
		l.kill()
		<-l.done
		return nil, fmt.Errorf("stdout: the program that takes the log, %s, %w", u.Path, err)
	}
	_ = ours[2].Close()
	return l, nil
}

// run starts the program by a thread that lives as long: for the kernel, that one
// is its parent.
func (l *logger) run() error {
	started := make(chan error, 1)
	go func() {
		defer close(l.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := l.cmd.Start()
		started <- err
		if err == nil {
			_ = l.cmd.Wait()
		}
	}()
	err := <-started
	if err != nil {
		l.kill()
		<-l.done
	}
	return err
}

// awaitReady waits for a byte, or for the end of the descriptor.
func (l *logger) awaitReady(ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(readyTime)); err != nil {
		return err
	}
	_, err := ready.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("did not say that it is ready within %s: it has to close descriptor 5", readyTime)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// close ends the output. The program has the time to write what it has; then it is
// told to end, and at last killed.
func (l *logger) close() {
	if l == nil {
		return
	}
	l.once.Do(func() {
		_ = l.stdout.Close() // it may have been closed as a stream
		_ = l.stderr.Close()
		go l.end()
	})
}

// ended is closed when the program has ended.
func (l *logger) ended() <-chan struct{} {
	if l == nil {
		none := make(chan struct{})
		close(none)
		return none
	}
	return l.done
}

func (l *logger) end() {
	defer l.kill()
	timer := time.NewTimer(flushTime)
	defer timer.Stop()
	select {
	case <-l.done:
		return
	case <-timer.C:
	}
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	timer.Reset(flushTime)
	select {
	case <-l.done:
	case <-timer.C:
		l.kill()
		<-l.done
	}
}
