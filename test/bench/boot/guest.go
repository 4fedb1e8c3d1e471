package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guestimage/cpio"
)

//go:embed guest/baseline.c
var baselineSource []byte

//go:embed guest/idle.c
var idleSource []byte

// compile returns the static program that a C source makes.
func compile(ctx context.Context, source []byte) ([]byte, error) {
	dir, err := os.MkdirTemp("", "coffer-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "program")
	cmd := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-s", "-Wall", "-x", "c", "-o", out, "-")
	cmd.Stdin = bytes.NewReader(source)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gcc: %w: %s (needs Debian's gcc and libc6-dev)", err, msg)
	}
	return os.ReadFile(out)
}

// archive returns an initrd with one program, and the console it starts with.
func archive(name string, program []byte) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	for _, e := range []cpio.Entry{
		{Name: "dev", Mode: cpio.TypeDir | 0o755},
		{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1},
		{Name: name, Mode: cpio.TypeRegular | 0o755, Data: program},
	} {
		if err := w.Add(e); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// field returns the number after "name" in what the guest wrote to its debug
// console.
func (r *running) field(name string) (float64, error) {
	data, err := os.ReadFile(filepath.Join(r.dir, "debug"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok {
			continue
		}
		value := strings.Fields(rest)
		if len(value) == 0 {
			break
		}
		return strconv.ParseFloat(value[0], 64)
	}
	return 0, fmt.Errorf("the guest did not report %q; its console ends with:\n%s", name, r.console())
}

// hello waits for the agent, asks it how it has booted and leaves the connection
// open.
func (r *running) hello(ctx context.Context) (*agentapi.HelloResponse, error) {
	resp, err := r.call(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w; its console ends with:\n%s", err, r.console())
	}
	return resp, nil
}

func (r *running) call(ctx context.Context) (*agentapi.HelloResponse, error) {
	// Nothing is sent before: what arrives during the boot would change it.
	if err := r.monitor.waitForPort(ctx, agentPort); err != nil {
		return nil, err
	}
	session, err := channel.Dial(ctx, r.agent)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	control, err := session.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_CONTROL})
	if err != nil {
		return nil, fmt.Errorf("agent: control stream: %w", err)
	}
	resp, err := agentapi.NewAgentClient(ttrpc.NewClient(control)).Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{1}, Build: "bench"})
	if err != nil {
		return nil, fmt.Errorf("agent: hello: %w", err)
	}
	if len(resp.GetBootPhases()) == 0 {
		return nil, errors.New("agent: hello: no boot phases")
	}
	return resp, nil
}

// status asks the program of idle.c for a field of PID 1's status, in kB.
func (r *running) status(ctx context.Context, name string) (float64, error) {
	if _, err := r.bench.Write([]byte("?")); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// The end mark comes after the status; the file is all there is to watch.
	for {
		data, err := os.ReadFile(filepath.Join(r.dir, "debug"))
		if err != nil {
			return 0, err
		}
		if bytes.HasSuffix(data, []byte("end\n")) {
			return r.field(name)
		}
		if err := pause(ctx); err != nil {
			return 0, fmt.Errorf("the guest did not report: %w; its console ends with:\n%s", err, r.console())
		}
	}
}

// pollInterval is how often a file that a guest writes is looked at.
const pollInterval = 50 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollInterval):
		return nil
	}
}
