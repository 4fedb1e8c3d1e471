package podpolicy

import (
	"slices"
	"strings"
)

// checkTarget: an ephemeral container joins the processes of the container that
// the policy names, while that one runs. A host cannot name one, but it can tell
// that it wants one, and must not get a container that sees less without a word.
func checkTarget(p *Policy, s *state, c *Container, q ContainerProposal) *Refusal {
	if q.JoinPIDs && c.Target == "" && !p.Pod.SharePID {
		return refuse(RuleContainerTarget, "joinPIDs", "false: the policy gives the container processes of its own", "true",
			"name the other container as \"target\" in the policy (coffer prepare --ephemeral takes targetContainerName), or leave --target out")
	}
	_, r := resolveTarget(p, s, c)
	return r
}

// resolveTarget finds the instance whose processes a container joins; none where
// all containers of the pod share theirs.
func resolveTarget(p *Policy, s *state, c *Container) (id string, r *Refusal) {
	if c.Target == "" || p.Pod.SharePID {
		return "", nil
	}
	for id, i := range s.instances {
		if i.name == c.Target && i.phase == phaseRunning {
			return id, nil
		}
	}
	return "", refuse(RuleContainerTarget, "target", "container "+quote(c.Target)+" to run", nothing, "start it first; its processes end with it")
}

// deriveTarget is the container that an unsealed pod's host can only mean: the one
// that runs and has processes of its own.
func deriveTarget(p *Policy, s *state, q ContainerProposal) (string, *Refusal) {
	if !q.JoinPIDs || p.Pod.SharePID {
		return "", nil
	}
	var names []string
	for _, i := range s.instances {
		if i.phase == phaseRunning && i.config != nil && i.config.Target == "" {
			names = append(names, i.name)
		}
	}
	slices.Sort(names)
	switch len(names) {
	case 0:
		return "", refuse(RuleContainerTarget, "joinPIDs", "a container that runs", nothing, "")
	case 1:
		return names[0], nil
	}
	return "", refuse(RuleContainerTarget, "joinPIDs", "one container that runs besides this one", strings.Join(names, ", "),
		"the container runtime does not say whose processes are meant: leave --target out, or give the pod shareProcessNamespace: true")
}

// target checks the name in a policy.
func (v *validator) target(at string, c *Container) {
	if c.Target == "" {
		return
	}
	other := findContainer(v.policy, c.Target)
	switch {
	case c.Role != RoleEphemeral:
		v.bad(at, "only an ephemeral container is among the processes of another one; all containers of a pod are with sharePID")
	case other == nil, other.Name == c.Name, other.Role == RoleEphemeral:
		v.bad(at, "expected a container of the policy that is not ephemeral, got %s", quote(c.Target))
	}
}
