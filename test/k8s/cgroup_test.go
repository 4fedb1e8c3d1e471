package k8s

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coffer-project/coffer/test/k8s/node"
)

func overhead(t *testing.T, c *cluster) {
	c.apply(t, "kind: Pod\nmetadata: {name: over}\nspec: {containers: [{name: a, resources: {limits: {memory: 64Mi}}}]}\n")
	p := c.ready(t, "over")
	extra := p.Spec.Overhead[corev1.ResourceMemory]
	if kindOf(c.h.name) != onRunc && extra.IsZero() {
		t.Fatal("the pod has no overhead")
	}
	want := fmt.Sprint(64<<20 + extra.Value())
	if got := c.counter(t, p, "memory.limit_in_bytes"); got != want {
		t.Errorf("the pod's cgroup is limited to %q, expected %s", got, want)
	}
}

// counter reads a file of the pod's cgroup of memory.
func (c *cluster) counter(t *testing.T, p *corev1.Pod, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.memoryGroup(t, p), file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// memoryGroup is the directory of the pod's cgroup of memory.
func (c *cluster) memoryGroup(t *testing.T, p *corev1.Pod) string {
	t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/memory/coffer-node-*/kubepods/*/pod" + string(p.UID))
	guaranteed, _ := filepath.Glob("/sys/fs/cgroup/memory/coffer-node-*/kubepods/pod" + string(p.UID))
	if dirs = append(dirs, guaranteed...); err != nil || len(dirs) != 1 {
		t.Fatalf("the pod's cgroup: expected one, got %q, %v", dirs, err)
	}
	return dirs[0]
}

// memory is what the pod's cgroup has in use, in bytes, by the names of
// memory.stat, and as "kernel" what the kernel has for it.
func (c *cluster) memory(t *testing.T, p *corev1.Pod) map[string]int64 {
	t.Helper()
	stat := map[string]int64{}
	for line := range strings.Lines(c.counter(t, p, "memory.stat") + "\nkernel " + c.counter(t, p, "memory.kmem.usage_in_bytes")) {
		if f := strings.Fields(line); len(f) == 2 {
			stat[f[0]], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return stat
}

// groupsOf lists the programs in a pod's cgroup of a controller.
func (c *cluster) groupsOf(t *testing.T, p *corev1.Pod, controller string) []string {
	t.Helper()
	list, err := c.n.Processes()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, process := range list {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", process.PID))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, ":"+controller+":") && strings.Contains(line, "/pod"+string(p.UID)+"/") {
				names = append(names, process.Name())
			}
		}
	}
	slices.Sort(names)
	return names
}

func inCgroup(t *testing.T, c *cluster) {
	c.own(t)
	before, err := c.n.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, "kind: Pod\nmetadata: {name: inside}\nspec: {terminationGracePeriodSeconds: 1, containers: [{name: a, command: [sleep, \"1000\"], resources: {limits: {memory: 64Mi}}}]}\n")
	p := c.ready(t, "inside")
	want := map[kind][]string{
		onMachine: {"containerd-shim-coffer-v2", "qemu-system-x86_64"},
		onProcess: {"coffer-agent", "containerd-shim-coffer-v2", "sleep"},
	}[kindOf(c.h.name)]
	for _, controller := range []string{"memory", "cpu", "pids"} {
		if got := c.groupsOf(t, p, controller); !slices.Equal(got, want) {
			t.Errorf("in the pod's cgroup of %s there are %q, expected %q", controller, got, want)
		}
	}
	// What the kubelet tells of the pod is what its machine uses.
	if used, err := strconv.Atoi(c.counter(t, p, "memory.usage_in_bytes")); err != nil || used < 8<<20 {
		t.Errorf("the pod uses %d bytes, %v", used, err)
	}
	c.remove(t, "inside")
	// Others come and go beside this row.
	c.eventually(t, "the pod's cgroups are gone", func() error {
		now, err := c.n.Inventory()
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(now.Since(before), func(line string) bool { return !strings.Contains(line, string(p.UID)) })
		if len(left) > 0 {
			return &node.LeftoverError{Left: left}
		}
		return nil
	})
}

// fullMemory has one container use its limit, and the guest's cache of another's
// files that one's.
func fullMemory(t *testing.T, c *cluster) {
	c.apply(t, "kind: Pod\nmetadata: {name: full}\nspec: {restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{name: a, command: [/app, eat, \"116\"], resources: {limits: {memory: 128Mi}}}, {name: b, command: [sleep, \"1000\"], resources: {limits: {memory: 160Mi}}}]}\n")
	c.printed(t, "full", "a", "has 116 MiB")
	c.sh(t, "full", "b", "dd if=/dev/zero of=/tmp/file bs=1M count=200 2>/dev/null; dd if=/tmp/file of=/dev/null bs=1M 2>/dev/null; echo done")
	p, err := c.n.Client().CoreV1().Pods(c.ns).Get(t.Context(), "full", metav1.GetOptions{})
	if err != nil || container(p, "a").State.Running == nil {
		t.Fatalf("%v: %s", err, status(p))
	}
	// What QEMU and the shim take, and the kernel cannot get back, has to fit into
	// what the overhead leaves to them.
	stat := c.memory(t, p)
	machine, guest := c.guestMemory(t, p)
	share := stat["total_rss"] + stat["total_shmem"] + stat["kernel"] - guest
	limit := stat["hierarchical_memory_limit"]
	t.Logf("MiB: limit %d, machine %d, of which in use %d; QEMU and shim %d (anonymous %d with the guest's, shared %d, of the kernel %d); at the most %s bytes were in use",
		limit>>20, machine>>20, guest>>20, share>>20, stat["total_rss"]>>20, stat["total_shmem"]>>20, stat["kernel"]>>20, c.counter(t, p, "memory.max_usage_in_bytes"))
	if guest < 288<<20 || share < 20<<20 || machine+share > limit {
		t.Errorf("QEMU and the shim take %d MiB besides the machine's %d (%d in use), of a limit of %d MiB", share>>20, machine>>20, guest>>20, limit>>20)
	}
}

// guestMemory is the memory of a pod's machine, and what of it is in use on the
// node, in bytes.
func (c *cluster) guestMemory(t *testing.T, p *corev1.Pod) (size, used int64) {
	t.Helper()
	list, err := c.n.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range list {
		in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", process.PID))
		at := slices.Index(process.Args, "-m")
		if err != nil || process.Name() != "qemu-system-x86_64" || at < 0 || !strings.Contains(string(in), "/pod"+string(p.UID)+"/") {
			continue
		}
		var mib int64
		if _, err := fmt.Sscanf(process.Args[at+1], "size=%dM", &mib); err != nil {
			t.Fatalf("%s: %v", process.Args[at+1], err)
		}
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", process.PID))
		if err != nil {
			t.Fatal(err)
		}
		// The mapping of just that size (proc_pid_smaps(5)).
		found := false
		for line := range strings.Lines(string(maps)) {
			f := strings.Fields(line)
			if len(f) != 3 || f[2] != "kB" {
				continue
			}
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			switch {
			case f[0] == "Size:":
				found = kib == mib<<10
			case f[0] == "Rss:" && found:
				return mib << 20, kib << 10
			}
		}
		t.Fatalf("no mapping of %d MiB in QEMU", mib)
	}
	t.Fatal("the pod has no QEMU")
	return 0, 0
}

// killedForMemory takes from a pod's limit what its guest has not used yet, and
// then has the guest use more.
func killedForMemory(t *testing.T, c *cluster) {
	c.apply(t, "kind: Pod\nmetadata: {name: short}\nspec: {restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{name: a, command: [sh, -c, \"until [ -e /tmp/go ]; do sleep 1; done; exec /app eat 250\"], resources: {limits: {memory: 256Mi}}}]}\n")
	p := c.ready(t, "short")
	stat := c.memory(t, p)
	limit := (stat["total_rss"] + stat["total_shmem"] + stat["kernel"]) + 24<<20
	if err := os.WriteFile(filepath.Join(c.memoryGroup(t, p), "memory.limit_in_bytes"), []byte(strconv.FormatInt(limit, 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.sh(t, "short", "a", "touch /tmp/go; echo done")
	p = c.waitPod(t, "short", "killed", func(p *corev1.Pod) (bool, error) { return container(p, "a").State.Terminated != nil, nil })
	if end := container(p, "a").State.Terminated; end.ExitCode != 137 || !strings.Contains(end.Message, "out of memory of the pod's control group") || !strings.Contains(end.Message, "overhead.podFixed.memory") {
		t.Errorf("it ended with %d, %q", end.ExitCode, end.Message)
	}
}
