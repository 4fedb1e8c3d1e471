package network

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coffer-project/coffer/internal/host/hosttest"
)

// TestTraffic: the guest reaches node and pods, and they reach it, over both
// networks and families.
func TestTraffic(t *testing.T) {
	w := newWorld(t)
	w.boot()
	for _, tc := range []struct {
		name     string
		from, to *hosttest.Namespace
		address  string
	}{
		{"guest to node", w.guest, w.node, nodeIP},
		{"guest to node, IPv6", w.guest, w.node, nodeIP6},
		{"node to guest", w.node, w.guest, podIP},
		{"node to guest, IPv6", w.node, w.guest, podIP6},
		{"guest to another pod", w.guest, w.neighbour, neighbourIP},
		{"another pod to guest, IPv6", w.neighbour, w.guest, podIP6},
		{"guest to node, second network", w.guest, w.node, ptpNodeIP},
		{"node to guest, second network", w.node, w.guest, ptpIP},
		{"another pod to guest, second network", w.neighbour, w.guest, ptpIP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, err := w.dial(tc.from, tc.address, w.serve(tc.to, tc.address), limit)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
				t.Fatal(err)
			}
			sent := make([]byte, 1<<20)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(sent)
			go func() { _, _ = conn.Write(sent) }()
			got := make([]byte, len(sent))
			if n, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes came back: %v", n, len(sent), err)
			}
			ping(t, tc.from, tc.address)
		})
	}
	guest := w.guest.Link("eth0")
	if guest.Attrs().MTU != mtu || w.guest.Link("net1").Attrs().MTU != 1500 {
		t.Errorf("MTUs %d and %d", guest.Attrs().MTU, w.guest.Link("net1").Attrs().MTU)
	}
	fixed, err := w.guest.Netlink.NeighList(guest.Attrs().Index, netlink.FAMILY_V4)
	if err != nil || len(fixed) == 0 {
		t.Fatalf("neighbours %v, %v", fixed, err)
	}
	for _, n := range fixed {
		if n.IP.String() == nodeIP && n.State != netlink.NUD_PERMANENT {
			t.Errorf("the fixed neighbour: %+v", n)
		}
	}
	// The namespace's own stack saw none of it: it has no neighbour but the
	// fixed one.
	heard, err := w.pod.Netlink.NeighList(w.pod.Link("eth0").Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range heard {
		if n.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE) != 0 {
			t.Errorf("the pod's namespace on the host has heard from %s", n.IP)
		}
	}
}

// ping sends an echo request that fills the MTU and waits for the answer.
func ping(t *testing.T, ns *hosttest.Namespace, address string) {
	t.Helper()
	network, request, answer := "ip4:icmp", byte(8), byte(0)
	if net.ParseIP(address).To4() == nil {
		network, request, answer = "ip6:ipv6-icmp", 128, 129
	}
	var conn *net.IPConn
	if err := ns.Do(func() (err error) {
		conn, err = net.DialIP(network, nil, &net.IPAddr{IP: net.ParseIP(address)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	message := bytes.Repeat([]byte("echo"), 350) // type, code, checksum, id, sequence, data
	message[0], message[1], message[2], message[3] = request, 0, 0, 0
	if request == 8 { // the kernel fills in the other family's
		sum := uint32(0)
		for i := 0; i < len(message); i += 2 {
			sum += uint32(message[i])<<8 | uint32(message[i+1])
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		message[2], message[3] = byte(^sum>>8), byte(^sum)
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(message); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 4096)
	for {
		n, _, err := conn.ReadFrom(in) // without the header of IPv4
		if err != nil {
			t.Fatalf("no answer to an echo request: %v", err)
		}
		if n == len(message) && in[0] == answer && bytes.Equal(in[4:n], message[4:]) {
			return
		}
	}
}

// TestPolicyOfTheNode: rules on the host's end of the veth hold for the guest as
// for any pod, which is how CNI plugins implement NetworkPolicy.
func TestPolicyOfTheNode(t *testing.T) {
	w := newWorld(t)
	w.boot()
	open, shut := w.serve(w.node, ptpNodeIP), w.serve(w.node, ptpNodeIP)
	routed := w.serve(w.neighbour, neighbourIP)
	inbound := w.serve(w.guest, ptpIP)
	reach := func(from *hosttest.Namespace, address, port string) error {
		conn, err := w.dial(from, address, port, refusedAfter)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	source := func(port string) error { // from the second network to a pod on the first
		var conn net.Conn
		err := w.guest.Do(func() (err error) {
			d := net.Dialer{Timeout: refusedAfter, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ptpIP)}}
			conn, err = d.Dial("tcp", net.JoinHostPort(neighbourIP, port))
			return err
		})
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	// Before, all of it works. (The neighbour answers through the node.)
	w.guest.Route("net1", neighbourIP+"/32", ptpNodeIP)
	for name, err := range map[string]error{
		"open": reach(w.guest, ptpNodeIP, open), "shut": reach(w.guest, ptpNodeIP, shut), "routed": source(routed), "inbound": reach(w.neighbour, ptpIP, inbound),
	} {
		if err != nil {
			t.Fatalf("%s, without a policy: %v", name, err)
		}
	}
	w.nft(w.node, `table inet pods {
		chain arriving { type filter hook input priority 0; iifname "veth2" tcp dport `+shut+` drop; }
		chain passing { type filter hook forward priority 0;
			iifname "veth2" ip saddr `+ptpIP+` drop;
			oifname "veth2" tcp dport `+inbound+` ct state new drop; }
	}`)
	if err := reach(w.guest, ptpNodeIP, open); err != nil {
		t.Errorf("a port that the policy leaves open: %v", err)
	}
	for name, err := range map[string]error{
		"a port of the node": reach(w.guest, ptpNodeIP, shut), "another pod": source(routed), "the guest": reach(w.neighbour, ptpIP, inbound),
	} {
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s, which the policy closes: %v", name, err)
		}
	}
}

// TestThreads: no thread stays in a pod's namespace.
func TestThreads(t *testing.T) {
	w := newWorld(t)
	if err := w.attached.Close(); err != nil {
		t.Fatal(err)
	}
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatal(threads, err)
	}
	for _, thread := range threads {
		if got, err := os.Readlink(thread); err == nil && got != want {
			t.Errorf("%s is %s, not the process's %s", thread, got, want)
		}
	}
}
