package podpolicy_test

import (
	"crypto/sha256"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

const (
	webDigest     = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	migrateDigest = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	meshDigest    = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
	otherDigest   = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
)

func document(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/web.json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func webPolicy(t testing.TB) *podpolicy.Policy {
	t.Helper()
	p, err := podpolicy.Parse(document(t))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// web returns the container web of a policy.
func web(p *podpolicy.Policy) *podpolicy.Container { return &p.Containers[2] }

// simplePolicy has one container and leaves nothing open.
func simplePolicy() *podpolicy.Policy {
	return &podpolicy.Policy{
		APIVersion: podpolicy.APIVersion, Kind: podpolicy.Kind, Pod: podpolicy.Pod{Name: podpolicy.Name{Value: "one"}},
		Containers: []podpolicy.Container{{Name: "one", Image: podpolicy.Image{Digest: webDigest, From: []string{"registry.example/one"}}, Args: []string{"/one"}}},
	}
}

func sandboxProposal() podpolicy.SandboxProposal {
	return podpolicy.SandboxProposal{
		ID: "sb1", PodName: "web-7d4", PodNamespace: "shop", PodUID: "0b6f0c2e-1111-2222-3333-444455556666", Hostname: "web-7d4", NodeName: "node-1.example",
		Network: podpolicy.NetworkProposal{
			Interfaces: []podpolicy.Interface{{MAC: "52:54:00:12:34:56", Name: "eth0", Addresses: []string{"10.0.2.15/24"}, MTU: 1500}},
			Routes:     []podpolicy.Route{{Gateway: "10.0.2.2", Interface: "eth0"}},
			Neighbours: []podpolicy.Neighbour{{Address: "10.0.2.2", MAC: "52:55:0a:00:02:02", Interface: "eth0"}},
			DNS:        podpolicy.DNSProposal{Servers: []string{"10.0.2.3"}, Searches: []string{"shop.svc.cluster.local"}, Options: []string{"ndots:5"}},
			Hosts:      []podpolicy.HostEntry{{Address: "10.0.2.2", Names: []string{"host.coffer.internal"}}},
		},
		Sysctls: map[string]string{"net.core.somaxconn": "1024"},
	}
}

func webImage() podpolicy.ImageConfig {
	return podpolicy.ImageConfig{
		Digest: webDigest, Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "LANG=C", "MODE=dev"},
		User: "app", WorkingDir: "/app", StopSignal: "SIGQUIT",
	}
}

// webProposal names everything, as a runtime that knows the whole spec would.
func webProposal() podpolicy.ContainerProposal {
	return podpolicy.ContainerProposal{
		ID: "c1", Name: "web", Image: "registry.example/shop/web:v1@" + webDigest,
		Args: &[]string{"/web", "--port=8080"},
		Env: &[]string{"PATH=/bin", "LANG=C", "MODE=prod", "POD_IP=10.0.2.15", "NODE=node-1.example", "RELEASE=r-17",
			"DB_PASSWORD=sealed.aGVhZA.cGF5bG9hZA.c2ln", "DB_SERVICE_HOST=10.96.0.9", "DB_SERVICE_PORT=5432"},
		User: &podpolicy.User{UID: 1000, GID: 1000, Groups: []uint32{2000}}, Cwd: new("/srv"),
		Mounts:    []podpolicy.Mount{{Path: "/data", Volume: "scratch"}, {Path: "/etc/app", Volume: "config", ReadOnly: true}},
		Stdin:     true,
		Resources: podpolicy.Resources{MemoryBytes: 512 << 20, CPUMillis: 500, PIDs: 256},
		Slots:     map[string]string{"ip": "10.0.2.15"},
		Security: &podpolicy.Security{
			Capabilities: []string{"CAP_NET_BIND_SERVICE"}, NoNewPrivileges: true, ReadOnlyRoot: true, SeccompUnconfined: true,
			RLimits: map[string]podpolicy.RLimit{},
		},
		Volumes:         []podpolicy.VolumeClaim{{Name: "scratch", Kind: podpolicy.ClaimEphemeral}, {Name: "config", Kind: podpolicy.ClaimFiles}},
		TerminationPath: podpolicy.DefaultTerminationPath,
	}
}

// refused asserts a refusal by rule and path. An empty path is not compared.
func refused(t testing.TB, err error, rule, path string) {
	t.Helper()
	r, ok := errors.AsType[*podpolicy.Refusal](err)
	if !ok {
		t.Fatalf("got %v, want a refusal by rule %s", err, rule)
	}
	if r.Rule != rule || path != "" && r.Path != path {
		t.Fatalf("refused by rule %s at %s, want %s at %s: %v", r.Rule, r.Path, rule, path, r)
	}
	if r.Rule == "" || r.Expected == "" || r.Got == "" {
		t.Errorf("refusal does not explain itself: %v", r)
	}
	if strings.ContainsAny(r.Error(), "\n\r") || len(r.Error()) > 2048 {
		t.Errorf("refusal is not one bounded line: %q", r.Error())
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readyGuard has a sandbox, whose init container has succeeded and whose
// sidecar runs, and the files of web's volume.
func readyGuard(t testing.TB, p *podpolicy.Policy) *podpolicy.Guard {
	t.Helper()
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	runTo(t, g, "init", "migrate", migrateDigest, 0)
	start(t, g, podpolicy.ContainerProposal{ID: "mesh", Name: "mesh"}, podpolicy.ImageConfig{Digest: meshDigest, Entrypoint: []string{"/mesh"}})
	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("config", 1))
	putHello(t, u, "app.conf")
	ok(t, u.Commit(published))
	return g
}

// putHello puts the file whose digest testdata/web.json pins.
func putHello(t testing.TB, u *podpolicy.FilesUpdate, name string) {
	t.Helper()
	must[uint32](t)(u.File(name, 5))
	ok(t, u.Content(name, 5, sha256.Sum256([]byte("hello"))))
}

func start(t testing.TB, g *podpolicy.Guard, q podpolicy.ContainerProposal, img podpolicy.ImageConfig) *podpolicy.ContainerConfig {
	t.Helper()
	a := must[*podpolicy.Admission](t)(g.Admit(q))
	c := must[*podpolicy.ContainerConfig](t)(a.Configure(img))
	ok(t, g.Started(q.ID, ""))
	return c
}

// runTo runs a container from start to its exit code and deletes it.
func runTo(t testing.TB, g *podpolicy.Guard, id, name, digest string, code int) {
	t.Helper()
	start(t, g, podpolicy.ContainerProposal{ID: id, Name: name}, podpolicy.ImageConfig{Digest: digest, Entrypoint: []string{"/run"}})
	ok(t, g.Exited(id, "", code))
	ok(t, g.Deleted(id, ""))
}

// published is a publication that succeeds.
func published() error { return nil }

// everythingPolicy is the policy of testdata/web.json with all that it leaves
// out.
func everythingPolicy(t testing.TB) *podpolicy.Policy {
	t.Helper()
	p := webPolicy(t)
	p.Pod.SharePID = true
	w := web(p)
	w.ExpandArgs = true
	w.TerminationMessagePath = "/var/words"
	w.Args = append(w.Args, "--db=$(DSN)")
	w.Env["DSN"] = podpolicy.EnvValue{Expand: "db://user:$(DB_PASSWORD)@$(POD_IP)/$$"}
	w.Env["FAR"] = podpolicy.EnvValue{Resource: "kbs://far-away/shop/db/key"}
	w.Devices = []podpolicy.Device{{Path: "/dev/xvda", Volume: "raw", ReadOnly: true}}
	w.Mounts = append(w.Mounts, podpolicy.Mount{Path: "/db", Volume: "db", SubPath: "a/b"}, podpolicy.Mount{Path: "/secrets", Volume: "secrets", ReadOnly: true})
	w.Allow.Copy = podpolicy.Copy{From: []string{"/data", "/var/log"}, To: []string{"/data"}}
	p.Containers = append(p.Containers, podpolicy.Container{
		Name: "debug", Role: podpolicy.RoleEphemeral, Target: "web", Image: podpolicy.Image{Digest: otherDigest, From: []string{"registry.example/debug"}}, Args: []string{"/bin/sh"},
		Terminal: true, Seccomp: podpolicy.SeccompUnconfined, NoNewPrivileges: podpolicy.OnUnlessOff{Off: true}, Capabilities: []string{"CAP_SYS_PTRACE"},
	})
	p.Volumes["raw"] = podpolicy.Volume{Kind: podpolicy.VolumeBlock, Key: "kbs:///shop/raw/key"}
	p.Volumes["secrets"] = podpolicy.Volume{
		Kind:      podpolicy.VolumeFiles,
		Pinned:    map[string]string{"conf.d/app.conf": "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"},
		Sealed:    map[string]string{"password": "sealed.aGVhZA.cGF5bG9hZA.c2ln"},
		Resources: map[string]string{"tls/key.pem": "kbs:///shop/tls/key", "tls/far.pem": "kbs://far-away/shop/tls/key"},
		Host:      &podpolicy.HostFiles{Names: []string{"tls/ca.crt"}, MaxBytes: 1 << 16, Mode: "0444"},
		Mode:      "0440", Modes: map[string]string{"password": "0400", "tls/ca.crt": "444"}, Group: new(uint32(2000)),
	}
	scratch := p.Volumes["scratch"]
	scratch.Group = new(uint32(2000))
	p.Volumes["scratch"] = scratch
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}
