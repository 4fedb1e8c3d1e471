package network

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/coffer-project/coffer/podpolicy"
)

// FromPolicy reads what the pod policy has let through. Its form was checked
// there; what cannot be read all the same is an error that names it.
func FromPolicy(c podpolicy.NetworkConfig) (Config, error) {
	var out Config
	for _, i := range c.Interfaces {
		mac, err := net.ParseMAC(i.MAC)
		if err != nil {
			return out, fmt.Errorf("interface %s: %w", i.Name, err)
		}
		n := Interface{MAC: mac, Name: i.Name, MTU: int(i.MTU)}
		for _, a := range i.Addresses {
			p, err := netip.ParsePrefix(a)
			if err != nil {
				return out, fmt.Errorf("interface %s: %w", i.Name, err)
			}
			n.Addresses = append(n.Addresses, p)
		}
		out.Interfaces = append(out.Interfaces, n)
	}
	for _, r := range c.Routes {
		n := Route{Interface: r.Interface}
		var err error
		if r.Destination != "" {
			if n.Destination, err = netip.ParsePrefix(r.Destination); err != nil {
				return out, fmt.Errorf("route: %w", err)
			}
		}
		if r.Gateway != "" {
			if n.Gateway, err = netip.ParseAddr(r.Gateway); err != nil {
				return out, fmt.Errorf("route: %w", err)
			}
		}
		out.Routes = append(out.Routes, n)
	}
	for _, e := range c.Neighbours {
		addr, err := netip.ParseAddr(e.Address)
		if err != nil {
			return out, fmt.Errorf("neighbour: %w", err)
		}
		mac, err := net.ParseMAC(e.MAC)
		if err != nil {
			return out, fmt.Errorf("neighbour %s: %w", addr, err)
		}
		out.Neighbours = append(out.Neighbours, Neighbour{Address: addr, MAC: mac, Interface: e.Interface})
	}
	return out, nil
}
