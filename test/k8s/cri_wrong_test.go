package k8s

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func criWrongRows() []criRow {
	return []criRow{
		{id: "refused", on: onCoffer, alone: true, asserts: "an unknown handler, initdata that is none, the host's network: refused with a reason, no sandbox is there", run: refusedSandboxes},
		{id: "killed/agent", on: onProcess, alone: true, asserts: "the agent dies: sandbox and container have ended, nothing more runs in them, they can be removed", run: func(t *testing.T, c *criClient) {
			killedSandbox(t, c, "coffer-agent")
		}},
		{id: "killed/machine", on: onMachine, alone: true, asserts: "the machine dies: sandbox and container have ended, nothing more runs in them, they can be removed", run: func(t *testing.T, c *criClient) {
			killedSandbox(t, c, "qemu-system-x86_64")
		}},
		{id: "killed/shim", on: onCoffer, alone: true, asserts: "the shim dies: sandbox and container have ended, nothing more runs in them, they can be removed", run: func(t *testing.T, c *criClient) {
			killedSandbox(t, c, "containerd-shim-coffer-v2")
		}},
	}
}

func refusedSandboxes(t *testing.T, c *criClient) {
	for _, tt := range []struct {
		name, handler, want string
		change              func(*runtimeapi.PodSandboxConfig)
	}{
		{"handler", "no-such-handler", "no-such-handler", nil},
		{"initdata", c.name, "cc_init_data: expected base64", func(q *runtimeapi.PodSandboxConfig) {
			q.Annotations["io.katacontainers.config.hypervisor.cc_init_data"] = "not base64!"
		}},
		{"host-network", c.name, "remove hostNetwork", func(q *runtimeapi.PodSandboxConfig) {
			q.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c.daemon.name == "2.2-sandboxer-shim" && tt.name == "host-network" {
				return // containerd 2.2.9 itself dies of it: see TestDaemons
			}
			q := c.sandbox("refused-" + tt.name)
			if tt.change != nil {
				tt.change(q)
			}
			p, err := c.start(c.call(t), tt.handler, q)
			if err == nil {
				p.end(t)
				t.Fatal("it is not refused")
			}
			t.Log(err)
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("refused by %v; expected a word about %s", err, tt.want)
			}
			list, err := c.runtime.ListPodSandbox(c.call(t), &runtimeapi.ListPodSandboxRequest{})
			if err != nil || len(list.GetItems()) > 0 {
				t.Errorf("sandboxes %v, %v", list.GetItems(), err)
			}
		})
	}
}

func killedSandbox(t *testing.T, c *criClient, program string) {
	p := c.pod(t, "killed")
	ctx := c.call(t)
	id := p.start(t, "a", nil, "sleep", "1000")
	began := time.Now()
	if n, err := c.n.Kill(program); err != nil || n != 1 {
		t.Fatalf("%d processes called %s: %v", n, program, err)
	}
	var s *runtimeapi.ContainerStatus
	c.eventually(t, "the container's end", func(ctx context.Context) error {
		r, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		s = r.GetStatus()
		if err == nil && s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("the container is %s", s.GetState())
		}
		return err
	})
	c.eventually(t, "the sandbox's end", c.podState(p.id, runtimeapi.PodSandboxState_SANDBOX_NOTREADY))
	took := time.Since(began)
	t.Logf("%s after %s killed: %s, exit code %d, %s", program, took.Round(time.Millisecond), s.State, s.ExitCode, s.Message)
	if took > 20*time.Second || s.ExitCode == 0 || s.FinishedAt < began.UnixNano() {
		t.Errorf("after %s: exit code %d, ended at %d", took, s.ExitCode, s.FinishedAt)
	}
	if r, err := c.exec(ctx, id, 5, "true"); err == nil {
		t.Errorf("a command runs: %v", r)
	}
	if _, err := p.create(ctx, "late", nil, "true"); err == nil {
		t.Error("a container is made")
	}
	var errs []error
	for range 2 {
		_, err := c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 5})
		_, err2 := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		errs = append(errs, err, err2)
	}
	for range 2 {
		_, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		t.Errorf("cleaning up: %v", err)
	}
	c.absent(t, id)
}
