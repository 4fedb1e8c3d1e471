package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

const (
	// listenerFD and readyFD are what the daemon inherits: the pod's socket,
	// and a pipe on which it says that it is ready, or why not.
	listenerFD = 3
	readyFD    = 4
	// ready is the word.
	ready = "ready"
	// readyTime bounds the wait for it. It covers a busy machine: nothing is
	// booted before the first call.
	readyTime = 20 * time.Second
	// readyLimit bounds the reason.
	readyLimit = 8 << 10
)

// launch starts a pod's daemon.
type launch struct {
	Process
	request
	flags
	socket, state string
	release       func(podstate.State) error
}

// run returns once the daemon serves. When it fails, nothing is left of it.
func (l launch) run(ctx context.Context) error {
	socket, err := listen(ctx, l.socket, l.clean)
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }()
	if err := l.spawn(ctx, socket); err != nil {
		return errors.Join(err, l.clean(context.WithoutCancel(ctx)), os.Remove(l.socket))
	}
	return nil
}

// clean removes what an earlier daemon of that name left, or this one. It says
// nothing of what it does: containerd takes everything that `start` writes for
// its answer.
func (l launch) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	return podstate.Cleaner{Release: l.release, Logger: slog.New(slog.DiscardHandler)}.Clean(ctx, l.state)
}

func (l launch) spawn(ctx context.Context, socket *os.File) error {
	theirs, ours, err := readyPipe()
	if err != nil {
		return err
	}
	defer func() { _ = ours.Close() }()
	args := []string{"-namespace", l.namespace, "-id", l.id, "-address", l.address, "-ready"}
	if l.request.config != "" {
		args = append(args, "-config", l.request.config)
	}
	if l.request.debug {
		args = append(args, "-debug")
	}
	// It outlives this process, and whoever asked.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), l.Executable, args...)
	cmd.Dir = l.Dir
	cmd.Env = l.environment()
	cmd.ExtraFiles = []*os.File{socket, theirs} // listenerFD, readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startIn(cmd, l.getenv(envSchedCore) != ""); err != nil {
		return errors.Join(fmt.Errorf("start the shim's daemon: %w", err), theirs.Close())
	}
	_ = theirs.Close()
	err = errors.Join(place(cmd.Process.Pid, l.shimCgroup), awaitReady(ctx, ours))
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return cmd.Process.Release()
}

// environment is containerd's, with the address for events.
func (l launch) environment() []string {
	return append(slices.Clone(l.Env), envTTRPCAddress+"="+l.ttrpcAddress)
}

// startIn starts the daemon, with core scheduling when that is asked for: the
// child inherits the cookie of the thread that forks it.
func startIn(cmd *exec.Cmd, schedCore bool) error {
	if !schedCore {
		return cmd.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := newCoreCookie(); err != nil {
		return fmt.Errorf("core scheduling (SCHED_CORE): %w", err)
	}
	return cmd.Start()
}

func readyPipe() (write, read *os.File, err error) {
	read, write, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe to the shim's daemon: %w", err)
	}
	return write, read, nil
}

// awaitReady waits for the daemon's word.
func awaitReady(ctx context.Context, pipe *os.File) error {
	deadline := time.Now().Add(readyTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := pipe.SetReadDeadline(deadline); err != nil {
		return err
	}
	word, err := io.ReadAll(io.LimitReader(pipe, readyLimit))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the shim's daemon is not ready after %s", readyTime)
	case err != nil:
		return fmt.Errorf("the shim's daemon: %w", err)
	case string(word) == ready:
		return nil
	case len(word) == 0:
		return errors.New("the shim's daemon ended before it was ready; containerd's log has what it said")
	default:
		return errors.New(strings.TrimSpace(string(word)))
	}
}
