package podpolicy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// marker is in every value that a hostile proposal brings; it is a legal value
// of every slot.
const marker = "h0stile"

// fieldChanges says, for every field of the proposals, what a changed value
// leads to: the path of its refusal, or "" where the field is the host's to
// choose, with the reason.
func containerChanges() map[string]map[string]func(*podpolicy.ContainerProposal) {
	type q = *podpolicy.ContainerProposal
	return map[string]map[string]func(*podpolicy.ContainerProposal){
		"ID":    {"id": func(p q) { p.ID = marker + "/" }},
		"Name":  {"name": func(p q) { p.Name = marker }},
		"Image": {"image": func(p q) { p.Image = "registry.example/" + marker }},
		"Args": {
			"args[0]": func(p q) { (*p.Args)[0] = marker },
			"args[1]": func(p q) { (*p.Args)[1] = marker },
			"args[2]": func(p q) { *p.Args = append(*p.Args, marker) },
		},
		"Env": {
			"env.MODE":        func(p q) { replaceEnv(*p, "MODE", marker) },
			"env.PATH":        func(p q) { replaceEnv(*p, "PATH", marker) },
			"env.DB_PASSWORD": func(p q) { replaceEnv(*p, "DB_PASSWORD", marker) },
			"env.KEY":         func(p q) { replaceEnv(*p, "KEY", marker) },
			"env.RELEASE":     func(p q) { replaceEnv(*p, "RELEASE", marker) },
			"env.POD_IP":      func(p q) { replaceEnv(*p, "POD_IP", marker) },
			"env.NODE":        func(p q) { replaceEnv(*p, "NODE", marker) },
			"env." + marker:   func(p q) { replaceEnv(*p, marker, "1") },
			"env[9]":          func(p q) { *p.Env = append(*p.Env, "MODE=prod", "x") },
		},
		"User": {
			"user.uid":    func(p q) { p.User.UID++ },
			"user.gid":    func(p q) { p.User.GID++ },
			"user.groups": func(p q) { p.User.Groups = append(p.User.Groups, 7) },
		},
		"Cwd": {"cwd": func(p q) { p.Cwd = new("/" + marker) }},
		"Mounts": {
			"mounts[0].path":     func(p q) { p.Mounts[0].Path = "/" + marker },
			"mounts[0].volume":   func(p q) { p.Mounts[0].Volume = marker },
			"mounts[0].readOnly": func(p q) { p.Mounts[0].ReadOnly = true },
			"mounts[0].subPath":  func(p q) { p.Mounts[0].SubPath = marker },
		},
		"Terminal": {"terminal": func(p q) { p.Terminal = true }},
		// web allows stdin; mesh, below, does not.
		"Stdin": {"": func(p q) { p.Stdin = false }},
		"Resources": {
			"resources.memory": func(p q) { p.Resources.MemoryBytes++ },
			"resources.pids":   func(p q) { p.Resources.PIDs++ },
			"resources.cpu":    func(p q) { p.Resources.CPUMillis = 0 },
		},
		"Security": {
			"security.capabilities":      func(p q) { p.Security.Capabilities = append(p.Security.Capabilities, "CAP_SYS_ADMIN") },
			"security.capabilities[1]":   func(p q) { p.Security.Capabilities = append(p.Security.Capabilities, "CAP_"+marker) },
			"security.noNewPrivileges":   func(p q) { p.Security.NoNewPrivileges = false },
			"security.readOnlyRoot":      func(p q) { p.Security.ReadOnlyRoot = !p.Security.ReadOnlyRoot },
			"security.unmasked":          func(p q) { p.Security.Unmasked = true },
			"security.rlimits":           func(p q) { p.Security.RLimits["RLIMIT_"+marker] = podpolicy.RLimit{} },
			"security.rlimits.RLIMIT_AS": func(p q) { p.Security.RLimits["RLIMIT_AS"] = podpolicy.RLimit{Soft: 2, Hard: 1} },
			// The node's own, which a sealed pod does not have.
			"": func(p q) { p.Security.RLimits["RLIMIT_NOFILE"] = podpolicy.RLimit{Soft: 1, Hard: 1} },
		},
		"Volumes": {
			"volumes[0].name": func(p q) { p.Volumes[0].Name = marker },
			"volumes[0].kind": func(p q) { p.Volumes[0].Kind = podpolicy.ClaimFiles },
			"volumes[1].kind": func(p q) { p.Volumes[1].Kind = marker },
			"volumes[2].name": func(p q) { p.Volumes = append(p.Volumes, p.Volumes[0]) },
			// Size, medium and owner are the policy's, whatever the host says.
			"": func(p q) {
				p.Volumes[0] = podpolicy.VolumeClaim{Name: "scratch", Kind: podpolicy.ClaimMemory, SizeBytes: 7, Group: new(uint32(7))}
			},
		},
		"Devices": {"devices[0].path": func(p q) { p.Devices = []podpolicy.Device{{Path: "/dev/" + marker, Volume: "scratch"}} }},
		"TerminationPath": {
			"terminationMessagePath": func(p q) { p.TerminationPath = "/etc/" + marker },
		},
		"JoinPIDs": {"joinPIDs": func(p q) { p.JoinPIDs = true }},
		"Slots": {
			"slots.ip":        func(p q) { p.Slots["ip"] = marker },
			"slots." + marker: func(p q) { p.Slots[marker] = marker },
			// A legal value of a slot that the container does not use is dropped.
			"": func(p q) { p.Slots["serviceAccount"] = marker },
		},
	}
}

func TestPropertyChangedContainerFieldIsRefused(t *testing.T) {
	t.Parallel()
	changes := containerChanges()
	typ := reflect.TypeFor[podpolicy.ContainerProposal]()
	for i := range typ.NumField() {
		if len(changes[typ.Field(i).Name]) == 0 {
			t.Errorf("nobody has decided what a changed %s leads to", typ.Field(i).Name)
		}
	}
	base := configure(t, webProposal())
	for field, cases := range changes {
		for path, change := range cases {
			t.Run(field+" "+path, func(t *testing.T) {
				t.Parallel()
				g := readyGuard(t, webPolicy(t))
				q := webProposal()
				change(&q)
				a, err := g.Admit(q)
				var c *podpolicy.ContainerConfig
				if err == nil {
					c, err = a.Configure(webImage())
				}
				if path != "" {
					if err == nil {
						t.Fatalf("accepted: %+v", c)
					}
					refused(t, err, ruleOf(err), path)
					return
				}
				ok(t, err)
				c.Stdin = base.Stdin
				if !reflect.DeepEqual(c, base) {
					t.Errorf("the effective configuration differs: %+v", c)
				}
			})
		}
	}
}

func configure(t testing.TB, q podpolicy.ContainerProposal) *podpolicy.ContainerConfig {
	t.Helper()
	g := readyGuard(t, webPolicy(t))
	return must[*podpolicy.ContainerConfig](t)(must[*podpolicy.Admission](t)(g.Admit(q)).Configure(webImage()))
}

func TestPropertyChangedSandboxFieldIsRefused(t *testing.T) {
	t.Parallel()
	type q = *podpolicy.SandboxProposal
	changes := map[string]map[string]func(*podpolicy.SandboxProposal){
		"ID":           {"id": func(p q) { p.ID = "a b" }},
		"PodName":      {"podName": func(p q) { p.PodName = marker }},
		"PodNamespace": {"podNamespace": func(p q) { p.PodNamespace = marker }},
		// Slots: any value in form is the host's to choose.
		"PodUID":   {"podUID": func(p q) { p.PodUID = marker + "/" }, "": func(p q) { p.PodUID = marker }},
		"Hostname": {"hostname": func(p q) { p.Hostname = marker + "/" }},
		"NodeName": {"nodeName": func(p q) { p.NodeName = marker + "/" }, "": func(p q) { p.NodeName = marker }},
		"Network":  {"network.interfaces[0].name": func(p q) { p.Network.Interfaces[0].Name = marker + "/" }},
		"Sysctls": {
			`sysctls["net.core.somaxconn"]`: func(p q) { p.Sysctls["net.core.somaxconn"] = marker },
			"sysctls." + marker:             func(p q) { p.Sysctls[marker] = marker },
		},
		"SharePID": {"sharePID": func(p q) { p.SharePID = true }},
	}
	typ := reflect.TypeFor[podpolicy.SandboxProposal]()
	for i := range typ.NumField() {
		if len(changes[typ.Field(i).Name]) == 0 {
			t.Errorf("nobody has decided what a changed %s leads to", typ.Field(i).Name)
		}
	}
	base := must[*podpolicy.SandboxConfig](t)(podpolicy.NewGuard(webPolicy(t)).Sandbox(sandboxProposal()))
	for _, cases := range changes {
		for path, change := range cases {
			p := sandboxProposal()
			change(&p)
			c, err := podpolicy.NewGuard(webPolicy(t)).Sandbox(p)
			if path != "" {
				if err == nil {
					t.Errorf("%s: accepted: %+v", path, c)
					continue
				}
				refused(t, err, ruleOf(err), path)
			} else if err != nil || !reflect.DeepEqual(c, base) {
				t.Errorf("the effective configuration differs: %+v %v", c, err)
			}
		}
	}
}

// Whatever a proposal says, the effective configuration holds nothing that is in
// neither the policy, nor the image, nor an open slot.
func TestPropertyNothingElseGetsIn(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for range 800 {
		g := readyGuard(t, webPolicy(t))
		q := hostileProposal(rng)
		a, err := g.Admit(q)
		if err != nil {
			continue
		}
		c, err := a.Configure(webImage())
		if err != nil {
			continue
		}
		accepted++
		checkOrigin(t, q, c)
	}
	if accepted < 100 {
		t.Errorf("only %d proposals were accepted: the test shows little", accepted)
	}
}

// hostileProposal is the legal proposal with some of its fields left out and
// some changed.
func hostileProposal(rng *rand.Rand) podpolicy.ContainerProposal {
	q := webProposal()
	changes := containerChanges()
	for range rng.IntN(2) {
		field := pick(rng, slices.Sorted(maps.Keys(changes)))
		changes[field][pick(rng, slices.Sorted(maps.Keys(changes[field])))](&q)
	}
	if rng.IntN(2) == 0 {
		replaceEnv(q, "RELEASE", "r-"+marker)
		replaceEnv(q, "DB_SERVICE_HOST", fmt.Sprintf("10.9.%d.1", rng.IntN(256)))
	}
	if rng.IntN(3) == 0 {
		q.Args = nil
	}
	if rng.IntN(3) == 0 {
		q.User, q.Cwd, q.Mounts = nil, nil, nil
	}
	return q
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// checkOrigin compares a configuration with what policy and image alone give,
// and what is left with the slots.
func checkOrigin(t *testing.T, q podpolicy.ContainerProposal, c *podpolicy.ContainerConfig) {
	t.Helper()
	open := map[string]bool{"POD_IP": true, "NODE": true, "RELEASE": true, "DB_SERVICE_HOST": true, "DB_SERVICE_PORT": true}
	rest := *c
	rest.Env = nil
	for _, v := range c.Env {
		if !open[v.Name] {
			rest.Env = append(rest.Env, v)
		}
	}
	data, err := json.Marshal(rest)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Replace(string(data), q.ID, "", 1), marker) {
		t.Errorf("%s got in: %s", marker, data)
	}
	want := configure(t, webProposal())
	if !slices.Equal(c.Args, want.Args) || !reflect.DeepEqual(c.Mounts, want.Mounts) || !reflect.DeepEqual(c.User, want.User) || c.Cwd != want.Cwd ||
		!slices.Equal(c.Capabilities, want.Capabilities) || c.Image.Digest != want.Image.Digest || len(c.Env) != len(want.Env) || c.Limits != want.Limits ||
		c.NoNewPrivileges != want.NoNewPrivileges || c.ReadOnlyRoot != want.ReadOnlyRoot || c.Seccomp != want.Seccomp || c.Unmasked || c.RLimits != nil {
		t.Errorf("the configuration depends on the proposal: %+v", c)
	}
}

// Under any order of calls: at most one live instance of a container, starts by
// the restart rule, and no app container before the init containers' success.
func TestPropertyLifecycle(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		lifecycle(t, rand.New(rand.NewPCG(seed, 7)))
	}
}

func lifecycle(t *testing.T, rng *rand.Rand) {
	p := simplePolicy()
	p.Containers[0].Allow.Restarts = podpolicy.RestartOnFailure
	setup := p.Containers[0]
	setup.Name, setup.Role = "setup", podpolicy.RoleInit
	setup.Allow.Restarts = podpolicy.RestartOnFailure
	once := p.Containers[0]
	once.Name, once.Allow.Restarts = "once", podpolicy.RestartNever
	p.Containers = append(p.Containers, setup, once)
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))

	names := []string{"one", "setup", "once"}
	admissions := map[string]*podpolicy.Admission{}
	owner := map[string]string{}
	running := map[string]string{}
	starts := map[string]int{}
	failed := map[string]bool{}
	setupDone := false
	for range 200 {
		id := pick(rng, []string{"a", "b", "c", "d"})
		switch rng.IntN(5) {
		case 0:
			name := pick(rng, names)
			a, err := g.Admit(podpolicy.ContainerProposal{ID: id, Name: name})
			if err != nil {
				continue
			}
			if name != "setup" && !setupDone {
				t.Fatal("an app container was admitted before the init container had succeeded")
			}
			if starts[name] > 0 && (name == "once" || !failed[name]) {
				t.Fatalf("%s was admitted again against its restart rule", name)
			}
			admissions[id], owner[id] = a, name
		case 1:
			if a := admissions[id]; a != nil {
				_, _ = a.Configure(podpolicy.ImageConfig{Digest: webDigest})
			}
		case 2:
			if g.Started(id, "") == nil {
				if other, live := running[owner[id]]; live {
					t.Fatalf("%s and %s of %s run at once", id, other, owner[id])
				}
				running[owner[id]] = id
				starts[owner[id]]++
			}
		case 3:
			code := rng.IntN(2)
			if g.Exited(id, "", code) == nil {
				delete(running, owner[id])
				failed[owner[id]] = code != 0
				setupDone = setupDone || owner[id] == "setup" && code == 0
			}
		case 4:
			if g.Deleted(id, "") == nil && running[owner[id]] == id {
				t.Fatalf("%s was deleted while it ran", id)
			}
		}
	}
}

// A refused proposal changes nothing.
func TestPropertyRefusalChangesNothing(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	for _, cases := range containerChanges() {
		for path, change := range cases {
			if path == "" {
				continue
			}
			q := webProposal()
			change(&q)
			if a, err := g.Admit(q); err == nil {
				if _, err := a.Configure(webImage()); err == nil {
					t.Fatalf("%s: accepted", path)
				}
				ok(t, g.Deleted(q.ID, ""))
			}
		}
	}
	start(t, g, webProposal(), webImage())
}

// What the host is told holds no value.
func TestPropertyPublicRefusalHasNoValues(t *testing.T) {
	t.Parallel()
	r := &podpolicy.Refusal{Rule: "r", Path: "p", Expected: "e", Got: "g", Help: "h"}
	if got := *r.Public(); got != (podpolicy.Refusal{Rule: "r", Path: "p"}) {
		t.Errorf("got %+v", got)
	}
}

// ruleOf is the rule of a refusal, empty for another error.
func ruleOf(err error) string {
	if r, ok := errors.AsType[*podpolicy.Refusal](err); ok {
		return r.Rule
	}
	return ""
}
