package podpolicy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// FactKind says whose word a fact is.
type FactKind string

// Kinds of facts: what the owner has fixed; what the host may do; what the host
// chooses, and the workload must not trust; what the trustee gives; and what the
// owner should have thought of.
const (
	FactFixed   FactKind = "fixed"
	FactAllowed FactKind = "allowed"
	FactOpen    FactKind = "open"
	FactSecret  FactKind = "secret"
	FactWarning FactKind = "warning"
)

// Fact is one thing that a policy says.
type Fact struct {
	// Path in the policy, as in [Difference].
	Path string   `json:"path"`
	Kind FactKind `json:"kind"`
	// Text is one or two sentences.
	Text string `json:"text"`
}

// Section is what a policy says about one thing: the pod, a container, a volume
// or the network.
type Section struct {
	Title string `json:"title"`
	Facts []Fact `json:"facts"`
}

// Describe says in plain language what a policy allows and what it leaves open
// to the host: the pod, the containers in their order, volumes by name, the
// network, and what no policy decides. The policy should be valid; it is left
// as it is.
func Describe(p *Policy) []Section {
	sections := []Section{describePod(p.Pod)}
	for i := range p.Containers {
		sections = append(sections, describeContainer(p, &p.Containers[i]))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Volumes)) {
		sections = append(sections, describeVolumeFacts(name, p.Volumes[name]))
	}
	return append(sections, describeNetwork(p.Network), undecided())
}

// notes collects facts below one path.
type notes struct {
	path  string
	facts []Fact
}

func (n *notes) add(kind FactKind, field, format string, args ...any) {
	n.facts = append(n.facts, Fact{strings.TrimPrefix(n.path+"."+field, "."), kind, fmt.Sprintf(format, args...)})
}

func (n *notes) section(title string) Section { return Section{title, n.facts} }

func describePod(p Pod) Section {
	n := &notes{path: "pod"}
	n.name("name", "name", p.Name)
	if p.Namespace == (Name{}) {
		n.add(FactFixed, "namespace", "The pod has no namespace of its own; what the host says it is reaches only variables that are open.")
	} else {
		n.name("namespace", "namespace", p.Namespace)
	}
	if p.Hostname == (Name{}) {
		n.add(FactFixed, "hostname", "Its host name is the pod's name up to the first dot.")
	} else {
		n.name("hostname", "host name", p.Hostname)
	}
	if p.SharePID {
		n.add(FactFixed, "sharePID", "All containers share one PID namespace: they see, and with equal users may signal and trace, each other's processes.")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Sysctls)) {
		n.add(FactFixed, strings.TrimPrefix(keyPath("sysctls", name), "."), "Sysctl %s is %s.", name, quote(p.Sysctls[name]))
	}
	return n.section("The pod")
}

func (n *notes) name(field, what string, name Name) {
	switch {
	case name.Host != "":
		n.add(FactOpen, field, "The host chooses the pod's %s; only its form is checked.", what)
	case name.Match != "":
		n.add(FactOpen, field, "The host chooses the pod's %s, which must match %s.", what, quote(name.Match))
	default:
		n.add(FactFixed, field, "The pod's %s is %s.", what, quote(name.Value))
	}
}

func describeVolumeFacts(name string, v Volume) Section {
	n := &notes{path: keyPath("volumes", name)}
	switch v.Kind {
	case VolumeEphemeral:
		size := "as much as there is"
		if v.Size.Bytes != 0 {
			size = "at most " + FormatBytes(v.Size.Bytes)
		}
		where := "the pod VM's encrypted scratch disk, or its memory if the VM has none"
		if v.Medium == MediumMemory {
			where = "the pod VM's memory"
		}
		n.add(FactFixed, "kind", "A directory that lives as long as the pod, on %s, and holds %s.", where, size)
	case VolumeBlock:
		n.add(FactSecret, "key", "A disk that the host keeps and the key %s opens. The host can withhold it, or bring back an older state of it.", v.Key)
		if v.Filesystem == "" {
			n.add(FactFixed, "filesystem", "Containers have it as a device.")
		}
	case VolumeFiles:
		n.files(v)
	}
	if v.Group != nil {
		n.add(FactFixed, "group", "It belongs to group %d.", *v.Group)
	}
	return n.section("Volume " + name)
}

func (n *notes) files(v Volume) {
	if len(v.Pinned)+len(v.Sealed)+len(v.Resources) == 0 && v.Host == nil {
		n.add(FactFixed, "kind", "An empty directory that nobody writes.")
	}
	for _, name := range slices.Sorted(maps.Keys(v.Pinned)) {
		n.add(FactFixed, keyPath("pinned", name), "File %s has the content %s.", name, v.Pinned[name])
	}
	for _, name := range slices.Sorted(maps.Keys(v.Sealed)) {
		n.add(FactSecret, keyPath("sealed", name), "File %s is a sealed secret, opened inside the guest.", name)
	}
	for _, name := range slices.Sorted(maps.Keys(v.Resources)) {
		n.add(FactSecret, keyPath("resources", name), "File %s is %s, fetched inside the guest.", name, v.Resources[name])
	}
	if v.Host != nil {
		n.add(FactOpen, "host", "The host writes, and rewrites at any time, the files %s, together at most %d bytes.", quoteList(v.Host.Names), v.Host.MaxBytes)
	}
}

func describeNetwork(net Network) Section {
	n := &notes{path: "network"}
	n.add(FactOpen, "interfaces", "Interfaces, routes, neighbours and everything on the wire are the host's. Encrypt, and authenticate peers.")
	switch dns := net.DNS; {
	case dns.Host != "":
		n.add(FactOpen, "dns", "The host chooses DNS servers and search domains.")
	case len(dns.Servers)+len(dns.Searches)+len(dns.Options) > 0:
		n.add(FactFixed, "dns", "DNS servers are %s, search domains %s.", quoteList(dns.Servers), quoteList(dns.Searches))
	default:
		n.add(FactFixed, "dns", "The pod has no DNS.")
	}
	switch hosts := net.Hosts; {
	case hosts.Host != "":
		n.add(FactOpen, "hosts", "The host adds entries to /etc/hosts, but none for localhost.")
	case len(hosts.Entries) > 0:
		n.add(FactFixed, "hosts", "/etc/hosts has %d entries besides the pod's own.", len(hosts.Entries))
	}
	return n.section("The network")
}

// undecided is what no policy decides.
func undecided() Section {
	n := &notes{}
	n.add(FactOpen, "", "The host may refuse service at any time: start nothing, start late, leave an app container out, cut the network, take a disk away.")
	n.add(FactOpen, "", "Clock and timing are the host's; so is how often a pod of this policy is started, and two such pods are not told apart by it.")
	n.add(FactWarning, "", "The host reads the policy: literal values are public.")
	return n.section("What no policy decides")
}
