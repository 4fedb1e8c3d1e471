package cri

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// nameRE is what a policy takes for a container's name: a DNS label.
var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// container reads a container out of a bundle.
func container(spec *specs.Spec, id string, single bool) (*Container, error) {
	a := annotations(spec.Annotations)
	c := &Container{
		ID: id, Name: a.first(criContainerName, crioContainer), Image: a.first(criImageName, crioImageName),
		Spec: spec, TerminationPath: a.first(criTerminationMsg),
	}
	if single {
		c.Image = a.first(AnnotationImage, criImageName)
		if c.Name = a.first(AnnotationContainer, criContainerName); c.Name == "" {
			c.Name = defaultContainer
		}
	}
	if !nameRE.MatchString(c.Name) {
		return nil, fmt.Errorf("container name: expected a DNS label of at most 63 characters, got %.100q", c.Name)
	}
	if c.Image == "" {
		return nil, errNoImage
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	c.Terminal = spec.Process.Terminal
	c.Privileged = privileged(spec)
	for _, n := range spec.Linux.Namespaces {
		// A PID namespace that exists is the pod's, or another container's.
		if n.Type == specs.PIDNamespace && n.Path != "" {
			c.SharePID = true
		}
	}
	if p := spec.Process.ApparmorProfile; p != "" && p != "unconfined" && !strings.HasPrefix(p, "cri-containerd.") && !strings.HasPrefix(p, "crio-") {
		c.Warnings = append(c.Warnings, fmt.Sprintf("AppArmor profile %.100q is the node's and has no effect in the guest", p))
	}
	return c, nil
}

// check refuses what the guest cannot do.
func (c *Container) check() error {
	p := c.Spec.Process
	switch {
	case p == nil || len(p.Args) == 0:
		return errors.New("expected a process with arguments, got none: the image has neither entrypoint nor command; give the container a command")
	case c.Spec.Hooks != nil:
		return errHooks
	case p.Cwd != "" && !path.IsAbs(p.Cwd):
		return fmt.Errorf("working directory: expected an absolute path, got %.100q", p.Cwd)
	}
	if err := checkOOMScore(p); err != nil {
		return err
	}
	for _, n := range c.Spec.Linux.Namespaces {
		if n.Type == specs.UserNamespace {
			return errUsers
		}
	}
	if r := c.Spec.Linux.Resources; r != nil && slices.ContainsFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool { return l.Limit > 0 && l.Limit < 1<<62 }) {
		return errHuge
	}
	return nil
}

// checkOOMScore refuses what the kernel does not know (linux/oom.h).
func checkOOMScore(p *specs.Process) error {
	const most = 1000
	if p != nil && p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -most || *p.OOMScoreAdj > most) {
		return fmt.Errorf("process.oomScoreAdj: expected %d to %d, got %d", -most, most, *p.OOMScoreAdj)
	}
	return nil
}

// Proposal is what the guest is asked for, but for mounts, volumes and devices.
func (c *Container) Proposal() *agentapi.CreateContainerRequest {
	p := c.Spec.Process
	req := &agentapi.CreateContainerRequest{
		ContainerId: c.ID, Name: c.Name, Image: c.Image,
		Args: &agentapi.StringList{Values: p.Args}, Env: &agentapi.StringList{Values: p.Env},
		User:     &agentapi.User{Uid: p.User.UID, Gid: p.User.GID, Groups: p.User.AdditionalGids},
		Terminal: c.Terminal, Stdin: c.Stdin, Resources: c.Resources(), Security: c.security(), TerminationMessagePath: c.TerminationPath,
	}
	if p.Cwd != "" {
		req.Cwd = new(path.Clean(p.Cwd))
	}
	return req
}

// Resources are the container's limits; nil: it has none.
func (c *Container) Resources() *agentapi.Resources {
	if c.Spec.Linux.Resources == nil {
		return nil
	}
	return Limits(c.Spec.Linux.Resources)
}

// Limits are those of OCI resources, as an update of a task brings them, too.
func Limits(r *specs.LinuxResources) *agentapi.Resources {
	limits := &agentapi.Resources{}
	if m := r.Memory; m != nil && m.Limit != nil && *m.Limit > 0 && *m.Limit < unlimited {
		limits.MemoryBytes = uint64(*m.Limit)
	}
	if c := r.CPU; c != nil && c.Quota != nil && c.Period != nil && *c.Period <= 1<<40 {
		limits.CpuMillis = uint32(millis(*c.Quota, int64(*c.Period)))
	}
	if p := r.Pids; p != nil && p.Limit != nil && *p.Limit > 0 && *p.Limit <= 1<<31 {
		limits.Pids = uint32(*p.Limit)
	}
	return limits
}

// unlimited is what engines write for no limit: the greatest number of pages.
const unlimited = 1 << 62

// specResources is what a bundle of no pod may have.
func specResources(r *specs.LinuxResources) Resources {
	l := Limits(r)
	return Resources{MemoryBytes: int64(l.GetMemoryBytes()), CPUMillis: int64(l.GetCpuMillis())}
}
