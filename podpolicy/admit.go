package podpolicy

import (
	"fmt"
	"slices"
)

// decideAdmit answers a container's proposal before its image is pulled. All
// that can be refused without the image is refused here.
func decideAdmit(p *Policy, s *state, q ContainerProposal) (ImageRef, *state, *Refusal) {
	if r := needSandbox(s); r != nil {
		return ImageRef{}, nil, r
	}
	if r := checkID("id", q.ID); r != nil {
		return ImageRef{}, nil, r
	}
	if other, ok := s.instances[q.ID]; ok {
		return ImageRef{}, nil, refuse(RuleContainerID, "id", "an id that is not in use", quote(q.ID)+" of container "+quote(other.name), "delete that container first")
	}
	c := findContainer(p, q.Name)
	if c == nil {
		return ImageRef{}, nil, refuse(RuleContainerUnknown, "name", "one of "+quoteList(containerNames(p)), quote(q.Name), "the host selects among the policy's containers; it cannot add one")
	}
	for _, check := range []func(*Policy, *state, *Container, ContainerProposal) *Refusal{
		checkInstances, checkRestarts, checkOrder, checkStreams, checkForm, checkTarget,
	} {
		if r := check(p, s, c, q); r != nil {
			return ImageRef{}, nil, r
		}
	}
	given, r := givenEnv(q.Env)
	if r != nil {
		return ImageRef{}, nil, r
	}
	if r := checkPinned(c, q); r != nil {
		return ImageRef{}, nil, r
	}
	if r := compareSecurity(c, q.Security); r != nil {
		return ImageRef{}, nil, r
	}
	if r := compareClaims(p, c, q); r != nil {
		return ImageRef{}, nil, r
	}
	if r := checkVolumes(p, s, c); r != nil {
		return ImageRef{}, nil, r
	}
	ref, r := chooseImage(c.Image, q.Image)
	if r != nil {
		return ImageRef{}, nil, r
	}
	q.Env = nil // it is in given
	next := s.withInstance(q.ID, instance{admission: s.admissions + 1, name: c.Name, image: ref, proposal: q.clone(), given: given})
	next.admissions++
	return ref, next, nil
}

func findContainer(p *Policy, name string) *Container {
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return &p.Containers[i]
		}
	}
	return nil
}

func containerNames(p *Policy) []string {
	names := make([]string, len(p.Containers))
	for i, c := range p.Containers {
		names[i] = c.Name
	}
	return names
}

func checkInstances(_ *Policy, s *state, c *Container, _ ContainerProposal) *Refusal {
	ended := 0
	for id, i := range s.instances {
		if i.name != c.Name {
			continue
		}
		if i.phase != phaseExited {
			return refuse(RuleContainerInstances, "name", "no other instance of "+quote(c.Name), quote(id)+", which is "+i.phase.String(), "a container exists once; wait for it to end, or delete it")
		}
		ended++
	}
	if ended >= maxInstances {
		return refuse(RuleContainerInstances, "name", fmt.Sprintf("fewer than %d ended instances", maxInstances), fmt.Sprint(ended), "delete ended containers")
	}
	return nil
}

func checkRestarts(_ *Policy, s *state, c *Container, _ ContainerProposal) *Refusal {
	h := s.history[c.Name]
	if h.starts == 0 {
		return nil
	}
	last := fmt.Sprintf("started %d times, last exit code %d", h.starts, h.exitCode)
	switch {
	case c.Role == RoleInit && h.succeeded:
		return refuse(RuleContainerRestarts, "name", "no further start: the init container has succeeded", last, "")
	case c.Allow.Restarts == RestartAlways:
		return nil
	case c.Allow.Restarts == RestartOnFailure && h.exitCode != 0:
		return nil
	case c.Allow.Restarts == RestartOnFailure:
		return refuse(RuleContainerRestarts, "name", "a restart after a failure only", last, `the policy has "restarts": "onFailure"`)
	}
	return refuse(RuleContainerRestarts, "name", "one start", last, `the policy has "restarts": "never"`)
}

// checkOrder: init containers to success and sidecars started, each in its
// place, before what follows them; app containers follow all of them. Ephemeral
// containers have no place: they may come at any time, and nothing waits for
// them.
func checkOrder(p *Policy, s *state, c *Container, _ ContainerProposal) *Refusal {
	if c.Role == RoleEphemeral {
		return nil
	}
	for i := range p.Containers {
		before := &p.Containers[i]
		if before.Name == c.Name {
			if c.Role == RoleInit || c.Role == RoleSidecar {
				return nil
			}
			continue
		}
		h := s.history[before.Name]
		switch {
		case before.Role == RoleInit && !h.succeeded:
			return refuse(RuleContainerOrder, "name", "init container "+quote(before.Name)+" to succeed first", fmt.Sprintf("it was started %d times, without success", h.starts), "")
		case before.Role == RoleSidecar && h.starts == 0:
			return refuse(RuleContainerOrder, "name", "sidecar "+quote(before.Name)+" to be started first", "it was never started", "")
		}
	}
	return nil
}

func checkStreams(_ *Policy, _ *state, c *Container, q ContainerProposal) *Refusal {
	if q.Terminal != c.Terminal {
		return refuse(RuleContainerTerminal, "terminal", fmt.Sprint(c.Terminal), fmt.Sprint(q.Terminal), "")
	}
	if q.Stdin && !c.Allow.Stdin {
		return refuse(RuleContainerStdin, "stdin", "false", "true", `the policy opens standard input only with "allow": {"stdin": true}`)
	}
	return nil
}

// checkForm bounds what the proposal brings before anything is compared.
func checkForm(_ *Policy, _ *state, _ *Container, q ContainerProposal) *Refusal {
	if q.Args != nil {
		if r := checkArgs("args", *q.Args); r != nil {
			return r
		}
	}
	if q.User != nil && len(q.User.Groups) > maxGroups {
		return tooMany(RuleProposalForm, "user.groups", maxGroups, len(q.User.Groups))
	}
	if len(q.Mounts) > maxMounts {
		return tooMany(RuleProposalForm, "mounts", maxMounts, len(q.Mounts))
	}
	if len(q.Slots) > maxSlots {
		return tooMany(RuleProposalForm, "slots", maxSlots, len(q.Slots))
	}
	if r := checkSecurity(q.Security); r != nil {
		return r
	}
	if r := checkClaims(q); r != nil {
		return r
	}
	return checkSlots(q.Slots)
}

// checkPinned compares what the policy decides without the image.
func checkPinned(c *Container, q ContainerProposal) *Refusal {
	if c.Args != nil && q.Args != nil && !c.ExpandArgs {
		if r := compareList(RuleContainerArgs, "args", c.Args, *q.Args); r != nil {
			return r
		}
	}
	if c.Cwd != "" {
		if r := compareCwd(RuleContainerCwd, c.Cwd, q.Cwd); r != nil {
			return r
		}
	}
	if c.User != nil {
		if r := compareIDs(*c.User, q.User); r != nil {
			return r
		}
	}
	if r := compareMounts(c, q.Mounts); r != nil {
		return r
	}
	_, r := resolveLimits(c.Limits, Resources{}, q.Resources, true)
	return r
}

// checkVolumes: a block volume is there before the container that has it.
func checkVolumes(p *Policy, s *state, c *Container) *Refusal {
	for i, m := range c.Mounts {
		if r := needAttached(p, s, indexPath("mounts", i), m.Volume); r != nil {
			return r
		}
	}
	for i, d := range c.Devices {
		if r := needAttached(p, s, indexPath("devices", i), d.Volume); r != nil {
			return r
		}
	}
	return nil
}

// compareList names the first element that differs.
func compareList(rule, path string, want, got []string) *Refusal {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			return refuse(rule, indexPath(path, i), quote(want[i]), nothing, "leave "+path+" out to take the policy's")
		case i >= len(want):
			return refuse(rule, indexPath(path, i), nothing, quote(got[i]), "leave "+path+" out to take the policy's")
		case want[i] != got[i]:
			return refuse(rule, indexPath(path, i), quote(want[i]), quote(got[i]), "leave "+path+" out to take the policy's")
		}
	}
	return nil
}

func compareCwd(rule, want string, got *string) *Refusal {
	if got != nil && *got != want {
		return refuse(rule, "cwd", quote(want), quote(*got), "leave cwd out to take the policy's")
	}
	return nil
}

func compareIDs(want User, got *User) *Refusal {
	switch {
	case got == nil:
		return nil
	case got.UID != want.UID:
		return refuse(RuleContainerUser, "user.uid", fmt.Sprint(want.UID), fmt.Sprint(got.UID), "")
	case got.GID != want.GID:
		return refuse(RuleContainerUser, "user.gid", fmt.Sprint(want.GID), fmt.Sprint(got.GID), "")
	}
	return nil
}

// compareUser takes groups as a set; those of habits may be there or not.
func compareUser(want User, habits []uint32, got *User) *Refusal {
	if r := compareIDs(want, got); r != nil || got == nil {
		return r
	}
	wantGroups := supplementary(want)
	gotGroups := slices.DeleteFunc(supplementary(*got), func(g uint32) bool {
		return slices.Contains(habits, g) && !slices.Contains(wantGroups, g)
	})
	if !slices.Equal(wantGroups, gotGroups) {
		return refuse(RuleContainerUser, "user.groups", fmt.Sprint(wantGroups), clip(fmt.Sprint(gotGroups)), "")
	}
	return nil
}

// supplementary groups: sorted, each once, without the primary one.
func supplementary(u User) []uint32 {
	groups := slices.DeleteFunc(slices.Clone(u.Groups), func(g uint32) bool { return g == u.GID })
	slices.Sort(groups)
	return slices.Compact(groups)
}

// compareMounts: devices may be among a proposal's mounts, but need not.
func compareMounts(c *Container, got []Mount) *Refusal {
	if len(got) == 0 {
		return nil
	}
	want := make(map[string]Mount, len(c.Mounts)+len(c.Devices))
	for _, d := range c.Devices {
		want[d.Path] = Mount{Path: d.Path, Volume: d.Volume, ReadOnly: d.ReadOnly}
	}
	for _, m := range c.Mounts {
		want[m.Path] = m
	}
	seen := make(map[string]bool, len(got))
	for i, g := range got {
		w, ok := want[g.Path]
		switch {
		case !ok:
			return refuse(RuleContainerMounts, indexPath("mounts", i)+".path", "a path that the policy mounts", quote(g.Path), "")
		case seen[g.Path]:
			return refuse(RuleContainerMounts, indexPath("mounts", i)+".path", "each path once", quote(g.Path), "")
		case g.Volume != w.Volume:
			return refuse(RuleContainerMounts, indexPath("mounts", i)+".volume", quote(w.Volume), quote(g.Volume), "")
		case g.ReadOnly != w.ReadOnly:
			return refuse(RuleContainerMounts, indexPath("mounts", i)+".readOnly", fmt.Sprint(w.ReadOnly), fmt.Sprint(g.ReadOnly), "")
		case g.SubPath != "" && g.SubPath != w.SubPath:
			return refuse(RuleContainerMounts, indexPath("mounts", i)+".subPath", quote(w.SubPath), quote(g.SubPath), "")
		}
		seen[g.Path] = true
	}
	for _, w := range c.Mounts {
		if !seen[w.Path] {
			return refuse(RuleContainerMounts, "mounts", "a mount at "+quote(w.Path), nothing, "send all mounts of the policy, or none to leave them to it")
		}
	}
	return nil
}

// resolveLimits decides limits when a container is created (create), or
// changes the limits it has now.
func resolveLimits(l Limits, now, q Resources, create bool) (Resources, *Refusal) {
	memory, r := resolveLimit("resources.memory", l.Memory.Host != "", l.Memory.Bytes, now.MemoryBytes, q.MemoryBytes, 1<<63-1, create)
	if r != nil {
		return Resources{}, r
	}
	cpu, r := resolveLimit("resources.cpu", l.CPUs.Host != "", uint64(l.CPUs.Millis), uint64(now.CPUMillis), uint64(q.CPUMillis), maxCPUMillis, create)
	if r != nil {
		return Resources{}, r
	}
	pids, r := resolveLimit("resources.pids", false, uint64(l.PIDs), uint64(now.PIDs), uint64(q.PIDs), 1<<32-1, create)
	if r != nil {
		return Resources{}, r
	}
	return Resources{MemoryBytes: memory, CPUMillis: uint32(cpu), PIDs: uint32(pids)}, nil
}

func resolveLimit(path string, open bool, pinned, now, got, limit uint64, create bool) (uint64, *Refusal) {
	switch {
	case !open && got != 0 && got != pinned:
		expected := fmt.Sprint(pinned)
		if pinned == 0 {
			expected = "0: the policy has no limit"
		}
		return 0, refuse(RuleContainerResources, path, expected, fmt.Sprint(got), "send 0 to leave it to the policy")
	case !open:
		return pinned, nil
	case got > limit:
		return 0, refuse(RuleSlotValue, path, fmt.Sprintf("at most %d", limit), fmt.Sprint(got), "")
	case got == 0 && create:
		return 0, refuse(RuleSlotMissing, path, "a value", "0", "the policy leaves it to the host")
	case got == 0:
		return now, nil
	}
	return got, nil
}
