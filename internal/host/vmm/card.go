package vmm

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

// Card is a virtio network card whose wire is a tap device of the host.
type Card struct {
	MAC net.HardwareAddr
	// Tap is an open tap device whose frames carry a virtio header (IFF_TAP,
	// IFF_NO_PI, IFF_VNET_HDR). It may be in any network namespace: the
	// emulator knows it by its descriptor only. It must stay open until Start
	// returns.
	Tap *os.File
	// MTU is what the guest is told, in bytes; 0: nothing is said.
	MTU int
}

// Bounds of a card's MTU: of IPv4 (RFC 791), and of a 16-bit field.
const (
	minMTU = 68
	maxMTU = 65535
)

func (m *Machine) validateCards() []error {
	var problems []error
	bad := func(i int, field, expected string, got any) {
		problems = append(problems, fmt.Errorf("cards[%d].%s: expected %s, got %v", i, field, expected, got))
	}
	if len(m.Cards) > MaxCards {
		problems = append(problems, fmt.Errorf("cards: expected at most %d, got %d", MaxCards, len(m.Cards)))
	}
	seen := make(map[string]bool)
	if m.Network != nil {
		seen[m.Network.MAC.String()] = true
	}
	for i, c := range m.Cards {
		switch {
		case len(c.MAC) != 6 || c.MAC[0]&1 != 0:
			bad(i, "mac", "a 48-bit unicast address", c.MAC)
		case seen[c.MAC.String()]:
			bad(i, "mac", "one that no other card has: the guest finds a card by it", c.MAC)
		}
		seen[c.MAC.String()] = true
		if c.Tap == nil {
			bad(i, "tap", "an open tap device", "none")
		}
		if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
			bad(i, "mtu", fmt.Sprintf("0 or %d to %d", minMTU, maxMTU), c.MTU)
		}
	}
	return problems
}

func (m *Machine) addCards(p *plan) {
	for i, c := range m.Cards {
		id := "card" + strconv.Itoa(i)
		p.add("-netdev", options("tap", "id", id, "fd", p.inherit(inherited{file: c.Tap})))
		device := []string{"netdev", id, "mac", c.MAC.String(), "romfile", ""}
		if c.MTU != 0 {
			device = append(device, "host_mtu", strconv.Itoa(c.MTU))
		}
		p.add("-device", options("virtio-net-pci", m.virtio(device...)...))
	}
}
