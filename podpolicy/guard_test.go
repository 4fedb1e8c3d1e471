package podpolicy_test

import (
	"crypto/sha256"
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
			{Name: "DB_SERVICE_HOST", Value: "10.96.0.9"}, {Name: "DB_SERVICE_PORT", Value: "5432"},
		},
		Cwd: "/srv", User: podpolicy.User{UID: 1000, GID: 1000, Groups: []uint32{2000}}, Capabilities: []string{"CAP_NET_BIND_SERVICE"},
		NoNewPrivileges: true, ReadOnlyRoot: true, Seccomp: podpolicy.SeccompDefault, Stdin: true,
		Mounts: []podpolicy.MountConfig{
			{Path: "/data", Volume: "scratch", Kind: podpolicy.VolumeEphemeral, Medium: podpolicy.MediumDisk, SizeBytes: 1 << 30},
			{Path: "/etc/app", Volume: "config", Kind: podpolicy.VolumeFiles, ReadOnly: true},
		},
		Limits: podpolicy.Resources{MemoryBytes: 512 << 20, CPUMillis: 500, PIDs: 256},
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
	want.ID = "c2"
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
		Env:             []podpolicy.EnvVar{{Name: "A", Value: "2=3"}, {Name: "B"}, {Name: "PATH", Value: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, {Name: "TERM", Value: "xterm"}},
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

func TestExec(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	c := start(t, g, webProposal(), webImage())
	for name, tt := range map[string]struct {
		q          podpolicy.ExecProposal
		rule, path string
	}{
		"other command":    {podpolicy.ExecProposal{ID: "e", Args: []string{"/bin/cat", "/data"}}, podpolicy.RuleExecArgs, "args"},
		"more arguments":   {podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz", "x"}}, podpolicy.RuleExecArgs, "args"},
		"no arguments":     {podpolicy.ExecProposal{ID: "e"}, podpolicy.RuleExecArgs, "args"},
		"stdin":            {podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}, Stdin: true}, podpolicy.RuleExecStdin, "stdin"},
		"terminal":         {podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}, Terminal: true}, podpolicy.RuleExecTerminal, "terminal"},
		"other directory":  {podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}, Cwd: new("/")}, podpolicy.RuleExecCwd, "cwd"},
		"extra variable":   {podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}, Env: new(append(*webProposal().Env, "LD_PRELOAD=/x"))}, podpolicy.RuleExecEnv, "env.LD_PRELOAD"},
		"missing variable": {podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}, Env: new((*webProposal().Env)[1:])}, podpolicy.RuleExecEnv, "env.PATH"},
		"other value":      {podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}, Env: new(append([]string{"PATH=/evil"}, (*webProposal().Env)[1:]...))}, podpolicy.RuleExecEnv, "env.PATH"},
		"bad id":           {podpolicy.ExecProposal{ID: "../e", Args: []string{"/healthz"}}, podpolicy.RuleProposalForm, "execID"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := g.Exec("c1", tt.q)
			refused(t, err, tt.rule, tt.path)
		})
	}
	got := must[*podpolicy.ExecConfig](t)(g.Exec("c1", podpolicy.ExecProposal{ID: "e", Args: []string{"/bin/sh"}, Env: webProposal().Env, Cwd: new("/srv"), Stdin: true, Terminal: true}))
	want := &podpolicy.ExecConfig{
		Container: "c1", ID: "e", Args: []string{"/bin/sh"}, Env: append(c.Env, podpolicy.EnvVar{Name: "TERM", Value: "xterm"}), Cwd: "/srv", User: c.User,
		Capabilities: c.Capabilities, NoNewPrivileges: true, Terminal: true, Stdin: true, Output: true,
	}
	if diff := cmp.Diff(want, got, ignoreUnexported); diff != "" {
		t.Error(diff)
	}
	if !g.Stream("c1", "e", podpolicy.Stdout) || !g.Stream("c1", "e", podpolicy.Stdin) || g.Stream("c1", "e", podpolicy.Stdin) {
		t.Error("streams of the command: want output, and input once")
	}
	ok(t, g.Resize("c1", "e"))
	refused(t, g.Resize("c1", ""), podpolicy.RuleContainerTerminal, "terminal")

	must[*podpolicy.ExecConfig](t)(g.Exec("c1", podpolicy.ExecProposal{ID: "h", Args: []string{"/healthz"}}))
	if g.Stream("c1", "h", podpolicy.Stdout) || g.Stream("c1", "h", podpolicy.Stderr) || g.Stream("c1", "h", podpolicy.Stdin) {
		t.Error("a bare exec rule gives away more than the exit code")
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	type want struct{ out, in, inAgain bool }
	for name, tt := range map[string]struct {
		allow podpolicy.Allow
		stdin bool
		want  want
	}{
		"nothing":         {podpolicy.Allow{}, false, want{}},
		"logs":            {podpolicy.Allow{Logs: true}, false, want{out: true}},
		"attach":          {podpolicy.Allow{Attach: true}, false, want{out: true}},
		"stdin":           {podpolicy.Allow{Stdin: true}, true, want{in: true}},
		"stdin not asked": {podpolicy.Allow{Stdin: true}, false, want{}},
		"stdin, attach":   {podpolicy.Allow{Stdin: true, Attach: true}, true, want{true, true, true}},
	} {
		p := simplePolicy()
		p.Containers[0].Allow = tt.allow
		g := podpolicy.NewGuard(p)
		must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
		start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one", Stdin: tt.stdin}, podpolicy.ImageConfig{Digest: webDigest})
		got := want{g.Stream("c", "", podpolicy.Stdout), g.Stream("c", "", podpolicy.Stdin), g.Stream("c", "", podpolicy.Stdin)}
		if got != tt.want || g.Stream("c", "", podpolicy.Stderr) != tt.want.out {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
		if g.Stream("d", "", podpolicy.Stdout) || g.Stream("c", "e", podpolicy.Stdout) || g.Stream("c", "", 0) {
			t.Errorf("%s: a stream of nothing is allowed", name)
		}
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	start(t, g, webProposal(), webImage())
	for signal, allowed := range map[uint32]bool{0: false, 1: true, 2: true, 3: true, 9: true, 10: false, 15: true, 19: false, 64: false} {
		err := g.Signal("c1", "", signal)
		if allowed {
			ok(t, err)
		} else {
			refused(t, err, podpolicy.RuleSignal, "signal")
		}
	}
}

func TestUpdateResources(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	start(t, g, webProposal(), webImage())
	got := must[*podpolicy.Resources](t)(g.Update("c1", podpolicy.Resources{CPUMillis: 900}))
	if *got != (podpolicy.Resources{MemoryBytes: 512 << 20, CPUMillis: 900, PIDs: 256}) {
		t.Errorf("got %+v", got)
	}
	got = must[*podpolicy.Resources](t)(g.Update("c1", podpolicy.Resources{}))
	if got.CPUMillis != 900 {
		t.Errorf("an empty update changed %+v", got)
	}
	for path, q := range map[string]podpolicy.Resources{"resources.memory": {MemoryBytes: 1 << 20}, "resources.pids": {PIDs: 1}} {
		_, err := g.Update("c1", q)
		refused(t, err, podpolicy.RuleContainerResources, path)
	}
	_, err := g.Update("c1", podpolicy.Resources{CPUMillis: 1 << 30})
	refused(t, err, podpolicy.RuleSlotValue, "resources.cpu")
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	start(t, g, webProposal(), webImage())
	if !g.PortForward("c1", 8080) || g.PortForward("c1", 22) || g.PortForward("x", 8080) {
		t.Error("wrong ports")
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	for _, volume := range []string{"scratch", "db", "nope", ""} {
		_, err := g.PutFiles(volume, 1)
		refused(t, err, podpolicy.RuleFilesVolume, "volume")
	}
	sum := sha256.Sum256([]byte("x"))

	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("token", 5))
	for _, name := range []string{"other", "../token", "a/token", "..", "", "/token", "token\x00", "..data"} {
		_, err := u.File(name, 1)
		refused(t, err, podpolicy.RuleFilesName, "")
	}
	_, err := u.File("token", 65537)
	refused(t, err, podpolicy.RuleFilesSize, "files.token")
	_, err = u.File("token", -1)
	refused(t, err, podpolicy.RuleFilesSize, "files.token")
	if mode := must[uint32](t)(u.File("token", 65000)); mode != 0o644 {
		t.Errorf("mode %o", mode)
	}
	_, err = u.File("token", 1)
	refused(t, err, podpolicy.RuleFilesName, "files.token")
	_, err = u.File("ca.crt", 537)
	refused(t, err, podpolicy.RuleFilesSize, `files["ca.crt"]`)
	must[uint32](t)(u.File("ca.crt", 1))
	refused(t, u.Content("namespace", 1, sum), podpolicy.RuleFilesName, "files.namespace")
	refused(t, u.Content("token", 64999, sum), podpolicy.RuleFilesSize, "files.token")
	ok(t, u.Content("token", 65000, sum))
	refused(t, u.Content("token", 65000, sum), podpolicy.RuleFilesName, "files.token")
	refused(t, u.Commit(), podpolicy.RuleFilesMissing, `files["ca.crt"]`)
	ok(t, u.Content("ca.crt", 1, sum))
	refused(t, u.Commit(), podpolicy.RuleFilesMissing, "files.namespace")
	must[uint32](t)(u.File("namespace", 0))
	ok(t, u.Content("namespace", 0, sum))
	stale := must[*podpolicy.FilesUpdate](t)(g.PutFiles("token", 4))
	ok(t, u.Commit())
	refused(t, stale.Commit(), podpolicy.RuleFilesVersion, "version")
	for _, version := range []uint64{0, 4, 5} {
		_, err := g.PutFiles("token", version)
		refused(t, err, podpolicy.RuleFilesVersion, "version")
	}

	u = must[*podpolicy.FilesUpdate](t)(g.PutFiles("config", 0))
	must[uint32](t)(u.File("app.conf", 1))
	refused(t, u.Content("app.conf", 1, sum), podpolicy.RuleFilesDigest, `files["app.conf"]`)
	refused(t, u.Commit(), podpolicy.RuleFilesMissing, `files["app.conf"]`)
}

func TestFilesMustBeThereBeforeStart(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Volumes = map[string]podpolicy.Volume{"f": {Kind: podpolicy.VolumeFiles, Host: &podpolicy.HostFiles{Names: []string{"a"}, MaxBytes: 1}}}
	p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/f", Volume: "f", ReadOnly: true}}
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	a := must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"}))
	must[*podpolicy.ContainerConfig](t)(a.Configure(podpolicy.ImageConfig{Digest: webDigest}))
	refused(t, g.Started("c", ""), podpolicy.RuleVolumeEmpty, "mounts[0]")
}

func TestBlockVolumesAreNotSupportedYet(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Volumes = map[string]podpolicy.Volume{"b": {Kind: podpolicy.VolumeBlock, Key: "kbs:///a/b/c", Filesystem: "ext4"}}
	p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/b", Volume: "b"}}
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	_, err := g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"})
	refused(t, err, podpolicy.RuleVolumeUnsupported, "mounts[0]")
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
