package faults

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/podpolicy"
)

// sealed is the initdata of a pod whose container may run /bin/true inside and
// nothing else; change, if not nil, says what else its policy has. The agent as a process has no TEE, so that nothing proves the
// document, but the policy in it is in force.
func (n *node) sealed(change func(*podpolicy.Policy)) string {
	n.t.Helper()
	p, err := podpolicy.FromImage(podpolicy.Source{
		Name: "app", Digest: shared.digest, From: []string{registryName + ":" + n.reg.port + "/test/busybox"},
		Config: podpolicy.ImageConfig{Entrypoint: shared.config.Config.Entrypoint, Env: shared.config.Config.Env},
	}, podpolicy.Flags{
		Args: &[]string{"-c", "echo secret; exec sleep 1000"}, Env: map[string]string{"MODE": "prod"}, User: &podpolicy.User{},
		Exec: []podpolicy.ExecRule{{Args: []string{"/bin/true"}}}, Capabilities: []string{}, ReadOnlyRoot: true,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	p.Pod.Name.Value = podName
	p.Network.Hosts = podpolicy.Hosts{Entries: []podpolicy.HostEntry{{Address: n.reg.address, Names: []string{registryName}}}}
	if change != nil {
		change(p)
	}
	text, err := json.Marshal(p)
	if err != nil {
		n.t.Fatal(err)
	}
	raw, err := (&initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{initdata.KeyPodPolicy: string(text), initdata.KeyCDH: plainHTTP(registryName + ":" + n.reg.port)}}).Encode()
	if err != nil {
		n.t.Fatal(err)
	}
	gz, err := initdata.Compress(raw)
	if err != nil {
		n.t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(gz)
}

// plainHTTP is a configuration of the guest's pulls.
func plainHTTP(host string) string {
	return "[[image.registry_config.registry]]\nlocation = " + quoted(host) + "\ninsecure = true\n"
}

// agreed is a container as the policy has it.
func agreed(s *specs.Spec) {
	s.Process.Args = []string{"/bin/sh", "-c", "echo secret; exec sleep 1000"}
	s.Process.Env = []string{"PATH=/bin", "MODE=prod"}
	s.Process.NoNewPrivileges = true
	s.Process.Capabilities = &specs.LinuxCapabilities{}
	s.Root.Readonly = true
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
}

// TestPolicyDenials: what a sealed pod refuses says by which rule, of which field,
// what was expected and what came.
func TestPolicyDenials(t *testing.T) {
	n := newNode(t)
	box := n.specOf(n.pod, "sandbox")
	annotation := n.sealed(nil)
	box.Annotations[cri.AnnotationInitdata] = annotation
	n.startPod(box)
	ctx, cancel := n.call()
	defer cancel()
	if err := n.create(ctx, n.pod); err != nil {
		t.Fatal(err)
	}
	if err := n.begin(ctx, n.pod); err != nil {
		t.Fatal(err)
	}
	n.noteSpaces()
	for _, tt := range []struct {
		name, want string
		change     func(s *specs.Spec)
	}{
		{"image", "the guest: refused (rule container.image): image: expected a repository of [\"host.coffer.internal:PORT/test/busybox\"], got \"host.coffer.internal:PORT/test/other\" (pull from a repository that the policy lists in image.from, or add this one there)", func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.image-name"] = n.reg.reference("test/other") }},
		{"digest", "the guest: refused (rule container.image): image: expected DIGEST, got sha256:0000000000000000000000000000000000000000000000000000000000000000 (the policy pins another image)", func(s *specs.Spec) {
			s.Annotations["io.kubernetes.cri.image-name"] = registryName + ":" + n.reg.port + "/test/busybox@sha256:" + strings.Repeat("0", 64)
		}},
		{"args", "the guest: refused (rule container.args): args[2]: expected \"echo secret; exec sleep 1000\", got \"cat /secret\" (leave args out to take the policy's)", func(s *specs.Spec) { s.Process.Args[2] = "cat /secret" }},
		{"env", "the guest: refused (rule container.env): env.MODE: expected \"prod\", got \"debug\"", func(s *specs.Spec) { s.Process.Env[1] = "MODE=debug" }},
		{"env more", "the guest: refused (rule container.env): env.LD_PRELOAD: expected nothing, got \"/x\" (neither the policy nor the image has this variable)", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "LD_PRELOAD=/x") }},
		{"user", "the guest: refused (rule container.user): user.uid: expected 0, got 1000", func(s *specs.Spec) { s.Process.User.UID = 1000 }},
		{"cwd", "the guest: refused (rule container.cwd): cwd: expected \"/\", got \"/tmp\" (leave cwd out to take the policy's)", func(s *specs.Spec) { s.Process.Cwd = "/tmp" }},
		{"mount", "the guest: refused (rule container.mounts): mounts[0].path: expected a path that the policy mounts, got \"/data\"", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: n.emptyDir("data"), Options: []string{"rbind"}})
		}},
		{"host path", "container app: mount at /data: hostPath /etc: the pod is sealed, and no pod policy has files of the node; use a ConfigMap, an emptyDir, or a claim with volumeMode: Block", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/etc", Options: []string{"rbind"}})
		}},
		{"capability", "the guest: refused (rule container.capabilities): security.capabilities: expected nothing, got [\"CAP_SYS_ADMIN\"] (the policy does not have CAP_SYS_ADMIN)", func(s *specs.Spec) {
			all := []string{"CAP_SYS_ADMIN"}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		}},
		{"new privileges", "the guest: refused (rule container.noNewPrivileges): security.noNewPrivileges: expected true, got false (allowPrivilegeEscalation of the manifest is its opposite)", func(s *specs.Spec) { s.Process.NoNewPrivileges = false }},
		{"writable root", "the guest: refused (rule container.readOnlyRoot): security.readOnlyRoot: expected true, got false (readOnlyRootFilesystem of the manifest says it)", func(s *specs.Spec) { s.Root.Readonly = false }},
		{"another container", "the guest: refused (rule container.unknown): name: expected one of [\"app\"], got \"debug\" (the host selects among the policy's containers; it cannot add one)", func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.container-name"] = "debug" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := n.container(func(s *specs.Spec) { agreed(s); tt.change(s) })
			n.denied(t, n.create(ctx, id), tt.want)
		})
	}
	n.execEnv, n.stdin = []string{"PATH=/bin", "MODE=prod"}, true
	n.denied(t, n.create(ctx, n.container(agreed)), "refused (rule container.stdin)")
	n.stdin = false
	// In a container as it should be, what may be done with it.
	id := n.container(agreed)
	if err := n.create(ctx, id); err != nil {
		t.Fatal(err)
	}
	n.denied(t, n.update(id), "the guest refused it (rule container.resources): resources.memory: expected 0: the policy has no limit, got 1073741824; send 0 to leave it to the policy")
	if err := n.begin(ctx, id); err != nil {
		t.Fatal(err)
	}
	n.noteSpaces()
	if err := n.exec(id, "good", "/bin/true"); err != nil {
		t.Errorf("an exec that the policy allows: %v", err)
	}
	n.denied(t, n.exec(id, "e1", "/bin/sh"), `the guest refused it (rule exec.args): args: expected one of the 1 commands in allow.exec, got ["/bin/sh"]; list the command in "allow": {"exec": […]} of the container`)
	_, err := n.task.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(syscall.SIGUSR1)})
	n.denied(t, err, `the guest refused it (rule signal): signal: expected one of [9 15 2], got 10; list the signal in "allow": {"signals": […]} of the container`)
	n.denied(t, n.update(id), "the guest refused it (rule container.resources): resources.memory: expected 0: the policy has no limit, got 1073741824; send 0 to leave it to the policy")
	// What it says is not told.
	f, err := os.OpenFile(n.fifo(id+"-out"), os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	buf := make([]byte, 4096)
	k, _ := f.Read(buf)
	t.Logf("output: %q", buf[:k])
	if strings.Contains(string(buf[:k]), "secret") {
		t.Errorf("the host reads what it must not: %q", buf[:k])
	}
	_ = f.Close()
	n.conclude()
	n.expectClean()
}

// denied checks a refusal.
func (n *node) denied(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Errorf("nothing was refused; want %s", want)
		return
	}
	if strings.Contains(want, "(rule ") && !errdefs.IsPermissionDenied(errgrpc.ToNative(err)) {
		t.Errorf("want permission denied, got %v", err)
	}
	got := strings.NewReplacer(n.dir, "DIR", n.reg.port, "PORT", shared.digest, "DIGEST").Replace(err.Error())
	if !strings.Contains(got, want) {
		t.Errorf("want: %s\n got: %s", want, got)
	}
}

// update asks for more memory.
func (n *node) update(id string) error {
	data, err := json.Marshal(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(1 << 30))}})
	if err != nil {
		return err
	}
	ctx, cancel := n.call()
	defer cancel()
	_, err = n.task.Update(ctx, &taskapi.UpdateTaskRequest{ID: id, Resources: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: data}})
	return err
}

// emptyDir is a volume as the kubelet makes it.
func (n *node) emptyDir(name string) string {
	dir := n.path("kubelet", "pods", podUID, "volumes", "kubernetes.io~empty-dir", name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		n.t.Fatal(err)
	}
	return dir
}
