package k8s

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/test/k8s/node"
)

func criImage(ref string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: ref, UserSpecifiedImage: ref}
}

func criPodRows() []criRow {
	return []criRow{
		{id: "sandbox", on: onAll, asserts: "a sandbox of the handler is ready, with addresses of both families; its description is kept, lists filter it, its name is taken", run: sandboxStatus},
		{id: "image", on: onAll, asserts: "images: status, pull, list and removal, twice each; one that is not there is NotFound, and a container of another one runs", run: imageService},
		{id: "stop-sandbox", on: onAll, alone: true, asserts: "a stopped sandbox: its containers have been killed, nothing more starts or runs in it; removal takes its containers along; both may be repeated", run: stoppedSandbox},
		{id: "remove-ready-sandbox", on: onRunc | onProcess, alone: true, asserts: "a sandbox is removed while its container runs", run: func(t *testing.T, c *criClient) {
			p := c.pod(t, "ready")
			id := p.start(t, "a", nil, "sleep", "1000")
			if _, err := c.runtime.RemovePodSandbox(c.call(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
				t.Error(err)
			}
			c.absent(t, id)
		}},
		{id: "restart-daemon", on: onAll, asserts: "the daemon is killed and started: sandbox and container are as they were, and serve commands and their end", run: restartedDaemon},
	}
}

func (c *criClient) podStatus(t *testing.T, id string) *runtimeapi.PodSandboxStatus {
	t.Helper()
	r, err := c.runtime.PodSandboxStatus(c.call(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetStatus()
}

func (c *criClient) podState(id string, want runtimeapi.PodSandboxState) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		if err == nil && r.GetStatus().GetState() != want {
			err = fmt.Errorf("the sandbox is %s", r.GetStatus().GetState())
		}
		return err
	}
}

func sandboxStatus(t *testing.T, c *criClient) {
	p := c.common(t)
	s := c.podStatus(t, p.id)
	if s.State != runtimeapi.PodSandboxState_SANDBOX_READY || s.RuntimeHandler != c.name || s.GetMetadata().String() != p.config.Metadata.String() {
		t.Errorf("state %s, handler %q, metadata %v", s.State, s.RuntimeHandler, s.Metadata)
	}
	if age := time.Since(time.Unix(0, s.CreatedAt)); age < 0 || age > c.patience() {
		t.Errorf("it was made %s ago", age)
	}
	for k, v := range p.config.Labels {
		if s.Labels[k] != v {
			t.Errorf("label %s is %q, expected %q", k, s.Labels[k], v)
		}
	}
	if s.Annotations["example.org/note"] != "kept" {
		t.Errorf("annotations %v", s.Annotations)
	}
	addresses := []string{s.GetNetwork().GetIp()}
	for _, more := range s.GetNetwork().GetAdditionalIps() {
		addresses = append(addresses, more.GetIp())
	}
	families := map[bool]int{}
	for _, text := range addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			t.Errorf("address: %v", err)
		}
		families[a.Is4()]++
	}
	if families[true] != 1 || families[false] != 1 {
		t.Errorf("addresses %q, expected one of each family", addresses)
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for _, tt := range []struct {
		filter *runtimeapi.PodSandboxFilter
		want   int
	}{
		{&runtimeapi.PodSandboxFilter{Id: p.id}, 1}, {&runtimeapi.PodSandboxFilter{State: ready, LabelSelector: p.config.Labels}, 1},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": "other"}}, 0},
		{&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, 0},
	} {
		list, err := c.runtime.ListPodSandbox(c.call(t), &runtimeapi.ListPodSandboxRequest{Filter: tt.filter})
		if err != nil || len(list.GetItems()) != tt.want {
			t.Errorf("%v: %d sandboxes, %v; expected %d", tt.filter, len(list.GetItems()), err, tt.want)
		}
	}
	if r, err := c.runtime.RunPodSandbox(c.call(t), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: c.name}); err == nil || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("a second sandbox of that name: %v, %v", r, err)
	}
	if err := c.podState(p.id, runtimeapi.PodSandboxState_SANDBOX_READY)(c.call(t)); err != nil {
		t.Error(err)
	}
}

func imageService(t *testing.T, c *criClient) {
	other := criImage(node.OtherImage)
	ctx := c.call(t)
	for range 2 {
		if _, err := c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: other}); err != nil {
			t.Errorf("removing what is not there: %v", err)
		}
	}
	if r, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: other}); err != nil || r.GetImage() != nil {
		t.Errorf("an image that is not there: %v, %v", r, err)
	}
	var ids []string
	for range 2 {
		r, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: other, SandboxConfig: c.common(t).config})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.GetImageRef())
	}
	s, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: other})
	if err != nil || s.GetImage().GetId() != ids[0] || ids[1] != ids[0] || s.GetImage().GetSize() == 0 || len(s.GetImage().GetRepoTags()) != 1 {
		t.Errorf("pulled %q: %v, %v", ids, s, err)
	}
	list, err := c.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || !slices.ContainsFunc(list.GetImages(), func(i *runtimeapi.Image) bool {
		return i.GetId() == ids[0] && slices.Contains(i.GetRepoTags(), node.OtherImage)
	}) {
		t.Errorf("images %v, %v", list, err)
	}
	absent := criImage(node.Registry + "/nowhere:1")
	// containerd 1.6 then asks the default server, and tells of that.
	if _, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: absent}); err == nil || grpcstatus.Code(err) != codes.NotFound && c.daemon.version != "1.6" {
		t.Errorf("an image that is nowhere: %v", err)
	}
	p := c.common(t)
	id := p.start(t, "other-image", func(q *runtimeapi.ContainerConfig) { q.Image = other }, "sh", "-c", "echo $WHICH")
	c.exited(t, id, 0)
	if got := p.log(t, "other-image"); got != "the other\n" {
		t.Errorf("it printed %q", got)
	}
	if _, err := p.create(ctx, "no-image", func(q *runtimeapi.ContainerConfig) { q.Image = absent }, "true"); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a container of an image that is not there: %v", err)
	}
	c.removeContainer(t, id)
	if _, err := c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: other}); err != nil {
		t.Error(err)
	}
}

func stoppedSandbox(t *testing.T, c *criClient) {
	p := c.pod(t, "stopped")
	ctx := c.call(t)
	runs := p.start(t, "runs", nil, "sh", "-c", "trap '' TERM; while true; do sleep 1; done")
	created, err := p.create(ctx, "created", nil, "true")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatal(err)
		}
		if err := c.podState(p.id, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)(ctx); err != nil {
			t.Error(err)
		}
	}
	c.exited(t, runs, 137)
	if _, err := c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created}); err == nil {
		t.Error("a container starts in a stopped sandbox")
	}
	if _, err := p.create(ctx, "late", nil, "true"); err == nil {
		t.Error("a container is made in a stopped sandbox")
	}
	if _, err := c.exec(ctx, runs, 5, "true"); err == nil {
		t.Error("a command runs in a stopped sandbox")
	}
	if _, err := c.runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{8080}}); err == nil {
		t.Error("ports of a stopped sandbox are forwarded")
	}
	for range 2 {
		if _, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Error(err)
		}
	}
	c.absent(t, runs, created)
	if _, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id}); grpcstatus.Code(err) != codes.NotFound {
		t.Errorf("the status of a removed sandbox: %v", err)
	}
}

// absent checks that containers have been removed.
func (c *criClient) absent(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if _, err := c.runtime.ContainerStatus(c.call(t), &runtimeapi.ContainerStatusRequest{ContainerId: id}); grpcstatus.Code(err) != codes.NotFound {
			t.Errorf("the status of a removed container: %v", err)
		}
	}
}

func restartedDaemon(t *testing.T, c *criClient) {
	p := c.common(t)
	id := p.start(t, "lasting", nil, "sh", "-c", "trap 'exit 9' TERM; i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done")
	before := c.container(t, id)
	if err := c.n.Restart(t.Context(), "containerd", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.eventually(t, "the daemon", c.serves)
	if err := c.podState(p.id, runtimeapi.PodSandboxState_SANDBOX_READY)(c.call(t)); err != nil {
		t.Error(err)
	}
	if s := c.container(t, id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt != before.StartedAt {
		t.Errorf("the container is %s, started at %d, before the restart at %d", s.State, s.StartedAt, before.StartedAt)
	}
	if r, err := c.exec(c.call(t), id, 30, "echo", "served"); err != nil || string(r.GetStdout()) != "served\n" {
		t.Errorf("a command: %v, %v", r, err)
	}
	printed := len(p.log(t, "lasting"))
	c.eventually(t, "more output", func(context.Context) error {
		if len(p.log(t, "lasting")) <= printed {
			return errors.New("there is no more output")
		}
		return nil
	})
	c.stop(t, id, 30)
	c.exited(t, id, 9)
}

// log is what a container has printed, without what the log adds to each line: time,
// stream, and whether the line is whole.
func (p *criPod) log(t *testing.T, name string) string {
	t.Helper()
	return readLog(t, filepath.Join(p.logDir(), name+".log"))
}

func readLog(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 || (f[1] != "stdout" && f[1] != "stderr") || (f[2] != "F" && f[2] != "P") {
			t.Fatalf("%s has the line %q", file, line)
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		b.WriteString(f[3])
	}
	return b.String()
}
