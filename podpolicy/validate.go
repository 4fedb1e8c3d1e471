package podpolicy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Problem is one thing that is wrong with a policy.
type Problem struct {
	// Path in the policy, for example containers[0].image.digest.
	Path string `json:"path"`
	// Problem says what was expected and what is there.
	Problem string `json:"problem"`
}

// InvalidError lists everything that is wrong with a policy; it has at least
// one problem.
type InvalidError struct{ Problems []Problem }

// Error implements error: one line for each problem.
func (e *InvalidError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pod policy is not valid (%d problems):", len(e.Problems))
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n  %s: %s", p.Path, p.Problem)
	}
	return b.String()
}

// validator collects problems.
type validator struct {
	policy   *Policy
	problems []Problem
}

func (v *validator) bad(path, format string, args ...any) {
	v.problems = append(v.problems, Problem{path, fmt.Sprintf(format, args...)})
}

// count reports a list that is too long, and whether it is not.
func (v *validator) count(path string, n, limit int) bool {
	if n > limit {
		v.bad(path, "%d entries, at most %d are allowed", n, limit)
	}
	return n <= limit
}

// Validate checks everything about a policy and reports all problems at once,
// as an [*InvalidError].
func (p *Policy) Validate() error {
	v := validator{policy: p}
	if p.APIVersion != APIVersion {
		v.bad("apiVersion", "expected %q, got %s", APIVersion, quote(p.APIVersion))
	}
	if p.Kind != Kind {
		v.bad("kind", "expected %q, got %s", Kind, quote(p.Kind))
	}
	v.pod(&p.Pod)
	if len(p.Containers) == 0 {
		v.bad("containers", "a pod has at least one container")
	}
	if v.count("containers", len(p.Containers), maxContainers) {
		seen := map[string]bool{}
		for i := range p.Containers {
			path := indexPath("containers", i)
			v.container(path, &p.Containers[i])
			if seen[p.Containers[i].Name] {
				v.bad(path+".name", "%s is the name of an earlier container", quote(p.Containers[i].Name))
			}
			seen[p.Containers[i].Name] = true
		}
	}
	if v.count("volumes", len(p.Volumes), maxVolumes) {
		for _, name := range slices.Sorted(maps.Keys(p.Volumes)) {
			path := keyPath("volumes", name)
			if !isDNSLabel(name) {
				v.bad(path, "a volume's name is a DNS label of at most 63 characters")
			}
			v.volume(path, p.Volumes[name])
		}
	}
	v.network(&p.Network)
	if len(v.problems) > 0 {
		return &InvalidError{v.problems}
	}
	return nil
}

func (v *validator) pod(p *Pod) {
	v.name("pod.name", p.Name, SlotPodName)
	if p.Name == (Name{}) {
		v.bad("pod.name", `expected a name, {"host":"podName"} or {"match": PATTERN}`)
	}
	v.name("pod.namespace", p.Namespace, SlotPodNamespace)
	v.name("pod.hostname", p.Hostname, SlotHostname)
	if !v.count("pod.sysctls", len(p.Sysctls), maxSysctls) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(p.Sysctls)) {
		path := keyPath("pod.sysctls", name)
		if !isNamespacedSysctl(name) {
			v.bad(path, "not a sysctl of the pod's own namespaces: expected kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* or net.*")
		}
		if value := p.Sysctls[name]; value == "" || len(value) > 256 || !printable(value) {
			v.bad(path, "expected 1 to 256 printable characters")
		}
	}
}

// name checks a pinned name against the form that its slot has, too: a policy
// cannot pin what the pod could not have.
func (v *validator) name(path string, n Name, slot Slot) {
	if boolsToInt(n.Value != "", n.Host != "", n.Match != "") == 0 {
		return
	}
	switch {
	case n.Value != "" && (n.Host != "" || n.Match != "") || n.Host != "" && n.Match != "":
		v.bad(path, "expected one of a string, host and match")
	case n.Value != "":
		if !slot.spec().check(n.Value) {
			v.bad(path, "expected %s, got %s", slot.spec().form, quote(n.Value))
		}
	case n.Host != "":
		if n.Host != slot {
			v.bad(path+".host", "expected slot type %s, got %s", slot, quote(string(n.Host)))
		}
	default:
		if err := checkPattern(n.Match); err != nil {
			v.bad(path+".match", "%s", err)
		}
	}
}

// isNamespacedSysctl: those that the kernel keeps per IPC or network namespace;
// any other would change the guest itself.
func isNamespacedSysctl(name string) bool {
	if len(name) > 256 || !only(name, alnum+"._-") || strings.Contains(name, "..") || strings.HasSuffix(name, ".") {
		return false
	}
	return name == "kernel.sem" || strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") ||
		strings.HasPrefix(name, "fs.mqueue.") || strings.HasPrefix(name, "net.")
}

func (v *validator) network(n *Network) {
	dns := n.DNS
	switch {
	case dns.Host != "" && dns.Host != SlotDNS:
		v.bad("network.dns.host", "expected slot type %s, got %s", SlotDNS, quote(string(dns.Host)))
	case dns.Host != "" && len(dns.Servers)+len(dns.Searches)+len(dns.Options) > 0:
		v.bad("network.dns", "expected the host's choice or pinned values, not both")
	}
	// A pinned server may be on loopback: the owner knows what listens there.
	if r := checkDNS("network.dns", DNSProposal{dns.Servers, dns.Searches, dns.Options}, true); r != nil {
		v.bad(r.Path, "expected %s, got %s", r.Expected, r.Got)
	}
	hosts := n.Hosts
	switch {
	case hosts.Host != "" && hosts.Host != SlotHosts:
		v.bad("network.hosts.host", "expected slot type %s, got %s", SlotHosts, quote(string(hosts.Host)))
	case hosts.Host != "" && len(hosts.Entries) > 0:
		v.bad("network.hosts", "expected the host's choice or pinned entries, not both")
	}
	if r := checkHosts("network.hosts.entries", hosts.Entries, true); r != nil {
		v.bad(r.Path, "expected %s, got %s", r.Expected, r.Got)
	}
}

// clone copies a policy through its own encoding; what is not in the encoding
// (the marks of an unsealed pod) is not copied.
func (p *Policy) clone() (*Policy, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("pod policy: %w", err)
	}
	var c Policy
	limits := strictjson.Limits{Bytes: 4 * MaxBytes, Depth: jsonLimits.Depth}
	if err := strictjson.Decode(data, &c, limits); err != nil {
		return nil, fmt.Errorf("pod policy: %w", err)
	}
	return &c, nil
}

// isSHA256 reports a digest in the form sha256:<64 lower-case hex digits>.
func isSHA256(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(h) == 64 && only(h, "0123456789abcdef")
}

// checkSealed takes the form sealed.<header>.<payload>.<signature>, base64url.
func checkSealed(s string) error {
	parts := strings.Split(s, ".")
	bad := slices.ContainsFunc(parts, func(p string) bool { return p == "" || !only(p, alnum+"_-") })
	if len(s) > 64<<10 || len(parts) != 4 || parts[0] != "sealed" || bad {
		return fmt.Errorf("expected a sealed secret, sealed.HEADER.PAYLOAD.SIGNATURE in base64url")
	}
	return nil
}

func parseCIDR(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	return p, err == nil && len(s) <= 49
}
