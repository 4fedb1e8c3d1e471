package agent_test

import (
	"archive/tar"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/podpolicy"
)

// put sends the files of a volume.
func (h *host) put(t *testing.T, volume string, version uint64, files map[string]string) error {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		conn, err := h.session.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_FILES, Volume: volume, Version: version})
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		tw := tar.NewWriter(conn)
		for name, content := range files {
			_ = tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(content))})
			_, _ = tw.Write([]byte(content))
		}
		_ = tw.Close()
	}()
	_, err := h.PutFiles(t.Context(), &agentapi.PutFilesRequest{Volume: volume, Version: version})
	<-sent
	return err
}

// run creates and starts the container web and returns what it says.
func (h *host) run(t *testing.T) string {
	t.Helper()
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"}))
	out := h.stream(stdout, "web", "")
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	return readAll(t, out)
}

func TestReferencesBetweenVariables(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	w.broker.resources["kbs:///shop/db/password"] = "hunter2"
	h := w.seal(func(p *podpolicy.Policy) {
		c := &p.Containers[0]
		c.Args = []string{"/bin/echo", "$(URL)", "$$(URL)", "$(NOTHING)"}
		c.ExpandArgs = true
		c.Env = map[string]podpolicy.EnvValue{
			"PASSWORD": {Resource: "kbs:///shop/db/password"}, "USER": podpolicy.Literal("app"),
			"URL": {Expand: "db://$(USER):$(PASSWORD)@host"},
		}
		c.Allow.Logs = true
	})
	if got, want := h.run(t), "db://app:hunter2@host $(URL) $(NOTHING)\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
}

func TestFilesThatAreSecrets(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	w.broker.resources["kbs:///shop/tls/key"] = "the key"
	h := w.seal(func(p *podpolicy.Policy) {
		group := uint32(2000)
		p.Volumes = map[string]podpolicy.Volume{
			"tls":   {Kind: podpolicy.VolumeFiles, Resources: map[string]string{"private/tls.key": "kbs:///shop/tls/key"}, Mode: "0640", Group: &group},
			"mixed": {Kind: podpolicy.VolumeFiles, Resources: map[string]string{"key": "kbs:///shop/tls/key"}, Host: &podpolicy.HostFiles{Names: []string{"token"}, MaxBytes: 100}},
		}
		c := &p.Containers[0]
		c.Args = []string{"/bin/sh", "-c", "cat /tls/private/tls.key; stat -L -c ' %a %g ' /tls/private/tls.key; cat /mixed/key /mixed/token"}
		c.Mounts = []podpolicy.Mount{{Path: "/tls", Volume: "tls", ReadOnly: true}, {Path: "/mixed", Volume: "mixed", ReadOnly: true}}
		c.Allow.Logs = true
	})
	if w.broker.attested != 0 {
		t.Fatalf("attested %d times before anything was asked for", w.broker.attested)
	}
	if err := h.put(t, "mixed", 1, map[string]string{"token": " token"}); err != nil {
		t.Fatal(err)
	}
	if w.broker.attested != 1 {
		t.Errorf("attested %d times, want 1: a secret needs it", w.broker.attested)
	}
	if got, want := h.run(t), "the key 640 2000 \nthe key token"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
}

func TestAFileThatIsMissingStopsTheContainer(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) {
		p.Volumes = map[string]podpolicy.Volume{"tls": {Kind: podpolicy.VolumeFiles, Resources: map[string]string{"tls.key": "kbs:///shop/tls/key"}}}
		p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/tls", Volume: "tls", ReadOnly: true}}
	})
	_, err := h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"})
	refused(t, err, agent.RuleTrustee)
}

func TestBlockVolumes(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	w.broker.resources["kbs:///shop/db/disk-key"] = "the volume's key, of 32 bytes...."
	w.disks.keys = map[string]string{"foreign": "another key"}
	h := w.seal(func(p *podpolicy.Policy) {
		p.Volumes = map[string]podpolicy.Volume{"db": {Kind: podpolicy.VolumeBlock, Key: "kbs:///shop/db/disk-key", Filesystem: "ext4"}}
		c := &p.Containers[0]
		c.Args = []string{"/bin/sh", "-c", "echo kept >> /data/sub/log; cat /data/sub/log"}
		c.Mounts = []podpolicy.Mount{{Path: "/data/sub", Volume: "db", SubPath: "sub"}}
		c.Allow = podpolicy.Allow{Logs: true, Restarts: podpolicy.RestartAlways}
	})
	create := func() error {
		_, err := h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"})
		return err
	}
	attach := func(volume, disk string) error {
		_, err := h.AttachVolume(t.Context(), &agentapi.AttachVolumeRequest{Volume: volume, Disk: disk})
		return err
	}
	refused(t, create(), podpolicy.RuleVolumeAttach)
	refused(t, attach("other", "disk1"), podpolicy.RuleVolumeAttach)
	if r := refused(t, attach("db", "foreign"), agent.RuleVolumeDisk); r.GetPath() != "volumes.db" {
		t.Errorf("refusal %v", r)
	}
	refused(t, create(), podpolicy.RuleVolumeAttach)
	if w.broker.attested != 1 {
		t.Errorf("attested %d times, want 1: the key needs it", w.broker.attested)
	}
	for range 2 { // the call may be repeated
		if err := attach("db", "disk1"); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, attach("db", "disk2"), podpolicy.RuleVolumeAttach)
	for _, want := range []string{"kept\n", "kept\nkept\n"} {
		if got := h.run(t); got != want {
			t.Errorf("output %q, want %q", got, want)
		}
		must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "web"}))
		must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "web"}))
	}
}

func TestAVolumeWhoseKeyIsDenied(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) {
		p.Volumes = map[string]podpolicy.Volume{"db": {Kind: podpolicy.VolumeBlock, Key: "kbs:///shop/db/disk-key", Filesystem: "ext4"}}
		p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/data", Volume: "db"}}
	})
	_, err := h.AttachVolume(t.Context(), &agentapi.AttachVolumeRequest{Volume: "db", Disk: "disk1"})
	refused(t, err, agent.RuleTrustee)
	if entries, err := os.ReadDir(w.disks.dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestTheScratchDiskIsNoVolume(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	w.broker.resources["kbs:///shop/db/disk-key"] = "the volume's key, of 32 bytes...."
	gz, digest := w.initdata(func(p *podpolicy.Policy) {
		p.Volumes = map[string]podpolicy.Volume{"db": {Kind: podpolicy.VolumeBlock, Key: "kbs:///shop/db/disk-key", Filesystem: "ext4"}}
		p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/data", Volume: "db"}}
	})
	w.attester.initData = digest
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "web", Initdata: gz, ScratchDisk: "scratch0"}))
	_, err := h.AttachVolume(t.Context(), &agentapi.AttachVolumeRequest{Volume: "db", Disk: "scratch0"})
	if r := refused(t, err, podpolicy.RuleVolumeAttach); r.GetPath() != "disk" || r.GetGot() != `"scratch0"` || !strings.Contains(r.GetExpected(), "scratch") {
		t.Errorf("refusal %v", r)
	}
	if w.broker.attested != 0 {
		t.Error("a key was asked for")
	}
	// The volume is still free to be attached.
	if _, err := h.AttachVolume(t.Context(), &agentapi.AttachVolumeRequest{Volume: "db", Disk: "disk1"}); err != nil {
		t.Error(err)
	}
}

func TestFilesMountedAlone(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	w.broker.resources["kbs:///shop/tls/key"] = "the key\n"
	h := w.seal(func(p *podpolicy.Policy) {
		p.Volumes = map[string]podpolicy.Volume{
			"app":   {Kind: podpolicy.VolumeFiles, Host: &podpolicy.HostFiles{Names: []string{"app.conf", "d/x"}, MaxBytes: 100}},
			"tls":   {Kind: podpolicy.VolumeFiles, Resources: map[string]string{"tls.key": "kbs:///shop/tls/key", "other": "kbs:///shop/tls/key"}},
			"empty": {Kind: podpolicy.VolumeFiles},
		}
		c := &p.Containers[0]
		c.Args = []string{"/bin/sh", "-c", "cat /etc/app/app.conf /etc/app/d/x /etc/app/tls.key; ls /empty /etc/app; echo x 2>/dev/null >/etc/app/app.conf || echo no"}
		c.Mounts = []podpolicy.Mount{
			{Path: "/etc/app/app.conf", Volume: "app", SubPath: "app.conf", ReadOnly: true}, {Path: "/etc/app/d", Volume: "app", SubPath: "d", ReadOnly: true},
			{Path: "/etc/app/tls.key", Volume: "tls", SubPath: "tls.key", ReadOnly: true}, {Path: "/empty", Volume: "empty", ReadOnly: true},
		}
		c.Allow.Logs, c.Allow.Restarts = true, podpolicy.RestartAlways
	})
	_, err := h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"})
	if r := refused(t, err, podpolicy.RuleVolumeEmpty); !strings.Contains(r.GetPath(), "/etc/app/app.conf") {
		t.Errorf("refusal %v", r)
	}
	for i, version := range []string{"1\n", "2\n"} {
		if err := h.put(t, "app", uint64(i+1), map[string]string{"app.conf": "conf " + version, "d/x": "x " + version}); err != nil {
			t.Fatal(err)
		}
		if got, want := h.run(t), "conf "+version+"x "+version+"the key\n/empty:\n\n/etc/app:\napp.conf\nd\ntls.key\nno\n"; got != want {
			t.Errorf("output %q, want %q", got, want)
		}
		must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "web"}))
		must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "web"}))
	}
	if err := h.put(t, "empty", 1, map[string]string{"evil": "x"}); err == nil {
		t.Error("the host put a file into a volume that has none")
	}
}
