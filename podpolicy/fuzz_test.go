package podpolicy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

func FuzzParse(f *testing.F) {
	f.Add(document(f))
	f.Add([]byte(`{"apiVersion":"coffer/v1","kind":"PodPolicy","pod":{"name":"a"},"containers":[{"name":"a","image":{"digest":"` + webDigest + `","from":["r.example/a"]}}],"network":{"dns":{"servers":[]},"hosts":{"entries":[]}}}`))
	if everything, err := everythingPolicy(f).Canonical(); err == nil {
		f.Add(everything)
	}
	f.Add([]byte(`{"pod":{"name":{"match":"*"}},"volumes":{"a":{"kind":"files","pinned":{}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := podpolicy.Parse(data)
		if err != nil {
			if p != nil {
				t.Error("a policy beside an error")
			}
			return
		}
		first, err := p.Canonical()
		if err != nil {
			t.Fatalf("a policy that was read has no canonical form: %v", err)
		}
		again, err := podpolicy.Parse(first)
		if err != nil {
			t.Fatalf("the canonical form is refused: %v\n%s", err, first)
		}
		if second, err := again.Canonical(); err != nil || !bytes.Equal(first, second) {
			t.Errorf("canonical is not idempotent: %v\n%s\n%s", err, first, second)
		}
		g := podpolicy.NewGuard(p)
		_, err = g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "a", PodNamespace: "a", Hostname: "a"})
		if r, ok := errors.AsType[*podpolicy.Refusal](err); ok && r.Rule == podpolicy.RulePolicyInvalid {
			t.Errorf("a valid policy is not: %v", err)
		}
	})
}

// proposals is what a fuzzer makes of the host: calls in any order with any
// arguments.
type proposals struct {
	Sandbox    podpolicy.SandboxProposal
	Containers []podpolicy.ContainerProposal
	Execs      []podpolicy.ExecProposal
	Image      podpolicy.ImageConfig
	Files      map[string]uint64
	Calls      []byte
}

func FuzzGuard(f *testing.F) {
	for _, q := range []proposals{
		{sandboxProposal(), []podpolicy.ContainerProposal{webProposal()}, []podpolicy.ExecProposal{{ID: "e", Args: []string{"/healthz"}}}, webImage(), map[string]uint64{"config": 1}, []byte{0, 1, 2, 3, 4, 5}},
		{podpolicy.SandboxProposal{ID: "s"}, []podpolicy.ContainerProposal{{ID: "i", Name: "migrate"}, {ID: "m", Name: "mesh"}}, nil, podpolicy.ImageConfig{Digest: migrateDigest, Cmd: []string{"x"}}, nil, []byte{0, 8, 16}},
	} {
		data, err := json.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, true)
		f.Add(data, false)
	}
	policy := webPolicy(f)
	f.Fuzz(func(t *testing.T, data []byte, sealed bool) {
		var q proposals
		if json.Unmarshal(data, &q) != nil {
			return
		}
		g := podpolicy.NewUnsealedGuard()
		if sealed {
			g = podpolicy.NewGuard(policy)
		}
		check := func(err error) {
			if err == nil {
				return
			}
			if r, ok := errors.AsType[*podpolicy.Refusal](err); !ok || r.Rule == "" || len(err.Error()) > 8192 {
				t.Errorf("not a bounded refusal: %q", err)
			}
		}
		_, err := g.Sandbox(q.Sandbox)
		check(err)
		for volume, version := range q.Files {
			u, err := g.PutFiles(volume, version)
			check(err)
			if err == nil {
				_, err = u.File("app.conf", int64(version))
				check(err)
				check(u.Commit(published))
			}
		}
		for _, c := range q.Containers {
			a, err := g.Admit(c)
			check(err)
			if err != nil {
				continue
			}
			q.Image.Digest = a.Image().Digest
			config, err := a.Configure(q.Image)
			check(err)
			if err != nil {
				continue
			}
			if sealed && (config.Name == "web" && (config.Args[0] != "/web" || config.Cwd != "/srv" || config.Image.Digest != webDigest) || config.Terminal) {
				t.Errorf("the host has changed the container: %+v", config)
			}
			check(g.Started(c.ID, ""))
			for _, e := range q.Execs {
				config, err := g.Exec(c.ID, e)
				check(err)
				if err == nil && sealed && config.Args[0] != "/healthz" && config.Args[0] != "/bin/sh" {
					t.Errorf("a command of the host's: %+v", config)
				}
			}
			for _, n := range q.Calls {
				check(g.Signal(c.ID, "", uint32(n)))
				g.Stream(c.ID, "", podpolicy.StreamKind(n))
			}
			check(g.Exited(c.ID, "", len(q.Calls)))
		}
	})
}

func FuzzResolveUser(f *testing.F) {
	f.Add("app:www", []byte("app:x:1:2::/:\n"), []byte("www:x:3:app\n"))
	f.Add("", []byte("root:x:0:0::/:"), []byte("bin:x:1:root"))
	f.Add("7:8", []byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, spec string, passwd, group []byte) {
		u, err := podpolicy.ResolveUser(spec, passwd, group)
		if err != nil && (u.UID != 0 || u.GID != 0 || u.Groups != nil) {
			t.Errorf("%+v beside %v", u, err)
		}
		if u.UID == 1<<32-1 || u.GID == 1<<32-1 || len(u.Groups) > 256 {
			t.Errorf("got %+v", u)
		}
	})
}
