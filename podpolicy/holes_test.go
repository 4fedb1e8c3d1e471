package podpolicy_test

import (
	"crypto/sha256"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// The tests of this file are named after the known holes of agent policies that
// filter a host's OCI spec: those of Kata Containers, its forks and Contrast.
// Each shows how the same attempt ends here. Beside them stand
// internal/guest/volume (TestPutNeverLeavesTheVolume and
// TestPutFollowsNoPlantedLink, for hole 3) and internal/guest/agent
// (TestForbiddenStreamsAreDrained and TestEveryStreamIsClosedByDefault, for hole
// 10; TestEveryCallIsDeniedByDefault; TestInitdataMustMatchTheEvidence, for hole
// 9).

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

// Hole 2, a mount or volume that an earlier request has registered: what is put
// or attached under a name is what the policy says of that name, and a container
// has the mounts of the policy even if the host names none.
func TestHole02NothingCanBeParked(t *testing.T) {
	t.Parallel()
	p := blockPolicy()
	p.Volumes["config"] = podpolicy.Volume{Kind: podpolicy.VolumeFiles, Host: &podpolicy.HostFiles{Names: []string{"a"}, MaxBytes: 1}}
	g := podpolicy.NewGuard(p)
	_, err := g.PutFiles("config", 1)
	refused(t, err, podpolicy.RuleSandboxRequired, "")
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	for _, name := range []string{"rootfs", "one", "", "../x", "b", "c"} {
		_, err := g.PutFiles(name, 1)
		refused(t, err, podpolicy.RuleFilesVolume, "volume")
	}
	for _, name := range []string{"rootfs", "config", "one", ""} {
		refused(t, g.Attach(name, "disk1"), podpolicy.RuleVolumeAttach, "volume")
	}
	// A disk cannot stand for two volumes, nor be exchanged once it is one.
	ok(t, g.Attach("b", "disk1"))
	refused(t, g.Attach("raw", "disk1"), podpolicy.RuleVolumeAttach, "disk")
	refused(t, g.Attach("b", "disk2"), podpolicy.RuleVolumeAttach, "disk")
	ok(t, g.Attach("raw", "disk2"))
	c := start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one"}, podpolicy.ImageConfig{Digest: webDigest})
	if len(c.Mounts) != 2 || c.Mounts[0].Path != "/b" || !c.Mounts[1].Device {
		t.Errorf("the container has %+v", c.Mounts)
	}
}

// Hole 3 (CVE-2026-41326, GHSA-q49m-57vm-c8cc, GHSA-rh99-wc69-c255): files from
// the host were written through planted links, anywhere in the guest.
func TestHole03FilesAreNamesNotPaths(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("token", 1))
	for _, name := range []string{"../../usr/bin/coffer-agent", "/etc/passwd", "token/../../x", "token/x", "..", ".", "", "token\n", "tok\x00en", "TOKEN", "link", strings.Repeat("a", 254),
		"tls/../token", "tls//key", "./token", "token/", "..data/token", "tls/..1/key", "a/b/c/d/e/f/g/h/i"} {
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

// Hole 3 for names that are paths: each is a file that the policy names, and
// what the guest makes itself the host can only leave out or send as it stands
// in the policy.
func TestHole03NestedAndSealedFiles(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(everythingPolicy(t))
	q := sandboxProposal()
	q.SharePID = true
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(q))
	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("secrets", 1))
	for _, name := range []string{"tls", "conf.d", "conf.d/other.conf", "tls/key.pem", "tls/far.pem", "app.conf"} {
		_, err := u.File(name, 1)
		refused(t, err, podpolicy.RuleFilesName, "")
	}
	for name, mode := range map[string]uint32{"conf.d/app.conf": 0o440, "tls/ca.crt": 0o444, "password": 0o400} {
		if got := must[uint32](t)(u.File(name, 5)); got != mode {
			t.Errorf("%s has mode %o, want %o", name, got, mode)
		}
		if u.Discard(name) != (name == "password") {
			t.Errorf("%s is discarded: %t", name, u.Discard(name))
		}
	}
	refused(t, u.Content("password", 5, sha256.Sum256([]byte("hello"))), podpolicy.RuleFilesDigest, "files.password")
	refused(t, u.Content("conf.d/app.conf", 5, sha256.Sum256([]byte("evil!"))), podpolicy.RuleFilesDigest, `files["conf.d/app.conf"]`)

	u = must[*podpolicy.FilesUpdate](t)(g.PutFiles("secrets", 2))
	text := "sealed.aGVhZA.cGF5bG9hZA.c2ln"
	must[uint32](t)(u.File("password", int64(len(text))))
	ok(t, u.Content("password", int64(len(text)), sha256.Sum256([]byte(text))))
	putHello(t, u, "conf.d/app.conf")
	refused(t, u.Commit(published), podpolicy.RuleFilesMissing, `files["tls/ca.crt"]`)
	putHello(t, u, "tls/ca.crt")
	ok(t, u.Commit(published))

	v := must[podpolicy.VolumeConfig](t)(g.Volume("secrets"))
	if !v.HostFiles || v.Sealed["password"] != text || v.Resources["tls/far.pem"] != "kbs://far-away/shop/tls/key" || *v.Group != 2000 {
		t.Errorf("got %+v", v)
	}
	for name, mode := range map[string]uint32{"password": 0o400, "tls/key.pem": 0o440} {
		if got := must[uint32](t)(v.FileMode(name)); got != mode {
			t.Errorf("%s has mode %o, want %o", name, got, mode)
		}
	}
	// A volume that the guest makes alone waits for no host.
	p := simplePolicy()
	p.Volumes = map[string]podpolicy.Volume{"keys": {Kind: podpolicy.VolumeFiles, Resources: map[string]string{"key": "kbs:///a/b/c"}}}
	p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/keys", Volume: "keys", ReadOnly: true}}
	g = podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one"}, podpolicy.ImageConfig{Digest: webDigest})
	if v := must[podpolicy.VolumeConfig](t)(g.Volume("keys")); v.HostFiles || v.Mode != "0644" {
		t.Errorf("got %+v", v)
	}
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

// Hole 5 for ephemeral containers: only those of the policy, once, and nothing
// waits for them. Theirs is no place in the order.
func TestHole05EphemeralContainers(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	_, err := g.Admit(podpolicy.ContainerProposal{ID: "d", Name: "debug"})
	refused(t, err, podpolicy.RuleContainerUnknown, "name")

	p := webPolicy(t)
	debug := podpolicy.Container{Name: "debug", Role: podpolicy.RoleEphemeral, Image: podpolicy.Image{Digest: otherDigest, From: []string{"registry.example/debug"}}, Args: []string{"/debug"}}
	p.Containers = append([]podpolicy.Container{debug}, p.Containers...)
	g = podpolicy.NewGuard(p)
	q := podpolicy.ContainerProposal{ID: "d", Name: "debug"}
	_, err = g.Admit(q)
	refused(t, err, podpolicy.RuleSandboxRequired, "")
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	// It does not stand for an init container, and does not wait for one.
	_, err = g.Admit(webProposal())
	refused(t, err, podpolicy.RuleContainerOrder, "name")
	start(t, g, q, podpolicy.ImageConfig{Digest: otherDigest})
	_, err = g.Admit(webProposal())
	refused(t, err, podpolicy.RuleContainerOrder, "name")
	// Its image is bound as any other, and it runs once.
	ok(t, g.Exited("d", "", 1))
	ok(t, g.Deleted("d", ""))
	_, err = g.Admit(q)
	refused(t, err, podpolicy.RuleContainerRestarts, "name")
	// Nobody misses it.
	runTo(t, g, "init", "migrate", migrateDigest, 0)
	start(t, g, podpolicy.ContainerProposal{ID: "mesh", Name: "mesh"}, podpolicy.ImageConfig{Digest: meshDigest, Entrypoint: []string{"/mesh"}})
	must[*podpolicy.Admission](t)(g.Admit(webProposal()))
}

// Hole 6, annotations: any of them with any value was let in, and decided what
// ran. Here a proposal has no place for one: every field of it is decided about
// (TestPropertyChangedContainerFieldIsRefused), and what is free in form is a
// slot by type.
func TestHole06NoFreeFormFields(t *testing.T) {
	t.Parallel()
	free := map[string]string{"Slots": "values by slot type", "Sysctls": "compared with the policy's"}
	for _, typ := range []reflect.Type{reflect.TypeFor[podpolicy.SandboxProposal](), reflect.TypeFor[podpolicy.ContainerProposal](), reflect.TypeFor[podpolicy.ExecProposal](), reflect.TypeFor[podpolicy.NetworkProposal]()} {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if kind := f.Type.Kind(); (kind == reflect.Map || kind == reflect.Interface) && free[f.Name] == "" {
				t.Errorf("%s.%s takes anything", typ.Name(), f.Name)
			}
		}
	}
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

// Hole 10, ports and copies: what one container opens is not opened by another,
// and not before it runs or after it has ended.
func TestHole10PortsAreOpenedByWhatRuns(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	open := func() [3]bool {
		return [3]bool{g.PortForward("c1", 8080), g.PodPort(8080), g.PortForward("mesh", 8080) || g.PodPort(8081) || g.PodPort(0)}
	}
	if got := open(); got != [3]bool{} {
		t.Errorf("before web runs: %v", got)
	}
	start(t, g, webProposal(), webImage())
	if got := open(); got != [3]bool{true, true, false} {
		t.Errorf("while web runs: %v", got)
	}
	ok(t, g.Exited("c1", "", 0))
	if got := open(); got != [3]bool{} {
		t.Errorf("after web has ended: %v", got)
	}
	u := podpolicy.NewUnsealedGuard()
	if u.PodPort(80) {
		t.Error("a port of an unsealed pod without containers")
	}
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
// which differ in groups, default variables, tags and order. Whatever the host's
// habits are, the decision is the same, to the last field.
func TestHole12RuntimesMayDiffer(t *testing.T) {
	t.Parallel()
	img := webImage()
	img.Passwd, img.Group = []byte("app:x:1000:1000::/:/bin/sh\n"), []byte("audio:x:29:app\nstaff:x:50:other,app\n")
	decide := func(t *testing.T, change func(*podpolicy.ContainerProposal)) *podpolicy.ContainerConfig {
		t.Helper()
		g := readyGuard(t, webPolicy(t))
		q := webProposal()
		change(&q)
		return start(t, g, q, img)
	}
	addEnv := func(entries ...string) func(*podpolicy.ContainerProposal) {
		return func(q *podpolicy.ContainerProposal) { *q.Env = append(*q.Env, entries...) }
	}
	base := decide(t, func(*podpolicy.ContainerProposal) {})
	for name, change := range map[string]func(*podpolicy.ContainerProposal){
		"primary group among the groups":  func(q *podpolicy.ContainerProposal) { q.User.Groups = []uint32{1000, 2000} },
		"the image's groups as well":      func(q *podpolicy.ContainerProposal) { q.User.Groups = []uint32{50, 1000, 2000, 29} },
		"a group twice":                   func(q *podpolicy.ContainerProposal) { q.User.Groups = []uint32{2000, 2000} },
		"HOSTNAME, as containerd sets it": addEnv("HOSTNAME=web-7d4"),
		"a resource's URI": func(q *podpolicy.ContainerProposal) {
			*q.Env = slices.DeleteFunc(*q.Env, func(e string) bool { return strings.HasPrefix(e, "KEY=") })
		},
		"order of variables": func(q *podpolicy.ContainerProposal) { slices.Reverse(*q.Env) },
		"order of mounts":    func(q *podpolicy.ContainerProposal) { slices.Reverse(q.Mounts) },
		"no user, directory, arguments, mounts": func(q *podpolicy.ContainerProposal) {
			q.User, q.Cwd, q.Args, q.Mounts = nil, nil, nil, nil
		},
		"another spelling of the image": func(q *podpolicy.ContainerProposal) { q.Image = "registry.example/shop/web" },
		"no image":                      func(q *podpolicy.ContainerProposal) { q.Image = "" },
		"facts the policy does not use": func(q *podpolicy.ContainerProposal) {
			q.Slots["hostIP"], q.Slots["serviceAccount"] = "10.9.9.9", "default"
		},
		"limits left to the policy": func(q *podpolicy.ContainerProposal) { q.Resources = podpolicy.Resources{CPUMillis: 500} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := decide(t, change); !reflect.DeepEqual(got, base) {
				t.Errorf("the decision differs: %+v\nwithout the habit: %+v", got, base)
			}
		})
	}
	// Sysctls that a runtime adds by itself are those of every guest; with other
	// values they are no habit.
	for value, rule := range map[string]string{"0": "", "1024": podpolicy.RulePodSysctls} {
		q := sandboxProposal()
		q.Sysctls["net.ipv4.ip_unprivileged_port_start"], q.Sysctls["net.ipv4.ping_group_range"] = value, "0 2147483647"
		config, err := podpolicy.NewGuard(webPolicy(t)).Sandbox(q)
		if rule != "" {
			refused(t, err, rule, `sysctls["net.ipv4.ip_unprivileged_port_start"]`)
		} else if err != nil || len(config.Sysctls) != 1 {
			t.Errorf("%v, %v", config, err)
		}
	}
	// Variables that engines set by themselves may be there or not, and are
	// set here in any case; with another value they are no habit.
	engine := []string{"HOSTNAME=one", "TERM=xterm", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	terminal := func(env []string) (*podpolicy.ContainerConfig, error) {
		p := simplePolicy()
		p.Containers[0].Terminal = true
		p.Containers[0].Env = map[string]podpolicy.EnvValue{"A": podpolicy.Literal("1")}
		g := podpolicy.NewGuard(p)
		must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
		return must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one", Env: &env, Terminal: true})).Configure(podpolicy.ImageConfig{Digest: webDigest})
	}
	want := must[*podpolicy.ContainerConfig](t)(terminal([]string{"A=1"}))
	for bits := range 1 << len(engine) {
		env := []string{"A=1"}
		for i, e := range engine {
			if bits&(1<<i) != 0 {
				env = append(env, e)
			}
		}
		if got := must[*podpolicy.ContainerConfig](t)(terminal(env)); !reflect.DeepEqual(got, want) {
			t.Errorf("%v makes %+v, want %+v", env, got, want)
		}
	}
	for _, e := range []string{"HOSTNAME=other", "TERM=dumb", "PATH=/evil", "HOME=/root"} {
		_, err := terminal([]string{"A=1", e})
		name, _, _ := strings.Cut(e, "=")
		refused(t, err, podpolicy.RuleContainerEnv, "env."+name)
	}
	// Without a terminal nobody sets TERM.
	g := readyGuard(t, webPolicy(t))
	q := webProposal()
	*q.Env = append(*q.Env, "TERM=xterm")
	_, err := must[*podpolicy.Admission](t)(g.Admit(q)).Configure(img)
	refused(t, err, podpolicy.RuleContainerEnv, "env.TERM")
	// Groups that neither the policy nor the image give are none of a runtime's.
	q = webProposal()
	q.ID, q.User.Groups = "c2", []uint32{2000, 0}
	ok(t, g.Deleted("c1", ""))
	_, err = must[*podpolicy.Admission](t)(g.Admit(q)).Configure(img)
	refused(t, err, podpolicy.RuleContainerUser, "user.groups")
}

// Users' complaint 8 (kata-containers#12145, #12218): a directory of an emptyDir
// was not the same one for two containers. A volume and its directory are named,
// so they are.
func TestPain08SubPathIsOneDirectory(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	p.Volumes = map[string]podpolicy.Volume{"shared": {Kind: podpolicy.VolumeEphemeral}}
	mounts := []podpolicy.Mount{{Path: "/d", Volume: "shared", SubPath: "a/b"}}
	p.Containers[0].Mounts = mounts
	two := p.Containers[0]
	two.Name, two.Role = "two", podpolicy.RoleSidecar
	p.Containers = append(p.Containers, two)
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	b := start(t, g, podpolicy.ContainerProposal{ID: "b", Name: "two"}, podpolicy.ImageConfig{Digest: webDigest})
	a := start(t, g, podpolicy.ContainerProposal{ID: "a", Name: "one", Mounts: mounts}, podpolicy.ImageConfig{Digest: webDigest})
	if !reflect.DeepEqual(a.Mounts, b.Mounts) || a.Mounts[0].SubPath != "a/b" {
		t.Errorf("%+v and %+v", a.Mounts, b.Mounts)
	}
}

// Users' complaint 9 (kata-containers#6341, #11237): changes of ConfigMaps did
// not reach a running pod. A later version does, as a whole, and an earlier one
// never does again.
func TestPain09FilesChangeWhileContainersRun(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(webPolicy(t))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(sandboxProposal()))
	put := func(version uint64, names ...string) error {
		u, err := g.PutFiles("token", version)
		if err != nil {
			return err
		}
		for _, name := range names {
			putHello(t, u, name)
		}
		return u.Commit(published)
	}
	ok(t, put(1, "token", "ca.crt", "namespace"))
	runTo(t, g, "init", "migrate", migrateDigest, 0)
	start(t, g, podpolicy.ContainerProposal{ID: "mesh", Name: "mesh"}, podpolicy.ImageConfig{Digest: meshDigest, Entrypoint: []string{"/mesh"}})
	refused(t, put(2, "token", "ca.crt"), podpolicy.RuleFilesMissing, "files.namespace")
	ok(t, put(2, "namespace", "token", "ca.crt"))
	refused(t, put(1, "token", "ca.crt", "namespace"), podpolicy.RuleFilesVersion, "version")
}

// Users' complaint 10 (kata-containers#10648): nobody could tell which field of
// a proposal the policy did not like. Every refusal of this package's tests names
// it (refused); this one says all.
func TestPain10RefusalsNameTheField(t *testing.T) {
	t.Parallel()
	g := readyGuard(t, webPolicy(t))
	q := webProposal()
	(*q.Args)[1] = "--port=80"
	_, err := g.Admit(q)
	want := `refused by the pod policy (rule container.args): args[1]: expected "--port=8080", got "--port=80" (leave args out to take the policy's)`
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}
