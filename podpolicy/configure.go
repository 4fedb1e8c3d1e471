package podpolicy

import (
	"fmt"
	"maps"
	"path"
	"slices"
)

// decideConfigure makes the effective configuration of an admitted container
// from the policy and the image that was pulled for it.
func decideConfigure(p *Policy, s *state, id string, admission uint64, img ImageConfig) (*ContainerConfig, *state, *Refusal) {
	i, ok := s.instance(id)
	if !ok || i.phase != phaseAdmitted || i.admission != admission {
		return nil, nil, badPhase(id, i, ok, phaseAdmitted)
	}
	c := findContainer(p, i.name)
	if c == nil {
		return nil, nil, refuse(RuleContainerUnknown, "name", "a container of the policy", quote(i.name), "")
	}
	q := i.proposal
	if img.Digest != i.image.Digest && i.image.Digest != "" {
		return nil, nil, refuse(RuleContainerImage, "image", i.image.Digest, quote(img.Digest), "the image that was unpacked is not the one that was admitted")
	}
	config := &ContainerConfig{
		ID: id, Name: c.Name, Role: orDefault(c.Role, RoleApp), Image: i.image,
		Capabilities:    slices.Sorted(slices.Values(c.Capabilities)),
		NoNewPrivileges: c.NoNewPrivileges.On(), ReadOnlyRoot: c.ReadOnlyRoot, Seccomp: orDefault(c.Seccomp, SeccompDefault),
		Terminal: c.Terminal, Stdin: q.Stdin, SharePID: p.Pod.SharePID,
		Unmasked: c.unmasked, RLimits: maps.Clone(c.rlimits), TerminationPath: orDefault(q.TerminationPath, c.TerminationMessagePath),
	}
	var r *Refusal
	if config.Target, r = resolveTarget(p, s, c); r != nil {
		return nil, nil, r
	}
	if !c.ExpandArgs {
		if config.Args, r = resolveArgs(c, img, q); r != nil {
			return nil, nil, r
		}
	}
	if config.Cwd, r = resolveCwd(c, img, q); r != nil {
		return nil, nil, r
	}
	if config.User, r = resolveUser(c, img, q); r != nil {
		return nil, nil, r
	}
	if config.Limits, r = resolveLimits(c.Limits, Resources{}, q.Resources, true); r != nil {
		return nil, nil, r
	}
	sorted, ok := s.env[c.Name]
	if !ok {
		sorted = sortedEnv(c.Env)
	}
	env, slots, r := resolveEnv(c, sorted, img.Env, s.sandbox.config.Hostname, i.given, q.Slots, s.slots)
	if r != nil {
		return nil, nil, r
	}
	config.Env = env.vars
	if c.ExpandArgs {
		if config.Args, config.ExpandArgs, r = resolveExpandedArgs(c, env, q); r != nil {
			return nil, nil, r
		}
	}
	config.Mounts = resolveMounts(p, c)
	i.phase, i.config, i.stopSignal = phaseConfigured, config, stopSignal(img.StopSignal)
	i.proposal, i.given = ContainerProposal{}, nil // it has been decided
	next := s.withInstance(id, i)
	next.slots = slots
	return config.clone(), next, nil
}

func resolveArgs(c *Container, img ImageConfig, q ContainerProposal) ([]string, *Refusal) {
	args := c.Args
	if args == nil {
		args = slices.Concat(img.Entrypoint, img.Cmd)
		if len(args) == 0 || args[0] == "" {
			return nil, refuse(RuleImageConfig, "args", "a program", nothing, "the image has neither entrypoint nor command; set args in the policy")
		}
		if r := checkArgs("image.args", args); r != nil {
			r.Rule = RuleImageConfig
			return nil, r
		}
	}
	if q.Args != nil {
		if r := compareList(RuleContainerArgs, "args", args, *q.Args); r != nil {
			return nil, r
		}
	}
	return slices.Clone(args), nil
}

// resolveExpandedArgs compares arguments as the host has expanded them, but not
// those that hold a secret.
func resolveExpandedArgs(c *Container, env *environment, q ContainerProposal) ([]string, bool, *Refusal) {
	args, open := env.expandArgs(c.Args)
	if r := checkArgs("args", args); r != nil {
		r.Rule = RuleContainerArgs
		return nil, false, r
	}
	if q.Args == nil {
		return args, open != nil, nil
	}
	want, got := args, slices.Clone(*q.Args)
	if open != nil {
		want = slices.Clone(args)
		for i := range want {
			if !open[i] {
				want[i] = Expand(want[i], func(string) (string, bool) { return "", false })
			} else if i < len(got) {
				got[i] = want[i]
			}
		}
	}
	return args, open != nil, compareList(RuleContainerArgs, "args", want, got)
}

func resolveCwd(c *Container, img ImageConfig, q ContainerProposal) (string, *Refusal) {
	cwd := c.Cwd
	if cwd == "" {
		// Images write it with trailing slashes, and relative to the root.
		cwd = path.Join("/", img.WorkingDir)
		if !isCleanAbsolute(cwd) {
			return "", refuse(RuleImageConfig, "image.workingDir", "a path", quote(img.WorkingDir), "set cwd in the policy")
		}
	}
	return cwd, compareCwd(RuleContainerCwd, cwd, q.Cwd)
}

// resolveUser makes the user, and compares a proposal's. What groups a runtime
// lists besides depends on its version: the primary one, and those that the
// image's /etc/group puts the user in. They may be there and mean nothing.
func resolveUser(c *Container, img ImageConfig, q ContainerProposal) (User, *Refusal) {
	var user User
	var habits []uint32
	if c.User != nil {
		user = *c.User
		if q.User != nil {
			// An image that does not tell makes no difference here.
			u, err := ResolveUser(fmt.Sprint(user.UID), img.Passwd, img.Group)
			if err == nil {
				habits = append(u.Groups, u.GID)
			}
		}
	} else {
		u, err := ResolveUser(img.User, img.Passwd, img.Group)
		if err != nil {
			return User{}, refuse(RuleImageConfig, "image.user", "a user of the image", quote(img.User), err.Error())
		}
		user = u
	}
	user.Groups = supplementary(user)
	if len(user.Groups) == 0 {
		user.Groups = nil
	}
	return user, compareUser(user, habits, q.User)
}

// resolveMounts is the policy's list, parents first, with what each volume is.
func resolveMounts(p *Policy, c *Container) []MountConfig {
	mounts := make([]MountConfig, 0, len(c.Mounts)+len(c.Devices))
	for _, m := range c.Mounts {
		v := p.Volumes[m.Volume]
		mc := MountConfig{Path: m.Path, Volume: m.Volume, SubPath: m.SubPath, ReadOnly: m.ReadOnly || v.Kind == VolumeFiles, Kind: v.Kind}
		if v.Kind == VolumeEphemeral {
			mc.Medium, mc.SizeBytes = orDefault(v.Medium, MediumDisk), v.Size.Bytes
		}
		mounts = append(mounts, mc)
	}
	for _, d := range c.Devices {
		mounts = append(mounts, MountConfig{Path: d.Path, Volume: d.Volume, ReadOnly: d.ReadOnly, Device: true, Kind: p.Volumes[d.Volume].Kind})
	}
	slices.SortFunc(mounts, func(a, b MountConfig) int { return compareMountPaths(a.Path, b.Path) })
	return mounts
}

// badPhase explains why a container cannot do what was asked of it.
func badPhase(id string, i instance, exists bool, want phase) *Refusal {
	got := nothing
	if exists {
		got = quote(id) + ", which is " + i.phase.String()
	}
	return refuse(RuleContainerState, "id", "a container that is "+want.String(), got, "")
}

func (c *ContainerConfig) clone() *ContainerConfig {
	d := *c
	d.Args = slices.Clone(c.Args)
	d.Env = slices.Clone(c.Env)
	d.User.Groups = slices.Clone(c.User.Groups)
	d.Capabilities = slices.Clone(c.Capabilities)
	d.Mounts = slices.Clone(c.Mounts)
	d.RLimits = maps.Clone(c.RLimits)
	return &d
}

func (q ContainerProposal) clone() ContainerProposal {
	if q.Args != nil {
		q.Args = new(slices.Clone(*q.Args))
	}
	if q.Env != nil {
		q.Env = new(slices.Clone(*q.Env))
	}
	if q.User != nil {
		q.User = &User{q.User.UID, q.User.GID, slices.Clone(q.User.Groups)}
	}
	if q.Cwd != nil {
		q.Cwd = new(*q.Cwd)
	}
	q.Mounts = slices.Clone(q.Mounts)
	q.Slots = maps.Clone(q.Slots)
	q.Security = q.Security.clone()
	q.Volumes = slices.Clone(q.Volumes)
	for i, v := range q.Volumes {
		if v.Group != nil {
			q.Volumes[i].Group = new(*v.Group)
		}
	}
	q.Devices = slices.Clone(q.Devices)
	return q
}
