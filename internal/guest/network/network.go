// Package network sets the machine's interfaces, addresses, routes and
// neighbours, and writes the resolver's files. What it is told comes from the
// host, which owns the wire: nothing here is trusted, and traffic that matters
// is protected end to end.
package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config is the whole network of the pod.
type Config struct {
	Interfaces []Interface
	Routes     []Route
	Neighbours []Neighbour
}

// Interface is one network device.
type Interface struct {
	// MAC selects the device; Name is what it is called then.
	MAC       net.HardwareAddr
	Name      string
	Addresses []netip.Prefix
	// MTU is in bytes; 0 leaves it.
	MTU int
}

// Route leads to a destination; the zero Destination is the default route.
type Route struct {
	Destination netip.Prefix
	// Gateway may be the zero address: the destination is on the link.
	Gateway   netip.Addr
	Interface string
}

// Neighbour is a fixed link-layer address.
type Neighbour struct {
	Address   netip.Addr
	MAC       net.HardwareAddr
	Interface string
}

// Manager applies configurations, each in place of the one before. It is safe
// for concurrent use.
type Manager struct {
	// Keep leaves devices, addresses, routes and neighbours as they are: they are
	// somebody else's. It must not be changed once the manager is used.
	Keep bool

	mu     sync.Mutex
	routes []netlink.Route // added by the last configuration
	neighs []netlink.Neigh
}

// Apply makes the configuration the machine's. A device that is not there yet
// is waited for, until ctx ends.
func (m *Manager) Apply(ctx context.Context, c Config) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := loopbackUp(); err != nil || m.Keep {
		return err
	}
	for _, r := range m.routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", r, err)
		}
	}
	m.routes = nil
	for _, n := range m.neighs {
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove neighbour %s: %w", n.IP, err)
		}
	}
	m.neighs = nil
	index := map[string]int{}
	for _, i := range c.Interfaces {
		link, err := findLink(ctx, i.MAC)
		if err != nil {
			return fmt.Errorf("interface %s: %w", i.Name, err)
		}
		if err := setUp(link, i); err != nil {
			return fmt.Errorf("interface %s: %w", i.Name, err)
		}
		index[i.Name] = link.Attrs().Index
	}
	linkIndex := func(name string) (int, error) {
		if n, ok := index[name]; ok {
			return n, nil
		}
		return 0, fmt.Errorf("interface %s: it is not among the pod's interfaces", name)
	}
	// Routes on the link first: a gateway must be reachable when it is named.
	for _, gateway := range []bool{false, true} {
		for _, r := range c.Routes {
			if r.Gateway.IsValid() != gateway {
				continue
			}
			n, err := linkIndex(r.Interface)
			if err != nil {
				return fmt.Errorf("route to %s: %w", r.Destination, err)
			}
			route := netlink.Route{LinkIndex: n, Dst: ipNet(r.Destination, r.Gateway)}
			if gateway {
				// Some CNI plugins name a gateway outside the pod's networks: it
				// is on the link all the same.
				route.Gw, route.Flags = r.Gateway.AsSlice(), unix.RTNH_F_ONLINK
			} else {
				route.Scope = netlink.SCOPE_LINK
			}
			if err := netlink.RouteReplace(&route); err != nil {
				return fmt.Errorf("route to %s: %w", r.Destination, err)
			}
			m.routes = append(m.routes, route)
		}
	}
	for _, e := range c.Neighbours {
		n, err := linkIndex(e.Interface)
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", e.Address, err)
		}
		neigh := netlink.Neigh{LinkIndex: n, State: netlink.NUD_PERMANENT, IP: e.Address.AsSlice(), HardwareAddr: e.MAC}
		if err := netlink.NeighSet(&neigh); err != nil {
			return fmt.Errorf("neighbour %s: %w", e.Address, err)
		}
		m.neighs = append(m.neighs, neigh)
	}
	return nil
}

// Addresses are those that the machine has on the way to others, in the order of
// its devices.
func Addresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	return nil
}

// findLink finds a device by its hardware address, woken by the kernel when
// one appears.
func findLink(ctx context.Context, mac net.HardwareAddr) (netlink.Link, error) {
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	defer close(done)
	// Subscribe first, then look: a device between the two is not missed.
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return nil, fmt.Errorf("watch devices: %w", err)
	}
	for {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			if bytes.Equal(l.Attrs().HardwareAddr, mac) {
				return l, nil
			}
		}
		select {
		case _, ok := <-updates:
			if !ok {
				return nil, errors.New("the kernel's device events ended")
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("no device has the address %s: %w", mac, context.Cause(ctx))
		}
	}
}

// setUp names the device, gives it exactly these addresses and turns it on.
func setUp(link netlink.Link, i Interface) error {
	attrs := link.Attrs()
	if attrs.Name != i.Name {
		if err := vacate(i.Name); err != nil {
			return err
		}
		if err := rename(link, i.Name); err != nil {
			return err
		}
	}
	if i.MTU != 0 && attrs.MTU != i.MTU {
		if err := netlink.LinkSetMTU(link, i.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", i.MTU, err)
		}
	}
	old, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, p := range i.Addresses {
		wanted[p.String()] = true
	}
	for _, a := range old {
		if wanted[a.IPNet.String()] || a.Scope == unix.RT_SCOPE_LINK {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	for _, p := range i.Addresses {
		addr := &netlink.Addr{IPNet: prefixNet(p)}
		if p.Addr().Is6() {
			// The address is the pod's by decree; probing for a duplicate
			// would make it unusable for a second.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// vacate takes a name from the device that has it, which is another's: the
// kernel's numbering need not be that of the pod's networks.
func vacate(name string) error {
	holder, err := netlink.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil
	}
	if err != nil {
		return err
	}
	return rename(holder, "aside"+strconv.Itoa(holder.Attrs().Index))
}

// rename turns the device off: one that is on cannot be renamed.
func rename(link netlink.Link, name string) error {
	if err := netlink.LinkSetDown(link); err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", link.Attrs().Name, name, err)
	}
	return nil
}

func prefixNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ipNet is a route's destination. The kernel's default route is the prefix of
// length 0 of the gateway's family.
func ipNet(p netip.Prefix, gateway netip.Addr) *net.IPNet {
	if p.IsValid() {
		return prefixNet(p.Masked())
	}
	if gateway.Is6() {
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
}
