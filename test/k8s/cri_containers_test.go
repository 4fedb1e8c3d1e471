package k8s

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func criContainerRows() []criRow {
	return []criRow{
		{id: "container", on: onAll, asserts: "a container's life: created, running, ended with its code, the time and both streams in its log; removal may be repeated", run: containerLife},
		{id: "exec-sync", on: onAll, asserts: "ExecSync: exit code and both streams, much output, a time limit that ends the command, a program that is not there", run: execSync},
		{id: "stop-container", on: onAll, asserts: "StopContainer: a signal and time to end, death after it, death at once; the code and time of the end; stopping again", run: stopContainer},
		{id: "remove-running-container", on: onAll, asserts: "a container is removed while it runs", run: func(t *testing.T, c *criClient) {
			id := c.common(t).start(t, "removed", nil, "sleep", "1000")
			c.removeContainer(t, id)
			c.absent(t, id)
		}},
		{id: "reopen-log", on: onAll, asserts: "a log is moved away and reopened: no line is lost, the old file gets no more", run: reopenLog},
	}
}

// create makes a container of the suite's image.
func (p *criPod) create(ctx context.Context, name string, change func(*runtimeapi.ContainerConfig), command ...string) (string, error) {
	q := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: criImage(appImage), Command: command, LogPath: name + ".log",
		Labels: map[string]string{"io.kubernetes.container.name": name, "io.kubernetes.pod.uid": p.config.Metadata.Uid},
		Linux:  &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2}, SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
	}
	if change != nil {
		change(q)
	}
	r, err := p.c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: q, SandboxConfig: p.config})
	return r.GetContainerId(), err
}

// start runs a container, which is removed with the test.
func (p *criPod) start(t *testing.T, name string, change func(*runtimeapi.ContainerConfig), command ...string) string {
	t.Helper()
	id, err := p.create(p.c.call(t), name, change, command...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.c.removeContainer(t, id) })
	if _, err := p.c.runtime.StartContainer(p.c.call(t), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	return id
}

func (c *criClient) removeContainer(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), c.patience())
	defer cancel()
	if _, err := c.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("removing a container: %v", err)
	}
}

func (c *criClient) container(t *testing.T, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	r, err := c.runtime.ContainerStatus(c.call(t), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetStatus()
}

// exited waits for a container's end and checks its code. The daemon takes the time
// of the start when its call returns: a short container may have ended before.
func (c *criClient) exited(t *testing.T, id string, code int32) *runtimeapi.ContainerStatus {
	t.Helper()
	var s *runtimeapi.ContainerStatus
	c.eventually(t, "the container's end", func(ctx context.Context) error {
		r, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		s = r.GetStatus()
		if err == nil && s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("the container is %s", s.GetState())
		}
		return err
	})
	if s.ExitCode != code || s.StartedAt < s.CreatedAt || s.FinishedAt < s.CreatedAt || s.FinishedAt > time.Now().UnixNano() {
		t.Errorf("it ended with %d (%s %s), expected %d; created at %d, started at %d, ended at %d", s.ExitCode, s.Reason, s.Message, code, s.CreatedAt, s.StartedAt, s.FinishedAt)
	}
	return s
}

// exec runs a command in a container; seconds are its limit, or 0.
func (c *criClient) exec(ctx context.Context, id string, seconds int64, command ...string) (*runtimeapi.ExecSyncResponse, error) {
	return c.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
}

func (c *criClient) stop(t *testing.T, id string, seconds int64) {
	t.Helper()
	if _, err := c.runtime.StopContainer(c.call(t), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds}); err != nil {
		t.Error(err)
	}
}

func containerLife(t *testing.T, c *criClient) {
	p, ctx := c.common(t), c.call(t)
	id, err := p.create(ctx, "life", func(q *runtimeapi.ContainerConfig) {
		q.Envs = []*runtimeapi.KeyValue{{Key: "SAYS", Value: "to out"}}
		q.WorkingDir = "/tmp"
		q.Annotations = map[string]string{"example.org/note": "kept"}
	}, "sh", "-c", "echo $SAYS $FROM_IMAGE $PWD; echo to err >&2; until [ -e /tmp/go ]; do sleep 0.1; done; echo -n end; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.removeContainer(t, id) })
	if s := c.container(t, id); s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 || s.FinishedAt != 0 {
		t.Errorf("made: %v", s)
	}
	for i := range 2 {
		_, err := c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if (err == nil) != (i == 0) {
			t.Errorf("start %d: %v", i+1, err)
		}
	}
	s := c.container(t, id)
	if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.FinishedAt != 0 || s.GetMetadata().GetName() != "life" || s.Annotations["example.org/note"] != "kept" || s.GetImage().GetImage() != appImage {
		t.Errorf("started: %v", s)
	}
	list, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		PodSandboxId: p.id, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}, LabelSelector: map[string]string{"io.kubernetes.container.name": "life"},
	}})
	if err != nil || len(list.GetContainers()) != 1 || list.GetContainers()[0].Id != id {
		t.Errorf("running containers: %v, %v", list, err)
	}
	if r, err := c.exec(ctx, id, 30, "touch", "/tmp/go"); err != nil || r.GetExitCode() != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	if s := c.exited(t, id, 7); s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("the reason is %q; started at %d, ended at %d", s.Reason, s.StartedAt, s.FinishedAt)
	}
	if out := p.log(t, "life"); len(out) != len("to out yes /tmp\nto err\nend") || !containsAll(out, []string{"to out yes /tmp\n", "to err\n", "end"}) {
		t.Errorf("it printed %q", out)
	}
	for range 2 {
		c.removeContainer(t, id)
	}
	c.absent(t, id)
}

func execSync(t *testing.T, c *criClient) {
	id := c.common(t).start(t, "commands", nil, "sleep", "1000")
	ctx := c.call(t)
	r, err := c.exec(ctx, id, 30, "sh", "-c", "echo to out; echo to err >&2; exit 42")
	if err != nil || r.GetExitCode() != 42 || string(r.GetStdout()) != "to out\n" || string(r.GetStderr()) != "to err\n" {
		t.Errorf("%v, %v", r, err)
	}
	if r, err = c.exec(ctx, id, 0, "/app", "flood", "1048576"); err != nil || r.GetExitCode() != 0 || len(r.GetStdout()) != 1<<20 {
		t.Errorf("%d bytes of 1 MiB, %v", len(r.GetStdout()), err)
	}
	if r, err = c.exec(ctx, id, 30, "sh", "-c", "kill -9 $$"); err != nil || r.GetExitCode() != 137 {
		t.Errorf("a killed command: %v, %v", r, err)
	}
	began := time.Now()
	r, err = c.exec(ctx, id, 2, "sleep", "4321")
	if took := time.Since(began); grpcstatus.Code(err) != codes.DeadlineExceeded || took > c.patience()/2 {
		t.Errorf("a command beyond its limit: %v, %v after %s", r, err, took)
	}
	c.eventually(t, "the end of that command", func(ctx context.Context) error {
		r, err := c.exec(ctx, id, 30, "ps")
		if err == nil && strings.Contains(string(r.GetStdout()), "sleep 4321") {
			err = fmt.Errorf("it is there: %s", r.GetStdout())
		}
		return err
	})
	if r, err := c.exec(ctx, id, 30, "/no/such"); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("a program that is not there: %v, %v", r, err)
	}
	if r, err := c.exec(ctx, "0123456789abcdef", 30, "true"); grpcstatus.Code(err) != codes.NotFound {
		t.Errorf("a container that is not there: %v, %v", r, err)
	}
}

func stopContainer(t *testing.T, c *criClient) {
	p := c.common(t)
	for _, tt := range []struct {
		name, prints string
		command      []string
		seconds      int64
		code         int32
	}{
		{"asked", "waiting\nsignal SIGTERM\nending\n", []string{"/app", "signals", "0", "9"}, 60, 9},
		{"forced", "waiting\nsignal SIGTERM\n", []string{"/app", "signals", "1000"}, 2, 137},
		{"at-once", "waiting\n", []string{"/app", "signals", "1000"}, 0, 137},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := p.start(t, tt.name, nil, tt.command...)
			c.eventually(t, "its first line", func(context.Context) error {
				if out := p.log(t, tt.name); !strings.HasPrefix(out, "waiting\n") {
					return fmt.Errorf("it printed %q", out)
				}
				return nil
			})
			began := time.Now()
			for range 2 {
				c.stop(t, id, tt.seconds)
			}
			took := time.Since(began)
			if s := c.exited(t, id, tt.code); s.FinishedAt < began.UnixNano() {
				t.Errorf("it ended at %d, before it was stopped", s.FinishedAt)
			}
			if least := time.Duration(tt.seconds) * time.Second; tt.code == 137 && (took < least || took > least+c.patience()/2) || tt.code != 137 && took >= least {
				t.Errorf("it took %s", took)
			}
			if out := p.log(t, tt.name); out != tt.prints {
				t.Errorf("it printed %q, expected %q", out, tt.prints)
			}
			if r, err := c.exec(c.call(t), id, 5, "true"); err == nil {
				t.Errorf("a command in a stopped container: %v", r)
			}
			if _, err := c.runtime.ReopenContainerLog(c.call(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err == nil {
				t.Error("the log of a stopped container is reopened")
			}
			if _, err := c.runtime.StartContainer(c.call(t), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
				t.Error("a stopped container starts again")
			}
		})
	}
}

func reopenLog(t *testing.T, c *criClient) {
	p := c.common(t)
	id := p.start(t, "rotated", nil, "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo $i; sleep 0.01; done")
	file := filepath.Join(p.logDir(), "rotated.log")
	if err := os.Rename(file, file+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.runtime.ReopenContainerLog(c.call(t), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	old := readLog(t, file+".old")
	c.eventually(t, "lines in the new file", func(context.Context) error {
		if got := strings.Count(p.log(t, "rotated"), "\n"); got < 20 {
			return fmt.Errorf("%d lines", got)
		}
		return nil
	})
	c.stop(t, id, 0)
	c.exited(t, id, 137)
	if again := readLog(t, file+".old"); again != old {
		t.Errorf("the old file has got %d bytes more", len(again)-len(old))
	}
	n := 0
	for line := range strings.Lines(old + p.log(t, "rotated")) {
		if n++; line != fmt.Sprintln(n) {
			t.Fatalf("line %d is %q", n, line)
		}
	}
}
