package podpolicy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// The tests of this file are named after the known holes of agent policies that
// filter a host's OCI spec: those of Kata Containers, its forks and Contrast.
// Each shows how the same attempt ends here.

// Hole 1: the image that the guest pulls was not bound to the policy.
func TestHole01GuestPulledImageIsBound(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	for _, image := range []string{
		"registry.example/shop/web@" + otherDigest,
		"registry.example/shop/web:v1@" + otherDigest,
		"registry.example/shop/evil@" + webDigest,
		"evil.example/shop/web@" + webDigest,
		"registry.example/shop/web/x",
		"docker.io/shop/web",
		"web",
		"registry.example.evil.example/shop/web",
		"registry.example/shop/web@sha256:aa",
		otherDigest,
		"registry.example/shop/../evil/web",
		"REGISTRY.example/shop/web ",
	} {
		q := webProposal()
		q.Image = image
		_, err := g.Admit(q)
		refused(t, err, podpolicy.RuleContainerImage, "image")
	}
	// A tag, a mirror that the policy lists and no reference at all select
	// nothing but where the policy's digest comes from.
	for i, image := range []string{"registry.example/shop/web:evil", "mirror.example:5000/shop/web", ""} {
		q := webProposal()
		q.Image, q.ID = image, fmt.Sprint("c", i)
		a := must[*podpolicy.Admission](t)(g.Admit(q))
		if ref := a.Image(); ref.Digest != webDigest || ref.Tag != "" || !strings.HasSuffix(ref.Repository, "/shop/web") {
			t.Errorf("%q pulls %s", image, ref)
		}
		ok(t, g.Deleted(q.ID, ""))
	}
}

// Hole 2: what is checked and what is executed came from different places.
func TestHole02CheckedIsWhatRuns(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	a := must[*podpolicy.Admission](t)(g.Admit(webProposal()))
	// What was unpacked is another image than the one admitted.
	img := webImage()
	for _, digest := range []string{otherDigest, "", migrateDigest} {
		img.Digest = digest
		_, err := a.Configure(img)
		refused(t, err, podpolicy.RuleContainerImage, "image")
		refused(t, g.Started("c1", ""), podpolicy.RuleContainerState, "id")
	}
	c := must[*podpolicy.ContainerConfig](t)(a.Configure(webImage()))
	if c.Image != a.Image() || c.Image.Digest != webDigest {
		t.Errorf("admitted %s, configured %s", a.Image(), c.Image)
	}
	// No second root file system: nothing can be mounted over the first, by
	// the host or by the policy, and a volume put there earlier changes nothing.
	q := webProposal()
	q.ID, q.Mounts = "c2", []podpolicy.Mount{{Path: "/", Volume: "config"}}
	ok(t, g.Deleted("c1", ""))
	_, err := g.Admit(q)
	refused(t, err, podpolicy.RuleContainerMounts, "mounts[0].path")
	p := webPolicy(t)
	web(p).Mounts[0].Path = "/"
	if p.Validate() == nil {
		t.Error("a policy mounts over /")
	}
	// The pod cannot be decided a second time, by another view of it.
	other := sandboxProposal()
	other.SharePID = true
	_, err = g.Sandbox(other)
	refused(t, err, podpolicy.RuleSandboxOnce, "id")
}

// Hole 3 (CVE-2026-41326, GHSA-q49m-57vm-c8cc, GHSA-rh99-wc69-c255): files from
// the host were written through planted links, anywhere in the guest.
func TestHole03FilesAreNamesNotPaths(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("token", 1))
	for _, name := range []string{"../../usr/bin/coffer-agent", "/etc/passwd", "token/../../x", "token/x", "..", ".", "", "token\n", "tok\x00en", "TOKEN", "link", strings.Repeat("a", 254)} {
		_, err := u.File(name, 1)
		refused(t, err, podpolicy.RuleFilesName, "")
	}
	// A pinned volume takes nothing from the host but the pinned bytes.
	u = must[*podpolicy.FilesUpdate](t)(g.PutFiles("config", 1))
	_, err := u.File("extra.conf", 1)
	refused(t, err, podpolicy.RuleFilesName, `files["extra.conf"]`)
	must[uint32](t)(u.File("app.conf", 5))
	refused(t, u.Content("app.conf", 5, [32]byte{}), podpolicy.RuleFilesDigest, `files["app.conf"]`)
}

// Hole 4 (GHSA-fmg6-v47x-52wr): the host mounted any path of the guest.
func TestHole04MountsNameVolumesNotPaths(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	legal := webProposal().Mounts
	for path, mounts := range map[string][]podpolicy.Mount{
		"mounts[0].volume":   {{Path: "/data", Volume: "/run/secrets"}, legal[1]},
		"mounts[1].volume":   {legal[0], {Path: "/etc/app", Volume: "token", ReadOnly: true}},
		"mounts[1].readOnly": {legal[0], {Path: "/etc/app", Volume: "config"}},
		"mounts[2].path":     {legal[0], legal[1], {Path: "/proc/sys", Volume: "scratch"}},
		"mounts[0].path":     {{Path: "/data/../usr/bin", Volume: "scratch"}, legal[1]},
		"mounts":             {legal[0]},
		"mounts[1].path":     {legal[0], legal[0]},
		"mounts[0].subPath":  {{Path: "/data", Volume: "scratch", SubPath: "../.."}, legal[1]},
	} {
		q := webProposal()
		q.Mounts = mounts
		_, err := g.Admit(q)
		refused(t, err, podpolicy.RuleContainerMounts, path)
	}
}

// Hole 5: one container of the policy ran many times, and in any order.
func TestHole05InstancesAndOrder(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	_, err := g.Admit(webProposal())
	refused(t, err, podpolicy.RuleContainerOrder, "name")

	g = readyGuard(t, webPolicy(t))
	start(t, g, webProposal(), webImage())
	q := webProposal()
	q.ID = "c2"
	_, err = g.Admit(q)
	refused(t, err, podpolicy.RuleContainerInstances, "name")
	// A replay of the same request is no second instance either.
	_, err = g.Admit(webProposal())
	refused(t, err, podpolicy.RuleContainerID, "id")
	// The init container has had its turn.
	_, err = g.Admit(podpolicy.ContainerProposal{ID: "i2", Name: "migrate"})
	refused(t, err, podpolicy.RuleContainerRestarts, "name")
}

// Hole 6: a subset was enough, so the host dropped variables and sysctls.
func TestHole06NothingMayBeDropped(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	env := *webProposal().Env
	for i, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "DB_SERVICE_") {
			continue // a slot: what services there are is the cluster's to say
		}
		q := webProposal()
		q.Env = new(append(append([]string{}, env[:i]...), env[i+1:]...))
		a, err := g.Admit(q)
		if err == nil {
			_, err = a.Configure(webImage())
			ok(t, g.Deleted(q.ID, ""))
		}
		rule := podpolicy.RuleContainerEnv
		if name == "RELEASE" {
			rule = podpolicy.RuleSlotMissing
		}
		refused(t, err, rule, "env."+name)
	}
	g = podpolicy.NewGuard(webPolicy(t))
	q := sandboxProposal()
	q.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	_, err := g.Sandbox(q)
	refused(t, err, podpolicy.RulePodSysctls, `sysctls["net.ipv4.ip_forward"]`)
	p := webPolicy(t)
	p.Pod.Sysctls["net.ipv4.ip_forward"] = "0"
	q.Sysctls = map[string]string{"net.core.somaxconn": "1024"}
	_, err = podpolicy.NewGuard(p).Sandbox(q)
	refused(t, err, podpolicy.RulePodSysctls, `sysctls["net.ipv4.ip_forward"]`)
}

// Hole 7: fields of the downward API were wildcards.
func TestHole07SlotsAreTypedAndConstant(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "fe80::1%eth0", "10.0.0.1\nLD_PRELOAD=/x", "10.0.0.1/8", "10.0.0.1,10.0.0.2", "::ffff:127.0.0.1", "255.255.255.255"} {
		q := webProposal()
		q.Slots = map[string]string{"ip": value}
		g := readyGuard(t, webPolicy(t))
		_, err := g.Admit(q)
		refused(t, err, podpolicy.RuleSlotValue, "slots.ip")

		q = webProposal()
		q.Slots = nil
		replaceEnv(q, "POD_IP", value)
		a := must[*podpolicy.Admission](t)(g.Admit(q))
		_, err = a.Configure(webImage())
		refused(t, err, podpolicy.RuleSlotValue, "env.POD_IP")
	}
	// One value in the life of the pod, wherever it is said.
	g := readyGuard(t, webPolicy(t))
	start(t, g, webProposal(), webImage())
	ok(t, g.Exited("c1", "", 0))
	ok(t, g.Deleted("c1", ""))
	for name, value := range map[string]string{"POD_IP": "10.0.2.16", "NODE": "node-2.example"} {
		q := webProposal()
		q.Slots = nil
		replaceEnv(q, name, value)
		a := must[*podpolicy.Admission](t)(g.Admit(q))
		_, err := a.Configure(webImage())
		refused(t, err, podpolicy.RuleSlotChanged, "env."+name)
		ok(t, g.Deleted("c1", ""))
	}
	// A value for one slot does not reach another, nor a name of no slot.
	q := webProposal()
	q.Slots = map[string]string{"env": "x"}
	_, err := g.Admit(q)
	refused(t, err, podpolicy.RuleSlotType, "slots.env")
	// Resource fields are exact, or a slot by name.
	q = webProposal()
	q.Resources.MemoryBytes++
	_, err = g.Admit(q)
	refused(t, err, podpolicy.RuleContainerResources, "resources.memory")
	// Service variables belong to the services named, with values in form.
	for variable, value := range map[string]string{
		"DB_SERVICE_HOST": "localhost", "DB_SERVICE_PORT": "x", "OTHER_SERVICE_HOST": "10.0.0.1", "DB_PORT": "http://10.0.0.1:80",
		"DBX_SERVICE_HOST": "10.0.0.1", "DB_PASSWORD_FILE": "/x", "DB_PORT_80_TCP_X": "1",
	} {
		q := webProposal()
		replaceEnv(q, variable, value)
		a := must[*podpolicy.Admission](t)(g.Admit(q))
		_, err := a.Configure(webImage())
		refused(t, err, podpolicy.RuleContainerEnv, "env."+variable)
		ok(t, g.Deleted("c1", ""))
	}
}

func replaceEnv(q podpolicy.ContainerProposal, name, value string) {
	for i, e := range *q.Env {
		if strings.HasPrefix(e, name+"=") {
			(*q.Env)[i] = name + "=" + value
			return
		}
	}
	*q.Env = append(*q.Env, name+"="+value)
}

// Hole 8: the host chose DNS, routes, /etc/hosts and the service account's
// token. What the policy does not open, it cannot; where it does, the form is
// held to. (Clock, entropy and timing are no matter of a pod policy.)
func TestHole08HostConfiguredFacts(t *testing.T) {
	t.Parallel()
	closed := simplePolicy()
	for rule, network := range map[string]podpolicy.NetworkProposal{
		podpolicy.RuleNetworkDNS:   {DNS: podpolicy.DNSProposal{Servers: []string{"6.6.6.6"}}},
		podpolicy.RuleNetworkHosts: {Hosts: []podpolicy.HostEntry{{Address: "6.6.6.6", Names: []string{"db"}}}},
	} {
		_, err := podpolicy.NewGuard(closed).Sandbox(podpolicy.SandboxProposal{ID: "s", Network: network})
		refused(t, err, rule, "")
	}
	pinned := simplePolicy()
	pinned.Network = podpolicy.Network{DNS: podpolicy.DNS{Servers: []string{"127.0.0.1"}}, Hosts: podpolicy.Hosts{Entries: []podpolicy.HostEntry{{Address: "10.1.1.1", Names: []string{"db"}}}}}
	g := podpolicy.NewGuard(pinned)
	c := must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	if c.Network.DNS.Servers[0] != "127.0.0.1" || c.Network.Hosts[0].Address != "10.1.1.1" {
		t.Errorf("got %+v", c.Network)
	}
	_, err := g.UpdateNetwork(podpolicy.NetworkProposal{DNS: podpolicy.DNSProposal{Servers: []string{"6.6.6.6"}}})
	refused(t, err, podpolicy.RuleNetworkDNS, "network.dns.servers")

	iface := sandboxProposal().Network.Interfaces
	for path, network := range map[string]podpolicy.NetworkProposal{
		"network.interfaces[0].name":         {Interfaces: []podpolicy.Interface{{MAC: "52:54:00:12:34:56", Name: "lo"}}},
		"network.interfaces[0].mac":          {Interfaces: []podpolicy.Interface{{MAC: "00:00:00:00:00:00", Name: "eth0"}}},
		"network.interfaces[0].addresses[0]": {Interfaces: []podpolicy.Interface{{MAC: "52:54:00:12:34:56", Name: "eth0", Addresses: []string{"127.0.0.2/8"}}}},
		"network.interfaces[0].mtu":          {Interfaces: []podpolicy.Interface{{MAC: "52:54:00:12:34:56", Name: "eth0", MTU: 10}}},
		"network.interfaces[1].mac":          {Interfaces: []podpolicy.Interface{iface[0], {MAC: strings.ToUpper(iface[0].MAC), Name: "eth1"}}},
		"network.interfaces[1].name":         {Interfaces: []podpolicy.Interface{iface[0], {MAC: "52:54:00:12:34:57", Name: "eth0"}}},
		"network.routes[0].destination":      {Interfaces: iface, Routes: []podpolicy.Route{{Destination: "127.0.0.0/8", Gateway: "10.0.2.2", Interface: "eth0"}}},
		"network.routes[0].interface":        {Interfaces: iface, Routes: []podpolicy.Route{{Gateway: "10.0.2.2", Interface: "lo"}}},
		"network.routes[0].gateway":          {Interfaces: iface, Routes: []podpolicy.Route{{Gateway: "127.0.0.1", Interface: "eth0"}}},
		"network.neighbours[0].address":      {Interfaces: iface, Neighbours: []podpolicy.Neighbour{{Address: "::1", MAC: iface[0].MAC, Interface: "eth0"}}},
		"network.neighbours[0].mac":          {Interfaces: iface, Neighbours: []podpolicy.Neighbour{{Address: "10.0.0.1", MAC: "ff:ff:ff:ff:ff:ff", Interface: "eth0"}}},
		"network.neighbours[0].interface":    {Interfaces: iface, Neighbours: []podpolicy.Neighbour{{Address: "10.0.0.1", MAC: iface[0].MAC, Interface: "eth1"}}},
		"network.dns.servers[0]":             {DNS: podpolicy.DNSProposal{Servers: []string{"127.0.0.1"}}},
		"network.dns.servers":                {DNS: podpolicy.DNSProposal{Servers: []string{"1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"}}},
		"network.dns.searches[0]":            {DNS: podpolicy.DNSProposal{Searches: []string{"a b"}}},
		"network.dns.options[0]":             {DNS: podpolicy.DNSProposal{Options: []string{"ndots:5\nnameserver 6.6.6.6"}}},
		"network.hosts[0].names[0]":          {Hosts: []podpolicy.HostEntry{{Address: "6.6.6.6", Names: []string{"LOCALHOST"}}}},
		"network.hosts[0].address":           {Hosts: []podpolicy.HostEntry{{Address: "127.0.0.1", Names: []string{"db"}}}},
		"network.hosts[0].names":             {Hosts: []podpolicy.HostEntry{{Address: "6.6.6.6"}}},
	} {
		q := sandboxProposal()
		q.Network = network
		_, err := podpolicy.NewGuard(webPolicy(t)).Sandbox(q)
		part, _, _ := strings.Cut(strings.Split(path, ".")[1], "[")
		rule := map[string]string{
			"interfaces": podpolicy.RuleNetworkInterface, "routes": podpolicy.RuleNetworkRoute, "neighbours": podpolicy.RuleNetworkNeighbour,
			"dns": podpolicy.RuleNetworkDNS, "hosts": podpolicy.RuleNetworkHosts,
		}[part]
		refused(t, err, rule, path)
	}
}

// Hole 9: without a policy everything was allowed, and nobody noticed.
func TestHole09NoPolicyIsNoPermission(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(nil)
	_, err := g.Sandbox(podpolicy.SandboxProposal{ID: "s"})
	refused(t, err, podpolicy.RulePolicyInvalid, "")
	if _, err := podpolicy.Parse(nil); err == nil {
		t.Error("an empty document is a policy")
	}
	if podpolicy.NewUnsealedGuard().Sealed() {
		t.Error("an unsealed pod says it is sealed")
	}
}

// Hole 10: logs, exec, attach and copying were open to the host.
func TestHole10OutputAndCommandsAreClosed(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(simplePolicy())
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	_, err := g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one", Stdin: true})
	refused(t, err, podpolicy.RuleContainerStdin, "stdin")
	_, err = g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one", Terminal: true})
	refused(t, err, podpolicy.RuleContainerTerminal, "terminal")
	start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one"}, podpolicy.ImageConfig{Digest: webDigest})
	for _, kind := range []podpolicy.StreamKind{podpolicy.Stdin, podpolicy.Stdout, podpolicy.Stderr} {
		if g.Stream("c", "", kind) {
			t.Errorf("stream %d is open", kind)
		}
	}
	_, err = g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: []string{"/one"}})
	refused(t, err, podpolicy.RuleExecArgs, "args")
	if g.PortForward("c", 80) {
		t.Error("a port is open")
	}
	// SIGUSR1 opens debuggers, SIGQUIT prints stacks.
	refused(t, g.Signal("c", "", 10), podpolicy.RuleSignal, "signal")
	refused(t, g.Signal("c", "", 3), podpolicy.RuleSignal, "signal")
}

// Hole 11: the working directory, capabilities and what lies under /proc were
// resolved from what the host sent.
func TestHole11CwdCapabilitiesAndProc(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	q := webProposal()
	q.Cwd = new("/proc/self/fd/7")
	_, err := g.Admit(q)
	refused(t, err, podpolicy.RuleContainerCwd, "cwd")
	c := start(t, g, webProposal(), webImage())
	if fmt.Sprint(c.Capabilities) != "[CAP_NET_BIND_SERVICE]" || !c.NoNewPrivileges {
		t.Errorf("got %v", c.Capabilities)
	}
	_, err = g.Exec("c1", podpolicy.ExecProposal{ID: "e", Args: []string{"/healthz"}, Cwd: new("/proc/1/root")})
	refused(t, err, podpolicy.RuleExecCwd, "cwd")
	for _, path := range []string{"/proc", "/proc/sys/kernel", "/sys/fs/cgroup", "/dev", "/dev/shmx", "/"} {
		p := webPolicy(t)
		web(p).Mounts[0].Path = path
		if p.Validate() == nil {
			t.Errorf("a policy mounts over %s", path)
		}
	}
}

// Hole 12: policies broke with every version of containerd and Kubernetes,
// which differ in groups, default variables, tags and order.
func TestHole12RuntimesMayDiffer(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*podpolicy.ContainerProposal){
		"primary group among the groups": func(q *podpolicy.ContainerProposal) { q.User.Groups = []uint32{1000, 2000} },
		"order of variables":             func(q *podpolicy.ContainerProposal) { e := *q.Env; e[0], e[3] = e[3], e[0] },
		"order of mounts": func(q *podpolicy.ContainerProposal) {
			q.Mounts[0], q.Mounts[1] = q.Mounts[1], q.Mounts[0]
		},
		"no user, directory, arguments, mounts": func(q *podpolicy.ContainerProposal) { q.User, q.Cwd, q.Args, q.Mounts = nil, nil, nil, nil },
		"another spelling of the image":         func(q *podpolicy.ContainerProposal) { q.Image = "registry.example/shop/web" },
		"facts the policy does not use": func(q *podpolicy.ContainerProposal) {
			q.Slots["hostIP"], q.Slots["serviceAccount"] = "10.9.9.9", "default"
		},
		"limits left to the policy": func(q *podpolicy.ContainerProposal) { q.Resources = podpolicy.Resources{CPUMillis: 500} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := readyGuard(t, webPolicy(t))
			q := webProposal()
			change(&q)
			start(t, g, q, webImage())
		})
	}
	// Variables that engines set by themselves may be there or not.
	for _, env := range [][]string{{"A=1"}, {"A=1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}} {
		p := simplePolicy()
		p.Containers[0].Env = map[string]podpolicy.EnvValue{"A": podpolicy.Literal("1")}
		g := podpolicy.NewGuard(p)
		must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
		start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one", Env: &env}, podpolicy.ImageConfig{Digest: webDigest})
	}
}
