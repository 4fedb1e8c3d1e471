package podpolicy

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// decideNetwork checks the form of what is always the host's, and takes DNS and
// hosts from the policy or, where it leaves them open, from the host.
func decideNetwork(p *Policy, q NetworkProposal) (*NetworkConfig, *Refusal) {
	config := NetworkConfig(q).clone()
	names, r := checkInterfaces(q.Interfaces)
	if r != nil {
		return nil, r
	}
	if r := checkRoutes(q.Routes, names); r != nil {
		return nil, r
	}
	if r := checkNeighbours(q.Neighbours, names); r != nil {
		return nil, r
	}
	if r := checkDNS("network.dns", q.DNS, false); r != nil && p.Network.DNS.Host != "" {
		return nil, r
	}
	if p.Network.DNS.Host == "" {
		pinned := DNSProposal{p.Network.DNS.Servers, p.Network.DNS.Searches, p.Network.DNS.Options}
		if r := compareDNS(pinned, q.DNS); r != nil {
			return nil, r
		}
		config.DNS = pinned.clone()
	}
	if p.Network.Hosts.Host != "" {
		if r := checkHosts("network.hosts", q.Hosts, false); r != nil {
			return nil, r
		}
		return &config, nil
	}
	pinned := p.Network.Hosts.Entries
	if len(q.Hosts) > 0 && !reflect.DeepEqual(pinned, q.Hosts) {
		return nil, refuse(RuleNetworkHosts, "network.hosts", fmt.Sprintf("nothing, or the policy's %d entries", len(pinned)), fmt.Sprintf("%d entries that differ", len(q.Hosts)), `the policy leaves them to the host only with "hosts": {"host": "hosts"}`)
	}
	config.Hosts = cloneHosts(pinned)
	return &config, nil
}

func compareDNS(pinned, got DNSProposal) *Refusal {
	if len(got.Servers)+len(got.Searches)+len(got.Options) == 0 {
		return nil
	}
	for _, f := range []struct {
		path      string
		want, got []string
	}{
		{"network.dns.servers", pinned.Servers, got.Servers},
		{"network.dns.searches", pinned.Searches, got.Searches},
		{"network.dns.options", pinned.Options, got.Options},
	} {
		if !slices.Equal(f.want, f.got) {
			return refuse(RuleNetworkDNS, f.path, quoteList(f.want), quoteList(f.got), `the policy leaves DNS to the host only with "dns": {"host": "dns"}`)
		}
	}
	return nil
}

func checkInterfaces(list []Interface) (map[string]bool, *Refusal) {
	if len(list) > maxInterfaces {
		return nil, tooMany(RuleNetworkInterface, "network.interfaces", maxInterfaces, len(list))
	}
	names, macs := map[string]bool{}, map[string]bool{}
	for i, n := range list {
		at := indexPath("network.interfaces", i)
		mac := strings.ToLower(n.MAC)
		switch {
		case !isMAC(n.MAC):
			return nil, refuse(RuleNetworkInterface, at+".mac", "a unicast hardware address of six octets, not all zero", quote(n.MAC), "")
		case macs[mac]:
			return nil, refuse(RuleNetworkInterface, at+".mac", "a hardware address of no other interface", quote(n.MAC), "")
		case !isInterfaceName(n.Name) || names[n.Name]:
			return nil, refuse(RuleNetworkInterface, at+".name", "1 to 15 characters of [a-zA-Z0-9._-], not lo, and no other interface's", quote(n.Name), "")
		case n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535):
			return nil, refuse(RuleNetworkInterface, at+".mtu", "0 or 68 to 65535", fmt.Sprint(n.MTU), "")
		case len(n.Addresses) > maxAddresses:
			return nil, tooMany(RuleNetworkInterface, at+".addresses", maxAddresses, len(n.Addresses))
		}
		for j, a := range n.Addresses {
			if p, ok := parseCIDR(a); !ok || !unicast(p.Addr()) {
				return nil, refuse(RuleNetworkInterface, indexPath(at+".addresses", j), "a unicast address in CIDR notation, not of loopback", quote(a), "")
			}
		}
		names[n.Name], macs[mac] = true, true
	}
	return names, nil
}

func checkRoutes(list []Route, interfaces map[string]bool) *Refusal {
	if len(list) > maxRoutes {
		return tooMany(RuleNetworkRoute, "network.routes", maxRoutes, len(list))
	}
	for i, n := range list {
		at := indexPath("network.routes", i)
		if n.Destination != "" {
			p, ok := parseCIDR(n.Destination)
			if !ok || overlapsLoopback(p) || p.Addr().Is4In6() {
				return refuse(RuleNetworkRoute, at+".destination", "a network in CIDR notation outside loopback, or nothing for the default route", quote(n.Destination), "")
			}
		}
		if n.Gateway != "" && !isUnicast(n.Gateway) {
			return refuse(RuleNetworkRoute, at+".gateway", "a unicast address or nothing", quote(n.Gateway), "")
		}
		if !interfaces[n.Interface] {
			return refuse(RuleNetworkRoute, at+".interface", "an interface of this proposal", quote(n.Interface), "")
		}
	}
	return nil
}

// overlapsLoopback: a route that is part of loopback, or is all of it. Wider
// networks, as the default route, are less specific than the kernel's own.
func overlapsLoopback(p netip.Prefix) bool {
	for _, l := range []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")} {
		if l.Overlaps(p) && p.Bits() >= l.Bits() {
			return true
		}
	}
	return false
}

func checkNeighbours(list []Neighbour, interfaces map[string]bool) *Refusal {
	if len(list) > maxNeighbours {
		return tooMany(RuleNetworkNeighbour, "network.neighbours", maxNeighbours, len(list))
	}
	for i, n := range list {
		at := indexPath("network.neighbours", i)
		switch {
		case !isUnicast(n.Address):
			return refuse(RuleNetworkNeighbour, at+".address", "a unicast address, not of loopback", quote(n.Address), "")
		case !isMAC(n.MAC):
			return refuse(RuleNetworkNeighbour, at+".mac", "a unicast hardware address of six octets, not all zero", quote(n.MAC), "")
		case !interfaces[n.Interface]:
			return refuse(RuleNetworkNeighbour, at+".interface", "an interface of this proposal", quote(n.Interface), "")
		}
	}
	return nil
}

// checkDNS holds for policies (pinned) and proposals.
func checkDNS(at string, d DNSProposal, pinned bool) *Refusal {
	if len(d.Servers) > maxDNSServers {
		return tooMany(RuleNetworkDNS, at+".servers", maxDNSServers, len(d.Servers))
	}
	for i, s := range d.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil || len(s) > 45 || a.Zone() != "" || !unicast(a) && (!pinned || !a.IsLoopback()) {
			return refuse(RuleNetworkDNS, indexPath(at+".servers", i), "a unicast IP address", quote(s), "")
		}
	}
	if len(d.Searches) > maxDNSSearches {
		return tooMany(RuleNetworkDNS, at+".searches", maxDNSSearches, len(d.Searches))
	}
	for i, s := range d.Searches {
		if !isDNSName(strings.TrimSuffix(s, ".")) {
			return refuse(RuleNetworkDNS, indexPath(at+".searches", i), "a DNS name", quote(s), "")
		}
	}
	if len(d.Options) > maxDNSOptions {
		return tooMany(RuleNetworkDNS, at+".options", maxDNSOptions, len(d.Options))
	}
	for i, s := range d.Options {
		name, value, has := strings.Cut(s, ":")
		if name == "" || len(s) > 32 || !only(name, "abcdefghijklmnopqrstuvwxyz0123456789-") || has && (value == "" || !only(value, "0123456789")) {
			return refuse(RuleNetworkDNS, indexPath(at+".options", i), "an option of resolv.conf such as ndots:5", quote(s), "")
		}
	}
	return nil
}

// checkHosts holds for policies (pinned) and proposals. A host that could name
// loopback, or give localhost another address, could stand in for a neighbour
// container.
func checkHosts(at string, list []HostEntry, pinned bool) *Refusal {
	if len(list) > maxHosts {
		return tooMany(RuleNetworkHosts, at, maxHosts, len(list))
	}
	for i, e := range list {
		at := indexPath(at, i)
		a, err := netip.ParseAddr(e.Address)
		if err != nil || len(e.Address) > 45 || a.Zone() != "" || !unicast(a) && (!pinned || !a.IsLoopback()) {
			return refuse(RuleNetworkHosts, at+".address", "a unicast IP address, not of loopback", quote(e.Address), "")
		}
		if len(e.Names) == 0 || len(e.Names) > maxHostNames {
			return refuse(RuleNetworkHosts, at+".names", fmt.Sprintf("1 to %d names", maxHostNames), fmt.Sprint(len(e.Names)), "")
		}
		for j, name := range e.Names {
			if !isDNSName(strings.ToLower(name)) || isLocalName(name) {
				return refuse(RuleNetworkHosts, indexPath(at+".names", j), "a DNS name other than localhost", quote(name), "")
			}
		}
	}
	return nil
}

func isLocalName(s string) bool {
	s = strings.ToLower(s)
	return s == "localhost" || strings.HasSuffix(s, ".localhost") || strings.HasPrefix(s, "ip6-") || s == "localhost.localdomain"
}

func isMAC(s string) bool {
	m, err := net.ParseMAC(s)
	return err == nil && len(s) == 17 && strings.Count(s, ":") == 5 && len(m) == 6 && m[0]&1 == 0 && m.String() != "00:00:00:00:00:00"
}

func isInterfaceName(s string) bool {
	return s != "" && len(s) <= 15 && s != "lo" && s != "." && s != ".." && only(s, alnum+"._-")
}

func tooMany(rule, path string, limit, got int) *Refusal {
	return refuse(rule, path, fmt.Sprintf("at most %d", limit), fmt.Sprint(got), "")
}
