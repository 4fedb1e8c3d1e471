// Package network tests a pod's network from the CNI plugin's interface to the
// guest's sockets: what the host attaches, the guest sets up. Most tests have no
// machine: a network namespace plays the guest, whose card is wired to the
// host's tap. The last boots one.
package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	agent "github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/network"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/podpolicy"
)

// limit of a connection or message on a busy machine.
const limit = 10 * time.Second

// refusedAfter is how long a message is waited for that must not come.
const refusedAfter = 500 * time.Millisecond

// world is a node with two networks: a bridge, and a veth pair whose two ends
// know nothing but each other (as bridge and ptp of the CNI plugins make them).
type world struct {
	t    *testing.T
	node *hosttest.Namespace
	// pod is the pod's namespace on the node, and guest plays the machine.
	pod, guest *hosttest.Namespace
	// neighbour is another pod on the bridge, without a machine.
	neighbour *hosttest.Namespace
	attached  *network.Attachment
}

const (
	mtu = 1450

	nodeIP, podIP, neighbourIP    = "10.244.1.1", "10.244.1.7", "10.244.1.8"
	nodeIP6, podIP6, neighbourIP6 = "fd00:244::1", "fd00:244::7", "fd00:244::8"
	ptpNodeIP, ptpIP              = "10.1.1.1", "10.1.1.5"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, node: hosttest.NewNamespace(t), pod: hosttest.NewNamespace(t), guest: hosttest.NewNamespace(t), neighbour: hosttest.NewNamespace(t),
	}
	n := w.node
	if err := n.Netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0", MTU: mtu}}); err != nil {
		t.Skipf("not supported here: no bridge can be made: %v", err)
	}
	n.Up("cni0")
	n.Address("cni0", nodeIP+"/24", nodeIP6+"/64")
	n.Sysctl("ipv4.ip_forward", "1")
	n.Sysctl("ipv6.conf.all.forwarding", "1")
	for _, p := range []struct {
		host    string
		ns      *hosttest.Namespace
		ip, ip6 string
	}{{"veth0", w.pod, podIP, podIP6}, {"veth1", w.neighbour, neighbourIP, neighbourIP6}} {
		n.Veth(p.host, p.ns, "eth0", mtu)
		if err := n.Netlink.LinkSetMaster(n.Link(p.host), n.Link("cni0")); err != nil {
			t.Fatal(err)
		}
		p.ns.Address("eth0", p.ip+"/24", p.ip6+"/64")
		p.ns.Route("eth0", "0.0.0.0/0", nodeIP)
		p.ns.Route("eth0", "::/0", nodeIP6)
	}
	// The second network, of ptp: the address's network is behind the gateway.
	n.Veth("veth2", w.pod, "net1", 1500)
	n.Address("veth2", ptpNodeIP+"/32")
	n.Route("veth2", ptpIP+"/32", "")
	w.pod.Address("net1", ptpIP+"/24")
	w.pod.Route("net1", ptpNodeIP+"/32", "")
	w.pod.Route("net1", "10.1.1.0/24", ptpNodeIP)
	// A neighbour that does not answer by itself.
	if err := w.pod.Netlink.NeighSet(&netlink.Neigh{
		LinkIndex: w.pod.Link("eth0").Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(nodeIP), HardwareAddr: n.Link("cni0").Attrs().HardwareAddr,
	}); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.attached, err = network.Attach(t.Context(), w.pod.Path(), network.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.attached.Close(); err != nil {
			t.Error(err)
		}
		w.clean()
	})
	return w
}

// clean fails the test if anything of ours is in the pod's namespace.
func (w *world) clean() {
	w.t.Helper()
	links, err := w.pod.Netlink.LinkList()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "tuntap" {
			w.t.Errorf("left behind: %s", l.Attrs().Name)
		}
		qdiscs, err := w.pod.Netlink.QdiscList(l)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "ingress" {
				w.t.Errorf("left behind: the ingress qdisc of %s", l.Attrs().Name)
			}
		}
	}
}

// boot gives the guest's namespace a card for each of the attachment's and has
// the guest's agent set them up, by way of the pod policy.
func (w *world) boot() {
	t := w.t
	t.Helper()
	for i, c := range w.attached.Cards {
		w.wire(fmt.Sprintf("eth%d", len(w.attached.Cards)-1-i), c) // a kernel numbers as it likes
	}
	g := w.attached.Guest
	var q podpolicy.SandboxProposal
	q.ID = "pod"
	for _, i := range g.GetInterfaces() {
		q.Network.Interfaces = append(q.Network.Interfaces, podpolicy.Interface{MAC: i.GetMac(), Name: i.GetName(), Addresses: i.GetAddresses(), MTU: i.GetMtu()})
	}
	for _, r := range g.GetRoutes() {
		q.Network.Routes = append(q.Network.Routes, podpolicy.Route{Destination: r.GetDestination(), Gateway: r.GetGateway(), Interface: r.GetInterface()})
	}
	for _, e := range g.GetNeighbours() {
		q.Network.Neighbours = append(q.Network.Neighbours, podpolicy.Neighbour{Address: e.GetAddress(), MAC: e.GetMac(), Interface: e.GetInterface()})
	}
	allowed, err := podpolicy.NewUnsealedGuard().Sandbox(q)
	if err != nil {
		t.Fatal(err)
	}
	config, err := agent.FromPolicy(allowed.Network)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.guest.Do(func() error { return new(agent.Manager).Apply(t.Context(), config) }); err != nil {
		t.Fatal(err)
	}
}

// wire makes a card in the guest's namespace and carries frames between it and
// the tap, as the emulator does.
func (w *world) wire(name string, c vmm.Card) {
	t := w.t
	t.Helper()
	var card *os.File
	err := w.guest.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		card = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.guest.Netlink.LinkSetHardwareAddr(w.guest.Link(name), c.MAC); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{}, 2)
	carry := func(from, to *os.File) {
		defer func() { ended <- struct{}{} }()
		frame := make([]byte, 1<<16+64)
		for {
			n, err := from.Read(frame)
			if err != nil {
				return
			}
			if _, err := to.Write(frame[:n]); err != nil && !errors.Is(err, unix.EIO) { // EIO: the card is off
				return
			}
		}
	}
	go carry(c.Tap, card)
	go carry(card, c.Tap)
	t.Cleanup(func() {
		_, _ = card.Close(), c.Tap.Close()
		<-ended
		<-ended
	})
}

// serve listens in a namespace and answers each connection with what comes in.
func (w *world) serve(ns *hosttest.Namespace, address string) (port string) {
	t := w.t
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(address, "0")); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.(*net.TCPConn).ReadFrom(conn)
			}()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// dial connects from a namespace.
func (w *world) dial(ns *hosttest.Namespace, address, port string, wait time.Duration) (conn net.Conn, err error) {
	err = ns.Do(func() error {
		conn, err = net.DialTimeout("tcp", net.JoinHostPort(address, port), wait)
		return err
	})
	return conn, err
}

// nft runs nftables' program in a namespace.
func (w *world) nft(ns *hosttest.Namespace, rules string) {
	w.t.Helper()
	program, err := exec.LookPath("nft")
	if err != nil {
		w.t.Skipf("not supported here: %v", err)
	}
	err = ns.Do(func() error {
		cmd := exec.Command(program, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}
