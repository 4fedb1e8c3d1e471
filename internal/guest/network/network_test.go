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

func TestApply(t *testing.T) {
	env.Need(t)
	// The device appears while it is waited for.
	appear := make(chan error, 1)
	go func() {
		hw, _ := net.ParseMAC(mac)
		appear <- netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth7", HardwareAddr: hw}, PeerName: "peer7"})
	}()
	var m network.Manager
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := m.Apply(ctx, config(t, policyConfig("10.0.2.15/24", "10.0.2.2")))
	if aerr := <-appear; aerr != nil {
		t.Skipf("no veth device: %v", aerr)
	}
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
