package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Limits on what a guest is told of an interface; the guest has the same.
const (
	maxAddresses  = 16
	maxRoutes     = 256
	maxNeighbours = 256
)

// nameRE is what the guest takes as a device's name.
var nameRE = regexp.MustCompile(`^[A-Za-z0-9._-]{1,15}$`)

// kinds of interfaces that were seen to work: they have a hardware address of
// their own, which the guest can take over.
var kinds = []string{"veth", "macvlan"}

// found is what the CNI plugins left in a namespace.
type found struct {
	nics       []nic
	addresses  map[int][]netip.Prefix // by interface index
	routes     []route
	neighbours []neighbour
}

type neighbour struct {
	index   int
	address netip.Addr
	mac     net.HardwareAddr
}

// scan reads the namespace.
func scan(h *netlink.Handle, log *slog.Logger) (*found, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	f := &found{addresses: map[int][]netip.Prefix{}}
	var without []string
	for _, l := range links {
		attrs := l.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, err := addressesOf(h, l)
		if err != nil {
			return nil, fmt.Errorf("interface %s: addresses: %w", attrs.Name, err)
		}
		switch {
		case len(addresses) == 0:
			without = append(without, attrs.Name)
			continue
		case attrs.Flags&net.FlagUp == 0:
			without = append(without, attrs.Name+" (which is down)")
			continue
		}
		n, err := card(l)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", attrs.Name, err)
		}
		f.nics, f.addresses[n.index] = append(f.nics, n), addresses
	}
	if len(f.nics) == 0 {
		return nil, noAddress(without)
	}
	if len(f.nics) > vmm.MaxCards {
		return nil, fmt.Errorf("the pod has %d interfaces with addresses; a virtual machine takes at most %d (attach fewer networks)", len(f.nics), vmm.MaxCards)
	}
	slices.SortFunc(f.nics, func(a, b nic) int { return a.index - b.index })
	if err := f.readRoutes(h, log); err != nil {
		return nil, err
	}
	return f, f.readNeighbours(h)
}

// noAddress names what there is instead.
func noAddress(without []string) error {
	const help = "the CNI plugin has set up nothing; see its configuration in /etc/cni/net.d, whether its daemon runs on this node, " +
		"whether its address pool is exhausted, and the log of containerd"
	if len(without) == 0 {
		return fmt.Errorf("%w: there is none but loopback (%s)", ErrNoAddress, help)
	}
	return fmt.Errorf("%w: there is %s (%s)", ErrNoAddress, strings.Join(without, ", "), help)
}

// card checks that a guest can have the interface.
func card(l netlink.Link) (nic, error) {
	attrs := l.Attrs()
	n := nic{index: attrs.Index, name: attrs.Name, mac: attrs.HardwareAddr, mtu: attrs.MTU}
	switch {
	case !slices.Contains(kinds, l.Type()):
		return n, fmt.Errorf("it is of kind %s; expected %s, whose frames can be handed to a virtual machine (configure the CNI plugin for one of them)",
			l.Type(), strings.Join(kinds, " or "))
	case len(n.mac) != 6 || n.mac[0]&1 != 0:
		return n, fmt.Errorf("hardware address: expected a unicast one of six octets, got %q", n.mac)
	case !nameRE.MatchString(n.name):
		return n, fmt.Errorf("name: expected 1 to 15 characters of [A-Za-z0-9._-], got %q (the guest gets the same name)", n.name)
	}
	return n, nil
}

// addressesOf are an interface's addresses but for those of IPv6 that the
// guest's kernel makes by itself.
func addressesOf(h *netlink.Handle, l netlink.Link) ([]netip.Prefix, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		p, ok := prefix(a.IPNet)
		if !ok || p.Addr().IsLoopback() || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		out = append(out, p)
	}
	if len(out) > maxAddresses {
		return nil, fmt.Errorf("expected at most %d, got %d", maxAddresses, len(out))
	}
	return out, nil
}

// readNeighbours keeps the entries that somebody has fixed.
func (f *found) readNeighbours(h *netlink.Handle) error {
	list, err := dump(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("neighbours: %w", err)
	}
	for _, n := range list {
		address, ok := netip.AddrFromSlice(n.IP)
		if !ok || n.State&netlink.NUD_PERMANENT == 0 || n.Flags&netlink.NTF_PROXY != 0 || f.nic(n.LinkIndex) == nil ||
			len(n.HardwareAddr) != 6 || n.HardwareAddr[0]&1 != 0 || address.IsMulticast() {
			continue
		}
		f.neighbours = append(f.neighbours, neighbour{n.LinkIndex, address.Unmap(), n.HardwareAddr})
	}
	if len(f.neighbours) > maxNeighbours {
		return fmt.Errorf("neighbours: expected at most %d fixed ones, got %d", maxNeighbours, len(f.neighbours))
	}
	return nil
}

func (f *found) nic(index int) *nic {
	if i := slices.IndexFunc(f.nics, func(n nic) bool { return n.index == index }); i >= 0 {
		return &f.nics[i]
	}
	return nil
}

// guest is the description for the guest.
func (f *found) guest() *agentapi.Network {
	g := &agentapi.Network{}
	routes := f.routes
	for _, n := range f.nics {
		i := &agentapi.Interface{Mac: n.mac.String(), Name: n.name, Mtu: uint32(n.mtu)}
		for _, p := range f.addresses[n.index] {
			p, routes = onLink(p, n.index, routes)
			i.Addresses = append(i.Addresses, p.String())
		}
		g.Interfaces = append(g.Interfaces, i)
	}
	for _, r := range routes {
		g.Routes = append(g.Routes, r.message(f.nic(r.index).name))
	}
	for _, n := range f.neighbours {
		g.Neighbours = append(g.Neighbours, &agentapi.Neighbour{Address: n.address.String(), Mac: n.mac.String(), Interface: f.nic(n.index).name})
	}
	return g
}

// prefix reads an address with its mask; false for one that is not contiguous.
func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	address = address.Unmap()
	return netip.PrefixFrom(address, ones), ok && bits == address.BitLen()
}

// dumpTries is how often a list is read that changes while it is read.
const dumpTries = 10

// dump reads a list of the kernel's whole.
func dump[T any](read func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		list, err := read()
		if try < dumpTries && (errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)) {
			continue
		}
		return list, err
	}
}
