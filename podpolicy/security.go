package podpolicy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Security is what a container may do beyond its user, as the host knows it.
type Security struct {
	// Capabilities are the bounding set, named as in a policy.
	Capabilities    []string
	NoNewPrivileges bool
	ReadOnlyRoot    bool
	// SeccompUnconfined: no system call filter applies.
	SeccompUnconfined bool
	// Unmasked: what Kubernetes hides of the kernel's files, or makes read-only,
	// stays as it is.
	Unmasked bool
	// RLimits by name, for example RLIMIT_NOFILE.
	RLimits map[string]RLimit
}

// RLimit is a resource limit of setrlimit(2); 2⁶⁴-1 is none.
type RLimit struct{ Soft, Hard uint64 }

// rlimits of Linux (getrlimit(2)), sorted.
func rlimits() []string {
	return []string{
		"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE",
		"RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
	}
}

// checkSecurity holds for every proposal: what is not known is not let in.
func checkSecurity(s *Security) *Refusal {
	if s == nil {
		return nil
	}
	known := capabilities()
	if len(s.Capabilities) > len(known) {
		return tooMany(RuleProposalForm, "security.capabilities", len(known), len(s.Capabilities))
	}
	for i, c := range s.Capabilities {
		if _, ok := slices.BinarySearch(known, c); !ok {
			return refuse(RuleProposalForm, indexPath("security.capabilities", i), "a capability of Linux 6.12, for example CHOWN", quote(strings.TrimPrefix(c, "CAP_")), "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.RLimits)) {
		if _, ok := slices.BinarySearch(rlimits(), name); !ok {
			return refuse(RuleProposalForm, "security.rlimits", "a name such as RLIMIT_NOFILE", quote(name), "")
		}
		if l := s.RLimits[name]; l.Soft > l.Hard {
			return refuse(RuleProposalForm, keyPath("security.rlimits", name), fmt.Sprintf("a soft limit of at most %d, the hard one", l.Hard), fmt.Sprint(l.Soft), "")
		}
	}
	return nil
}

// compareSecurity holds a claim against the policy. Two things are left out.
// Limits of resources are the node's, not the workload's: a sealed pod has the
// guest's. And a node whose runtime has no filter by default does not tell that
// from a workload that wants none: the policy's filter is in force, whatever the
// host says; only a host that claims a filter where the policy has none is wrong.
func compareSecurity(c *Container, got *Security) *Refusal {
	if got == nil {
		return nil
	}
	if want, has := sortedSet(c.Capabilities), sortedSet(got.Capabilities); !slices.Equal(want, has) {
		return refuse(RuleContainerCapabilities, "security.capabilities", quoteList(want), quoteList(has), capabilitiesDiffer(want, has))
	}
	for _, f := range []struct {
		rule, path string
		want, got  bool
		help       string
	}{
		{RuleContainerNoNewPrivileges, "security.noNewPrivileges", c.NoNewPrivileges.On(), got.NoNewPrivileges, "allowPrivilegeEscalation of the manifest is its opposite"},
		{RuleContainerReadOnlyRoot, "security.readOnlyRoot", c.ReadOnlyRoot, got.ReadOnlyRoot, "readOnlyRootFilesystem of the manifest says it"},
		{RuleContainerSeccomp, "security.seccompUnconfined", c.Seccomp == SeccompUnconfined, c.Seccomp == SeccompUnconfined && got.SeccompUnconfined, "the policy has no filter for this container"},
		{RuleContainerUnmasked, "security.unmasked", c.unmasked, got.Unmasked, "a policy has no privileged containers and no unmasked /proc"},
	} {
		if f.want != f.got {
			return refuse(f.rule, f.path, fmt.Sprint(f.want), fmt.Sprint(f.got), f.help)
		}
	}
	return nil
}

func capabilitiesDiffer(want, got []string) string {
	minus := func(a, b []string) []string {
		return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
	}
	var parts []string
	if more := minus(got, want); len(more) > 0 {
		parts = append(parts, "the policy does not have "+strings.Join(more, ", "))
	}
	if less := minus(want, got); len(less) > 0 {
		parts = append(parts, "the host leaves out "+strings.Join(less, ", "))
	}
	return strings.Join(parts, "; ")
}

func sortedSet(list []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

// permit gives a derived container the rights that the host claims for it.
func (s *Security) permit(c *Container) {
	c.Capabilities = sortedSet(s.Capabilities)
	c.NoNewPrivileges = OnUnlessOff{Off: !s.NoNewPrivileges}
	c.ReadOnlyRoot = s.ReadOnlyRoot
	c.Seccomp = SeccompDefault
	if s.SeccompUnconfined {
		c.Seccomp = SeccompUnconfined
	}
	c.unmasked, c.rlimits = s.Unmasked, maps.Clone(s.RLimits)
}

// AllCapabilities reports whether a set has every capability there is.
func AllCapabilities(set []string) bool {
	return slices.Equal(sortedSet(set), capabilities())
}

func (s *Security) clone() *Security {
	if s == nil {
		return nil
	}
	d := *s
	d.Capabilities, d.RLimits = slices.Clone(s.Capabilities), maps.Clone(s.RLimits)
	return &d
}
