package k8s

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"
)

const lastingPod = "kind: Pod\nmetadata: {name: lasting}\nspec: {containers: [{name: a, command: [sh, -c, \"date +%s%N >/tmp/born; i=0; while true; do i=$((i+1)); echo line $i; sleep 1; done\"]}, {name: b}]}\n"

func nodeRows() []row {
	return []row{
		{id: "restart/containerd", core: true, on: onAll, alone: true, asserts: "containerd is restarted under running pods: they go on, with exec, logs and their end", run: func(t *testing.T, c *cluster) {
			restarted(t, c, unix.SIGTERM)
		}},
		{id: "restart/containerd-killed", on: onAll, alone: true, asserts: "the same after SIGKILL", run: func(t *testing.T, c *cluster) {
			restarted(t, c, unix.SIGKILL)
		}},
		{id: "restart/kubelet", on: onAll, alone: true, asserts: "the kubelet is killed and started again under running pods", run: func(t *testing.T, c *cluster) {
			c.apply(t, lastingPod)
			c.ready(t, "lasting")
			born := c.sh(t, "lasting", "a", "cat /tmp/born")
			if err := c.n.Restart(t.Context(), "kubelet", unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			c.comes(t, "lasting", "a", "cat /tmp/born", born)
			c.remove(t, "lasting")
		}},
		{id: "restart/reboot", core: true, on: onAll, alone: true, asserts: "the node loses its power: pods come back as new ones, and nothing of the old ones is left", run: func(t *testing.T, c *cluster) {
			c.apply(t, lastingPod)
			c.ready(t, "lasting")
			born := c.sh(t, "lasting", "a", "cat /tmp/born")
			if err := c.n.Reboot(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.waitPod(t, "lasting", "restarted", func(p *corev1.Pod) (bool, error) {
				is, err := ready(p)
				return is && container(p, "a").RestartCount > 0, err
			})
			if again := c.sh(t, "lasting", "a", "cat /tmp/born"); again == born {
				t.Error("the container is the old one")
			}
			c.remove(t, "lasting")
		}},
		{id: "killed/shim", core: true, on: onCoffer, alone: true, asserts: "a killed shim: the pod's containers have ended, the pod comes back, nothing is left", run: func(t *testing.T, c *cluster) {
			killed(t, c, "containerd-shim-coffer-v2")
		}},
		{id: "killed/machine", core: true, on: onMachine, alone: true, asserts: "a killed machine: noticed at once, and the pod comes back", run: func(t *testing.T, c *cluster) {
			killed(t, c, "qemu-system-x86_64")
		}},
		{id: "killed/agent", on: onProcess, alone: true, asserts: "the same of an agent that is a process", run: func(t *testing.T, c *cluster) {
			killed(t, c, "coffer-agent")
		}},
		{id: "leftovers/twenty-pods", on: onRunc | onProcess, alone: true, asserts: "twenty pods one after another leave no process, mount, interface, cgroup or file", run: func(t *testing.T, c *cluster) {
			c.own(t)
			before, err := c.n.Inventory()
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				c.apply(t, "kind: Pod\nmetadata: {name: brief}\nspec: {restartPolicy: Never, containers: [{name: a, command: [\"true\"]}]}\n")
				c.succeeded(t, "brief")
				c.remove(t, "brief")
			}
			if err := c.n.Settle(t.Context(), before, time.Minute); err != nil {
				t.Error(err)
			}
		}},
	}
}

func restarted(t *testing.T, c *cluster, signal unix.Signal) {
	t.Helper()
	c.apply(t, lastingPod)
	c.ready(t, "lasting")
	born := c.sh(t, "lasting", "a", "cat /tmp/born")
	if err := c.n.Restart(t.Context(), "containerd", signal); err != nil {
		t.Fatal(err)
	}
	c.comes(t, "lasting", "a", "cat /tmp/born", born)
	before := len(c.logs(t, "lasting", "a"))
	c.eventually(t, "more output", func() error {
		out, err := c.tryLogs(t, "lasting", "a")
		if err == nil && len(out) <= before {
			err = errors.New("there is no more output")
		}
		return err
	})
	p, err := c.n.Client().CoreV1().Pods(c.ns).Get(t.Context(), "lasting", metav1.GetOptions{})
	if err != nil || container(p, "a").RestartCount != 0 {
		t.Errorf("%v: %s", err, status(p))
	}
	c.remove(t, "lasting")
}

func killed(t *testing.T, c *cluster, program string) {
	t.Helper()
	c.own(t)
	before, err := c.n.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, lastingPod)
	p := c.ready(t, "lasting")
	began := time.Now()
	if n, err := c.n.Kill(program); err != nil || n == 0 {
		t.Fatalf("%d processes called %s: %v", n, program, err)
	}
	_ = p
	c.waitPod(t, "lasting", "restarted", func(p *corev1.Pod) (bool, error) {
		is, _ := ready(p)
		return is && container(p, "a").RestartCount > 0 && container(p, "b").RestartCount > 0, nil
	})
	t.Logf("the pod was back after %s", time.Since(began).Round(time.Millisecond))
	c.remove(t, "lasting")
	if err := c.n.Settle(t.Context(), before, time.Minute); err != nil {
		t.Error(err)
	}
	if out, err := c.n.Run(t.Context(), "ctr", "-n", "k8s.io", "tasks", "ls", "-q"); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("containerd has tasks %q: %v", out, err)
	}
}

func absentRows() []row {
	hardware := "needs SEV-SNP or TDX hardware; coffer-qemu-soft takes the same way with a software TEE"
	return []row{
		{id: "k8s-confidential", not: hardware, asserts: "the guest's kernel says that memory is encrypted"},
		{id: "k8s-measured-rootfs", not: "the guest has no root disk: all of it is in the initrd, which is measured; another initrd's evidence is refused (test/e2e)", asserts: "a wrong root hash keeps the pod from starting"},
		{id: "k8s-erofs-dmverity", not: "no host-provided layers: the guest pulls images itself and checks their digests", asserts: "layers are mounted through dm-verity"},
		{id: "k8s-plain-ephemeral-data-storage", not: "what a guest stores on a disk of the host is always encrypted", asserts: "emptyDir on a plain disk"},
		{id: "k8s-nvidia", not: "needs an NVIDIA GPU", asserts: "CUDA samples, inference, NUMA placement"},
		{id: "k8s-vm-templating", not: "a machine made from another one's memory has no measurement of its own", asserts: "machines from a template"},
		{id: "k8s-smb-volume", not: "needs an SMB server and the guest's kernel module; network file systems mounted by the node are the host's", asserts: "an SMB share"},
		{id: "k8s-footloose", not: "asserts sshd under systemd in a pod, with host directories", asserts: "systemd in a container"},
		{id: "k8s-devkit-debug-console", not: "there is no debug console: nothing may enter a guest past its policy", asserts: "a shell in the guest"},
		{id: "k8s-qemu-rootless-sandbox", not: "QEMU runs as the shim's user, without a sandbox of its own yet", asserts: "QEMU as another user"},
		{id: "k8s-policy-pod/filter", not: "coffer prepare chooses workloads by --only-runtime-class (internal/cli tests)", asserts: "no policy for other runtime classes"},
	}
}
