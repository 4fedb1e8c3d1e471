//go:build kata_policy

package katapolicy

import (
	"net/netip"
	"strconv"

	"github.com/coffer-project/coffer/podpolicy"
)

// permanent is the state of a neighbour that does not age (NUD_PERMANENT of
// rtnetlink(7)).
const permanent = 128

// network is a request for each interface, one for all routes and one for all
// neighbours, as Kata's shim sends them.
func network(c *podpolicy.NetworkConfig) []request {
	var requests []request
	for _, i := range c.Interfaces {
		var addresses []object
		for _, a := range i.Addresses {
			addresses = append(addresses, prefix(a))
		}
		requests = append(requests, request{"UpdateInterfaceRequest", object{"interface": object{
			"device": i.Name, "name": i.Name, "IPAddresses": list(addresses), "mtu": i.MTU, "hwAddr": i.MAC, "devicePath": "", "type_": "", "raw_flags": 0,
		}}})
	}
	if len(c.Routes) > 0 {
		var routes []object
		for _, r := range c.Routes {
			routes = append(routes, object{
				"dest": r.Destination, "gateway": r.Gateway, "device": r.Interface, "source": "", "scope": 0, "flags": 0, "family": routeFamily(r),
			})
		}
		requests = append(requests, request{"UpdateRoutesRequest", object{"routes": object{"Routes": routes}}})
	}
	if len(c.Neighbours) > 0 {
		var neighbours []object
		for _, n := range c.Neighbours {
			to := object{"address": n.Address, "mask": "", "family": addressFamily(n.Address)}
			neighbours = append(neighbours, object{"toIPAddress": to, "device": n.Interface, "lladdr": n.MAC, "state": permanent, "flags": 0})
		}
		requests = append(requests, request{"AddARPNeighborsRequest", object{"neighbors": object{"ARPNeighbors": neighbours}}})
	}
	return requests
}

// prefix is an address in CIDR notation, which was checked.
func prefix(cidr string) object {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return object{"address": cidr, "mask": "", "family": v4}
	}
	return object{"address": p.Addr().String(), "mask": strconv.Itoa(p.Bits()), "family": family(p.Addr())}
}

func routeFamily(r podpolicy.Route) int {
	if p, err := netip.ParsePrefix(r.Destination); err == nil {
		return family(p.Addr())
	}
	return addressFamily(r.Gateway)
}

func addressFamily(s string) int {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return v4 // protobuf's default
	}
	return family(a)
}

// IPFamily of types.proto, by number, as the agent gives it to rules.
const (
	v4 = 0
	v6 = 1
)

func family(a netip.Addr) int {
	if a.Is4() || a.Is4In6() {
		return v4
	}
	return v6
}
