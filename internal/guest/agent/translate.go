package agent

import (
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/podpolicy"
)

// The functions here carry a request over into a proposal, field by field: what
// is not named here does not get in.

func sandboxProposal(r *agentapi.CreateSandboxRequest) podpolicy.SandboxProposal {
	return podpolicy.SandboxProposal{
		ID: r.GetSandboxId(), PodName: r.GetPodName(), PodNamespace: r.GetPodNamespace(), PodUID: r.GetPodUid(),
		Hostname: r.GetHostname(), NodeName: r.GetNodeName(), Network: networkProposal(r.GetNetwork()),
		Sysctls: r.GetSysctls(), SharePID: r.GetSharePid(),
	}
}

func networkProposal(n *agentapi.Network) podpolicy.NetworkProposal {
	var q podpolicy.NetworkProposal
	for _, i := range n.GetInterfaces() {
		q.Interfaces = append(q.Interfaces, podpolicy.Interface{MAC: i.GetMac(), Name: i.GetName(), Addresses: i.GetAddresses(), MTU: i.GetMtu()})
	}
	for _, r := range n.GetRoutes() {
		q.Routes = append(q.Routes, podpolicy.Route{Destination: r.GetDestination(), Gateway: r.GetGateway(), Interface: r.GetInterface()})
	}
	for _, e := range n.GetNeighbours() {
		q.Neighbours = append(q.Neighbours, podpolicy.Neighbour{Address: e.GetAddress(), MAC: e.GetMac(), Interface: e.GetInterface()})
	}
	dns := n.GetDns()
	q.DNS = podpolicy.DNSProposal{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}
	for _, h := range n.GetHosts() {
		q.Hosts = append(q.Hosts, podpolicy.HostEntry{Address: h.GetAddress(), Names: h.GetNames()})
	}
	return q
}

func containerProposal(r *agentapi.CreateContainerRequest) podpolicy.ContainerProposal {
	q := podpolicy.ContainerProposal{
		ID: r.GetContainerId(), Name: r.GetName(), Image: r.GetImage(), Args: list(r.GetArgs()), Env: list(r.GetEnv()),
		Cwd: r.Cwd, Terminal: r.GetTerminal(), Stdin: r.GetStdin(), Resources: resources(r.GetResources()), Slots: r.GetSlots(),
	}
	if u := r.GetUser(); u != nil {
		q.User = &podpolicy.User{UID: u.GetUid(), GID: u.GetGid(), Groups: u.GetGroups()}
	}
	for _, m := range r.GetMounts() {
		q.Mounts = append(q.Mounts, podpolicy.Mount{Path: m.GetPath(), Volume: m.GetVolume(), SubPath: m.GetSubPath(), ReadOnly: m.GetReadOnly()})
	}
	for _, v := range r.GetVolumes() {
		q.Volumes = append(q.Volumes, podpolicy.VolumeClaim{Name: v.GetName(), Kind: claimedKind(v.GetKind()), SizeBytes: v.GetSizeBytes(), Group: v.Group})
	}
	for _, d := range r.GetDevices() {
		q.Devices = append(q.Devices, podpolicy.Device{Path: d.GetPath(), Volume: d.GetVolume(), ReadOnly: d.GetReadOnly()})
	}
	q.Security, q.TerminationPath, q.JoinPIDs = security(r.GetSecurity()), r.GetTerminationMessagePath(), r.GetJoinPids()
	return q
}

func security(s *agentapi.Security) *podpolicy.Security {
	if s == nil {
		return nil
	}
	q := &podpolicy.Security{
		NoNewPrivileges: s.GetNoNewPrivileges(), ReadOnlyRoot: s.GetReadOnlyRoot(), SeccompUnconfined: s.GetSeccompUnconfined(), Unmasked: s.GetUnmasked(),
	}
	for _, name := range s.GetCapabilities() {
		q.Capabilities = append(q.Capabilities, "CAP_"+name)
	}
	if n := len(s.GetRlimits()); n > 0 {
		q.RLimits = make(map[string]podpolicy.RLimit, n)
		for name, l := range s.GetRlimits() {
			q.RLimits[name] = podpolicy.RLimit{Soft: l.GetSoft(), Hard: l.GetHard()}
		}
	}
	return q
}

// claimedKind is a kind of volume in the policy's terms; one that is not known
// keeps its number, by which it is refused.
func claimedKind(k agentapi.Volume_Kind) podpolicy.ClaimedKind {
	switch k {
	case agentapi.Volume_EPHEMERAL:
		return podpolicy.ClaimEphemeral
	case agentapi.Volume_MEMORY:
		return podpolicy.ClaimMemory
	case agentapi.Volume_FILES:
		return podpolicy.ClaimFiles
	case agentapi.Volume_BLOCK:
		return podpolicy.ClaimBlock
	case agentapi.Volume_KIND_UNSPECIFIED:
	}
	return podpolicy.ClaimedKind(k.String())
}

func execProposal(r *agentapi.ExecRequest) podpolicy.ExecProposal {
	return podpolicy.ExecProposal{
		ID: r.GetExecId(), Args: r.GetArgs(), Env: list(r.GetEnv()), Cwd: r.Cwd, Terminal: r.GetTerminal(), Stdin: r.GetStdin(),
	}
}

// list keeps the difference between an absent and an empty list.
func list(l *agentapi.StringList) *[]string {
	if l == nil {
		return nil
	}
	values := l.GetValues()
	return &values
}

func resources(r *agentapi.Resources) podpolicy.Resources {
	return podpolicy.Resources{MemoryBytes: r.GetMemoryBytes(), CPUMillis: r.GetCpuMillis(), PIDs: r.GetPids()}
}
