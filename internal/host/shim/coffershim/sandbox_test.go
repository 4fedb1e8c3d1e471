package coffershim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sandboxv1 "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/podcgroup"
	processtest "github.com/coffer-project/coffer/internal/host/process/hosttest"
	"github.com/coffer-project/coffer/internal/host/shim/hosttest"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

// TestSandboxAPI has a pod made by the Sandbox API, as containerd does with
// sandboxer = "shim": without a bundle of its own, and with containers that
// join its shim without being started.
func TestSandboxAPI(t *testing.T) {
	agent := processtest.Agent(t)
	n := processtest.NewNet(t)
	image := n.Image(t)
	dir, err := os.MkdirTemp("", "box")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	hostsDir := filepath.Join(dir, "kubelet/pods", podUID)
	for _, d := range []string{hostsDir, filepath.Join(dir, "pod"), filepath.Join(dir, "app")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	hosts := "# Entries added by HostAliases.\n"
	for _, h := range n.Network().Hosts {
		hosts += h.Address + "\t" + strings.Join(h.Names, "\t") + "\n"
	}
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := write("runtime.toml", fmt.Appendf(nil, "driver = \"process\"\ndevelopment = true\nagent = %q\ntee = \"none\"\nkubelet_root = %q\nstate_dir = %q\n",
		agent, filepath.Join(dir, "kubelet"), filepath.Join(dir, "state")))
	write("kubelet/pods/"+podUID+"/etc-hosts", []byte(hosts))
	id := "box-" + filepath.Base(dir)
	write("app/config.json", appSpec(t, id, image, filepath.Join(hostsDir, "etc-hosts")))

	socket := startShim(t, dir, id, config)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	state, err := podstate.Read(filepath.Join(dir, "state/test", id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = state.Shim.Signal(9)
		_ = state.Shim.Wait(context.WithoutCancel(t.Context()))
		if err := podcgroup.Remove(podcgroup.DefaultRoot, []string{"/coffer-" + id + "/" + id, "/coffer-" + id}); err != nil {
			t.Error(err)
		}
	})

	box, task := sandboxv1.NewTTRPCSandboxClient(client), taskv3.NewTTRPCTaskClient(client)
	netns := fmt.Sprintf("/proc/%d/fd/%s", os.Getpid(), filepath.Base(n.Path))
	if _, err := box.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{
		SandboxID: id, BundlePath: filepath.Join(dir, "pod"), NetnsPath: netns, Options: &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: podConfig("/coffer-" + id)},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := box.StartSandbox(ctx, &sandboxv1.StartSandboxRequest{SandboxID: id}); err != nil {
		t.Fatal(err)
	}
	now, err := podstate.Read(filepath.Join(dir, "state/test", id))
	if err != nil || len(now.Machines) != 1 || !now.Machines[0].Alive() || now.Driver != "process" {
		t.Errorf("state of a running pod: %+v, %v", now, err)
	}
	group := "/coffer-" + id + "/" + id
	if !slices.Equal(now.Cgroups, []string{group, "/coffer-" + id}) {
		t.Errorf("control groups of a running pod: %q", now.Cgroups)
	}
	for _, p := range []podstate.Process{now.Shim, now.Machines[0]} {
		if in := membership(t, p); !strings.Contains(in, group) {
			t.Errorf("the %s is in %s", p.Role, in)
		}
	}
	if _, err := task.Create(ctx, &taskv3.CreateTaskRequest{ID: "app", Bundle: filepath.Join(dir, "app")}); err != nil {
		t.Fatal(err)
	}
	if _, err := task.Start(ctx, &taskv3.StartRequest{ID: "app"}); err != nil {
		t.Fatal(err)
	}
	exit, err := task.Wait(ctx, &taskv3.WaitRequest{ID: "app"})
	if err != nil || exit.ExitStatus != 7 {
		t.Errorf("exit: want 7, got %v, %v", exit, err)
	}
	if _, err := task.Delete(ctx, &taskv3.DeleteRequest{ID: "app"}); err != nil {
		t.Error(err)
	}
	// The pod outlives its last container, also after it was stopped.
	for range 2 {
		if _, err := task.Shutdown(ctx, &taskv3.ShutdownRequest{ID: "app"}); err != nil {
			t.Error(err)
		}
		if _, err := box.StopSandbox(ctx, &sandboxv1.StopSandboxRequest{SandboxID: id}); err != nil {
			t.Error(err)
		}
	}
	if ended, err := box.WaitSandbox(ctx, &sandboxv1.WaitSandboxRequest{SandboxID: id}); err != nil || ended.ExitStatus != 0 {
		t.Errorf("the sandbox's end: %v, %v", ended, err)
	}
	// It may live on for long, where nobody takes it for a process of the pod.
	if in := membership(t, now.Shim); strings.Contains(in, group) {
		t.Errorf("after the pod's end the shim is in %s", in)
	}
	if groups, err := filepath.Glob(podcgroup.DefaultRoot + "/*/coffer-" + id); err != nil || len(groups) > 0 {
		t.Errorf("after the pod's end there are %q, %v", groups, err)
	}
	if _, err := box.ShutdownSandbox(ctx, &sandboxv1.ShutdownSandboxRequest{SandboxID: id}); err != nil {
		t.Error(err)
	}
	_ = client.Close()
	if err := state.Shim.Wait(ctx); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "s*", "*"))
	// The namespace's directory stays, and what nobody has told yet of the pod.
	if err != nil || len(left) != 2 || now.Machines[0].Alive() {
		t.Errorf("left: %q, %v", left, err)
	}
	if kept, err := notice.Kept(filepath.Join(dir, "state"), time.Now()); err != nil || len(kept) != 1 || kept[0].Notices[0].Reason != notice.Unsealed {
		t.Errorf("notices: %v, %v", kept, err)
	}
	if pods, err := os.ReadDir(filepath.Join(dir, "state/test")); err != nil || len(pods) != 0 {
		t.Errorf("left: %v, %v", pods, err)
	}
}

// membership is where a process is.
func membership(t *testing.T, p podstate.Process) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// startShim starts the pod's shim as containerd 1.6 would, and returns its socket.
func startShim(t *testing.T, dir, id, config string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), hosttest.InstallShim(t, dir, shimName), "-namespace", "test", "-id", id, "-address", "/c", "start")
	cmd.Dir = filepath.Join(dir, "pod")
	cmd.Env = append(append(os.Environ(), "COFFER_SHIM_TEST_SOCKETS="+filepath.Join(dir, "sockets")), env...)
	// runtimeoptions.v1.Options{config_path} in an Any.
	options := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), config)
	any := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "runtimeoptions.v1.Options")
	any = protowire.AppendBytes(protowire.AppendTag(any, 2, protowire.BytesType), options)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(any), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("start: %v: %s", err, stderr.String())
	}
	return strings.TrimPrefix(string(out), "unix://")
}

// podConfig is runtime.v1.PodSandboxConfig with metadata, a control group, and a
// PID namespace for each container.
func podConfig(cgroup string) []byte {
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	metadata := field(field(field(nil, 1, []byte("pod")), 2, []byte(podUID)), 3, []byte("default"))
	pid := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1) // CONTAINER
	return field(field(nil, 1, metadata), 8, field(field(nil, 1, []byte(cgroup)), 2, field(nil, 1, pid)))
}

func appSpec(t *testing.T, pod, image, hosts string) []byte {
	t.Helper()
	spec := specs.Spec{
		Version: "1.1.0", Process: &specs.Process{Args: []string{"sh", "-c", "exit 7"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts: []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: hosts, Options: []string{"rbind", "ro"}}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace},
		}},
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod,
			"io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.image-name": image,
		},
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
