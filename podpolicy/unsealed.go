package podpolicy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// An unsealed pod has no owner's policy. The functions here derive, from a
// proposal, the policy that permits just that; the decision itself is the same
// as for a sealed pod, and the form of names, paths and values is checked
// alike.

func unsealedPolicy() *Policy {
	return &Policy{
		APIVersion: APIVersion, Kind: Kind, Volumes: map[string]Volume{},
		Network: Network{DNS: DNS{Host: SlotDNS}, Hosts: Hosts{Host: SlotHosts}},
	}
}

func deriveSandbox(p *Policy, s *state, q SandboxProposal) (*Policy, *Refusal) {
	if s.sandbox != nil {
		return p, nil
	}
	d := *p
	d.Pod = Pod{Name: Name{Value: q.PodName}, Namespace: Name{Value: q.PodNamespace}, Hostname: Name{Value: q.Hostname}, SharePID: q.SharePID, Sysctls: maps.Clone(q.Sysctls)}
	if q.PodName == "" {
		// A pod needs a name; the checks of it refuse an id that is none.
		d.Pod.Name.Value = strings.ToLower(q.ID)
	}
	v := validator{policy: &d}
	v.pod(&d.Pod)
	return &d, firstProblem(&v)
}

func deriveContainer(p *Policy, s *state, q ContainerProposal) (*Policy, *Refusal) {
	for _, i := range s.instances {
		if i.name == q.Name && i.phase != phaseExited {
			// It will be refused; the living instance keeps its policy.
			return p, nil
		}
	}
	c, r := permissiveContainer(q)
	if r != nil {
		return nil, r
	}
	if c.Target, r = deriveTarget(p, s, q); r != nil {
		return nil, r
	}
	if c.Target != "" {
		c.Role, c.Allow.Restarts = RoleEphemeral, RestartNever
	}
	d := *p
	d.Volumes = maps.Clone(p.Volumes)
	if r := checkClaims(q); r != nil {
		return nil, r
	}
	if r := deriveVolumes(d.Volumes, q.Volumes); r != nil {
		return nil, r
	}
	for i, m := range c.Mounts {
		v, ok := d.Volumes[m.Volume]
		if !ok {
			if len(d.Volumes) >= maxVolumes || !isDNSLabel(m.Volume) {
				return nil, refuse(RuleContainerMounts, indexPath("mounts", i)+".volume", fmt.Sprintf("a DNS label, and at most %d volumes", maxVolumes), quote(m.Volume), "")
			}
			d.Volumes[m.Volume] = Volume{Kind: VolumeEphemeral, Medium: MediumDisk}
		}
		c.Mounts[i].ReadOnly = m.ReadOnly || v.Kind == VolumeFiles
	}
	d.Containers = slices.DeleteFunc(slices.Clone(p.Containers), func(o Container) bool { return o.Name == c.Name })
	if len(d.Containers) >= maxContainers {
		return nil, tooMany(RuleContainerUnknown, "name", maxContainers, len(d.Containers)+1)
	}
	d.Containers = append(d.Containers, *c)
	v := validator{policy: &d}
	v.container("", c)
	return &d, firstProblem(&v)
}

// permissiveContainer is the container as the host has it.
func permissiveContainer(q ContainerProposal) (*Container, *Refusal) {
	if r := checkSecurity(q.Security); r != nil {
		return nil, r
	}
	ref, err := parseImage(q.Image)
	if err != nil {
		return nil, refuse(RuleContainerImage, "image", "an image reference", quote(q.Image), err.Error())
	}
	if ref.Digest == "" && ref.Tag == "" {
		ref.Tag = "latest"
	}
	q = q.clone()
	c := &Container{
		Name: q.Name, Image: Image{Digest: ref.Digest, From: []string{ref.Repository}, tag: ref.Tag}, User: q.User,
		Capabilities: DefaultCapabilities(), NoNewPrivileges: OnUnlessOff{Off: true}, Terminal: q.Terminal, Mounts: q.Mounts,
		Allow:  Allow{Logs: true, Attach: true, Stdin: true, Signals: signalNames()[1:], Restarts: RestartAlways},
		Limits: Limits{Memory: Memory{Bytes: q.Resources.MemoryBytes}, CPUs: CPUs{Millis: q.Resources.CPUMillis}, PIDs: q.Resources.PIDs},
	}
	c.Devices, c.TerminationMessagePath = q.Devices, q.TerminationPath
	if q.Security != nil {
		q.Security.permit(c)
	}
	if q.Args != nil {
		c.Args = *q.Args
	}
	if q.Cwd != nil {
		c.Cwd = *q.Cwd
	}
	if q.Env != nil {
		env, r := parseEnv("env", *q.Env)
		if r != nil {
			return nil, r
		}
		c.Env = map[string]EnvValue{}
		for name, value := range env {
			c.Env[name] = Literal(value)
			if strings.HasPrefix(value, "sealed.") {
				// The ecosystem's rule. The trustee decides; a failed unseal
				// stops the container, here as in a sealed pod.
				c.Env[name] = EnvValue{Sealed: value}
			}
		}
	}
	return c, nil
}

// leaveToDerived drops from a proposal what its derived policy holds: the
// environment there is added to the image's, which the host may not know.
func leaveToDerived(q ContainerProposal) ContainerProposal {
	q.Args, q.Env, q.User, q.Cwd, q.Mounts, q.Slots, q.Security, q.Volumes, q.Devices = nil, nil, nil, nil, nil, nil, nil, nil, nil
	return q
}

func deriveExec(p *Policy, s *state, id string, q ExecProposal) *Policy {
	instance, _ := s.instance(id)
	i := slices.IndexFunc(p.Containers, func(c Container) bool { return c.Name == instance.name })
	if i < 0 {
		return p
	}
	d := *p
	d.Containers = slices.Clone(p.Containers)
	d.Containers[i].Allow.Exec = []ExecRule{{Args: slices.Clone(q.Args), Output: true, Stdin: true, Terminal: true}}
	return &d
}

// deriveLimits gives a container the limits that are asked for; a limit can be
// changed, not lifted.
func deriveLimits(p *Policy, s *state, id string, q Resources) (*Policy, *Refusal) {
	instance, _ := s.instance(id)
	i := slices.IndexFunc(p.Containers, func(c Container) bool { return c.Name == instance.name })
	if i < 0 {
		return p, nil
	}
	d := *p
	d.Containers = slices.Clone(p.Containers)
	c := &d.Containers[i]
	if q.MemoryBytes != 0 {
		c.Limits.Memory = Memory{Bytes: q.MemoryBytes}
	}
	if q.CPUMillis != 0 {
		c.Limits.CPUs = CPUs{Millis: q.CPUMillis}
	}
	if q.PIDs != 0 {
		c.Limits.PIDs = q.PIDs
	}
	v := validator{policy: &d}
	v.container("", c)
	return &d, firstProblem(&v)
}

func deriveFiles(p *Policy, volume string) (*Policy, *Refusal) {
	if _, ok := p.Volumes[volume]; ok {
		return p, nil
	}
	if len(p.Volumes) >= maxVolumes || !isDNSLabel(volume) {
		return nil, refuse(RuleFilesVolume, "volume", fmt.Sprintf("a DNS label, and at most %d volumes", maxVolumes), quote(volume), "")
	}
	d := *p
	d.Volumes = maps.Clone(p.Volumes)
	d.Volumes[volume] = Volume{Kind: VolumeFiles, Host: anyFiles()}
	return &d, nil
}

// firstProblem turns what is wrong with a derived policy into a refusal of the
// proposal that it was derived from.
func firstProblem(v *validator) *Refusal {
	if len(v.problems) == 0 {
		return nil
	}
	p := v.problems[0]
	path := strings.TrimPrefix(strings.TrimPrefix(p.Path, "pod."), ".")
	return refuse(RuleProposalForm, cmp.Or(path, "name"), "a value that a policy could have", p.Problem, "")
}
