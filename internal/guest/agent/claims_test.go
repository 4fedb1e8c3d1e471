package agent_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/podpolicy"
)

// unsealed connects to a world without a TEE and makes its pod.
func unsealed(t *testing.T) (*world, *host) {
	t.Helper()
	w := newWorld(t, nil)
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "pod"}))
	return w, h
}

// script runs a container to its end and returns its output and exit code.
func (h *host) script(req *agentapi.CreateContainerRequest) (string, uint32) {
	h.t.Helper()
	must[*agentapi.CreateContainerResponse](h.t)(h.CreateContainer(h.t.Context(), req))
	out := h.stream(stdout, req.GetContainerId(), "")
	must[*agentapi.StartResponse](h.t)(h.Start(h.t.Context(), &agentapi.StartRequest{ContainerId: req.GetContainerId()}))
	text := readAll(h.t, out)
	exit := must[*agentapi.WaitResponse](h.t)(h.Wait(h.t.Context(), &agentapi.WaitRequest{ContainerId: req.GetContainerId()}))
	return text, exit.GetExitCode()
}

// allCapabilities of Linux 6.12, as the protocol names them.
const allCapabilities = `AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER
	FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON
	SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME
	SYS_TTY_CONFIG WAKE_ALARM`

func TestRightsOfAnUnsealedPod(t *testing.T) {
	w, h := unsealed(t)
	// All that there are: in a guest, everything.
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, own, _ := strings.Cut(string(status), "CapPrm:\t")
	own, _, _ = strings.Cut(own, "\n")
	const script = `while read k v; do case $k in CapBnd:|NoNewPrivs:|Seccomp:) echo $k $v;; esac; done </proc/self/status
		ulimit -n; for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug; do [ -c $f ] && echo masked && break; done; touch /x 2>/dev/null || echo read-only; touch /proc/sys/kernel/domainname 2>/dev/null && echo sysctls
		while read _ at _ o _; do [ $at = /sys ] && echo sys ${o%%,*}; done </proc/mounts`
	for id, tt := range map[string]struct {
		security *agentapi.Security
		want     string
	}{
		"default": {nil, "CapBnd: 00000000800405fb NoNewPrivs: 0 Seccomp: 2 %NOFILE% masked sys ro"},
		"least": {
			&agentapi.Security{
				Capabilities: []string{"CHOWN"}, NoNewPrivileges: true, ReadOnlyRoot: true, Rlimits: map[string]*agentapi.Rlimit{"RLIMIT_NOFILE": {Soft: 77, Hard: 78}},
			},
			"CapBnd: 0000000000000001 NoNewPrivs: 1 Seccomp: 2 77 masked read-only sys ro",
		},
		"unmasked": {&agentapi.Security{Unmasked: true, SeccompUnconfined: true}, "CapBnd: 0000000000000000 NoNewPrivs: 0 Seccomp: 0 %NOFILE% sysctls sys ro"},
		"privileged": {
			&agentapi.Security{Capabilities: strings.Fields(allCapabilities), SeccompUnconfined: true, Unmasked: true},
			"CapBnd: " + own + " NoNewPrivs: 0 Seccomp: 0 %NOFILE% sysctls sys rw",
		},
	} {
		req := w.shell(id, script)
		req.Security = tt.security
		got, _ := h.script(req)
		fields := strings.Fields(got)
		if len(fields) > 6 && strings.Contains(tt.want, "%NOFILE%") {
			fields[6] = "%NOFILE%" // the machine's own
		}
		if got := strings.Join(fields, " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", id, got, tt.want)
		}
	}
}

func TestVolumesOfAnUnsealedPod(t *testing.T) {
	w, h := unsealed(t)
	volumes := []*agentapi.Volume{
		{Name: "mem", Kind: agentapi.Volume_MEMORY, SizeBytes: 64 << 10}, {Name: "dir", Kind: agentapi.Volume_EPHEMERAL, SizeBytes: 128 << 10, Group: new(uint32(3000))},
	}
	mounts := []*agentapi.Mount{{Path: "/mem", Volume: "mem"}, {Path: "/dir", Volume: "dir"}}
	first := w.shell("first", `for v in mem dir; do dd if=/dev/zero of=/$v/fill bs=4096 count=64 2>/dev/null || echo $v full; done
		set -- $(ls -ldn /dir); echo $1 $4; rm /mem/fill; echo hello >/mem/word`)
	first.Volumes, first.Mounts = volumes, mounts
	if got, _ := h.script(first); got != "mem full\ndir full\ndrwxrwsrwx 3000\n" {
		t.Errorf("the first container said %q", got)
	}
	second := w.shell("second", "cat /mem/word")
	second.Volumes, second.Mounts = volumes[:1], mounts
	if got, _ := h.script(second); got != "hello\n" {
		t.Errorf("the second container said %q", got)
	}
	third := w.shell("third", "true")
	third.Volumes = []*agentapi.Volume{{Name: "mem", Kind: agentapi.Volume_EPHEMERAL}}
	_, err := h.CreateContainer(t.Context(), third)
	refused(t, err, podpolicy.RuleContainerVolumes)
	for _, kind := range []agentapi.Volume_Kind{agentapi.Volume_KIND_UNSPECIFIED, 9} {
		third.Volumes = []*agentapi.Volume{{Name: "new", Kind: kind}}
		_, err := h.CreateContainer(t.Context(), third)
		if r := refused(t, err, podpolicy.RuleContainerVolumes); r.GetPath() != "volumes[0].kind" {
			t.Errorf("refused at %s", r.GetPath())
		}
	}
}

// A privileged container has the guest's devices, and no other one has.
func TestDevicesOfAPrivilegedContainer(t *testing.T) {
	nodes := func() ([]container.Node, error) {
		return []container.Node{{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, Mode: 0o660, GID: 5}}, nil
	}
	w := newWorld(t, nil, func(o *agent.Options) { o.Nodes = nodes })
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "pod"}))
	for id, security := range map[string]*agentapi.Security{
		"plain": {}, "no-filter": {SeccompUnconfined: true, Unmasked: true}, "privileged": {Capabilities: strings.Fields(allCapabilities), SeccompUnconfined: true, Unmasked: true},
	} {
		req := w.shell(id, "ls -ln /dev/net/tun 2>/dev/null | { read mode _ uid gid _; echo $mode $uid $gid; }")
		req.Security = security
		want := "  \n"
		if id == "privileged" {
			want = "crw-rw---- 0 5\n"
		}
		if got, _ := h.script(req); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
}

// A disk of an unsealed pod is a device node, in the clear.
func TestBlockVolumeOfAnUnsealedPod(t *testing.T) {
	const device = "/dev/loop0"
	if _, err := os.Stat(device); err != nil {
		t.Skip("no block device to stand for a disk")
	}
	w, h := unsealed(t)
	req := w.shell("c", "ls -l /dev/xvda | { read mode _ uid _; echo $mode $uid; }")
	req.User = &agentapi.User{Uid: 1000, Gid: 1000}
	req.Volumes = []*agentapi.Volume{{Name: "data", Kind: agentapi.Volume_BLOCK}}
	req.Devices = []*agentapi.Device{{Path: "/dev/xvda", Volume: "data", ReadOnly: true}}
	_, err := h.CreateContainer(t.Context(), req)
	refused(t, err, podpolicy.RuleVolumeAttach)
	if _, err := h.AttachVolume(t.Context(), &agentapi.AttachVolumeRequest{Volume: "data", Disk: "disk1"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a disk that is not there: %v", err)
	}
	w.disks.raw = device
	for range 2 {
		must[*agentapi.AttachVolumeResponse](t)(h.AttachVolume(t.Context(), &agentapi.AttachVolumeRequest{Volume: "data", Disk: "disk1"}))
	}
	if got, _ := h.script(req); got != "br-------- 1000\n" {
		t.Errorf("the node is %q", got)
	}
	req = w.shell("d", "true")
	req.Mounts = []*agentapi.Mount{{Path: "/data", Volume: "data"}}
	if _, err := h.CreateContainer(t.Context(), req); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a disk as a directory: %v", err)
	}
}

func (h *host) lastWords(id string) (string, error) {
	r, err := h.TerminationMessage(h.t.Context(), &agentapi.TerminationMessageRequest{ContainerId: id})
	return string(r.GetMessage()), err
}

func TestTerminationMessage(t *testing.T) {
	w, h := unsealed(t)
	for id, tt := range map[string]struct{ path, script, want string }{
		"plain":  {"/dev/termination-log", "echo bye >/dev/termination-log", "bye\n"},
		"other":  {"/var/log/last words", `echo bye >"/var/log/last words"`, "bye\n"},
		"silent": {"/dev/termination-log", "true", ""},
		"none":   {"", "echo bye >/dev/termination-log", ""},
		"long":   {"/dev/termination-log", "i=0; while [ $i -lt 2000 ]; do echo 1234567; i=$((i+1)); done >/dev/termination-log; echo end >>/dev/termination-log", strings.Repeat("1234567\n", 512)[4:] + "end\n"},
		// It can be neither replaced nor led somewhere else; a hole costs nothing.
		"hostile": {"/dev/termination-log", `f=/dev/termination-log; echo mine >$f; rm $f; mv $f /dev/x; ln -s /etc/passwd /dev/y; mv /dev/y $f; ln -f /etc/passwd $f; umount $f; true`, "mine\n"},
		"holes":   {"/dev/termination-log", "dd if=/dev/zero of=/dev/termination-log bs=1 count=1 seek=100000000000 2>/dev/null; true", strings.Repeat("\x00", 4096)},
	} {
		req := w.shell(id, tt.script)
		req.TerminationMessagePath = tt.path
		req.User = &agentapi.User{}
		if id == "plain" {
			req.User = &agentapi.User{Uid: 1000, Gid: 1000}
		}
		if _, code := h.script(req); code != 0 {
			t.Errorf("%s ended with %d", id, code)
		}
		if got, err := h.lastWords(id); got != tt.want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", id, got, err, tt.want)
		}
		must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: id}))
		if _, err := h.lastWords(id); status.Code(err) != codes.NotFound {
			t.Errorf("%s after its deletion: %v", id, err)
		}
	}
	req := w.shell("running", "sleep 600")
	req.TerminationMessagePath = "/dev/termination-log"
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), req))
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "running"}))
	if _, err := h.lastWords("running"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("of a container that runs: %v", err)
	}
	req = w.shell("bad", "true")
	req.TerminationMessagePath = "/proc/self/mem"
	_, err := h.CreateContainer(t.Context(), req)
	refused(t, err, podpolicy.RuleProposalForm)
}

// Last words are output: they leave a sealed pod where logs do, and only from
// the place that the policy names, or that an image has nothing at.
func TestTerminationMessageOfASealedPod(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) {
		c := p.Containers[0]
		p.Containers = nil
		add := func(name, script, path string, logs bool) {
			c.Name, c.Args = name, []string{"/bin/sh", "-c", script}
			c.TerminationMessagePath, c.Allow.Logs = path, logs
			p.Containers = append(p.Containers, c)
		}
		add("web", "echo secret >/dev/termination-log", "", false)
		add("open", "echo secret >/dev/termination-log", "", true)
		add("failed", "echo secret >/dev/termination-log; exit 1", "", false)
		add("silent", "exit 1", "", false)
		add("other", "echo secret >/var/words", "/var/words", true)
		add("unasked", "echo secret >/var/words", "/var/words", true)
	})
	for name, tt := range map[string]struct {
		path, want string
		code       codes.Code
	}{
		"web":     {"/dev/termination-log", "", codes.OK},
		"open":    {"/dev/termination-log", "secret\n", codes.OK},
		"failed":  {"/dev/termination-log", "", codes.PermissionDenied},
		"silent":  {"/dev/termination-log", "", codes.PermissionDenied},
		"other":   {"/var/words", "secret\n", codes.OK},
		"unasked": {"", "secret\n", codes.OK},
	} {
		for _, path := range []string{"/etc/passwd", "/dev/termination-log", "/var/words"} {
			req := &agentapi.CreateContainerRequest{ContainerId: name, Name: name, TerminationMessagePath: path}
			if path == tt.path || name == "unasked" && path == "/var/words" {
				continue
			}
			_, err := h.CreateContainer(t.Context(), req)
			refused(t, err, podpolicy.RuleContainerTermination)
		}
		must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: name, Name: name, TerminationMessagePath: tt.path}))
		must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: name}))
		must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: name}))
		got, err := h.lastWords(name)
		if got != tt.want || status.Code(err) != tt.code {
			t.Errorf("%s: got %q, %v, want %q and %v", name, got, err, tt.want, tt.code)
		}
		if err != nil {
			refused(t, err, agent.RuleStream)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: the refusal tells: %v", name, err)
			}
		}
	}
}

// A claim that differs from the policy is refused by the field.
func TestClaimsOfASealedPod(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) { p.Containers[0].Capabilities = []string{"CAP_CHOWN"} })
	own := func() *agentapi.Security {
		return &agentapi.Security{Capabilities: []string{"CHOWN"}, NoNewPrivileges: true}
	}
	for i, tt := range []struct {
		rule   string
		change func(*agentapi.CreateContainerRequest)
	}{
		{podpolicy.RuleContainerCapabilities, func(r *agentapi.CreateContainerRequest) { r.Security.Capabilities = []string{"CHOWN", "SYS_ADMIN"} }},
		{podpolicy.RuleContainerNoNewPrivileges, func(r *agentapi.CreateContainerRequest) { r.Security.NoNewPrivileges = false }},
		{podpolicy.RuleContainerReadOnlyRoot, func(r *agentapi.CreateContainerRequest) { r.Security.ReadOnlyRoot = true }},
		{podpolicy.RuleContainerUnmasked, func(r *agentapi.CreateContainerRequest) { r.Security.Unmasked = true }},
		{podpolicy.RuleContainerVolumes, func(r *agentapi.CreateContainerRequest) {
			r.Volumes = []*agentapi.Volume{{Name: "extra", Kind: agentapi.Volume_MEMORY}}
		}},
		{podpolicy.RuleContainerMounts, func(r *agentapi.CreateContainerRequest) {
			r.Devices = []*agentapi.Device{{Path: "/dev/xvda", Volume: "extra"}}
		}},
	} {
		req := &agentapi.CreateContainerRequest{ContainerId: fmt.Sprint("c", i), Name: "web", Security: own()}
		tt.change(req)
		_, err := h.CreateContainer(t.Context(), req)
		refused(t, err, tt.rule)
	}
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "c", Name: "web", Security: own()}))
}
