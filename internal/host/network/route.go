package network

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// route is a route of the main table.
type route struct {
	index       int
	destination netip.Prefix // of length 0: the default route
	gateway     netip.Addr   // zero: the destination is on the link
	metric      int
}

// message is the route as the guest is told it. An empty destination is the
// default route of the gateway's family.
func (r route) message(name string) *agentapi.Route {
	m := &agentapi.Route{Interface: name}
	if r.gateway.IsValid() {
		m.Gateway = r.gateway.String()
	}
	if r.destination.Bits() != 0 || !r.gateway.IsValid() {
		m.Destination = r.destination.String()
	}
	return m
}

// readRoutes reads the main table of both families. Of several routes to a
// destination the guest gets the one that the kernel would take.
func (f *found) readRoutes(h *netlink.Handle, log *slog.Logger) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, family) })
		if err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		var routes []route
		for _, r := range list {
			got, ok, err := f.route(r, family)
			if err != nil {
				return fmt.Errorf("route to %s: %w", r.Dst, err)
			}
			if !ok {
				log.Debug("a route is not the guest's", "route", r.String())
				continue
			}
			routes = append(routes, got)
		}
		slices.SortStableFunc(routes, func(a, b route) int { return cmp.Compare(a.metric, b.metric) })
		for _, r := range routes {
			if other := slices.IndexFunc(f.routes, func(o route) bool { return o.destination == r.destination }); other >= 0 {
				log.Warn("of several routes to a destination the guest gets the first", "destination", r.destination.String(), "dropped gateway", r.gateway.String())
				continue
			}
			f.routes = append(f.routes, r)
		}
	}
	if len(f.routes) > maxRoutes {
		return fmt.Errorf("routes: expected at most %d, got %d", maxRoutes, len(f.routes))
	}
	return nil
}

// route reads a route; false if it is not the guest's business.
func (f *found) route(r netlink.Route, family int) (route, bool, error) {
	out := route{index: r.LinkIndex, metric: r.Priority}
	gateway, via := r.Gw, r.Via
	if len(r.MultiPath) > 0 {
		out.index, gateway, via = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw, r.MultiPath[0].Via
	}
	if r.Type != unix.RTN_UNICAST || f.nic(out.index) == nil {
		return out, false, nil
	}
	out.destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == netlink.FAMILY_V6 {
		out.destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.Dst != nil {
		p, ok := prefix(r.Dst)
		if !ok {
			return out, false, nil
		}
		out.destination = p.Masked()
	}
	// fe80::/64 and the multicast prefixes come with the interface.
	if a := out.destination.Addr(); out.destination.Bits() > 0 && a.Is6() && (a.IsLinkLocalUnicast() || a.IsMulticast()) {
		return out, false, nil
	}
	if via != nil || r.Encap != nil {
		return out, false, fmt.Errorf("its next hop is of another address family or in a tunnel, which a guest cannot be told (%s)", r)
	}
	if len(gateway) > 0 && !gateway.IsUnspecified() {
		a, ok := netip.AddrFromSlice(gateway)
		if !ok {
			return out, false, fmt.Errorf("gateway: expected an address, got %v", gateway)
		}
		out.gateway = a.Unmap()
	}
	return out, true, nil
}

// onLink decides how the guest is told an address. Its kernel makes the route to
// the address's network by itself: where the namespace has that route, it is not
// told as well; where a CNI plugin has taken it away, as ptp does, the address
// goes without its network.
func onLink(p netip.Prefix, index int, routes []route) (netip.Prefix, []route) {
	made := slices.IndexFunc(routes, func(r route) bool {
		return r.index == index && r.destination == p.Masked() && !r.gateway.IsValid()
	})
	if made < 0 {
		return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), routes
	}
	return p, slices.Delete(slices.Clone(routes), made, made+1)
}
