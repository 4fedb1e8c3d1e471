package podpolicy_test

import (
	"fmt"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// benchGuard holds a pod of ten containers with 40 variables each, all running
// but the last, and returns the proposal and image of that one.
func benchGuard(b *testing.B) (*podpolicy.Guard, podpolicy.ContainerProposal, podpolicy.ImageConfig) {
	b.Helper()
	p := simplePolicy()
	p.Containers = nil
	p.Volumes = map[string]podpolicy.Volume{
		"scratch": {Kind: podpolicy.VolumeEphemeral},
		"config":  {Kind: podpolicy.VolumeFiles, Host: &podpolicy.HostFiles{MaxBytes: 1 << 20}},
	}
	host := podpolicy.HostFiles{MaxBytes: 1 << 20}
	for i := range 64 {
		host.Names = append(host.Names, fmt.Sprintf("conf.d/%02d.conf", i))
	}
	p.Volumes["config"] = podpolicy.Volume{Kind: podpolicy.VolumeFiles, Host: &host}
	var env []string
	for n := range 10 {
		c := podpolicy.Container{
			Name: fmt.Sprint("c", n), Image: podpolicy.Image{Digest: webDigest, From: []string{"registry.example/shop/web"}},
			Args: []string{"/web", "--port=8080"}, User: &podpolicy.User{UID: 1000, GID: 1000}, Env: map[string]podpolicy.EnvValue{},
			Mounts: []podpolicy.Mount{{Path: "/data", Volume: "scratch"}, {Path: "/etc/app", Volume: "config", ReadOnly: true}},
			Allow:  podpolicy.Allow{Exec: []podpolicy.ExecRule{{Args: []string{"/bin/true"}}, {Args: []string{"/healthz", "--ready"}}}, Signals: []string{"SIGHUP"}, Restarts: podpolicy.RestartAlways},
		}
		env = nil
		for v := range 40 {
			name, value := fmt.Sprintf("VARIABLE_%02d", v), fmt.Sprintf("value of variable %02d", v)
			switch v {
			case 0:
				c.Env[name], value = podpolicy.EnvValue{Host: podpolicy.SlotIP}, "10.0.2.15"
			case 1:
				c.Env[name], value = podpolicy.EnvValue{Expand: "http://$(VARIABLE_00):80/"}, "http://10.0.2.15:80/"
			default:
				c.Env[name] = podpolicy.Literal(value)
			}
			env = append(env, name+"="+value)
		}
		p.Containers = append(p.Containers, c)
	}
	img := podpolicy.ImageConfig{Digest: webDigest, Env: []string{"PATH=/usr/bin:/bin", "LANG=C"}}
	env = append(env, img.Env...)
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](b)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	u := must[*podpolicy.FilesUpdate](b)(g.PutFiles("config", 1))
	for _, name := range host.Names {
		must[uint32](b)(u.File(name, 1))
		ok(b, u.Content(name, 1, [32]byte{}))
	}
	ok(b, u.Commit(published))
	var q podpolicy.ContainerProposal
	for n := range 10 {
		name := fmt.Sprint("c", n)
		q = podpolicy.ContainerProposal{
			ID: "id-" + name, Name: name, Image: "registry.example/shop/web:v1@" + webDigest, Args: new([]string{"/web", "--port=8080"}), Env: new(env),
			User: &podpolicy.User{UID: 1000, GID: 1000, Groups: []uint32{1000}}, Mounts: p.Containers[n].Mounts,
		}
		if n < 9 {
			start(b, g, q, img)
		}
	}
	return g, q, img
}

// BenchmarkAdmitAndConfigure is the whole decision about one container, and the
// one to delete it.
func BenchmarkAdmitAndConfigure(b *testing.B) {
	g, q, img := benchGuard(b)
	b.ReportAllocs()
	for b.Loop() {
		a, err := g.Admit(q)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := a.Configure(img); err != nil {
			b.Fatal(err)
		}
		if err := g.Deleted(q.ID, ""); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExec runs, ends and deletes a command: four decisions.
func BenchmarkExec(b *testing.B) {
	g, _, _ := benchGuard(b)
	q := podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz", "--ready"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Exec("id-c3", q); err != nil {
			b.Fatal(err)
		}
		ok(b, g.Started("id-c3", "e"))
		ok(b, g.Exited("id-c3", "e", 0))
		ok(b, g.Deleted("id-c3", "e"))
	}
}

func BenchmarkSignal(b *testing.B) {
	g, _, _ := benchGuard(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := g.Signal("id-c3", "", 1); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFile is the decision about one name of a files volume of 64.
func BenchmarkFile(b *testing.B) {
	g, _, _ := benchGuard(b)
	b.ReportAllocs()
	for version := uint64(2); b.Loop(); version++ {
		u, err := g.PutFiles("config", version)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := u.File("conf.d/63.conf", 1); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRefusal is a decision that ends at the last variable.
func BenchmarkRefusal(b *testing.B) {
	g, q, img := benchGuard(b)
	*q.Env = append(*q.Env, "ZZZ=1")
	b.ReportAllocs()
	for b.Loop() {
		a, err := g.Admit(q)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := a.Configure(img); err == nil {
			b.Fatal("accepted")
		}
		if err := g.Deleted(q.ID, ""); err != nil {
			b.Fatal(err)
		}
	}
}
