package podpolicy_test

import (
	"fmt"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func unsealedGuard(t *testing.T) *podpolicy.Guard {
	t.Helper()
	g := podpolicy.NewUnsealedGuard()
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	return g
}

func TestUnsealedTakesTheProposal(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewUnsealedGuard()
	q := sandboxProposal()
	sandbox := must[*podpolicy.SandboxConfig](t)(g.Sandbox(q))
	wantSandbox := &podpolicy.SandboxConfig{Name: q.PodName, Namespace: q.PodNamespace, Hostname: q.Hostname, Sysctls: q.Sysctls, Network: podpolicy.NetworkConfig(q.Network)}
	if diff := cmp.Diff(wantSandbox, sandbox); diff != "" {
		t.Error(diff)
	}
	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("conf", 1))
	putHello(t, u, "any.name")
	ok(t, u.Commit(published))

	got := start(t, g, podpolicy.ContainerProposal{
		ID: "c", Name: "web", Image: "nginx", Args: &[]string{"/x"}, Env: &[]string{"A=1", "S=sealed.a.b.c"}, User: &podpolicy.User{UID: 5, GID: 6}, Cwd: new("/w"),
		Mounts: []podpolicy.Mount{{Path: "/d", Volume: "data"}, {Path: "/c", Volume: "conf"}}, Terminal: true, Stdin: true,
		Resources: podpolicy.Resources{MemoryBytes: 1 << 20, PIDs: 7}, Slots: map[string]string{"ip": "10.0.0.1"},
	}, podpolicy.ImageConfig{Digest: otherDigest, Env: []string{"PATH=/bin", "A=2"}})
	want := &podpolicy.ContainerConfig{
		ID: "c", Name: "web", Role: podpolicy.RoleApp, Image: podpolicy.ImageRef{Repository: "docker.io/library/nginx", Tag: "latest"}, Args: []string{"/x"},
		Env: []podpolicy.EnvVar{{Name: "PATH", Value: "/bin"}, {Name: "A", Value: "1"}, {Name: "S", Sealed: "sealed.a.b.c"}, {Name: "HOSTNAME", Value: q.Hostname}, {Name: "TERM", Value: "xterm"}},
		Cwd: "/w", User: podpolicy.User{UID: 5, GID: 6}, Capabilities: podpolicy.DefaultCapabilities(), Seccomp: podpolicy.SeccompDefault,
		Mounts: []podpolicy.MountConfig{
			{Path: "/c", Volume: "conf", Kind: podpolicy.VolumeFiles, ReadOnly: true},
			{Path: "/d", Volume: "data", Kind: podpolicy.VolumeEphemeral, Medium: podpolicy.MediumDisk},
		},
		Limits: podpolicy.Resources{MemoryBytes: 1 << 20, PIDs: 7}, Terminal: true, Stdin: true,
	}
	if diff := cmp.Diff(want, got, ignoreUnexported, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if !g.Stream("c", "", podpolicy.Stdout) || !g.Stream("c", "", podpolicy.Stdin) || !g.Stream("c", "", podpolicy.Stdin) {
		t.Error("streams are closed")
	}
	e := must[*podpolicy.ExecConfig](t)(g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: []string{"/bin/sh", "-i"}, Terminal: true, Stdin: true}))
	if len(e.Args) != 2 || !e.Output || !e.Stdin {
		t.Errorf("got %+v", e)
	}
	ok(t, g.Signal("c", "", 10))
	ok(t, g.Exited("c", "", 0))
	// A restart may be another container altogether.
	start(t, g, podpolicy.ContainerProposal{ID: "c2", Name: "web", Image: "busybox@" + webDigest, Args: &[]string{"/y"}}, podpolicy.ImageConfig{Digest: webDigest})
}

// The node resizes a container in place: its limits are the node's.
func TestUnsealedUpdate(t *testing.T) {
	t.Parallel()
	g := unsealedGuard(t)
	q := podpolicy.ContainerProposal{ID: "c", Name: "c", Image: "busybox@" + webDigest, Resources: podpolicy.Resources{MemoryBytes: 64 << 20, CPUMillis: 250}}
	start(t, g, q, podpolicy.ImageConfig{Digest: webDigest, Cmd: []string{"/x"}})
	for _, tt := range []struct{ asked, got podpolicy.Resources }{
		{podpolicy.Resources{MemoryBytes: 96 << 20}, podpolicy.Resources{MemoryBytes: 96 << 20, CPUMillis: 250}},
		{podpolicy.Resources{CPUMillis: 500, PIDs: 100}, podpolicy.Resources{MemoryBytes: 96 << 20, CPUMillis: 500, PIDs: 100}},
		{podpolicy.Resources{}, podpolicy.Resources{MemoryBytes: 96 << 20, CPUMillis: 500, PIDs: 100}},
		{podpolicy.Resources{MemoryBytes: 32 << 20}, podpolicy.Resources{MemoryBytes: 32 << 20, CPUMillis: 500, PIDs: 100}},
	} {
		if got := must[*podpolicy.Resources](t)(g.Update("c", tt.asked)); *got != tt.got {
			t.Errorf("asked for %+v: %+v, expected %+v", tt.asked, *got, tt.got)
		}
	}
	_, err := g.Update("c", podpolicy.Resources{CPUMillis: 1<<32 - 1})
	refused(t, err, podpolicy.RuleProposalForm, "limits.cpus")
	_, err = g.Update("other", podpolicy.Resources{CPUMillis: 1})
	refused(t, err, podpolicy.RuleContainerState, "id")
}

// The form of things is held to without an owner's policy, too.
func TestUnsealedRefusesBadForm(t *testing.T) {
	t.Parallel()
	for path, change := range map[string]func(*podpolicy.ContainerProposal){
		"image":            func(q *podpolicy.ContainerProposal) { q.Image = "" },
		"name":             func(q *podpolicy.ContainerProposal) { q.Name = "Bad Name" },
		"id":               func(q *podpolicy.ContainerProposal) { q.ID = "" },
		"mounts[0].path":   func(q *podpolicy.ContainerProposal) { q.Mounts = []podpolicy.Mount{{Path: "/proc", Volume: "v"}} },
		"mounts[0].volume": func(q *podpolicy.ContainerProposal) { q.Mounts = []podpolicy.Mount{{Path: "/v", Volume: "../v"}} },
		"args":             func(q *podpolicy.ContainerProposal) { q.Args = &[]string{} },
		"args[0]":          func(q *podpolicy.ContainerProposal) { q.Args = &[]string{"\x00"} },
		"env[1]":           func(q *podpolicy.ContainerProposal) { q.Env = &[]string{"A=1", "A=2"} },
		"env.S.sealed":     func(q *podpolicy.ContainerProposal) { q.Env = &[]string{"S=sealed.x"} },
		"cwd":              func(q *podpolicy.ContainerProposal) { q.Cwd = new("..") },
		"user.uid":         func(q *podpolicy.ContainerProposal) { q.User = &podpolicy.User{UID: 1<<32 - 1} },
		"limits.cpus":      func(q *podpolicy.ContainerProposal) { q.Resources.CPUMillis = 1<<32 - 1 },
	} {
		g := unsealedGuard(t)
		q := podpolicy.ContainerProposal{ID: "c", Name: "c", Image: "busybox"}
		change(&q)
		_, err := g.Admit(q)
		if err == nil {
			t.Errorf("%s: accepted", path)
			continue
		}
		refused(t, err, ruleOf(err), path)
	}
	q := sandboxProposal()
	q.Sysctls = map[string]string{"kernel.core_pattern": "|/x"}
	_, err := podpolicy.NewUnsealedGuard().Sandbox(q)
	refused(t, err, podpolicy.RuleProposalForm, `sysctls["kernel.core_pattern"]`)
	_, err = unsealedGuard(t).PutFiles("../x", 1)
	refused(t, err, podpolicy.RuleFilesVolume, "volume")
}

func TestUnsealedIsBounded(t *testing.T) {
	t.Parallel()
	g := unsealedGuard(t)
	n := 0
	for n = range 1000 {
		if _, err := g.Admit(podpolicy.ContainerProposal{ID: fmt.Sprint(n), Name: fmt.Sprint("c", n), Image: "busybox"}); err != nil {
			break
		}
	}
	if n != 64 {
		t.Errorf("%d containers", n)
	}
	for n = range 1000 {
		if _, err := g.PutFiles(fmt.Sprint("v", n), 1); err != nil {
			break
		}
	}
	if n != 128 {
		t.Errorf("%d volumes", n)
	}
}
