package podpolicy_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/google/go-cmp/cmp"
)

func source() podpolicy.Source {
	return podpolicy.Source{Name: "registry.example/shop/My_App:v1", Digest: webDigest, From: []string{"registry.example/shop/my_app"}, Config: webImage()}
}

func TestFromImage(t *testing.T) {
	t.Parallel()
	p, err := podpolicy.FromImage(source(), podpolicy.Flags{
		Args: &[]string{"x"}, Env: map[string]string{"A": "1"}, Secrets: map[string]string{"K": "kbs:///a/b/c", "S": "sealed.a.b.c"},
		User: &podpolicy.User{UID: 1, GID: 2}, Cwd: "/w", Terminal: true, Stdin: true, Logs: true, MemoryBytes: 1 << 30, CPUMillis: 1500,
		Exec: []podpolicy.ExecRule{{Args: []string{"/healthz"}}}, Signals: []string{"SIGHUP"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := podpolicy.Container{
		Name: "my-app", Role: podpolicy.RoleApp, Image: podpolicy.Image{Digest: webDigest, From: []string{"registry.example/shop/my_app"}},
		Args: []string{"/entry", "x"}, Cwd: "/w", User: &podpolicy.User{UID: 1, GID: 2}, Terminal: true, Seccomp: podpolicy.SeccompDefault,
		Env:          map[string]podpolicy.EnvValue{"A": podpolicy.Literal("1"), "K": {Resource: "kbs:///a/b/c"}, "S": {Sealed: "sealed.a.b.c"}},
		Capabilities: podpolicy.DefaultCapabilities(),
		Allow:        podpolicy.Allow{Exec: []podpolicy.ExecRule{{Args: []string{"/healthz"}}}, Logs: true, Stdin: true, Signals: []string{"SIGHUP"}, Restarts: podpolicy.RestartNever},
		Limits:       podpolicy.Limits{Memory: podpolicy.Memory{Bytes: 1 << 30}, CPUs: podpolicy.CPUs{Millis: 1500}},
	}
	if diff := cmp.Diff(want, p.Containers[0], cmp.AllowUnexported(podpolicy.Image{}, podpolicy.Container{})); diff != "" {
		t.Error(diff)
	}
	first, err1 := p.Canonical()
	parsed, err2 := podpolicy.Parse(first)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if second, _ := parsed.Canonical(); !bytes.Equal(first, second) {
		t.Error("the policy changes when it is read back")
	}

	// A guard with the policy runs the image as its maker meant it.
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s", Network: sandboxProposal().Network}))
	c := start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "my-app", Terminal: true, Stdin: true, Image: "registry.example/shop/my_app:v1"}, webImage())
	if !c.NoNewPrivileges || strings.Join(c.Args, " ") != "/entry x" {
		t.Errorf("got %+v", c)
	}
}

func TestFromImageDefaults(t *testing.T) {
	t.Parallel()
	p := must[*podpolicy.Policy](t)(podpolicy.FromImage(source(), podpolicy.Flags{}))
	c := p.Containers[0]
	if strings.Join(c.Args, " ") != "/entry serve" || c.Allow.Logs || c.Allow.Stdin || len(c.Env) != 0 || c.User != nil {
		t.Errorf("got %+v", c)
	}
}

func TestFromImageRefuses(t *testing.T) {
	t.Parallel()
	for problem, change := range map[string]func(*podpolicy.Source, *podpolicy.Flags){
		"neither entrypoint nor command": func(s *podpolicy.Source, _ *podpolicy.Flags) { s.Config.Entrypoint, s.Config.Cmd = nil, nil },
		"image.digest":                   func(s *podpolicy.Source, _ *podpolicy.Flags) { s.Digest = "" },
		"image.from":                     func(s *podpolicy.Source, _ *podpolicy.Flags) { s.From = nil },
		"secret variable \"K\"":          func(_ *podpolicy.Source, f *podpolicy.Flags) { f.Secrets = map[string]string{"K": "hunter2"} },
		"as a literal and as a secret": func(_ *podpolicy.Source, f *podpolicy.Flags) {
			f.Env, f.Secrets = map[string]string{"K": "x"}, map[string]string{"K": "kbs:///a/b/c"}
		},
		"limits.cpus":    func(_ *podpolicy.Source, f *podpolicy.Flags) { f.CPUMillis = 1 << 31 },
		"allow.restarts": func(_ *podpolicy.Source, f *podpolicy.Flags) { f.Restarts = "sometimes" },
	} {
		src, flags := source(), podpolicy.Flags{}
		change(&src, &flags)
		_, err := podpolicy.FromImage(src, flags)
		if err == nil || !strings.Contains(err.Error(), problem) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("want %q, got %v", problem, err)
		}
	}
}

func TestFromImageNames(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"busybox": "busybox", "r.example:5000/a/b_c@sha256:00": "b-c", "ä": "container", "": "container", "a/" + strings.Repeat("x", 80): strings.Repeat("x", 63), "./dir/": "container",
	} {
		src := source()
		src.Name = in
		p, err := podpolicy.FromImage(src, podpolicy.Flags{})
		if err != nil || p.Containers[0].Name != want {
			t.Errorf("%q: got %v, want %s", in, err, want)
		}
	}
}

func TestResolveUser(t *testing.T) {
	t.Parallel()
	passwd := []byte("# comment\nroot:x:0:0:root:/root:/bin/sh\napp:x:100:101::/:/bin/sh\nbad:x:5:five::/:\nbroken\n200:x:300:301::/:/bin/sh\r\n")
	group := []byte("root:x:0:root\nbin:x:1:root,daemon\nwww:x:33:app,other\nstaff:x:50:app\nnone:x:60:\n")
	for spec, want := range map[string]podpolicy.User{
		"":          {UID: 0, GID: 0, Groups: []uint32{0, 1}},
		"root":      {UID: 0, GID: 0, Groups: []uint32{0, 1}},
		"0":         {UID: 0, GID: 0, Groups: []uint32{0, 1}},
		"app":       {UID: 100, GID: 101, Groups: []uint32{33, 50}},
		"100":       {UID: 100, GID: 101, Groups: []uint32{33, 50}},
		"app:www":   {UID: 100, GID: 33},
		"app:7":     {UID: 100, GID: 7},
		"1234":      {UID: 1234},
		"1234:5678": {UID: 1234, GID: 5678},
		"1234:www":  {UID: 1234, GID: 33},
		"200":       {UID: 300, GID: 301},
	} {
		got, err := podpolicy.ResolveUser(spec, passwd, group)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", spec, err, diff)
		}
	}
	for _, spec := range []string{"nobody", "app:nogroup", ":", "app:", ":www", "4294967295", "4294967296", "bad", "-1", "app:www:x", "0x10"} {
		if got, err := podpolicy.ResolveUser(spec, passwd, group); err == nil {
			t.Errorf("%q: got %+v", spec, got)
		}
	}
	for _, spec := range []string{"", "0", "7:8"} {
		if _, err := podpolicy.ResolveUser(spec, nil, nil); err != nil {
			t.Errorf("%q without files: %v", spec, err)
		}
	}
	if _, err := podpolicy.ResolveUser("", bytes.Repeat([]byte("x"), 2<<20), nil); err == nil {
		t.Error("a huge passwd is read")
	}
}
