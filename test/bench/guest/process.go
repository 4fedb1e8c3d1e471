package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cost is what a run took.
type cost struct {
	wall, cpu float64 // seconds; cpu of all processes
	peak      float64 // MiB resident; 0: not known
}

// command runs a program to its end. Its descendants must have been waited for
// when it ends, as a shell does.
func command(ctx context.Context, env []string, name string, args ...string) (cost, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun := time.Now()
	err := cmd.Run()
	wall := time.Since(begun)
	if err != nil {
		return cost{}, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(out.Bytes()))
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return cost{}, errors.New("no usage of a process")
	}
	return cost{wall.Seconds(), float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9, 0}, nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }

// daemon is a process that serves until it is stopped.
type daemon struct {
	cmd *exec.Cmd
	log string
}

func startDaemon(ctx context.Context, log string, name string, args ...string) (*daemon, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &daemon{cmd, log}, nil
}

func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
}

// await asks until ready says so.
func (d *daemon) await(ctx context.Context, ready func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); {
		if ready() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	text, _ := os.ReadFile(d.log)
	return fmt.Errorf("%s does not become ready:\n%s", d.cmd.Path, tail(text))
}

// cpu is the CPU time of the daemon and of the children it has waited for.
func (d *daemon) cpu() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, errors.New("stat of a process: too few fields")
	}
	var ticks float64
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime: proc_pid_stat(5)
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const ticksPerSecond = 100 // USER_HZ
	return ticks / ticksPerSecond, nil
}

// freeAddress is an address on loopback that nobody listens on.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// startRegistry runs Debian's docker-registry with its blobs in dir.
func startRegistry(ctx context.Context, dir string) (*daemon, string, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, "", err
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "blobs"), address)
	file := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, "", err
	}
	d, err := startDaemon(ctx, filepath.Join(dir, "registry.log"), "docker-registry", "serve", file)
	if err != nil {
		return nil, "", err
	}
	err = d.await(ctx, func() bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/v2/", nil)
		if err != nil {
			return false
		}
		client := http.Client{Timeout: time.Second}
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	if err != nil {
		d.stop()
		return nil, "", err
	}
	return d, address, nil
}

// peak is the most memory that the daemon has had resident, in MiB; 0 if that
// cannot be told.
func (d *daemon) peak() float64 {
	n, err := status(d.cmd.Process.Pid, "VmHWM")
	if err != nil {
		return 0
	}
	return n
}

// status is a field of a process's status, in MiB (proc_pid_status(5)).
func status(pid int, field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s in the status of process %d", field, pid)
}
