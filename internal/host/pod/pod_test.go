package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

func sealed(t *testing.T) []byte {
	t.Helper()
	gz, err := initdata.Compress([]byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"x\" = \"y\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return gz
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestLife: an unsealed pod from Boot to Close.
func TestLife(t *testing.T) {
	w, c := newWorld(), config(t)
	c.TEE = "soft"
	before := descriptors(t)
	p := New(w.options(c))
	if p.Machine() != nil || p.Err() != nil {
		t.Error("a pod that was not booted has a machine")
	}
	if err := p.Create(t.Context(), aContainer("c-1")); err == nil || !strings.Contains(err.Error(), "has not been started") {
		t.Errorf("create before boot: %v", err)
	}
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	if err := p.Boot(t.Context(), aSandbox()); err == nil {
		t.Error("booted twice")
	}
	if got := w.left(); !slices.Equal(got, []string{"forward", "machine", "network", "volumes"}) {
		t.Errorf("there is %q", got)
	}
	if !slices.ContainsFunc(w.warnings, func(s string) bool { return strings.HasPrefix(s, "Unsealed: unsealed: ") }) || w.warnings[0] != "NoEffect: a warning of the bundle" {
		t.Errorf("warnings %q", w.warnings)
	}
	if len(w.traces) != 2 || !cmp.Equal(w.traces[0], Trace{NetNS: "/var/run/netns/x"}) || w.traces[1].PID != 4711 {
		t.Errorf("noted %v", w.traces)
	}
	s := w.plan.Sandbox
	if s.ID != "pod-1" || s.VCPUs != 1 || s.MemoryMiB != 1024 || s.Processor == nil || s.BlobCache == nil || s.InitDataDigest != nil || len(s.Disks) != 1 || s.Network == nil || s.DiskSlots != 4 {
		t.Errorf("launched %+v", s)
	}
	agent := w.machine.agent
	if len(agent.sandboxes) != 0 {
		t.Error("the guest was told of the pod before anybody knew whether its containers share PIDs")
	}
	container := aContainer("c-1")
	container.SharePID = true
	if err := p.Create(t.Context(), container); err != nil {
		t.Fatal(err)
	}
	if err := p.Create(t.Context(), aContainer("c-2")); err != nil {
		t.Fatal(err)
	}
	r := agent.sandboxes[0]
	if len(agent.sandboxes) != 1 || r.GetSandboxId() != "pod-1" || !r.GetSharePid() || r.GetPodUid() != "u-1" || r.GetHostname() != "web" || r.GetScratchDisk() != "scratch" ||
		r.GetNetwork().GetDns().GetServers()[0] != "10.96.0.10" || r.GetNetwork().GetInterfaces()[0].GetName() != "eth0" || r.GetSysctls()["net.ipv4.tcp_syncookies"] != "1" || r.GetInitdata() != nil {
		t.Errorf("sandbox request %v", r)
	}
	if n := agent.networks; len(n) != 1 || n[0].GetNetwork().GetHosts()[0].GetNames()[0] != "db" || n[0].GetNetwork().GetDns() == nil {
		t.Errorf("hosts: %v", n)
	}
	if agent.containers[0].GetJoinPids() || agent.containers[1].GetJoinPids() {
		t.Error("a container is to join the processes of another one where all share theirs")
	}
	if q := agent.containers[0]; q.GetContainerId() != "c-1" || q.GetMounts()[0].GetVolume() != "data" || q.GetTerminationMessagePath() != "/dev/termination-log" {
		t.Errorf("container request %v", q)
	}
	if err := p.Exited(t.Context(), "c-1"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.Delete(t.Context(), "c-1", ""); err != nil {
			t.Error(err)
		}
	}
	if slices.Contains(w.left(), "volumes of c-1") {
		t.Error("volumes of a deleted container are held")
	}
	for range 2 {
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	<-p.Done()
	if p.Err() != nil || w.machine.End().Cause != vmm.PoweredOff {
		t.Errorf("after Close: %v, %v", p.Err(), w.machine.End())
	}
	if got := w.left(); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if err := p.Create(t.Context(), aContainer("c-3")); !errors.Is(err, errClosed) {
		t.Errorf("create after Close: %v", err)
	}
	if err := p.Delete(t.Context(), "c-2", ""); err != nil {
		t.Errorf("delete after Close: %v", err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	emptyBut(t, c.ScratchDirectory, "tee", "blobs")
	emptyBut(t, c.SoftTEEState, "key", softTEERoot, softTDXRoot)
}

// TestSealed: the guest is told at once, by the rules of its policy.
func TestSealed(t *testing.T) {
	w := newWorld()
	shares := true
	o := w.options(config(t))
	launch := o.Launch
	o.Launch = func(ctx context.Context, plan *Plan) (Machine, error) {
		m, err := launch(ctx, plan)
		w.machine.agent.sharePID = &shares
		return m, err
	}
	p := New(o)
	s := aSandbox()
	s.Initdata = sealed(t)
	if err := p.Boot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(t.Context()) }()
	r := w.machine.agent.sandboxes[0]
	if !r.GetSharePid() || len(r.GetSysctls()) != 0 || string(r.GetInitdata()) != string(s.Initdata) || r.GetUnsealedTrustee() != nil {
		t.Errorf("sandbox request %v", r)
	}
	if len(w.plan.Sandbox.InitDataDigest) != 32 || !w.volumes.Sealed || w.volumes.PodUID != "u-1" {
		t.Errorf("launched with digest %x, volumes %+v", w.plan.Sandbox.InitDataDigest, w.volumes)
	}
	if slices.ContainsFunc(w.warnings, func(s string) bool { return strings.HasPrefix(s, "Unsealed") }) {
		t.Errorf("a sealed pod is warned of: %q", w.warnings)
	}
	if err := p.Create(t.Context(), aContainer("c-1")); err != nil {
		t.Fatal(err)
	}
	if len(w.machine.agent.networks) != 0 {
		t.Error("a sealed pod's hosts were changed")
	}
}

// TestFailures: whatever stage fails or is given up, the error says which, and
// nothing is left.
func TestFailures(t *testing.T) {
	for _, tc := range []struct {
		step string
		want string
		edit func(c *runtimeconfig.Config, s *cri.Sandbox)
	}{
		{"network", "network: this step fails", nil},
		{"launch", "this step fails", nil},
		{"sandbox", "the guest did not take the pod: this step fails", nil},
		{"note", "write down", nil},
		{"note machine", "write down", nil},
		{"annotation", "coffer-project.io/debug", func(_ *runtimeconfig.Config, s *cri.Sandbox) { s.Annotations["coffer-project.io/debug"] = "1" }},
		{"size", "max_memory", func(_ *runtimeconfig.Config, s *cri.Sandbox) { s.Resources.MemoryBytes = 1 << 50 }},
		{"digest", "cc_init_data", func(_ *runtimeconfig.Config, s *cri.Sandbox) { s.Initdata = []byte("x") }},
		{"scratch", "scratch: ", func(c *runtimeconfig.Config, _ *cri.Sandbox) { c.ScratchDirectory += "/none" }},
		{"software TEE", "software TEE: ", func(c *runtimeconfig.Config, _ *cri.Sandbox) { c.TEE, c.SoftTEEState = "soft", "/proc/none" }},
		{"trustee", "unsealed_trustee.ca", func(c *runtimeconfig.Config, _ *cri.Sandbox) {
			c.UnsealedTrustee = runtimeconfig.Trustee{URL: "https://t.example", CA: "/proc/none"}
		}},
	} {
		t.Run(tc.step, func(t *testing.T) {
			w, c, s := newWorld(), config(t), aSandbox()
			dir := c.ScratchDirectory
			w.fail, s.SharePIDKnown = tc.step, true
			if tc.edit != nil {
				tc.edit(c, s)
			}
			before := descriptors(t)
			p := New(w.options(c))
			err := p.Boot(t.Context(), s)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("expected %q, got %v", tc.want, err)
			}
			if got := w.left(); len(got) != 0 {
				t.Errorf("left: %q", got)
			}
			<-p.Done()
			if p.Err() == nil || p.Err().Error() != err.Error() {
				t.Errorf("Err %v", p.Err())
			}
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if after := descriptors(t); after > before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
			emptyBut(t, dir, "tee", "blobs")
		})
	}
}

// TestGivenUp: a stage that hangs ends with the caller's deadline or with Close,
// and the error says which.
func TestGivenUp(t *testing.T) {
	for _, step := range []string{"network", "launch", "sandbox"} {
		for _, how := range []string{"deadline", "close"} {
			t.Run(step+" "+how, func(t *testing.T) {
				w, s := newWorld(), aSandbox()
				w.hang, s.SharePIDKnown = step, true
				p := New(w.options(config(t)))
				ctx, want := t.Context(), errClosed.Error()
				if how == "deadline" {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
					defer cancel()
					want = "the pod's machine was not ready within"
				}
				failed := make(chan error, 1)
				go func() { failed <- p.Boot(ctx, s) }()
				<-w.reached
				if how == "close" {
					if err := p.Close(t.Context()); err != nil {
						t.Error(err)
					}
				}
				err := <-failed
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("expected %q, got %v", want, err)
				}
				if ctx.Err() != nil {
					t.Error("the caller gave up first")
				}
				if got := w.left(); len(got) != 0 {
					t.Errorf("left: %q", got)
				}
			})
		}
	}
}

// TestCreateFailures: nothing of the container is left, the pod goes on, and the
// guest's words are made safe.
func TestCreateFailures(t *testing.T) {
	for _, tc := range []struct {
		step, want string
		err        error
	}{
		{"prepare", "this step fails", nil},
		{"container", "this step fails", nil},
		{"", "the guest: refused: container.args", refused("container.args", "args[0]")},
		{"", "it will be tried again (the guest: it took too long)", status.Error(codes.DeadlineExceeded, "it took too long")},
		{"", "the guest: a\ufffdb c", status.Error(codes.Unavailable, "a\x1bb\nc")},
	} {
		w := newWorld()
		p := New(w.options(config(t)))
		s := aSandbox()
		s.SharePIDKnown = true
		if err := p.Boot(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		w.fail, w.machine.agent.err = tc.step, tc.err
		err := p.Create(t.Context(), aContainer("c-1"))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("expected %q, got %v", tc.want, err)
		}
		if r, ok := errors.AsType[*Refused](err); ok != strings.Contains(tc.want, "refused") || ok && (r.Rule != "container.args" || r.Path != "args[0]") {
			t.Errorf("refusal: %+v", err)
		}
		if slices.Contains(w.left(), "volumes of c-1") {
			t.Error("volumes are left")
		}
		w.fail, w.machine.agent.err = "", nil
		if err := p.Create(t.Context(), aContainer("c-1")); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := p.Close(t.Context()); err != nil || len(w.left()) != 0 {
			t.Errorf("close: %v, left %q", err, w.left())
		}
	}
}

// TestCreateEnds: a creation ends with its deadline, a little before the
// caller's, and its error says how long that was.
func TestCreateEnds(t *testing.T) {
	c := config(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := New(w.options(c))
		s := aSandbox()
		s.SharePIDKnown = true
		if err := p.Boot(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		w.hang = "container"
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		start := time.Now()
		err := p.Create(ctx, aContainer("c-1"))
		if took := time.Since(start); took != 118*time.Second {
			t.Errorf("it took %s", took)
		}
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "container app was not created within 1m58s") {
			t.Errorf("got %v", err)
		}
		if err := p.Close(t.Context()); err != nil || len(w.left()) != 0 {
			t.Errorf("close: %v, left %q", err, w.left())
		}
	})
}

// TestJoinPIDs: in a pod whose containers have processes of their own, one that is
// to see those of others joins another container's.
func TestJoinPIDs(t *testing.T) {
	w, c := newWorld(), config(t)
	c.TEE = "soft"
	p := New(w.options(c))
	defer func() { _ = p.Close(context.WithoutCancel(t.Context())) }()
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	debug := aContainer("c-2")
	debug.SharePID = true
	for _, c := range []*cri.Container{aContainer("c-1"), debug, aContainer("c-3")} {
		if err := p.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if w.machine.agent.sandboxes[0].GetSharePid() {
		t.Error("the pod shares its processes")
	}
	for i, want := range []bool{false, true, false} {
		if q := w.machine.agent.containers[i]; q.GetJoinPids() != want {
			t.Errorf("%s: joins %t", q.GetContainerId(), q.GetJoinPids())
		}
	}
}

// TestDeath: the machine's death is told at once, with its last words.
func TestDeath(t *testing.T) {
	w := newWorld()
	p := New(w.options(config(t)))
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	w.machine.die(&vmm.End{Name: "pod-1", Cause: vmm.Panicked, Console: []string{"Kernel panic - not syncing"}})
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed")
	}
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "Kernel panic") || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("Err %v", err)
	}
	if err := p.Create(t.Context(), aContainer("c-1")); err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("create: %v", err)
	}
	for _, f := range []func() error{
		func() error { return p.Delete(t.Context(), "c-1", "") }, func() error { return p.Exited(t.Context(), "c-1") }, func() error { return p.Close(t.Context()) },
	} {
		if err := f(); err != nil {
			t.Error(err)
		}
	}
	if !strings.HasPrefix(w.lost, "c-1: the pod's machine has ended: ") || !strings.Contains(w.lost, "Kernel panic") {
		t.Errorf("last words %q", w.lost)
	}
	if got := w.left(); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// TestStubborn: a guest that does not end is ended.
func TestStubborn(t *testing.T) {
	c := config(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := New(w.options(c))
		if err := p.Boot(t.Context(), aSandbox()); err != nil {
			t.Fatal(err)
		}
		w.machine.stubborn = true
		start := time.Now()
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %s", took)
		}
		if p.Err() != nil || len(w.left()) != 0 {
			t.Errorf("Err %v, left %q", p.Err(), w.left())
		}
	})
}

// TestTen: ten pods boot side by side: none waits for another.
func TestTen(t *testing.T) {
	c := config(t)
	var all, started sync.WaitGroup
	started.Add(10)
	for i := range 10 {
		all.Go(func() {
			w := newWorld()
			o := w.options(c)
			o.ID = fmt.Sprintf("pod-%d", i)
			launch := o.Launch
			o.Launch = func(ctx context.Context, plan *Plan) (Machine, error) {
				// None of them goes on before all of them are here.
				started.Done()
				started.Wait()
				return launch(ctx, plan)
			}
			p := New(o)
			if err := p.Boot(t.Context(), aSandbox()); err != nil {
				t.Error(err)
			}
			if err := p.Create(t.Context(), aContainer("c")); err != nil {
				t.Error(err)
			}
			if err := p.Close(t.Context()); err != nil || len(w.left()) != 0 {
				t.Errorf("close: %v, left %q", err, w.left())
			}
		})
	}
	all.Wait()
}

func TestSize(t *testing.T) {
	t.Parallel()
	c := runtimeconfig.Default()
	for _, tc := range []struct {
		own           map[string]string
		bytes         int64
		vcpus, memory int
		err           string
	}{
		{nil, 0, 1, 1024, ""},
		{nil, 128 << 20, 1, 640, ""},
		{nil, 128<<20 + 1, 1, 641, ""},
		{nil, 1 << 40, 0, 0, "lower resources.limits.memory"},
		{map[string]string{runtimeconfig.AnnotationVCPUs: "4", runtimeconfig.AnnotationMemory: "2048"}, 1 << 40, 4, 2048, ""},
		{map[string]string{runtimeconfig.AnnotationVCPUs: "33"}, 0, 0, 0, "from 1 to 32"},
		{map[string]string{runtimeconfig.AnnotationVCPUs: "0x2"}, 0, 0, 0, "from 1 to 32"},
		{map[string]string{runtimeconfig.AnnotationMemory: "100"}, 0, 0, 0, "at least 512"},
		{map[string]string{runtimeconfig.AnnotationMemory: "99999999"}, 0, 0, 0, "from 1 to 65536"},
	} {
		vcpus, memory, err := size(&cri.Sandbox{Annotations: tc.own, Resources: cri.Resources{MemoryBytes: tc.bytes}}, c)
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) || err == nil && (vcpus != tc.vcpus || memory != tc.memory) {
			t.Errorf("%v, %d: got %d, %d, %v", tc.own, tc.bytes, vcpus, memory, err)
		}
	}
}

// TestDevices: devices and their rules go to the manager of volumes as they are.
func TestDevices(t *testing.T) {
	t.Parallel()
	c := aContainer("c")
	c.Privileged = true
	c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/xvda", Type: "b"}}
	c.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true}}}
	v := volumesOf(c)
	if len(v.Devices) != 1 || len(v.DeviceRules) != 1 || !v.Privileged || v.Name != "app" {
		t.Errorf("got %+v", v)
	}
}

// TestLeaveToPolicy: what the node's software does not know exactly is left to the
// policy, where there is one.
func TestLeaveToPolicy(t *testing.T) {
	t.Parallel()
	quota, period := int64(1000), uint64(100_000)
	c := aContainer("c")
	c.Image = "sha256:0123"
	c.Spec.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	for _, sealed := range []bool{true, false} {
		p := New(Options{ID: "p", Config: runtimeconfig.Default()})
		p.sandbox = aSandbox()
		if sealed {
			p.sandbox.Initdata = []byte{1}
		}
		req := c.Proposal()
		err := p.leaveToPolicy(req, c)
		if sealed && (err != nil || req.GetImage() != "" || req.GetResources().GetCpuMillis() != 0) {
			t.Errorf("sealed: %v, %v", req, err)
		}
		if !sealed && (err == nil || !strings.Contains(err.Error(), "registry, repository and tag")) {
			t.Errorf("unsealed: %v", err)
		}
	}
}

// TestForward hands connections to the guest, tells a person of those it refuses,
// and is no condition for a pod.
func TestForward(t *testing.T) {
	w, c := newWorld(), config(t)
	p := New(w.options(c))
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.forward.Open(t.Context(), 8080); err == nil || err.Error() != "no PORT_FORWARD stream to port 8080" {
		t.Errorf("a connection: %v", err)
	}
	w.machine.open = refusing(t)
	if c, err := w.forward.Open(t.Context(), 8080); c != nil || !errors.Is(err, errPort) {
		t.Errorf("a port that the policy has not: %v, %v", c, err)
	}
	w.forward.Failed(8080, errStep)
	if got := w.warnings[len(w.warnings)-1]; got != "PortForward: to port 8080: this step fails" {
		t.Errorf("told: %q", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.forward.Open(t.Context(), 8080); err == nil || !strings.Contains(err.Error(), "is being removed") {
		t.Errorf("a connection to a pod that is closed: %v", err)
	}

	w = newWorld()
	w.fail = "forward"
	p = New(w.options(config(t)))
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(w.warnings, "Degraded: kubectl port-forward does not reach this pod: this step fails") {
		t.Errorf("told: %q", w.warnings)
	}
	if err := p.Close(t.Context()); err != nil || len(w.left()) != 0 {
		t.Errorf("%v, left %q", err, w.left())
	}
}

// refusing opens streams to a guest whose policy forbids them all.
func refusing(t *testing.T) func(*agentapi.StreamHeader) (net.Conn, error) {
	t.Helper()
	host, guest := net.Pipe()
	go func() {
		s, err := channel.Accept(t.Context(), guest, [16]byte{1})
		if err != nil {
			return
		}
		for {
			c, err := s.AcceptStream()
			if err != nil {
				return
			}
			if _, err := channel.ReadHeader(c); err != nil {
				t.Error(err)
			}
			if err := channel.WriteRefusal(c, &agentapi.Refusal{Rule: "stream.forbidden", Path: "allow.portForward"}); err != nil {
				t.Error(err)
			}
		}
	}()
	s, err := channel.Dial(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return func(h *agentapi.StreamHeader) (net.Conn, error) { return s.Open(t.Context(), h) }
}
