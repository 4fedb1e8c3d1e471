package demo

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci"
)

// run boots the pod and runs its first container to its end.
func (w *world) run(ctx context.Context) (string, error) {
	var err error
	if w.pod, err = w.launch(ctx, w.initdata.Digest, sandbox.Override{}, &w.reports); err != nil {
		return "", err
	}
	if err := w.createSandbox(ctx, w.pod, w.initdata); err != nil {
		return "", err
	}
	w.u.Status("attesting, pulling and decrypting %s", w.app)
	if err := w.create(ctx, w.pod, appName, w.app, nil); err != nil {
		return "", err
	}
	var output bytes.Buffer
	exit, err := run.RunContainer(ctx, w.pod, appName, run.Stdio{Stdout: &output, Stderr: &output})
	if err != nil {
		return output.String(), err
	}
	verdicts, err := w.trustee.Admin.Verdicts(ctx, admin.VerdictQuery{Limit: 20})
	if err != nil {
		return "", err
	}
	info := w.pod.Info()
	got := fmt.Sprintf("booted in %.1f s (%s), measurement %x\n%s\nexit code %d\nappraisal:\n%s",
		info.Boot.Seconds(), info.Accelerator.Accelerator, info.Measurement, prefix("| ", output.String()), exit.Code, prefix("  ", run.FormatVerdicts(verdicts)))
	switch {
	case exit.Code != 0:
		return got, fmt.Errorf("the container ended with %d", exit.Code)
	case !strings.Contains(output.String(), "hello from inside"):
		return got, errors.New("the container did not say what it should")
	}
	return got, nil
}

func prefix(with, text string) string {
	return with + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+with)
}

func (w *world) createSandbox(ctx context.Context, sb *sandbox.Sandbox, id *run.Initdata) error {
	return run.Explain(run.CreateSandbox(ctx, sb, &run.Prepared{Initdata: id}), sb)
}

// create asks for a container of the policy.
func (w *world) create(ctx context.Context, sb *sandbox.Sandbox, name string, image oci.Reference, change func(*agentapi.CreateContainerRequest)) error {
	req := &agentapi.CreateContainerRequest{ContainerId: name, Name: name, Image: image.String()}
	if change != nil {
		change(req)
	}
	_, err := sb.Agent().CreateContainer(ctx, req)
	return run.Explain(err, sb)
}

// refused checks that err is a refusal that says each of what it should, and
// returns it as a line of the account.
func refused(what string, err error, says ...string) (string, error) {
	if err == nil {
		return what + ": was done", fmt.Errorf("%s: expected a refusal, and it was done", what)
	}
	line := what + "\n" + prefix("  → ", err.Error())
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			return line, fmt.Errorf("%s: refused, but the reason does not name %q", what, s)
		}
	}
	return line, nil
}

// all joins the lines of several attempts.
func all(attempts ...func() (string, error)) (string, error) {
	var lines []string
	var errs []error
	for _, a := range attempts {
		line, err := a()
		if line != "" {
			lines = append(lines, line)
		}
		errs = append(errs, err)
	}
	return strings.Join(lines, "\n"), errors.Join(errs...)
}

// controlPlane is the host using the agent's own calls against the policy.
func (w *world) controlPlane(ctx context.Context) (string, error) {
	return all(
		func() (string, error) {
			return refused("start a container that the policy does not have", w.create(ctx, w.pod, "miner", w.app, nil), "container.unknown")
		},
		func() (string, error) {
			return refused("start a container with other arguments", w.create(ctx, w.pod, quietName, w.app, func(r *agentapi.CreateContainerRequest) {
				r.Args = &agentapi.StringList{Values: []string{"/bin/sh", "-c", "cat /app/secret.txt"}}
			}), "container.args")
		},
		func() (string, error) { return w.quiet(ctx) },
	)
}

// quiet starts the container whose policy allows neither logs nor exec, and
// tries both.
func (w *world) quiet(ctx context.Context) (string, error) {
	if err := w.create(ctx, w.pod, quietName, w.app, nil); err != nil {
		return "", err
	}
	logs, err := w.pod.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT, ContainerId: quietName})
	if err != nil {
		return "", err
	}
	defer func() { _ = logs.Close() }()
	if _, err := w.pod.Agent().Start(ctx, &agentapi.StartRequest{ContainerId: quietName}); err != nil {
		return "", run.Explain(err, w.pod)
	}
	_, execErr := w.pod.Agent().Exec(ctx, &agentapi.ExecRequest{ContainerId: quietName, ExecId: "x", Args: []string{"/bin/cat", "/app/secret.txt"}})
	line, err := refused("exec in a container", run.Explain(execErr, w.pod), "exec")
	if err != nil {
		return line, err
	}
	stats, err := w.pod.Agent().Stats(ctx, &agentapi.StatsRequest{ContainerId: quietName})
	if err != nil {
		return line, run.Explain(err, w.pod)
	}
	if stats.GetPids() != 1 {
		return line, fmt.Errorf("the container has %d processes: expected its own only", stats.GetPids())
	}
	if _, err := w.pod.Agent().Signal(ctx, &agentapi.SignalRequest{ContainerId: quietName, Signal: 9}); err != nil {
		return line, run.Explain(err, w.pod)
	}
	if _, err := w.pod.Agent().Wait(ctx, &agentapi.WaitRequest{ContainerId: quietName}); err != nil {
		return line, run.Explain(err, w.pod)
	}
	_ = logs.SetReadDeadline(time.Now().Add(time.Minute))
	read, err := io.ReadAll(logs)
	if err != nil {
		return line, fmt.Errorf("logs: %w", err)
	}
	line += fmt.Sprintf("\nits processes: %d; read its logs after it wrote a line\n  → %d bytes came", stats.GetPids(), len(read))
	if len(read) != 0 {
		return line, errors.New("the host read output that the policy keeps from it")
	}
	told, err := w.streamRefusal(ctx)
	return line + ": " + told, err
}

// streamRefusal is what the guest told about the stream it drained.
func (w *world) streamRefusal(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the guest told of no refused stream"))
	defer cancel()
	for event, err := range w.pod.Events(ctx) {
		if err != nil {
			return "", err
		}
		if r := event.GetRefusal(); r.GetRule() == "stream.forbidden" {
			return fmt.Sprintf("refused (rule %s): %s: expected %s, got %s (%s)", r.GetRule(), r.GetPath(), r.GetExpected(), r.GetGot(), r.GetHelp()), nil
		}
	}
	return "", context.Cause(ctx)
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
