package network_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/podpolicy"
)

var env guesttest.Env

func TestMain(m *testing.M) { guesttest.Main(m, &env) }

const mac = "52:54:00:12:34:56"

func policyConfig(address, gateway string) podpolicy.NetworkConfig {
	return podpolicy.NetworkConfig{
		Interfaces: []podpolicy.Interface{{MAC: mac, Name: "eth0", Addresses: []string{address, "fd00::15/64"}, MTU: 1400}},
		Routes:     []podpolicy.Route{{Gateway: gateway, Interface: "eth0"}, {Destination: "192.0.2.0/24", Interface: "eth0"}},
		Neighbours: []podpolicy.Neighbour{{Address: gateway, MAC: "52:55:0a:00:02:02", Interface: "eth0"}},
	}
}

func config(t *testing.T, p podpolicy.NetworkConfig) network.Config {
	t.Helper()
	c, err := network.FromPolicy(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// addVeth makes a device; its other end, peer-NAME, is on.
func addVeth(name, mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hw}, PeerName: "peer-" + name}); err != nil {
		return err
	}
	peer, err := netlink.LinkByName("peer-" + name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(peer)
}

// removeVeth removes both ends, whatever the first is called by now.
func removeVeth(t *testing.T, name string) {
	peer, err := netlink.LinkByName("peer-" + name)
	if err == nil {
		err = netlink.LinkDel(peer)
	}
	if err != nil {
		t.Errorf("remove %s: %v", name, err)
	}
}

// have skips the test where the kernel has no such device.
func have(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("no veth device: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestApply(t *testing.T) {
	env.Need(t)
	// The device appears while it is waited for.
	appear := make(chan error, 1)
	go func() { appear <- addVeth("veth7", mac) }()
	t.Cleanup(func() { removeVeth(t, "veth7") })
	var m network.Manager
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := m.Apply(ctx, config(t, policyConfig("10.0.2.15/24", "10.0.2.2")))
	have(t, <-appear)
	if err != nil {
		t.Fatal(err)
	}
	check := func(address, gateway string) {
		t.Helper()
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().MTU != 1400 || link.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("link %+v", link.Attrs())
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != address {
			t.Errorf("addresses %v, %v, want %s", addrs, err, address)
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range routes {
			if r.Gw != nil {
				got = append(got, r.Gw.String())
			}
		}
		if diff := cmp.Diff([]string{gateway}, got); diff != "" {
			t.Errorf("default routes: %s", diff)
		}
		neighs, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		if err != nil || len(neighs) != 1 || neighs[0].IP.String() != gateway {
			t.Errorf("neighbours %v, %v", neighs, err)
		}
	}
	check("10.0.2.15/24", "10.0.2.2")
	// Another configuration replaces the first.
	if err := m.Apply(ctx, config(t, policyConfig("10.0.3.15/24", "10.0.3.2"))); err != nil {
		t.Fatal(err)
	}
	check("10.0.3.15/24", "10.0.3.2")

	missing := network.Config{Interfaces: []network.Interface{{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Name: "eth1"}}}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.Apply(ctx, missing); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a device that does not come: %v", err)
	}
	bad := network.Config{Routes: []network.Route{{Gateway: netip.MustParseAddr("10.0.2.2"), Interface: "eth9"}}}
	if err := m.Apply(t.Context(), bad); err == nil {
		t.Error("a route over an unknown interface was accepted")
	}
}

// TestCrossed: the kernel has numbered the devices otherwise than the pod's
// networks are called, and the gateways are outside every network.
func TestCrossed(t *testing.T) {
	env.Need(t)
	macs := []string{"52:54:00:00:00:0a", "52:54:00:00:00:0b"}
	for i, name := range []string{"eth0", "eth1"} {
		have(t, addVeth(name, macs[i]))
		t.Cleanup(func() { removeVeth(t, name) })
	}
	p := podpolicy.NetworkConfig{
		Interfaces: []podpolicy.Interface{
			{MAC: macs[1], Name: "eth0", Addresses: []string{"10.9.0.2/32", "fd00:9::2/128"}, MTU: 1450},
			{MAC: macs[0], Name: "net1", Addresses: []string{"192.0.2.7/24"}},
		},
		Routes: []podpolicy.Route{
			{Gateway: "169.254.1.1", Interface: "eth0"}, {Gateway: "fe80::1", Interface: "eth0"},
			{Destination: "198.51.100.0/24", Gateway: "203.0.113.1", Interface: "net1"},
			{Destination: "fd00:8::/64", Gateway: "fd00:7::1", Interface: "eth0"},
		},
	}
	var m network.Manager
	for round, names := range [][]string{{"eth0", "net1"}, {"net1", "eth0"}} {
		// The second time they change their names with each other.
		for i := range p.Interfaces {
			p.Interfaces[i].Name = names[i]
		}
		for i, r := range p.Routes {
			p.Routes[i].Interface = map[bool]string{true: names[1], false: names[0]}[r.Destination == "198.51.100.0/24"]
		}
		if err := m.Apply(t.Context(), config(t, p)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for _, r := range []struct{ name, to, gateway string }{
			{names[0], "8.8.8.8", "169.254.1.1"}, {names[0], "2001:db8::1", "fe80::1"},
			{names[1], "198.51.100.9", "203.0.113.1"}, {names[0], "fd00:8::9", "fd00:7::1"},
		} {
			got, err := netlink.RouteGet(net.ParseIP(r.to))
			if err != nil || len(got) != 1 {
				t.Errorf("round %d: route to %s: %v, %v", round, r.to, got, err)
				continue
			}
			link, err := netlink.LinkByIndex(got[0].LinkIndex)
			if err != nil || link.Attrs().Name != r.name || !got[0].Gw.Equal(net.ParseIP(r.gateway)) {
				t.Errorf("round %d: to %s by %v: %v, %v", round, r.to, got[0], link, err)
			}
		}
		for i, want := range p.Interfaces {
			link, err := netlink.LinkByName(want.Name)
			if err != nil || link.Attrs().HardwareAddr.String() != want.MAC {
				t.Errorf("round %d: interface %d: %v, %v", round, i, link, err)
			}
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := network.Files{
		Hostname: "web-0", Servers: []string{"10.0.2.3"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.15")},
		Hosts:     []network.HostEntry{{Address: "10.0.2.2", Names: []string{"host.coffer.internal", "host"}}},
	}
	if err := f.Write(dir); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got[name] = string(b)
	}
	want := map[string]string{
		"hostname":    "web-0\n",
		"resolv.conf": "nameserver 10.0.2.3\nsearch a.example b.example\noptions ndots:5\n",
		"hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.2.15\tweb-0\n" +
			"10.0.2.2\thost.coffer.internal host\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFromPolicyRefusesWhatItCannotRead(t *testing.T) {
	t.Parallel()
	for _, c := range []podpolicy.NetworkConfig{
		{Interfaces: []podpolicy.Interface{{MAC: "x"}}},
		{Interfaces: []podpolicy.Interface{{MAC: mac, Addresses: []string{"10.0.2.15"}}}},
		{Routes: []podpolicy.Route{{Destination: "x"}}},
		{Routes: []podpolicy.Route{{Gateway: "x"}}},
		{Neighbours: []podpolicy.Neighbour{{Address: "x"}}},
		{Neighbours: []podpolicy.Neighbour{{Address: "10.0.2.2", MAC: "x"}}},
	} {
		if got, err := network.FromPolicy(c); err == nil {
			t.Errorf("%+v was read as %+v", c, got)
		}
	}
}
