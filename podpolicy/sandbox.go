package podpolicy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// decideSandbox answers the proposal of the pod itself.
func decideSandbox(p *Policy, s *state, q SandboxProposal) (*SandboxConfig, *state, *Refusal) {
	if s.sandbox != nil {
		if reflect.DeepEqual(s.sandbox.proposal, q) {
			return s.sandbox.config.clone(), s, nil
		}
		return nil, nil, refuse(RuleSandboxOnce, "id", "the sandbox that exists, "+quote(s.sandbox.proposal.ID)+", proposed as before", quote(q.ID), "a pod VM holds one sandbox for its life; start another VM")
	}
	if r := checkID("id", q.ID); r != nil {
		return nil, nil, r
	}
	next := s.clone()
	next.slots = maps.Clone(s.slots)
	config := &SandboxConfig{SharePID: p.Pod.SharePID, Sysctls: maps.Clone(p.Pod.Sysctls)}
	names := []struct {
		path   string
		name   Name
		slot   Slot
		got    string
		effect *string
	}{
		{"podName", p.Pod.Name, SlotPodName, q.PodName, &config.Name},
		{"podNamespace", p.Pod.Namespace, SlotPodNamespace, q.PodNamespace, &config.Namespace},
		{"hostname", p.Pod.Hostname, SlotHostname, q.Hostname, &config.Hostname},
	}
	for _, n := range names {
		if n.slot == SlotHostname && n.name == (Name{}) {
			// Kubernetes' rule: the pod's name is its host name.
			n.name.Value = defaultHostname(config.Name)
		}
		value, r := resolveName(n.name, n.path, n.got, n.slot)
		if r != nil {
			return nil, nil, r
		}
		*n.effect = value
		if n.name == (Name{}) {
			// The policy has no such name. The pod gets none; the host's is
			// kept for slots, which are untrusted anyway.
			value = n.got
		}
		if value != "" {
			next.slots[n.slot] = value
		}
	}
	for _, fact := range []struct {
		path string
		slot Slot
		got  string
	}{{"podUID", SlotPodUID, q.PodUID}, {"nodeName", SlotNodeName, q.NodeName}} {
		if fact.got == "" {
			continue
		}
		if r := checkSlot(fact.slot, fact.path, fact.got); r != nil {
			return nil, nil, r
		}
		next.slots[fact.slot] = fact.got
	}
	if q.SharePID != p.Pod.SharePID {
		return nil, nil, refuse(RulePodSharePID, "sharePID", fmt.Sprint(p.Pod.SharePID), fmt.Sprint(q.SharePID), "")
	}
	if r := compareSysctls(p.Pod.Sysctls, q.Sysctls); r != nil {
		return nil, nil, r
	}
	network, r := decideNetwork(p, q.Network)
	if r != nil {
		return nil, nil, r
	}
	config.Network = *network
	next.sandbox = &sandboxState{proposal: q.clone(), config: config}
	return config.clone(), next, nil
}

// decideUpdateNetwork answers a later proposal for the network.
func decideUpdateNetwork(p *Policy, s *state, q NetworkProposal) (*NetworkConfig, *Refusal) {
	if r := needSandbox(s); r != nil {
		return nil, r
	}
	return decideNetwork(p, q)
}

func needSandbox(s *state) *Refusal {
	if s.sandbox == nil {
		return refuse(RuleSandboxRequired, "", "a sandbox", nothing, "propose the sandbox before anything else")
	}
	return nil
}

// resolveName decides one name of the pod.
func resolveName(n Name, path, got string, slot Slot) (string, *Refusal) {
	if got != "" {
		if r := checkSlot(slot, path, got); r != nil {
			return "", r
		}
	}
	switch {
	case n.Value != "":
		if got != "" && got != n.Value {
			return "", refuse(RulePodName, path, quote(n.Value), quote(got), "the policy is for another pod")
		}
		return n.Value, nil
	case n == Name{}:
		return "", nil
	case got == "":
		return "", refuse(RuleSlotMissing, path, "a value", nothing, "the policy leaves it to the host")
	case n.Match != "" && !matches(n.Match, got):
		return "", refuse(RulePodName, path, "a name that matches "+quote(n.Match), quote(got), "the policy is for another pod")
	}
	return got, nil
}

func defaultHostname(pod string) string {
	label, _, _ := strings.Cut(pod, ".")
	return label
}

// runtimeSysctls are those that a container runtime adds by itself to pods that
// do not set them (containerd 2, internal/cri/server/podsandbox). Every guest
// starts with them: a proposal may name them and nothing changes.
func runtimeSysctls() map[string]string {
	return map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
}

func compareSysctls(want, got map[string]string) *Refusal {
	if len(got) == 0 {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if value, ok := want[name]; !ok || value != got[name] {
			if !ok && runtimeSysctls()[name] == got[name] {
				continue
			}
			expected := nothing
			if ok {
				expected = quote(value)
			}
			return refuse(RulePodSysctls, keyPath("sysctls", name), expected, quote(got[name]), "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[name]; !ok {
			return refuse(RulePodSysctls, keyPath("sysctls", name), quote(want[name]), nothing, "send all sysctls of the policy, or none to leave them to it")
		}
	}
	return nil
}

// checkID takes an identifier of the protocol.
func checkID(path, id string) *Refusal {
	if id == "" || len(id) > 64 || !only(id, alnum+"._-") {
		return refuse(RuleProposalForm, path, "1 to 64 characters of [a-zA-Z0-9._-]", quote(id), "")
	}
	return nil
}

func (q SandboxProposal) clone() SandboxProposal {
	q.Sysctls = maps.Clone(q.Sysctls)
	q.Network = NetworkProposal(NetworkConfig(q.Network).clone())
	return q
}

func (c *SandboxConfig) clone() *SandboxConfig {
	d := *c
	d.Sysctls = maps.Clone(c.Sysctls)
	d.Network = c.Network.clone()
	return &d
}

func (c NetworkConfig) clone() NetworkConfig {
	c.Interfaces = slices.Clone(c.Interfaces)
	for i := range c.Interfaces {
		c.Interfaces[i].Addresses = slices.Clone(c.Interfaces[i].Addresses)
	}
	c.Routes = slices.Clone(c.Routes)
	c.Neighbours = slices.Clone(c.Neighbours)
	c.DNS = c.DNS.clone()
	c.Hosts = cloneHosts(c.Hosts)
	return c
}

func (d DNSProposal) clone() DNSProposal {
	return DNSProposal{slices.Clone(d.Servers), slices.Clone(d.Searches), slices.Clone(d.Options)}
}

func cloneHosts(hosts []HostEntry) []HostEntry {
	hosts = slices.Clone(hosts)
	for i := range hosts {
		hosts[i].Names = slices.Clone(hosts[i].Names)
	}
	return hosts
}
