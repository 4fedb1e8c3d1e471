package faults

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/podpolicy"
)

// denial is a request of the agent's protocol that the pod's policy refuses, and
// the sentence that containerd gets. What CreateContainer, Exec, Signal and Update
// are refused is in TestPolicyDenials. A terminal that the policy allows may be
// resized, and the shim asks for no other.
type denial struct {
	request, name, want string
	// node makes what is not usual of the node.
	node func(t *testing.T, n *node)
	// policy changes the policy; nil with unsealed.
	policy   func(p *podpolicy.Policy)
	unsealed bool
	sandbox  func(s *specs.Spec)
	app      func(n *node, s *specs.Spec)
	// do is what is refused; nil: the container's creation.
	do func(n *node, ctx context.Context, id string) error
}

// withFiles gives the policy a volume of the pod's files, which the container has
// at /config: app.conf, pinned, and token, of at most 16 bytes.
func withFiles(p *podpolicy.Policy) {
	sum := sha256.Sum256([]byte("right"))
	p.Volumes = map[string]podpolicy.Volume{"config": {
		Kind: podpolicy.VolumeFiles, Pinned: map[string]string{"app.conf": "sha256:" + hex.EncodeToString(sum[:])},
		Host: &podpolicy.HostFiles{Names: []string{"token"}, MaxBytes: 16},
	}}
	p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/config", Volume: "config", ReadOnly: true}}
}

// files mounts a volume as the kubelet writes it: files in a directory of their
// own, which ..data leads to.
func files(volume string, content map[string]string) func(n *node, s *specs.Spec) {
	return func(n *node, s *specs.Spec) {
		dir := n.putFiles(volume, "..1", content)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/config", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}})
	}
}

// putFiles makes a version of a volume.
func (n *node) putFiles(volume, version string, content map[string]string) string {
	n.t.Helper()
	dir := n.path("kubelet", "pods", podUID, "volumes", "kubernetes.io~configmap", volume)
	if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
		n.t.Fatal(err)
	}
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, version, name), []byte(text), 0o644); err != nil {
			n.t.Fatal(err)
		}
		if err := os.Symlink("..data/"+name, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			n.t.Fatal(err)
		}
	}
	next := filepath.Join(dir, "..data_tmp")
	if err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(dir, "..data"))); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// claim gives the container a device at /dev/data, as a claim of the pod.
func claim(n *node, s *specs.Spec) {
	n.t.Helper()
	device, at := n.loop()
	dir := n.path("kubelet", "pods", podUID, "volumeDevices", "kubernetes.io~local-volume")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Symlink(device, filepath.Join(dir, "pv-1"))); err != nil {
		n.t.Fatal(err)
	}
	at.Path = "/dev/data"
	s.Linux.Devices = append(s.Linux.Devices, at)
}

// loop is a block device of the node.
func (n *node) loop() (string, specs.LinuxDevice) {
	n.t.Helper()
	image, err := os.Create(n.path("disk"))
	if err == nil {
		err = image.Truncate(1 << 20)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	defer image.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		unsupported(n.t, err.Error())
	}
	defer control.Close()
	// Other programs look for a free one, too.
	for range 20 {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			unsupported(n.t, err.Error())
		}
		path := fmt.Sprintf("/dev/loop%d", number)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			unsupported(n.t, err.Error())
		}
		// The kernel takes it back when it is closed for the last time.
		err = unix.IoctlLoopConfigure(int(f.Fd()), &unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err == nil {
			n.cuts = append(n.cuts, func() { _ = f.Close() })
			return path, specs.LinuxDevice{Type: "b", Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
		}
		_ = f.Close()
		if !errors.Is(err, unix.EBUSY) {
			n.t.Fatal(err)
		}
	}
	n.t.Fatal("there is no free loop device")
	return "", specs.LinuxDevice{}
}

// asVolume says which volume of the policy the claim's device is.
func asVolume(name string) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Annotations["coffer-project.io/volumes"] = "/dev/data=" + name }
}

var denials = []denial{
	{
		request: "CreateSandbox", name: "another pod", sandbox: func(s *specs.Spec) { s.Annotations["io.kubernetes.cri.sandbox-name"] = "other" },
		want: `the guest did not take the pod: the guest: refused (rule pod.name): podName: expected "web", got "other" (the policy is for another pod)`,
	},
	{
		request: "UpdateNetwork", name: "the node's own name", unsealed: true, app: func(n *node, _ *specs.Spec) {
			text := "# Entries added by HostAliases.\n192.0.2.9\tlocalhost\n"
			if err := os.WriteFile(n.path("kubelet", "pods", podUID, "etc-hosts"), []byte(text), 0o644); err != nil {
				n.t.Fatal(err)
			}
		},
		want: `hostAliases: the guest: refused (rule network.hosts): network.hosts[0].names[0]: expected a DNS name other than localhost, got "localhost"`,
	},
	{
		request: "Start", name: "without the volume's files", policy: withFiles,
		do: func(n *node, ctx context.Context, id string) error {
			if err := n.create(ctx, id); err != nil {
				n.t.Fatal(err)
			}
			return n.begin(ctx, id)
		},
		want: `the guest refused it (rule volume.empty): mounts[0]: expected the files of volume "config", got nothing; put the files of the volume before starting the container`,
	},
	{
		request: "PutFiles", name: "another volume", policy: withFiles, app: files("other", map[string]string{"app.conf": "right", "token": "t"}),
		want: `volume other: the guest did not take the files: the guest: refused (rule files.volume): volume: expected a files volume of the policy, got "other" (the host selects the files of the policy's volumes; add the volume to the policy (coffer prepare does), or take it out of the pod)`,
	},
	{
		request: "PutFiles", name: "another file", policy: withFiles, app: files("config", map[string]string{"app.conf": "right", "token": "t", "more": "x"}),
		want: `volume config: the guest did not take the files: the guest: refused (rule files.name): files.more: expected a file that the policy names, got "more" (take the file out of the ConfigMap or Secret, or run coffer prepare again)`,
	},
	{
		request: "PutFiles", name: "another content", policy: withFiles, app: files("config", map[string]string{"app.conf": "wrong", "token": "t"}),
		want: `(the policy pins another content: restore it, or run coffer prepare again)`,
	},
	{
		request: "PutFiles", name: "too much", policy: withFiles, app: files("config", map[string]string{"app.conf": "right", "token": strings.Repeat("t", 17)}),
		want: `volume config: the guest did not take the files: the guest: refused (rule files.size): files.token: expected at most 16 bytes more, got 17 (make the file smaller, or raise host.maxBytes of the volume in the policy)`,
	},
	{
		request: "PutFiles", name: "too little", policy: withFiles, app: files("config", map[string]string{"app.conf": "right"}),
		want: `volume config: the guest did not take the files: the guest: refused (rule files.missing): files.token: expected every file that the policy names, got nothing (a volume is replaced as a whole: put the file back, or run coffer prepare again)`,
	},
	{
		request: "AttachVolume", name: "another volume", node: asMachine, sandbox: asVolume("other"), app: claim,
		want: `container app: volume other: the guest did not open the disk: the guest: refused (rule volume.attach): volume: expected a block volume of the policy, got "other" (the host selects a disk for a volume; it cannot add one)`,
	},
	{
		request: "AttachVolume", name: "a volume of files", node: asMachine, policy: withFiles, sandbox: asVolume("config"), app: claim,
		want: `(rule volume.attach): volume: expected a block volume of the policy, got "config" (the host selects a disk for a volume; it cannot add one)`,
	},
}

// asMachine makes pods of the node virtual machines: others have no disks.
func asMachine(t *testing.T, n *node) { t.Helper(); n.asMachine(guestImage(t)) }

// TestPolicyRequests: every request that a policy can refuse.
func TestPolicyRequests(t *testing.T) {
	for _, d := range denials {
		t.Run(d.request+"/"+d.name, func(t *testing.T) {
			n := newNode(t)
			if d.node != nil {
				d.node(t, n)
			}
			id, ctx, err := n.denying(d)
			if d.do == nil {
				d.do = (*node).create
			}
			// A shim waits ten seconds for the last output, and of what was never started
			// there is none.
			began := time.Now()
			if err == nil {
				err = d.do(n, ctx, id)
			}
			if took := time.Since(began); d.node == nil && took > 8*time.Second {
				t.Errorf("the refusal took %s", took)
			}
			n.denied(t, err, d.want)
			n.conclude()
			n.expectClean()
		})
	}
}

// denying boots the pod, which may be what is refused, and makes the container's
// bundle.
func (n *node) denying(d denial) (id string, ctx context.Context, err error) {
	n.t.Helper()
	box := n.specOf(n.pod, "sandbox")
	if !d.unsealed {
		box.Annotations[cri.AnnotationInitdata] = n.sealed(d.policy)
	}
	if d.sandbox != nil {
		d.sandbox(box)
	}
	n.startPod(box)
	ctx, cancel := n.call()
	n.t.Cleanup(cancel)
	if err := n.create(ctx, n.pod); err != nil {
		return "", ctx, err
	}
	if err := n.begin(ctx, n.pod); err != nil {
		return "", ctx, err
	}
	n.noteSpaces()
	id = n.container(func(s *specs.Spec) {
		agreed(s)
		if d.app != nil {
			d.app(n, s)
		}
	})
	return id, ctx, nil
}

// TestPolicyLater: files that the policy refuses under a running container are
// told of, and the container keeps those that it has.
func TestPolicyLater(t *testing.T) {
	n := newNode(t)
	right := map[string]string{"app.conf": "right", "token": "first"}
	id, _, err := n.denying(denial{app: files("config", right), policy: func(p *podpolicy.Policy) {
		withFiles(p)
		p.Containers[0].Allow.Exec = []podpolicy.ExecRule{
			{Args: []string{"/bin/sh", "-c", "[ $(cat /config/app.conf) = right ] && [ $(cat /config/token) = first ]"}},
			{Args: []string{"/bin/sh", "-c", "[ $(cat /config/token) = second ]"}},
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	n.execEnv = []string{"PATH=/bin", "MODE=prod"}
	n.run(id)
	n.putFiles("config", "..2", map[string]string{"app.conf": "wrong", "token": "second"})
	n.until("the refusal is told", func() bool {
		return strings.Contains(n.logged(), "files.digest") && strings.Contains(n.logged(), "files[\\\"app.conf\\\"]")
	})
	n.proves(id, "keeps", "/bin/sh", "-c", "[ $(cat /config/app.conf) = right ] && [ $(cat /config/token) = first ]")
	n.putFiles("config", "..3", map[string]string{"app.conf": "right", "token": "second"})
	asked := 0
	n.until("what the policy allows comes", func() bool {
		asked++
		return n.code(id, fmt.Sprint("asked", asked), "/bin/sh", "-c", "[ $(cat /config/token) = second ]") == 0
	})
	n.conclude()
	n.expectClean()
}

// proves runs a command that must succeed.
func (n *node) proves(id, exec string, args ...string) {
	n.t.Helper()
	if code := n.code(id, exec, args...); code != 0 {
		n.t.Errorf("%q ended with %d", args, code)
	}
}

// code runs a command to its end.
func (n *node) code(id, exec string, args ...string) uint32 {
	n.t.Helper()
	if err := n.exec(id, exec, args...); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := n.call()
	defer cancel()
	r, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: id, ExecID: exec})
	if err == nil {
		_, err = n.task.Delete(ctx, &taskapi.DeleteRequest{ID: id, ExecID: exec})
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return r.GetExitStatus()
}

// TestPolicyLastWords: what a container of a silent pod leaves behind stays in the
// guest (TerminationMessage), and the kubelet is told why.
func TestPolicyLastWords(t *testing.T) {
	n := newNode(t)
	message := n.path("kubelet", "pods", podUID, "containers", "app", "1")
	script := "echo secret >/dev/termination-log; exit 3"
	id, ctx, err := n.denying(denial{policy: func(p *podpolicy.Policy) { p.Containers[0].Args = []string{"/bin/sh", "-c", script} }, app: func(n *node, s *specs.Spec) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(message), 0o755), os.WriteFile(message, nil, 0o600)); err != nil {
			n.t.Fatal(err)
		}
		s.Process.Args = []string{"/bin/sh", "-c", script}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/termination-log", Type: "bind", Source: message, Options: []string{"rbind", "rw"}})
	}})
	if err != nil {
		t.Fatal(err)
	}
	n.run(id)
	if r, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: id}); err != nil || r.GetExitStatus() != 3 {
		t.Errorf("wait: %v, %v", r, err)
	}
	got, err := os.ReadFile(message)
	if err != nil || string(got) != "the container failed; what it said stays in the guest, since the pod's policy does not let the host read its output (allow.logs)" {
		t.Errorf("the message is %q, %v", got, err)
	}
	if _, err := n.task.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(syscall.SIGKILL)}); err != nil && !gone(err) {
		t.Error(err)
	}
	n.conclude()
	n.expectClean()
}
