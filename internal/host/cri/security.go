package cri

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// security is what the bundle lets the container do.
func (c *Container) security() *agentapi.Security {
	p := c.Spec.Process
	s := &agentapi.Security{
		NoNewPrivileges: p.NoNewPrivileges, ReadOnlyRoot: c.Spec.Root != nil && c.Spec.Root.Readonly,
		SeccompUnconfined: c.Spec.Linux.Seccomp == nil, Unmasked: unmasked(c.Spec.Linux), Rlimits: map[string]*agentapi.Rlimit{},
	}
	if p.Capabilities != nil {
		s.Capabilities = capabilities(p.Capabilities.Bounding)
	}
	for _, l := range p.Rlimits {
		s.Rlimits[l.Type] = &agentapi.Rlimit{Soft: l.Soft, Hard: l.Hard}
	}
	return s
}

// capabilities are names without CAP_, sorted, each once.
func capabilities(list []string) []string {
	set := map[string]bool{}
	for _, name := range list {
		set[strings.TrimPrefix(strings.ToUpper(name), "CAP_")] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// unmasked tells that the paths stay as they are that Kubernetes masks.
func unmasked(l *specs.Linux) bool { return len(l.MaskedPaths) == 0 && len(l.ReadonlyPaths) == 0 }

// privileged recognises a container that was asked to have everything: neither
// filter nor masked paths, and the capability that stands for all others.
func privileged(spec *specs.Spec) bool {
	p := spec.Process
	return p.Capabilities != nil && slices.Contains(p.Capabilities.Bounding, "CAP_SYS_ADMIN") && slices.Contains(p.Capabilities.Bounding, "CAP_SYS_RAWIO") &&
		spec.Linux.Seccomp == nil && unmasked(spec.Linux)
}
