package ha

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// limit bounds every wait, on a machine that is busy with other tests.
const limit = 90 * time.Second

// errEnded: waiting any longer is of no use.
var errEnded = errors.New("the process has ended")

// poll asks until done says so; what is for the failure's message.
func poll(t *testing.T, what string, done func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done(ctx)
		if err == nil {
			return
		}
		if errors.Is(err, errEnded) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// process is a running program that writes to a log file.
type process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// start runs a program until the test ends. All runs with one log append to it.
func start(t *testing.T, log, path string, args ...string) *process {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // the program has its own
	p := &process{cmd: exec.Command(path, args...), log: log, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = f, f, filepath.Dir(log)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(log), "TMPDIR=" + filepath.Dir(log)}
	// The kernel ends it with the thread that made it, also where the test is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended is told by ProcessState
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return p
}

// signal sends a signal; that the process has ended already is no error.
func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("pid %d: %v", p.cmd.Process.Pid, err)
	}
}

// kill ends it at once.
func (p *process) kill(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	<-p.ended
}

// wait returns the exit code of a process that is about to end.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		p.signal(t, syscall.SIGQUIT)
		<-p.ended
		t.Errorf("%s did not end\n%s", p.cmd, p.tail())
	}
	return p.cmd.ProcessState.ExitCode()
}

// alive returns an error where the process has ended.
func (p *process) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%w: %s\n%s", errEnded, p.cmd.ProcessState, p.tail())
	default:
		return nil
	}
}

// failures are the lines of the log that tell of the program's own failures.
func (p *process) failures() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	var out []byte
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte("level=ERROR")) && len(out) < 8<<10 {
			out = append(out, line...)
		}
	}
	return string(out)
}

// tail is the end of the log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if n := len(text) - 4<<10; n > 0 {
		_, text, _ = bytes.Cut(text[n:], []byte("\n"))
	}
	return string(text)
}

// program finds or builds coffer-trustee.
func program(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("COFFER_BIN"); dir != "" {
		path := filepath.Join(dir, "coffer-trustee")
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v (`make build` makes it)", err)
		}
		return path
	}
	path := filepath.Join(t.TempDir(), "coffer-trustee")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../../cmd/coffer-trustee")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// together runs f once for each of n at once and waits for all.
func together(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}
