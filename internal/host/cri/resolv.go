package cri

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// What a guest takes (pod policy, slot dns).
const (
	maxServers  = 3
	maxSearches = 32
	maxOptions  = 16
)

// parseResolvConf reads resolv.conf(5); see dns.
func parseResolvConf(text []byte, sealed bool) (*agentapi.DNS, []string) {
	var servers, searches, options []string
	for line := range strings.Lines(string(text)) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			servers = append(servers, fields[1])
		case "search", "domain": // the last one counts
			searches = fields[1:]
		case "options":
			options = append(options, fields[1:]...)
		}
	}
	return dns(servers, searches, options, sealed)
}

// dns is a resolver's configuration within the bounds of a guest. Servers that it
// could not reach, and what is more than a resolver uses, are left out with a
// warning. A sealed pod's policy may pin a server on its own loopback, and is
// compared with what the host says.
func dns(servers, searches, options []string, sealed bool) (*agentapi.DNS, []string) {
	d := &agentapi.DNS{}
	var warnings []string
	for _, s := range servers {
		addr, err := netip.ParseAddr(s)
		switch {
		case err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() && !sealed || addr.IsMulticast():
			warnings = append(warnings, fmt.Sprintf("DNS server %.64q cannot be reached from the virtual machine and is left out: give the kubelet another resolvConf", s))
		case slices.Contains(d.Servers, s):
		case len(d.Servers) == maxServers:
			warnings = append(warnings, fmt.Sprintf("DNS server %s is left out: a resolver uses %d", s, maxServers))
		default:
			d.Servers = append(d.Servers, s)
		}
	}
	d.Searches, warnings = bounded(searches, maxSearches, "search domains", warnings)
	d.Options, warnings = bounded(options, maxOptions, "DNS options", warnings)
	return d, warnings
}

// bounded drops repetitions, the root domain, and what is too much.
func bounded(list []string, most int, what string, warnings []string) ([]string, []string) {
	var kept []string
	for _, s := range list {
		if s != "." && s != "" && !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	if len(kept) > most {
		warnings = append(warnings, fmt.Sprintf("%d %s are left out: at most %d are used", len(kept)-most, what, most))
		kept = kept[:most]
	}
	return kept, warnings
}
