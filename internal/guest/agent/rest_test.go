package agent_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/podpolicy"
)

// address is one port for the HTTP interface, as a guest has one: who leaves it
// open is in the way of the next.
type address struct {
	mu   sync.Mutex
	addr string
}

func (a *address) listen(ctx context.Context) (net.Listener, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.addr == "" {
		a.addr = "127.0.0.1:0"
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", a.addr)
	if err == nil {
		a.addr = l.Addr().String()
	}
	return l, err
}

func withREST(a *address) func(*agent.Options) {
	return func(o *agent.Options) { o.ListenREST, o.RESTFeatures = a.listen, "resource" }
}

// The HTTP interface trusts whoever is on the pod's loopback, and a forwarded port
// comes from there.
func TestNoPortForwardToTheHTTPInterface(t *testing.T) {
	var rest address
	w := newWorld(t, make([]byte, 32), withREST(&rest))
	echo(t) // the loopback is up
	w.broker.resources["kbs:///default/key/1"] = "the secret"
	l, err := rest.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	h := w.seal(func(p *podpolicy.Policy) {
		p.Containers[0].Args = []string{"/bin/sh", "-c", "sleep 60"}
		p.Containers[0].Allow.PortForward = []uint16{port}
	})
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"}))
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	request := "GET /cdh/resource/default/key/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
	// Inside the pod it answers.
	inside, err := net.Dial("tcp", rest.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	if _, err := io.WriteString(inside, request); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, inside); !strings.Contains(got, "secret") {
		t.Fatalf("inside the pod: %q", got)
	}
	outside := h.open(&agentapi.StreamHeader{Kind: agentapi.StreamHeader_PORT_FORWARD, Port: uint32(port)})
	if _, err := io.WriteString(outside, request); err != nil {
		t.Fatal(err)
	}
	_ = outside.Close()
	if got := readAll(t, outside); got != "" {
		t.Errorf("the host got %q", got)
	}
}

func TestASandboxThatFailedIsTriedAgain(t *testing.T) {
	var rest address
	w := newWorld(t, nil, withREST(&rest))
	echo(t) // the loopback is up
	h := w.connect()
	for range 3 {
		_, err := h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", ScratchDisk: noDisk})
		if err == nil || !strings.Contains(err.Error(), "no disk with that serial number") {
			t.Fatalf("without its disk: %v", err)
		}
		if l, err := rest.listen(t.Context()); err != nil {
			t.Fatalf("the HTTP interface of a sandbox that failed: %v", err)
		} else {
			_ = l.Close()
		}
	}
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
}

// What cannot be undone, the disk, is not begun when something else fails.
func TestASandboxWithoutItsHTTPInterface(t *testing.T) {
	var rest address
	w := newWorld(t, nil, withREST(&rest))
	echo(t) // the loopback is up
	l, err := rest.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := w.connect()
	for range 2 {
		_, err := h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"})
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Fatalf("with its address taken: %v", err)
		}
	}
	if n := w.opened.Load(); n != 0 {
		t.Errorf("the stores of a sandbox that failed were opened %d times", n)
	}
	_ = l.Close()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
}
