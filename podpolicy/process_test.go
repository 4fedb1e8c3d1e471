package podpolicy_test

import (
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/google/go-cmp/cmp"
)

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
	refused(t, u.Commit(published), podpolicy.RuleFilesMissing, `files["ca.crt"]`)
	ok(t, u.Content("ca.crt", 1, sum))
	refused(t, u.Commit(published), podpolicy.RuleFilesMissing, "files.namespace")
	must[uint32](t)(u.File("namespace", 0))
	ok(t, u.Content("namespace", 0, sum))
	stale := must[*podpolicy.FilesUpdate](t)(g.PutFiles("token", 4))
	// What could not be published has not come.
	full := errors.New("no space")
	if err := u.Commit(func() error { return full }); !errors.Is(err, full) {
		t.Errorf("commit: %v, want %v", err, full)
	}
	ok(t, u.Commit(published))
	refused(t, stale.Commit(func() error { t.Error("an old version was published"); return nil }), podpolicy.RuleFilesVersion, "version")
	for _, version := range []uint64{0, 4, 5} {
		_, err := g.PutFiles("token", version)
		refused(t, err, podpolicy.RuleFilesVersion, "version")
	}

	u = must[*podpolicy.FilesUpdate](t)(g.PutFiles("config", 0))
	must[uint32](t)(u.File("app.conf", 1))
	refused(t, u.Content("app.conf", 1, sum), podpolicy.RuleFilesDigest, `files["app.conf"]`)
	refused(t, u.Commit(published), podpolicy.RuleFilesMissing, `files["app.conf"]`)
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

// blockPolicy has two block volumes: one is mounted, one is a device.
func blockPolicy() *podpolicy.Policy {
	p := simplePolicy()
	p.Volumes = map[string]podpolicy.Volume{
		"b":   {Kind: podpolicy.VolumeBlock, Key: "kbs:///a/b/c", Filesystem: "ext4", Group: new(uint32(7))},
		"raw": {Kind: podpolicy.VolumeBlock, Key: "kbs://other/a/b/d"},
	}
	p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/b", Volume: "b"}}
	p.Containers[0].Devices = []podpolicy.Device{{Path: "/dev/xvda", Volume: "raw", ReadOnly: true}}
	return p
}

func TestBlockVolumesAreAttachedOnce(t *testing.T) {
	t.Parallel()
	p := blockPolicy()
	g := podpolicy.NewGuard(p)
	refused(t, g.Attach("b", "disk1"), podpolicy.RuleSandboxRequired, "")
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	q := podpolicy.ContainerProposal{ID: "c", Name: "one"}
	_, err := g.Admit(q)
	refused(t, err, podpolicy.RuleVolumeAttach, "mounts[0]")
	for _, disk := range []string{"", "a/b", "../x", "123456789012345678901", "a b"} {
		refused(t, g.Attach("b", disk), podpolicy.RuleProposalForm, "disk")
	}
	refused(t, g.Attach("nobody", "disk1"), podpolicy.RuleVolumeAttach, "volume")
	refused(t, g.AttachFailed("b", "disk1"), podpolicy.RuleVolumeAttach, "disk")
	ok(t, g.Attach("b", "disk1"))
	ok(t, g.Attach("b", "disk1"))
	refused(t, g.Attach("b", "disk2"), podpolicy.RuleVolumeAttach, "disk")
	refused(t, g.Attach("raw", "disk1"), podpolicy.RuleVolumeAttach, "disk")
	_, err = g.Admit(q)
	refused(t, err, podpolicy.RuleVolumeAttach, "devices[0]")
	ok(t, g.Attach("raw", "disk2"))
	ok(t, g.AttachFailed("raw", "disk2"))
	ok(t, g.Attach("raw", "disk3"))

	q.Mounts = []podpolicy.Mount{{Path: "/b", Volume: "b"}, {Path: "/dev/xvda", Volume: "raw"}}
	_, err = g.Admit(q)
	refused(t, err, podpolicy.RuleContainerMounts, "mounts[1].readOnly")
	q.Mounts = q.Mounts[:1]
	c := must[*podpolicy.ContainerConfig](t)(must[*podpolicy.Admission](t)(g.Admit(q)).Configure(podpolicy.ImageConfig{Digest: webDigest}))
	refused(t, g.AttachFailed("raw", "disk3"), podpolicy.RuleVolumeAttach, "volume")
	want := []podpolicy.MountConfig{
		{Path: "/b", Volume: "b", Kind: podpolicy.VolumeBlock},
		{Path: "/dev/xvda", Volume: "raw", Kind: podpolicy.VolumeBlock, Device: true, ReadOnly: true},
	}
	if !slices.Equal(c.Mounts, want) {
		t.Errorf("got %+v", c.Mounts)
	}
	v := must[podpolicy.VolumeConfig](t)(g.Volume("raw"))
	if v.Key != "kbs://other/a/b/d" || v.Disk != "disk3" || v.Filesystem != "" || v.Kind != podpolicy.VolumeBlock {
		t.Errorf("got %+v", v)
	}
	if v = must[podpolicy.VolumeConfig](t)(g.Volume("b")); v.Filesystem != "ext4" || *v.Group != 7 || v.Disk != "disk1" {
		t.Errorf("got %+v", v)
	}
	_, err = g.Volume("nobody")
	refused(t, err, podpolicy.RuleVolumeUnknown, "volume")
}
