package podpolicy_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var ignoreUnexported = cmpopts.IgnoreUnexported(podpolicy.EnvVar{})

func TestSandboxEffect(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	q := sandboxProposal()
	got := must[*podpolicy.SandboxConfig](t)(g.Sandbox(q))
	want := &podpolicy.SandboxConfig{Name: "web-7d4", Namespace: "shop", Hostname: "web-7d4", Sysctls: q.Sysctls, Network: podpolicy.NetworkConfig(q.Network)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again := must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	if diff := cmp.Diff(want, again); diff != "" {
		t.Error("the same proposal again:", diff)
	}
	q.ID = "sb2"
	_, err := g.Sandbox(q)
	refused(t, err, podpolicy.RuleSandboxOnce, "id")
}

func TestHostnameDefaultsToPodName(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(simplePolicy())
	_, err := g.Sandbox(podpolicy.SandboxProposal{ID: "s", Hostname: "evil"})
	refused(t, err, podpolicy.RulePodName, "hostname")
	c := must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodNamespace: "any"}))
	if c.Hostname != "one" || c.Name != "one" || c.Namespace != "" {
		t.Errorf("got %+v", c)
	}
}

func TestContainerEffect(t *testing.T) {
	t.Parallel()
	want := &podpolicy.ContainerConfig{
		ID: "c1", Name: "web", Role: podpolicy.RoleApp, Image: podpolicy.ImageRef{Repository: "registry.example/shop/web", Digest: webDigest},
		Args: []string{"/web", "--port=8080"},
		Env: []podpolicy.EnvVar{
			{Name: "PATH", Value: "/bin"}, {Name: "LANG", Value: "C"}, {Name: "MODE", Value: "prod"},
			{Name: "DB_PASSWORD", Sealed: "sealed.aGVhZA.cGF5bG9hZA.c2ln"}, {Name: "KEY", Resource: "kbs:///shop/db/key"},
			{Name: "NODE", Value: "node-1.example"}, {Name: "POD_IP", Value: "10.0.2.15"}, {Name: "RELEASE", Value: "r-17"},
			{Name: "HOSTNAME", Value: "web-7d4"}, {Name: "DB_SERVICE_HOST", Value: "10.96.0.9"}, {Name: "DB_SERVICE_PORT", Value: "5432"},
		},
		Cwd: "/srv", User: podpolicy.User{UID: 1000, GID: 1000, Groups: []uint32{2000}}, Capabilities: []string{"CAP_NET_BIND_SERVICE"},
		NoNewPrivileges: true, ReadOnlyRoot: true, Seccomp: podpolicy.SeccompDefault, Stdin: true,
		Mounts: []podpolicy.MountConfig{
			{Path: "/data", Volume: "scratch", Kind: podpolicy.VolumeEphemeral, Medium: podpolicy.MediumDisk, SizeBytes: 1 << 30},
			{Path: "/etc/app", Volume: "config", Kind: podpolicy.VolumeFiles, ReadOnly: true},
		},
		Limits: podpolicy.Resources{MemoryBytes: 512 << 20, CPUMillis: 500, PIDs: 256}, TerminationPath: "/dev/termination-log",
	}
	g := readyGuard(t, webPolicy(t))
	q := webProposal()
	got := start(t, g, q, webImage())
	if diff := cmp.Diff(want, got, ignoreUnexported); diff != "" {
		t.Error(diff)
	}
	ok(t, g.Exited("c1", "", 0))

	// The same container, left to the policy as far as it can be.
	least := podpolicy.ContainerProposal{ID: "c2", Name: "web", Env: q.Env, Resources: podpolicy.Resources{CPUMillis: 500}, Stdin: true}
	want.ID, want.TerminationPath = "c2", ""
	if diff := cmp.Diff(want, start(t, g, least, webImage()), ignoreUnexported); diff != "" {
		t.Error(diff)
	}
}

func TestImageFillsWhatThePolicyLeavesToIt(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Containers[0].Args = nil
	p.Containers[0].Terminal = true
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	got := start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one", Terminal: true}, podpolicy.ImageConfig{
		Digest: webDigest, Entrypoint: []string{"/e"}, Cmd: []string{"a", "b"}, WorkingDir: "work/", User: "app:www", Env: []string{"A=1", "B=", "A=2=3"},
		Passwd: []byte("root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n"), Group: []byte("www:x:9:\nother:x:10:app\n"),
	})
	want := &podpolicy.ContainerConfig{
		ID: "c", Name: "one", Role: podpolicy.RoleApp, Image: podpolicy.ImageRef{Repository: "registry.example/one", Digest: webDigest},
		Args: []string{"/e", "a", "b"}, Cwd: "/work", User: podpolicy.User{UID: 7, GID: 9},
		Env:             []podpolicy.EnvVar{{Name: "A", Value: "2=3"}, {Name: "B"}, {Name: "HOSTNAME", Value: "one"}, {Name: "PATH", Value: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, {Name: "TERM", Value: "xterm"}},
		NoNewPrivileges: true, Seccomp: podpolicy.SeccompDefault, Terminal: true, Mounts: []podpolicy.MountConfig{},
	}
	if diff := cmp.Diff(want, got, ignoreUnexported, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

func TestConfigureRefusesBadImages(t *testing.T) {
	t.Parallel()
	for path, img := range map[string]podpolicy.ImageConfig{
		"args":             {},
		"image.env[0]":     {Entrypoint: []string{"/x"}, Env: []string{"NOVALUE"}},
		"image.user":       {Entrypoint: []string{"/x"}, User: "nobody"},
		"image.workingDir": {Entrypoint: []string{"/x"}, WorkingDir: "/a\x00b"},
		"image.args[0]":    {Entrypoint: []string{"/x\x00"}},
	} {
		p := simplePolicy()
		p.Containers[0].Args = nil
		g := podpolicy.NewGuard(p)
		must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
		a := must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"}))
		img.Digest = webDigest
		_, err := a.Configure(img)
		refused(t, err, podpolicy.RuleImageConfig, path)
		refused(t, g.Started("c", ""), podpolicy.RuleContainerState, "id")
		ok(t, g.Deleted("c", ""))
		_, err = a.Configure(webImage())
		refused(t, err, podpolicy.RuleContainerState, "id")
	}
}

func TestRestarts(t *testing.T) {
	t.Parallel()
	tests := map[podpolicy.Restarts]map[int]bool{
		podpolicy.RestartNever:     {0: false, 1: false},
		podpolicy.RestartOnFailure: {0: false, 1: true},
		podpolicy.RestartAlways:    {0: true, 1: true},
	}
	for rule, codes := range tests {
		for code, again := range codes {
			p := simplePolicy()
			p.Containers[0].Allow.Restarts = rule
			g := podpolicy.NewGuard(p)
			must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
			q := podpolicy.ContainerProposal{ID: "c", Name: "one"}

			// A failed pull is no start.
			must[*podpolicy.Admission](t)(g.Admit(q))
			ok(t, g.Deleted("c", ""))
			runTo(t, g, "c", "one", webDigest, code)
			_, err := g.Admit(q)
			if again {
				ok(t, err)
			} else {
				refused(t, err, podpolicy.RuleContainerRestarts, "name")
			}
		}
	}
}

func TestContainerOrder(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	admit := func(id, name string) error {
		q := podpolicy.ContainerProposal{ID: id, Name: name}
		if name == "web" {
			q = webProposal()
		}
		_, err := g.Admit(q)
		return err
	}
	refused(t, admit("m", "mesh"), podpolicy.RuleContainerOrder, "name")
	refused(t, admit("w", "web"), podpolicy.RuleContainerOrder, "name")
	runTo(t, g, "i", "migrate", migrateDigest, 3)
	refused(t, admit("w", "web"), podpolicy.RuleContainerOrder, "name")
	runTo(t, g, "i", "migrate", migrateDigest, 0)
	refused(t, admit("w", "web"), podpolicy.RuleContainerOrder, "name")
	// An init container that has succeeded does not run again.
	refused(t, admit("i", "migrate"), podpolicy.RuleContainerRestarts, "name")
	runTo(t, g, "m", "mesh", meshDigest, 1)
	ok(t, admit("w", "web"))
}

func TestTransitions(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Containers[0].Allow = podpolicy.Allow{Restarts: podpolicy.RestartAlways, Exec: []podpolicy.ExecRule{{Args: []string{"/x"}}}}
	g := podpolicy.NewGuard(p)
	_, err := g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"})
	refused(t, err, podpolicy.RuleSandboxRequired, "")
	_, err = g.UpdateNetwork(podpolicy.NetworkProposal{})
	refused(t, err, podpolicy.RuleSandboxRequired, "")
	_, err = g.PutFiles("x", 1)
	refused(t, err, podpolicy.RuleSandboxRequired, "")
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))

	state := podpolicy.RuleContainerState
	refused(t, g.Started("c", ""), state, "id")
	refused(t, g.Exited("c", "", 0), state, "id")
	refused(t, g.Deleted("c", ""), state, "id")
	refused(t, g.Signal("c", "", 9), state, "id")
	refused(t, g.Resize("c", ""), state, "id")
	a := must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"}))
	refused(t, g.Started("c", ""), state, "id")
	_, err = g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"})
	refused(t, err, podpolicy.RuleContainerID, "id")
	img := podpolicy.ImageConfig{Digest: webDigest}
	must[*podpolicy.ContainerConfig](t)(a.Configure(img))
	_, err = a.Configure(img)
	refused(t, err, state, "id")
	_, err = g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: []string{"/x"}})
	refused(t, err, state, "id")
	ok(t, g.Started("c", ""))
	refused(t, g.Started("c", ""), state, "id")
	refused(t, g.Deleted("c", ""), state, "id")

	must[*podpolicy.ExecConfig](t)(g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: []string{"/x"}}))
	_, err = g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: []string{"/x"}})
	refused(t, err, podpolicy.RuleContainerID, "execID")
	refused(t, g.Exited("c", "e", 0), state, "execID")
	refused(t, g.Signal("c", "e", 9), state, "execID")
	ok(t, g.Started("c", "e"))
	refused(t, g.Started("c", "e"), state, "execID")
	refused(t, g.Deleted("c", "e"), state, "execID")
	ok(t, g.Signal("c", "e", 9))
	ok(t, g.Exited("c", "e", 137))
	ok(t, g.Deleted("c", "e"))
	refused(t, g.Deleted("c", "e"), state, "execID")

	ok(t, g.Exited("c", "", 0))
	refused(t, g.Exited("c", "", 0), state, "id")
	refused(t, g.Signal("c", "", 9), state, "id")
	_, err = g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"})
	refused(t, err, podpolicy.RuleContainerID, "id")
	ok(t, g.Deleted("c", ""))
	must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"}))
}

// An admission that was deleted during its pull does not configure the one that
// took its id.
func TestStaleAdmission(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(simplePolicy())
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	q := podpolicy.ContainerProposal{ID: "c", Name: "one"}
	stale := must[*podpolicy.Admission](t)(g.Admit(q))
	ok(t, g.Deleted("c", ""))
	fresh := must[*podpolicy.Admission](t)(g.Admit(q))
	_, err := stale.Configure(podpolicy.ImageConfig{Digest: webDigest})
	refused(t, err, podpolicy.RuleContainerState, "id")
	must[*podpolicy.ContainerConfig](t)(fresh.Configure(podpolicy.ImageConfig{Digest: webDigest}))
}

func TestConcurrentAdmissions(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(simplePolicy())
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	var admitted atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if _, err := g.Admit(podpolicy.ContainerProposal{ID: fmt.Sprint("c", i), Name: "one"}); err == nil {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	if admitted.Load() != 1 {
		t.Errorf("%d instances were admitted at once", admitted.Load())
	}
}

func TestStateIsBounded(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Containers[0].Allow = podpolicy.Allow{Restarts: podpolicy.RestartAlways, Exec: []podpolicy.ExecRule{{Args: []string{"/x"}}}}
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	ids := func(i int) string { return string(rune('a'+i/26)) + string(rune('a'+i%26)) }
	img := podpolicy.ImageConfig{Digest: webDigest}
	n := 0
	for ; n < 100; n++ {
		a, err := g.Admit(podpolicy.ContainerProposal{ID: ids(n), Name: "one"})
		if err != nil {
			refused(t, err, podpolicy.RuleContainerInstances, "name")
			break
		}
		must[*podpolicy.ContainerConfig](t)(a.Configure(img))
		ok(t, g.Started(ids(n), ""))
		ok(t, g.Exited(ids(n), "", 0))
	}
	if n != 16 {
		t.Errorf("%d undeleted instances", n)
	}
	ok(t, g.Deleted(ids(0), ""))
	start(t, g, podpolicy.ContainerProposal{ID: "run", Name: "one"}, img)
	for n = range 100 {
		if _, err := g.Exec("run", podpolicy.ExecProposal{ID: ids(n), Args: []string{"/x"}}); err != nil {
			refused(t, err, podpolicy.RuleExecCount, "execID")
			break
		}
	}
	if n != 32 {
		t.Errorf("%d undeleted commands", n)
	}
}

func TestInvalidPolicyRefusesEverything(t *testing.T) {
	t.Parallel()
	for _, p := range []*podpolicy.Policy{nil, {}} {
		g := podpolicy.NewGuard(p)
		_, err := g.Sandbox(sandboxProposal())
		refused(t, err, podpolicy.RulePolicyInvalid, "")
		_, err = g.PutFiles("x", 1)
		refused(t, err, podpolicy.RulePolicyInvalid, "")
		if g.Stream("c", "", podpolicy.Stdout) || !g.Sealed() {
			t.Error("something is allowed")
		}
	}
}

// The guard keeps no memory of its caller's, and gives none away.
func TestGuardSharesNoMemory(t *testing.T) {
	t.Parallel()
	p := webPolicy(t)
	g := readyGuard(t, p)
	web(p).Args[1] = "--evil"
	web(p).Image.From[0] = "evil.example/web"
	q := webProposal()
	a := must[*podpolicy.Admission](t)(g.Admit(q))
	(*q.Env)[0] = "PATH=/evil"
	q.Slots["ip"] = "6.6.6.6"
	c := must[*podpolicy.ContainerConfig](t)(a.Configure(webImage()))
	if c.Args[1] != "--port=8080" || c.Image.Repository != "registry.example/shop/web" || c.Env[0].Value != "/bin" {
		t.Errorf("got %+v", c)
	}
	c.Env[0].Value = "/evil"
	ok(t, g.Started("c1", ""))
	e := must[*podpolicy.ExecConfig](t)(g.Exec("c1", podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}}))
	if e.Env[0].Value != "/bin" {
		t.Error("a command's environment follows a caller's change")
	}
}
