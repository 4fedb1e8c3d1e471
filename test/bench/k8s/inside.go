package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideVariable tells this program that it is in namespaces of its own;
// initArgument has it be their first process.
const (
	insideVariable = "COFFER_BENCH_INSIDE"
	initArgument   = "init"
)

// enter runs this program again in mount, PID and network namespaces of its own.
// Whatever is started there ends with them.
func enter(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{initArgument}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL,
	}
	return cmd.Run()
}

// beInit is the first process: it runs the benchmark and waits for whatever is
// left to it, such as shims whose `start` has ended.
func beInit(args []string) int {
	// Asked to end, it ends with everything here.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	if err := mounts(); err != nil {
		fmt.Fprintln(os.Stderr, "bench k8s:", err)
		return 1
	}
	p, err := os.StartProcess("/proc/self/exe", append([]string{"bench-k8s"}, args...), &os.ProcAttr{Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench k8s:", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1
		case pid == p.Pid && status.Exited():
			return status.ExitStatus()
		case pid == p.Pid:
			return 1
		}
	}
}

// mounts makes /proc and /run new, and has cgroups of version 2 only, as nodes
// do: runc then uses the same hierarchy as the agent, whatever else the machine
// has.
func mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ kind, path string }{{"proc", "/proc"}, {"tmpfs", "/run"}, {"cgroup2", "/sys/fs/cgroup"}} {
		if m.kind == "cgroup2" {
			// A mount over another would be in the way of whoever looks for the first.
			if err := unix.Unmount(m.path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s: %w", m.path, err)
			}
		}
		if err := unix.Mount(m.kind, m.path, m.kind, unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	return nil
}
