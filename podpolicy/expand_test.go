package podpolicy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

func TestExpand(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"A": "1", "B": "$(A)", "EMPTY": "", "$": "dollar", "a.b": "dots"}
	lookup := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	// The cases that Kubernetes documents, and what follows from them.
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "1", "x$(A)y$(A)": "x1y1", "$(NOBODY)": "$(NOBODY)", "$$(A)": "$(A)", "$$$(A)": "$1", "$$$$(A)": "$$(A)",
		"$(B)": "$(A)", "$": "$", "$$": "$", "a$": "a$", "$A": "$A", "${A}": "${A}", "$(A": "$(A", "$(A $(A)": "$(A $(A)", "$()": "$()", "$(EMPTY)": "",
		"$($)": "dollar", "$(a.b)": "dots", "$x$(A)": "$x1", "$(A)$": "1$", ")$(A)(": ")1(", "$(NOBODY)$$(A)": "$(NOBODY)$(A)",
	} {
		if got := podpolicy.Expand(in, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("a$(A)$$(B)$", "v$(A)")
	f.Add("$($(A))", "")
	f.Fuzz(func(t *testing.T, s, value string) {
		if got := podpolicy.Expand(strings.ReplaceAll(s, "$", "$$"), nil); got != s {
			t.Errorf("escaped %q becomes %q", s, got)
		}
		references := 0
		got := podpolicy.Expand(s, func(string) (string, bool) { references++; return value, true })
		if len(got) > len(s)+references*len(value) {
			t.Errorf("%d bytes of %d references", len(got), references)
		}
	})
}

// referring is a container whose arguments and variables refer to others.
func referring() *podpolicy.Policy {
	p := simplePolicy()
	c := &p.Containers[0]
	c.Args = []string{"/one", "--ip=$(IP)", "$(URL)", "$(PATH) $$(IP)", "--key=$(KEY)", "$(DSN)"}
	c.ExpandArgs = true
	c.Env = map[string]podpolicy.EnvValue{
		"IP":  {Host: podpolicy.SlotIP},
		"KEY": {Resource: "kbs:///a/b/c"},
		"PW":  {Sealed: "sealed.a.b.c"},
		"URL": {Expand: "http://$(IP):$(PORT)/$$x"},
		"DSN": {Expand: "db://u:$(PW)@$(IP)/$(LITERAL)$$$(PATH)$(DB_SERVICE_HOST)"},
		"ALL": {Expand: "$(LITERAL)"}, "LITERAL": podpolicy.Literal("a$(IP)$$b"),
	}
	c.ServiceEnv = []string{"db"}
	return p
}

func referringProposal() podpolicy.ContainerProposal {
	return podpolicy.ContainerProposal{
		ID: "c", Name: "one",
		Args: &[]string{"/one", "--ip=10.0.0.1", "http://10.0.0.1:$(PORT)/$x", "$(PATH) $(IP)", "--key=$(KEY)", "whatever the host has made"},
		Env: &[]string{"IP=10.0.0.1", "PW=sealed.a.b.c", "URL=http://10.0.0.1:$(PORT)/$x", "DSN=db://u:sealed.a.b.c@10.0.0.1", "ALL=a$(IP)$$b", "LITERAL=a$(IP)$$b",
			"DB_SERVICE_HOST=10.96.0.9", "PATH=/image"},
	}
}

func TestReferencesAreReplaced(t *testing.T) {
	t.Parallel()
	img := podpolicy.ImageConfig{Digest: webDigest, Env: []string{"PATH=/image"}}
	g := podpolicy.NewGuard(referring())
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	c := start(t, g, referringProposal(), img)
	env := map[string]podpolicy.EnvVar{}
	for _, v := range c.Env {
		env[v.Name] = v
	}
	if v := env["URL"]; v.Value != "http://10.0.0.1:$(PORT)/$x" || v.Expand != "" {
		t.Errorf("URL is %+v", v)
	}
	if v := env["ALL"]; v.Value != "a$(IP)$$b" {
		t.Errorf("what is put in was looked at again: %+v", v)
	}
	if !c.ExpandArgs || env["DSN"].Value != "" {
		t.Fatalf("the secrets are not waited for: %+v", c)
	}
	// The agent finishes with all that it has, the image's variables too.
	final := map[string]string{"PW": "geheim$(KEY)", "KEY": "k$$", "IP": "wrong", "PATH": "/image", "LITERAL": "wrong", "URL": "wrong", "DB_SERVICE_HOST": "wrong"}
	lookup := func(name string) (string, bool) { v, ok := final[name]; return v, ok }
	final["DSN"] = podpolicy.Expand(env["DSN"].Expand, lookup)
	if want := "db://u:geheim$(KEY)@10.0.0.1/a$(IP)$$b$$(PATH)10.96.0.9"; final["DSN"] != want {
		t.Errorf("DSN is %q, want %q", final["DSN"], want)
	}
	var args []string
	for _, a := range c.Args {
		args = append(args, podpolicy.Expand(a, lookup))
	}
	want := []string{"/one", "--ip=10.0.0.1", "http://10.0.0.1:$(PORT)/$x", "$(PATH) $(IP)", "--key=k$$", final["DSN"]}
	if !slices.Equal(args, want) {
		t.Errorf("got %q, want %q", args, want)
	}

	// Without secrets nothing is left to do.
	p := referring()
	p.Containers[0].Args = p.Containers[0].Args[:4]
	g = podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	q := referringProposal()
	*q.Args = (*q.Args)[:4]
	if c := start(t, g, q, img); c.ExpandArgs || !slices.Equal(c.Args, want[:4]) {
		t.Errorf("got %q", c.Args)
	}
}

// What the host has expanded must be what the guest makes of it, but for
// secrets, which it cannot know.
func TestReferencesAreCompared(t *testing.T) {
	t.Parallel()
	for path, change := range map[string]func(*podpolicy.ContainerProposal){
		"args[1]": func(q *podpolicy.ContainerProposal) { (*q.Args)[1] = "--ip=10.0.0.2" },
		"args[3]": func(q *podpolicy.ContainerProposal) { (*q.Args)[3] = "/image $(IP)" },
		"args[5]": func(q *podpolicy.ContainerProposal) { *q.Args = (*q.Args)[:5] },
		"args[6]": func(q *podpolicy.ContainerProposal) { *q.Args = append(*q.Args, "x") },
		"env.URL": func(q *podpolicy.ContainerProposal) { replaceEnv(*q, "URL", "http://10.0.0.1:$(PORT)/") },
		"env.ALL": func(q *podpolicy.ContainerProposal) { replaceEnv(*q, "ALL", "a10.0.0.1$b") },
		"env.PW":  func(q *podpolicy.ContainerProposal) { replaceEnv(*q, "PW", "sealed.a.b.d") },
		"":        func(q *podpolicy.ContainerProposal) { replaceEnv(*q, "DSN", "anything"); (*q.Args)[4] = "x" },
	} {
		g := podpolicy.NewGuard(referring())
		must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
		q := referringProposal()
		change(&q)
		_, err := must[*podpolicy.Admission](t)(g.Admit(q)).Configure(podpolicy.ImageConfig{Digest: webDigest, Env: []string{"PATH=/image"}})
		if path == "" {
			ok(t, err)
			continue
		}
		refused(t, err, ruleOf(err), path)
	}
	// What a slot brings does not become longer than an argument list may be.
	p := simplePolicy()
	long := strings.Repeat("x", 4<<10)
	p.Containers[0].Env = map[string]podpolicy.EnvValue{"LONG": podpolicy.Literal(long), "LONGER": {Expand: strings.Repeat("$(LONG)", 64)}}
	p.Containers[0].Args, p.Containers[0].ExpandArgs = []string{"/one", "$(LONGER)"}, true
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	_, err := must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"})).Configure(podpolicy.ImageConfig{Digest: webDigest})
	refused(t, err, podpolicy.RuleContainerArgs, "args")
	p.Containers[0].Env["LONG"] = podpolicy.Literal(long + "x")
	g = podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	_, err = must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one"})).Configure(podpolicy.ImageConfig{Digest: webDigest})
	refused(t, err, podpolicy.RuleContainerEnv, "env.LONGER")
}
