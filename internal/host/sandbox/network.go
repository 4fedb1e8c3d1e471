package sandbox

import (
	"crypto/sha256"
	"net"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Network is a network that exists on the host, as package network of the host
// makes it: cards on taps, and how the guest is told to set them up.
type Network struct {
	Cards []vmm.Card
	Guest *agentapi.Network
}

// HostName is the name under which a guest on the user-mode network reaches
// the host's loopback.
const HostName = "host.coffer.internal"

const (
	guestInterface = "eth0"
	guestMTU       = 1500
)

// MAC is the hardware address of a sandbox: fixed by its id, locally
// administered, with the prefix QEMU uses.
func MAC(id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(id))
	return net.HardwareAddr{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}
}

// network is the user-mode network as the guest is told to set it up.
func network(mac net.HardwareAddr) *agentapi.Network {
	return &agentapi.Network{
		Interfaces: []*agentapi.Interface{{Mac: mac.String(), Name: guestInterface, Addresses: []string{vmm.GuestAddress}, Mtu: guestMTU}},
		Routes:     []*agentapi.Route{{Gateway: vmm.HostAddress, Interface: guestInterface}},
		Dns:        &agentapi.DNS{Servers: []string{vmm.DNSAddress}},
		Hosts: []*agentapi.HostEntry{
			{Address: vmm.HostAddress, Names: []string{HostName}},
		},
	}
}
