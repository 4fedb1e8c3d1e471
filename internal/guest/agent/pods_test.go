package agent_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/podpolicy"
)

// The containers of a pod are made and started all at once.
func TestTenContainersAtOnce(t *testing.T) {
	w, h := unsealed(t)
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			req := w.shell(fmt.Sprint("c", i), fmt.Sprintf("echo %d >/shared/%d; exit %d", i, i, i))
			req.Volumes = []*agentapi.Volume{{Name: "shared", Kind: agentapi.Volume_EPHEMERAL}}
			req.Mounts = []*agentapi.Mount{{Path: "/shared", Volume: "shared"}}
			_, err := h.CreateContainer(t.Context(), req)
			if err == nil {
				_, err = h.Start(t.Context(), &agentapi.StartRequest{ContainerId: req.GetContainerId()})
			}
			if err != nil {
				t.Error(err)
				return
			}
			exit, err := h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: req.GetContainerId()})
			if err != nil || exit.GetExitCode() != uint32(i) {
				t.Errorf("%s ended with %v, %v", req.GetContainerId(), exit, err)
			}
		})
	}
	all.Wait()
	last := w.shell("last", "cat /shared/?")
	last.Mounts = []*agentapi.Mount{{Path: "/shared", Volume: "shared"}}
	if got, _ := h.script(last); got != "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n" {
		t.Errorf("the volume has %q", got)
	}
}

// The containers of a pod have one /dev/shm, unless one has a volume there.
func TestSharedMemory(t *testing.T) {
	dir := guesttest.Tmpfs(t)
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil, func(o *agent.Options) { o.SharedMemory = dir })
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "pod"}))
	first := w.shell("first", "echo hello >/dev/shm/word; ls -ld /dev/shm | { read mode _; echo $mode; }")
	first.User = &agentapi.User{Uid: 1000, Gid: 1000}
	if got, _ := h.script(first); got != "drwxrwxrwt\n" {
		t.Errorf("the first container said %q", got)
	}
	if got, _ := h.script(w.shell("second", "cat /dev/shm/word")); got != "hello\n" {
		t.Errorf("the second container said %q", got)
	}
	third := w.shell("third", "ls /dev/shm")
	third.Volumes = []*agentapi.Volume{{Name: "shm", Kind: agentapi.Volume_MEMORY}}
	third.Mounts = []*agentapi.Mount{{Path: "/dev/shm", Volume: "shm"}}
	if got, _ := h.script(third); got != "" {
		t.Errorf("the third container said %q", got)
	}
}

// A kubelet starts a container again under a new id, and clears the old one away
// later; it may start init containers anew, and debugging ones at any time.
func TestRestartsInAnUnsealedPod(t *testing.T) {
	w, h := unsealed(t)
	for round := range 3 {
		for _, name := range []string{"init", "app", "debugger"} {
			req := w.shell(fmt.Sprintf("%s-%d", name, round), "exit 3")
			req.Name = name
			if _, code := h.script(req); code != 3 {
				t.Errorf("%s ended with %d", req.GetContainerId(), code)
			}
		}
	}
	running := w.shell("app-9", "sleep 600")
	running.Name = "app"
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), running))
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "app-9"}))
	again := w.shell("app-10", "true")
	again.Name = "app"
	_, err := h.CreateContainer(t.Context(), again)
	refused(t, err, podpolicy.RuleContainerInstances)
	for round := range 3 {
		must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: fmt.Sprint("app-", round)}))
	}
}

// In a sealed pod a sidecar is restarted in its place, and an init container
// that has failed, but none that has succeeded.
func TestRestartsInASealedPod(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) {
		app := p.Containers[0]
		app.Allow.Restarts = podpolicy.RestartAlways
		init, sidecar := app, app
		init.Name, init.Role, init.Args = "init", podpolicy.RoleInit, []string{"/bin/sh", "-c", "[ -e /state/done ] || { touch /state/done; exit 1; }"}
		init.Allow.Restarts = podpolicy.RestartOnFailure
		init.Mounts = []podpolicy.Mount{{Path: "/state", Volume: "state"}}
		sidecar.Name, sidecar.Role = "sidecar", podpolicy.RoleSidecar
		p.Containers = []podpolicy.Container{init, sidecar, app}
		p.Volumes = map[string]podpolicy.Volume{"state": {Kind: podpolicy.VolumeEphemeral}}
	})
	id := 0
	run := func(name string) (uint32, error) {
		id++
		req := &agentapi.CreateContainerRequest{ContainerId: fmt.Sprint("c", id), Name: name}
		if _, err := h.CreateContainer(t.Context(), req); err != nil {
			return 0, err
		}
		must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: req.GetContainerId()}))
		return must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: req.GetContainerId()})).GetExitCode(), nil
	}
	for _, step := range []struct {
		name string
		rule string
		code uint32
	}{
		{"web", podpolicy.RuleContainerOrder, 0}, {"init", "", 1}, {"sidecar", podpolicy.RuleContainerOrder, 0}, {"init", "", 0},
		{"init", podpolicy.RuleContainerRestarts, 0}, {"web", podpolicy.RuleContainerOrder, 0}, {"sidecar", "", 0}, {"sidecar", "", 0}, {"web", "", 0}, {"web", "", 0}, {"sidecar", "", 0},
	} {
		code, err := run(step.name)
		if step.rule != "" {
			refused(t, err, step.rule)
		} else if err != nil || code != step.code {
			t.Errorf("%s ended with %d, %v, want %d", step.name, code, err, step.code)
		}
	}
}

// Probes go on while their container ends: each is answered, and nothing of them
// keeps the container from being deleted.
func TestProbesWhileTheirContainerEnds(t *testing.T) {
	w, h := unsealed(t)
	for round := range 5 {
		id := fmt.Sprint("c", round)
		must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), w.shell(id, "sleep 0.3; exit 5")))
		must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: id}))
		ended := make(chan struct{})
		var probes sync.WaitGroup
		for p := range 4 {
			probes.Go(func() {
				for n := 0; ; n++ {
					exec := fmt.Sprintf("p%d-%d", p, n)
					_, err := h.Exec(t.Context(), &agentapi.ExecRequest{ContainerId: id, ExecId: exec, Args: []string{"/bin/true"}})
					if err == nil {
						_, err = h.Start(t.Context(), &agentapi.StartRequest{ContainerId: id, ExecId: exec})
						if err == nil {
							_, err = h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: id, ExecId: exec})
						}
						_, _ = h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: id, ExecId: exec})
					}
					switch code := status.Code(err); code {
					case codes.OK:
					case codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied:
						select {
						case <-ended:
							return
						case <-time.After(time.Millisecond):
						}
					default:
						t.Errorf("a probe was answered %v", err)
						return
					}
				}
			})
		}
		exit := must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: id}))
		if exit.GetExitCode() != 5 {
			t.Errorf("ended with %v", exit)
		}
		close(ended)
		probes.Wait()
		must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: id}))
	}
}

// A host may reach every port of its own pod, also one on the pod's address only.
func TestPortForwardOfAnUnsealedPod(t *testing.T) {
	w, h := unsealed(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	// The namespace is the test program's own. The address is for documentation.
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 51, 100, 7), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(lo, addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.AddrDel(lo, addr) })
	ports := []uint16{echo(t)}
	l, err := net.Listen("tcp", "198.51.100.7:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), w.shell("c", "sleep 600")))
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "c"}))
	for _, port := range ports {
		c := h.open(&agentapi.StreamHeader{Kind: agentapi.StreamHeader_PORT_FORWARD, Port: uint32(port)})
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if got := readAll(t, c); got != "hello" {
			t.Errorf("port %d answered %q", port, got)
		}
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	if _, err := h.session.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_PORT_FORWARD, Port: uint32(closed.Addr().(*net.TCPAddr).Port)}); err == nil {
		t.Error("a port that nothing listens on was opened")
	}
}
