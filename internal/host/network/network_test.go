package network_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/network"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

func attach(t *testing.T, ns *hosttest.Namespace) *network.Attachment {
	t.Helper()
	a, err := network.Attach(t.Context(), ns.Path(), network.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// clean fails the test if a tap or an ingress qdisc is in the namespace.
func clean(t *testing.T, ns *hosttest.Namespace) {
	t.Helper()
	links, err := ns.Netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "tuntap" {
			t.Errorf("left behind: %s", l.Attrs().Name)
		}
		qdiscs, err := ns.Netlink.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "ingress" {
				t.Errorf("left behind: the ingress qdisc of %s", l.Attrs().Name)
			}
		}
	}
}

// TestGuest describes networks as CNI plugins make them.
func TestGuest(t *testing.T) {
	const mac = "MAC" // stands for the interface's
	for _, tc := range []struct {
		name string
		make func(ns *hosttest.Namespace)
		want *agentapi.Network
	}{
		{"bridge and host-local, both families", func(ns *hosttest.Namespace) {
			ns.Address("eth0", "10.244.1.7/24", "fd00:10:244:1::7/64")
			ns.Route("eth0", "0.0.0.0/0", "10.244.1.1")
			ns.Route("eth0", "10.244.0.0/16", "10.244.1.1")
			ns.Route("eth0", "::/0", "fd00:10:244:1::1")
		}, &agentapi.Network{
			Interfaces: []*agentapi.Interface{{Mac: mac, Name: "eth0", Mtu: 1450, Addresses: []string{"10.244.1.7/24", "fd00:10:244:1::7/64"}}},
			Routes: []*agentapi.Route{
				{Gateway: "10.244.1.1", Interface: "eth0"},
				{Destination: "10.244.0.0/16", Gateway: "10.244.1.1", Interface: "eth0"},
				{Gateway: "fd00:10:244:1::1", Interface: "eth0"},
			},
		}},
		{"ptp: the address's network is behind the gateway", func(ns *hosttest.Namespace) {
			ns.Address("eth0", "10.1.1.5/24")
			ns.Route("eth0", "10.1.1.1/32", "")
			ns.Route("eth0", "10.1.1.0/24", "10.1.1.1")
			ns.Route("eth0", "0.0.0.0/0", "10.1.1.1")
		}, &agentapi.Network{
			Interfaces: []*agentapi.Interface{{Mac: mac, Name: "eth0", Mtu: 1450, Addresses: []string{"10.1.1.5/32"}}},
			Routes: []*agentapi.Route{
				{Gateway: "10.1.1.1", Interface: "eth0"},
				{Destination: "10.1.1.0/24", Gateway: "10.1.1.1", Interface: "eth0"},
				{Destination: "10.1.1.1/32", Interface: "eth0"},
			},
		}},
		{"a /32 with a gateway outside and a fixed neighbour", func(ns *hosttest.Namespace) {
			ns.Address("eth0", "10.2.0.9/32", "fd00:2::9/128")
			ns.Route("eth0", "169.254.1.1/32", "")
			ns.Route("eth0", "0.0.0.0/0", "169.254.1.1")
			ns.Route("eth0", "::/0", "fe80::ecee:eeff:feee:eeee")
			index := ns.Link("eth0").Attrs().Index
			hw := net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
			for _, n := range []netlink.Neigh{
				{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("169.254.1.1"), HardwareAddr: hw},
				{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("fe80::ecee:eeff:feee:eeee"), HardwareAddr: hw},
				{LinkIndex: index, State: netlink.NUD_REACHABLE, IP: net.ParseIP("169.254.1.2"), HardwareAddr: hw},
			} {
				if err := ns.Netlink.NeighSet(&n); err != nil {
					t.Fatal(err)
				}
			}
		}, &agentapi.Network{
			Interfaces: []*agentapi.Interface{{Mac: mac, Name: "eth0", Mtu: 1450, Addresses: []string{"10.2.0.9/32", "fd00:2::9/128"}}},
			Routes: []*agentapi.Route{
				{Gateway: "169.254.1.1", Interface: "eth0"},
				{Destination: "169.254.1.1/32", Interface: "eth0"},
				{Gateway: "fe80::ecee:eeff:feee:eeee", Interface: "eth0"},
			},
			Neighbours: []*agentapi.Neighbour{
				{Address: "169.254.1.1", Mac: "ee:ee:ee:ee:ee:ee", Interface: "eth0"},
				{Address: "fe80::ecee:eeff:feee:eeee", Mac: "ee:ee:ee:ee:ee:ee", Interface: "eth0"},
			},
		}},
		{"two default routes: the kernel's choice", func(ns *hosttest.Namespace) {
			ns.Address("eth0", "10.3.0.9/24")
			index := ns.Link("eth0").Attrs().Index
			_, all, _ := net.ParseCIDR("0.0.0.0/0")
			for metric, gw := range []string{"10.3.0.2", "10.3.0.1"} {
				if err := ns.Netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: all, Gw: net.ParseIP(gw), Priority: 100 - metric}); err != nil {
					t.Fatal(err)
				}
			}
			if err := ns.Netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IP{192, 0, 2, 0}, Mask: net.CIDRMask(24, 32)}, Type: unix.RTN_BLACKHOLE}); err != nil {
				t.Fatal(err)
			}
		}, &agentapi.Network{
			Interfaces: []*agentapi.Interface{{Mac: mac, Name: "eth0", Mtu: 1450, Addresses: []string{"10.3.0.9/24"}}},
			Routes:     []*agentapi.Route{{Gateway: "10.3.0.1", Interface: "eth0"}},
		}},
		{"default routes on the link", func(ns *hosttest.Namespace) {
			ns.Address("eth0", "10.3.0.9/32", "fd00::9/128")
			ns.Route("eth0", "0.0.0.0/0", "")
			ns.Route("eth0", "::/0", "")
		}, &agentapi.Network{
			Interfaces: []*agentapi.Interface{{Mac: mac, Name: "eth0", Mtu: 1450, Addresses: []string{"10.3.0.9/32", "fd00::9/128"}}},
			Routes:     []*agentapi.Route{{Destination: "0.0.0.0/0", Interface: "eth0"}, {Destination: "::/0", Interface: "eth0"}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node, pod := hosttest.NewNamespace(t), hosttest.NewNamespace(t)
			node.Veth("veth0", pod, "eth0", 1450)
			tc.make(pod)
			a := attach(t, pod)
			tc.want.Interfaces[0].Mac = pod.Link("eth0").Attrs().HardwareAddr.String()
			if diff := cmp.Diff(tc.want, a.Guest, protocmp.Transform()); diff != "" {
				t.Errorf("guest (-want +got):\n%s", diff)
			}
			if len(a.Cards) != 1 || a.Cards[0].MTU != 1450 || a.Cards[0].MAC.String() != tc.want.Interfaces[0].Mac || a.Cards[0].Tap == nil {
				t.Errorf("cards %+v", a.Cards)
			}
			if l := pod.Link("coffertap0"); l.Attrs().MTU != 1450 {
				t.Errorf("MTU of the tap: %d", l.Attrs().MTU)
			}
			if addresses, err := pod.Netlink.AddrList(pod.Link("coffertap0"), netlink.FAMILY_ALL); err != nil || len(addresses) != 0 {
				t.Errorf("the tap has addresses: %v, %v", addresses, err)
			}
			for range 2 {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}
			clean(t, pod)
		})
	}
}

// TestRefused names what is wrong, and leaves nothing.
func TestRefused(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := hosttest.Descriptors(t)
	for _, tc := range []struct {
		path string
		is   error
		text string
	}{
		{"", network.ErrHostNetwork, "remove hostNetwork"},
		{"/proc/self/ns/net", network.ErrHostNetwork, "hostNetwork: true"},
		{"/proc/self/ns/mnt", network.ErrNoNamespace, "another kind"},
		{"/no/such/namespace", network.ErrNoNamespace, "/no/such/namespace"},
		{plain, network.ErrNoNamespace, "restart of the node"},
	} {
		_, err := network.Attach(t.Context(), tc.path, network.Options{})
		if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%q: %v", tc.path, err)
		}
		if err := network.Remove(tc.path); err != nil {
			t.Errorf("Remove(%q): %v", tc.path, err)
		}
	}
	for _, tc := range []struct {
		name string
		make func(t *testing.T, node, pod *hosttest.Namespace)
		is   error
		text string
	}{
		{"nothing", func(*testing.T, *hosttest.Namespace, *hosttest.Namespace) {}, network.ErrNoAddress, "none but loopback"},
		{"no address", func(_ *testing.T, node, pod *hosttest.Namespace) {
			node.Veth("veth0", pod, "eth0", 1500)
		}, network.ErrNoAddress, "there is eth0 (the CNI plugin has set up nothing"},
		{"link-local address only", func(_ *testing.T, node, pod *hosttest.Namespace) {
			node.Veth("veth0", pod, "eth0", 1500)
			pod.Address("eth0", "fe80::1234/64")
		}, network.ErrNoAddress, "/etc/cni/net.d"},
		{"down", func(t *testing.T, node, pod *hosttest.Namespace) {
			node.Veth("veth0", pod, "eth0", 1500)
			pod.Address("eth0", "10.0.0.2/24")
			if err := pod.Netlink.LinkSetDown(pod.Link("eth0")); err != nil {
				t.Fatal(err)
			}
		}, network.ErrNoAddress, "eth0 (which is down)"},
		{"unsupported kind", func(t *testing.T, _, pod *hosttest.Namespace) {
			if err := pod.Netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "net1"}}); err != nil {
				t.Skipf("not supported here: %v", err)
			}
			pod.Up("net1")
			pod.Address("net1", "10.0.0.2/24")
		}, nil, "interface net1: it is of kind dummy; expected veth or macvlan"},
		{"many interfaces", func(_ *testing.T, node, pod *hosttest.Namespace) {
			for i := range vmm.MaxCards + 1 {
				name := fmt.Sprintf("net%d", i)
				node.Veth("v"+name, pod, name, 1500)
				pod.Address(name, fmt.Sprintf("10.0.%d.2/24", i))
			}
		}, nil, "has 9 interfaces with addresses; a virtual machine takes at most 8"},
		{"many routes", func(_ *testing.T, node, pod *hosttest.Namespace) {
			node.Veth("veth0", pod, "eth0", 1500)
			pod.Address("eth0", "10.0.0.2/24")
			for i := range 257 {
				pod.Route("eth0", fmt.Sprintf("192.168.%d.%d/32", i/256, i%256), "10.0.0.1")
			}
		}, nil, "routes: expected at most 256, got 258"},
		{"gateway of the other family", func(t *testing.T, node, pod *hosttest.Namespace) {
			node.Veth("veth0", pod, "eth0", 1500)
			pod.Address("eth0", "10.0.0.2/32", "fd00::2/64")
			_, all, _ := net.ParseCIDR("0.0.0.0/0")
			via := &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fd00::1")}
			if err := pod.Netlink.RouteAdd(&netlink.Route{LinkIndex: pod.Link("eth0").Attrs().Index, Dst: all, Via: via}); err != nil {
				t.Skipf("not supported here: %v", err)
			}
		}, nil, "its next hop is of another address family"},
		{"name that a guest does not take", func(_ *testing.T, node, pod *hosttest.Namespace) {
			node.Veth("veth0", pod, "eth@0", 1500)
			pod.Address("eth@0", "10.0.0.2/24")
		}, nil, `name: expected 1 to 15 characters of [A-Za-z0-9._-], got "eth@0"`},
		{"somebody else's qdisc", func(t *testing.T, node, pod *hosttest.Namespace) {
			// The first interface is connected by then, and given back.
			node.Veth("veth0", pod, "eth0", 1500)
			pod.Address("eth0", "10.0.0.2/24")
			node.Veth("veth1", pod, "net1", 1500)
			pod.Address("net1", "10.0.1.2/24")
			q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: pod.Link("net1").Attrs().Index, Handle: 0xffff0000, Parent: netlink.HANDLE_INGRESS}}
			if err := pod.Netlink.QdiscAdd(q); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				// It is still there; ours is not to be mistaken for it.
				if err := pod.Netlink.QdiscDel(q); err != nil {
					t.Errorf("the other program's qdisc: %v", err)
				}
				clean(t, pod)
			})
		}, nil, "interface net1: redirect to the tap: another program has an ingress qdisc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node, pod := hosttest.NewNamespace(t), hosttest.NewNamespace(t)
			tc.make(t, node, pod)
			a, err := network.Attach(t.Context(), pod.Path(), network.Options{})
			if err == nil {
				_ = a.Close()
				t.Fatal("it was attached")
			}
			if tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v", err)
			}
			if err := network.Remove(pod.Path()); err != nil {
				t.Error(err)
			}
			if tc.name != "somebody else's qdisc" {
				clean(t, pod)
			}
		})
	}
	if after := hosttest.Descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestRemove cleans up after a process that died: its descriptors are closed,
// which ends the taps but not the redirections; and by force while the taps
// are still open.
func TestRemove(t *testing.T) {
	for _, open := range []bool{false, true} {
		node, pod := hosttest.NewNamespace(t), hosttest.NewNamespace(t)
		node.Veth("veth0", pod, "eth0", 1500)
		pod.Address("eth0", "10.0.0.2/24")
		a := attach(t, pod)
		if open {
			if _, err := network.Attach(t.Context(), pod.Path(), network.Options{}); !errors.Is(err, network.ErrInUse) {
				t.Errorf("a second machine: %v", err)
			}
		} else {
			_ = a.Cards[0].Tap.Close()
			// What is left does not stop the next.
			b, err := network.Attach(t.Context(), pod.Path(), network.Options{})
			if err != nil {
				t.Fatal(err)
			}
			_ = b.Cards[0].Tap.Close()
		}
		for range 2 {
			if err := network.Remove(pod.Path()); err != nil {
				t.Error(err)
			}
		}
		clean(t, pod)
		if open {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestBusy: the machine that had the namespace is still being taken apart.
func TestBusy(t *testing.T) {
	node, pod := hosttest.NewNamespace(t), hosttest.NewNamespace(t)
	node.Veth("veth0", pod, "eth0", 1500)
	pod.Address("eth0", "10.0.0.2/24")
	a := attach(t, pod)
	ended, end := context.WithCancelCause(t.Context())
	end(errors.New("the kubelet gave up"))
	if _, err := network.Attach(ended, pod.Path(), network.Options{}); !errors.Is(err, network.ErrInUse) || !strings.Contains(err.Error(), "the kubelet gave up") {
		t.Errorf("an ended context: %v", err)
	}
	gone := time.AfterFunc(300*time.Millisecond, func() { _ = a.Cards[0].Tap.Close() })
	defer gone.Stop()
	b := attach(t, pod)
	if len(b.Cards) != 1 {
		t.Errorf("cards %+v", b.Cards)
	}
}

// TestInterfaceGoes: a CNI plugin may take the interface down before the pod's
// machine is closed.
func TestInterfaceGoes(t *testing.T) {
	node, pod := hosttest.NewNamespace(t), hosttest.NewNamespace(t)
	node.Veth("veth0", pod, "eth0", 1500)
	pod.Address("eth0", "10.0.0.2/24")
	a := attach(t, pod)
	if err := node.Netlink.LinkDel(node.Link("veth0")); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	clean(t, pod)
}
