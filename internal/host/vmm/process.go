package vmm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// drainTime bounds the wait for an ended process's last output.
const drainTime = 2 * time.Second

// process is a child that does not outlive this process.
type process struct {
	pid  int
	done chan struct{} // closed when it has been waited for
	err  error         // of Wait; valid once done is closed
}

// spawn starts the program, which is killed when ctx ends. os/exec holds the
// child by a pidfd, so neither the kill nor the wait can meet another process
// that was given the same id.
func spawn(ctx context.Context, path string, args []string, files []*os.File, stderr io.Writer) (*process, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environment()
	cmd.ExtraFiles = files
	cmd.Stderr = stderr
	cmd.WaitDelay = drainTime
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// The kernel kills it with its parent, however that ends.
		Pdeathsig: syscall.SIGKILL,
		// A terminal's Ctrl-C is for the program, which ends its machines in
		// order.
		Setpgid: true,
	}
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// For the kernel the parent is the thread that forks: it has to live
		// as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return p, nil
}

// environment is all the emulator is told of ours.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}
