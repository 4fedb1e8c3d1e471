package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

// mostIdle is the most memory that the agent may have when it does nothing, in
// MiB.
const mostIdle = 25.0

// agentMemory is that of the agent as a plain process after the first call.
func (b *bench) agentMemory(ctx context.Context) (err error) {
	dir := b.path("agent")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	socket := b.path("agent.sock")
	d, err := startDaemon(ctx, b.path("agent.log"), b.agent, "serve", "--unix", socket, "--development", "--dir", dir)
	if err != nil {
		return err
	}
	defer d.stop()
	var conn net.Conn
	if err := d.await(ctx, func() bool {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", socket)
		return err == nil
	}); err != nil {
		return err
	}
	session, err := channel.Dial(ctx, conn)
	if err != nil {
		return err
	}
	defer session.Close() //nolint:errcheck // the end of the measurement
	control, err := session.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_CONTROL})
	if err != nil {
		return err
	}
	if _, err := agentapi.NewAgentClient(ttrpc.NewClient(control)).Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{channel.MaxVersion}, Build: "bench"}); err != nil {
		return err
	}
	select { // what the call has left behind
	case <-time.After(time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	pid := d.cmd.Process.Pid
	resident, err := status(pid, "VmRSS")
	if err != nil {
		return err
	}
	private, err := rollup(pid)
	if err != nil {
		return err
	}
	b.report.AtMost("agent/idle/resident", resident, "MiB", mostIdle, "")
	b.report.Add("agent/idle/proportional", private, "MiB", "")
	return nil
}

// rollup is a process's proportional set size in MiB (proc_pid_smaps(5)).
func rollup(pid int) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("no Pss")
}
