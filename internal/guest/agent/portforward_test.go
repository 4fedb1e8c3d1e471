package agent_test

import (
	"io"
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/podpolicy"
)

// echo listens on the loopback, which the test's own network namespace has down
// at first, and answers each connection with what it says.
func echo(t *testing.T) (port uint16) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestPortForward(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	allowed, forbidden := echo(t), echo(t)
	h := w.seal(func(p *podpolicy.Policy) {
		p.Containers[0].Args = []string{"/bin/sh", "-c", "sleep 60"}
		p.Containers[0].Allow.PortForward = []uint16{allowed}
	})
	forward := func(port uint16) net.Conn {
		return h.open(&agentapi.StreamHeader{Kind: agentapi.StreamHeader_PORT_FORWARD, Port: uint32(port)})
	}
	exchange := func(c net.Conn) string {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		_ = c.Close() // the host's direction ends; the answer still comes
		return readAll(t, c)
	}
	if got := exchange(forward(allowed)); got != "" {
		t.Errorf("before its container ran, the port answered %q", got)
	}
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"}))
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	if got := exchange(forward(allowed)); got != "hello" {
		t.Errorf("the allowed port answered %q", got)
	}
	if got := exchange(forward(forbidden)); got != "" {
		t.Errorf("the forbidden port answered %q", got)
	}
	events := h.open(&agentapi.StreamHeader{Kind: agentapi.StreamHeader_EVENTS})
	for told := 0; told < 2; {
		var e agentapi.Event
		if err := channel.ReadMessage(events, &e); err != nil {
			t.Fatal(err)
		}
		if r := e.GetRefusal(); r.GetRule() == agent.RuleStream && r.GetPath() == "allow.portForward" {
			told++
		}
	}
	if _, err := h.session.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_PORT_FORWARD, Port: 70000}); err == nil {
		t.Error("port 70000 was accepted")
	}
}
