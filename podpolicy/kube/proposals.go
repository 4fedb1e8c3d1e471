package kube

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/podpolicy"
)

// sample is a value that a slot or pattern takes.
func sample(n podpolicy.Name, slot podpolicy.Slot) string {
	switch {
	case n.Host != "":
		return samples()[slot]
	case n.Match != "":
		return strings.NewReplacer("*", "0", "?", "0").Replace(n.Match)
	}
	return n.Value
}

func samples() map[podpolicy.Slot]string {
	return map[podpolicy.Slot]string{
		podpolicy.SlotIP: "10.0.0.10", podpolicy.SlotIPs: "10.0.0.10", podpolicy.SlotHostIP: "192.0.2.1", podpolicy.SlotHostIPs: "192.0.2.1",
		podpolicy.SlotPodUID: "00000000-0000-4000-8000-000000000000", podpolicy.SlotNodeName: "node", podpolicy.SlotPodNamespace: "default",
		podpolicy.SlotPodName: "pod", podpolicy.SlotHostname: "pod", podpolicy.SlotServiceAccount: "default",
	}
}

// proposal is the sandbox that a host would propose for a policy's pod.
func (h *host) proposal(p *podpolicy.Policy) podpolicy.SandboxProposal {
	q := podpolicy.SandboxProposal{
		ID: "check", PodName: sample(p.Pod.Name, podpolicy.SlotPodName), PodNamespace: sample(p.Pod.Namespace, podpolicy.SlotPodNamespace),
		PodUID: samples()[podpolicy.SlotPodUID], NodeName: samples()[podpolicy.SlotNodeName], Hostname: sample(p.Pod.Hostname, podpolicy.SlotHostname),
		Sysctls: maps.Clone(p.Pod.Sysctls), SharePID: p.Pod.SharePID,
	}
	if dns := p.Network.DNS; dns.Host != "" {
		q.Network.DNS.Servers = []string{"10.96.0.10"}
	} else {
		q.Network.DNS = podpolicy.DNSProposal{Servers: dns.Servers, Searches: dns.Searches, Options: dns.Options}
	}
	q.Network.Hosts = p.Network.Hosts.Entries
	return q
}

// containerProposal is what a host sends that takes everything from the
// workload, as container runtimes do.
func (h *host) containerProposal(id string, c *podpolicy.Container, img podpolicy.ImageConfig) podpolicy.ContainerProposal {
	q := podpolicy.ContainerProposal{
		ID: id, Name: c.Name, Image: c.Image.From[0] + "@" + cmp.Or(c.Image.Stub, c.Image.Digest), User: c.User, Mounts: slices.Clone(c.Mounts),
		Terminal: c.Terminal, Stdin: c.Allow.Stdin, Slots: map[string]string{},
		Resources: podpolicy.Resources{MemoryBytes: c.Limits.Memory.Bytes, CPUMillis: c.Limits.CPUs.Millis},
	}
	q.TerminationPath = cmp.Or(c.TerminationMessagePath, podpolicy.DefaultTerminationPath)
	q.Security = &podpolicy.Security{
		Capabilities: slices.Clone(c.Capabilities), NoNewPrivileges: c.NoNewPrivileges.On(), ReadOnlyRoot: c.ReadOnlyRoot,
		SeccompUnconfined: c.Seccomp == podpolicy.SeccompUnconfined,
	}
	for _, d := range c.Devices {
		q.Mounts = append(q.Mounts, podpolicy.Mount{Path: d.Path, Volume: d.Volume, ReadOnly: d.ReadOnly})
	}
	if c.Cwd != "" {
		q.Cwd = &c.Cwd
	}
	if q.User == nil {
		if user, err := podpolicy.ResolveUser(img.User, img.Passwd, img.Group); err == nil {
			q.User = &user
		}
	}
	args := slices.Clone(c.Args)
	if c.ExpandArgs {
		env := h.environ(c, img)
		for i := range args {
			args[i] = podpolicy.Expand(args[i], func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		}
	}
	q.Args = &args
	for slot, value := range h.known {
		q.Slots[string(slot)] = value
	}
	return q
}

// environ is the environment that a kubelet gives a container of a policy, with
// its image's.
func (h *host) environ(c *podpolicy.Container, img podpolicy.ImageConfig) map[string]string {
	env := map[string]string{}
	for _, kv := range img.Env {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	for name, v := range c.Env {
		switch {
		case v.Value != nil:
			env[name] = *v.Value
		case v.Match != "":
			env[name] = sample(podpolicy.Name{Match: v.Match}, "")
		case v.Sealed != "":
			env[name] = v.Sealed
		case v.Host != "":
			env[name] = h.known[v.Host]
		}
	}
	for name, v := range c.Env {
		if v.Expand != "" {
			env[name] = podpolicy.Expand(v.Expand, func(n string) (string, bool) { s, ok := env[n]; return s, ok })
		}
	}
	return env
}

func lines(env map[string]string) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}
