package coffershim_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	processtest "github.com/coffer-project/coffer/internal/host/process/hosttest"
	"github.com/coffer-project/coffer/internal/host/shim/hosttest"
)

// guestVariable names the directory of a built guest image.
const guestVariable = "COFFER_GUEST_IMAGE"

// TestMachineEndsWithShim boots a pod's virtual machine, in the pod's network,
// and kills the shim: machine, taps and files go.
func TestMachineEndsWithShim(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine; not with -short")
	}
	processtest.Need(t)
	guest := os.Getenv(guestVariable)
	if guest == "" {
		if os.Getenv(processtest.RequireVariable) != "" {
			t.Fatalf("%s is not set, and %s is", guestVariable, processtest.RequireVariable)
		}
		t.Skip("no guest image: set " + guestVariable)
	}
	w := &world{World: hosttest.NewWorld(t, hosttest.Containerds()["2.4"], shimName)}
	n := processtest.NewNet(t)
	w.write("runtime.toml", fmt.Sprintf("tee = \"soft\"\nguest_image = %q\nsofttee_state = %q\naccelerator = \"auto\"\ndefault_memory = 256\noverhead_memory = 256\nboot_timeout = \"3m\"\n",
		guest, filepath.Join(w.Dir, "softtee")))
	w.mountNet(n.Path)
	// What a CNI plugin makes: a veth pair with one end in the pod's namespace.
	inPod := func(args ...string) string {
		return w.Run("nsenter", append([]string{"--net=" + filepath.Join(w.Dir, "netns")}, args...)...)
	}
	inPod("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "veth0", "netns", "/proc/1/ns/net")
	inPod("ip", "address", "add", "192.0.2.2/24", "dev", "eth0")
	inPod("ip", "link", "set", "eth0", "up")
	inPod("ip", "route", "add", "default", "via", "192.0.2.1")
	before := inPod("ip", "-br", "link")

	id := w.id("vm")
	options := []string{"-d", "--annotation", "io.kubernetes.cri.container-type=sandbox", "--annotation", "io.kubernetes.cri.sandbox-id=" + id}
	args := append([]string{
		"-n", "test", "run", "--runtime", "io.containerd.coffer.v2", "--runtime-config-path", filepath.Join(w.Dir, "runtime.toml"),
		"--with-ns", "network:" + filepath.Join(w.Dir, "netns"),
	}, options...)
	w.boot(append(args, "--rootfs", filepath.Join(w.Dir, "rootfs"), id, "/pause")...)
	if out := w.Ctr("-n", "test", "task", "ls"); !strings.Contains(out, "RUNNING") {
		t.Errorf("task: %q", out)
	}
	if during := inPod("ip", "-br", "link"); during == before {
		t.Errorf("no tap in the pod's network: %q", during)
	}
	w.inCgroup("vm", "qemu-system-x86_64")
	w.inCgroup("vm", "^"+filepath.Join(w.Dir, shimName))
	w.Run("kill", "-9", w.pid("^"+filepath.Join(w.Dir, shimName)))
	w.Until("the emulator has ended", func() bool { out, _ := w.Try("pgrep", "-a", "qemu"); return out == "" })
	w.gone()
	if after := inPod("ip", "-br", "link"); withoutState(after) != withoutState(before) {
		t.Errorf("links in the pod's network: were %q, are %q", before, after)
	}
	if out := inPod("sh", "-c", "tc qdisc show dev eth0; tc filter show dev eth0 ingress"); strings.Contains(out, "ingress") || strings.Contains(out, "mirred") {
		t.Errorf("left at the pod's card: %q", out)
	}
	w.Ctr("-n", "test", "container", "rm", id)
}

// boot runs a ctr that takes as long as a machine's boot.
func (w *world) boot(args ...string) {
	w.T().Helper()
	out, err := w.Command(w.T().Context(), filepath.Join(w.Programs, "ctr"), args...).CombinedOutput()
	if err != nil {
		w.T().Fatalf("ctr %q: %v\n%s", args, err, out)
	}
}

// withoutState are the names of links.
func withoutState(links string) string {
	var names []string
	for line := range strings.Lines(links) {
		if f := strings.Fields(line); len(f) > 0 {
			names = append(names, f[0])
		}
	}
	return strings.Join(names, " ")
}
