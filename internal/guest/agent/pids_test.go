package agent_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/podpolicy"
)

// look lists processes by their command lines, and the environment of the first.
const look = `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done; tr '\0' '\n' </proc/1/environ | grep ^MARK=; true`

// A container for debugging sees the processes of another one and may signal them;
// it ends with that one, and that one does not end with it.
func TestJoinPIDs(t *testing.T) {
	w, h := unsealed(t)
	begin := func(req *agentapi.CreateContainerRequest) {
		t.Helper()
		must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), req))
		must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: req.GetContainerId()}))
	}
	target := w.shell("web", "sleep 1111 & sleep 2222; exit 7")
	target.Env = &agentapi.StringList{Values: []string{"PATH=/bin", "MARK=target"}}
	early := w.shell("early", "true")
	early.JoinPids = true
	_, err := h.CreateContainer(t.Context(), early)
	refused(t, err, podpolicy.RuleContainerTarget)
	begin(target)

	apart := w.shell("apart", look)
	if said, _ := h.script(apart); strings.Contains(said, "sleep") || strings.Contains(said, "MARK=target") {
		t.Errorf("a container of its own sees\n%s", said)
	}
	debug := w.shell("debug", look)
	debug.JoinPids = true
	if said, code := h.script(debug); code != 0 || !strings.Contains(said, "sleep 1111 \n") || !strings.Contains(said, "sleep 2222 \n") || !strings.HasSuffix(said, "\nMARK=target\n") {
		t.Errorf("it sees, %d\n%s", code, said)
	}
	// What it leaves behind ends with it, as in a namespace of its own.
	litter := w.shell("litter", "sleep 3333 & exit 0")
	litter.JoinPids = true
	h.script(litter)
	again := w.shell("again", look)
	again.JoinPids = true
	if said, _ := h.script(again); strings.Contains(said, "3333") || !strings.Contains(said, "1111") {
		t.Errorf("after it\n%s", said)
	}
	stays := w.shell("stays", "sleep 4444")
	stays.JoinPids = true
	begin(stays)
	kill := w.shell("kill", `for p in /proc/[0-9]*; do [ "$(tr -d '\0' <$p/cmdline)" = sleep2222 ] && kill ${p#/proc/}; done; sleep 5555`)
	kill.JoinPids = true
	begin(kill)
	for _, id := range []string{"web", "stays", "kill"} {
		if exit, err := h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: id}); err != nil || (exit.GetExitCode() == 7) != (id == "web") {
			t.Errorf("%s ended with %v, %v", id, exit, err)
		}
	}
}

// What a sealed pod's container sees is the policy's to say.
func TestJoinPIDsOfASealedPod(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) {
		c := p.Containers[0]
		c.Args = []string{"/bin/sh", "-c", "sleep 1111"}
		other := c
		other.Name = "other"
		debug := c
		debug.Name, debug.Role, debug.Target = "debug", podpolicy.RoleEphemeral, "web"
		debug.Args = []string{"/bin/sh", "-c", look}
		debug.Allow.Logs = true
		alone := debug
		alone.Name, alone.Target = "alone", ""
		p.Containers = []podpolicy.Container{c, other, debug, alone}
	})
	create := func(id string, join bool) error {
		_, err := h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: id, Name: id, JoinPids: join})
		return err
	}
	refused(t, create("debug", true), podpolicy.RuleContainerTarget)
	refused(t, create("alone", true), podpolicy.RuleContainerTarget)
	for _, id := range []string{"web", "other"} {
		if err := create(id, false); err != nil {
			t.Fatal(err)
		}
		must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: id}))
	}
	for i, id := range []string{"debug", "alone"} {
		said, code := h.script(&agentapi.CreateContainerRequest{ContainerId: id, Name: id, JoinPids: i == 0})
		if code != 0 || strings.Contains(said, "sleep 1111") != (id == "debug") {
			t.Errorf("%s sees, %d\n%s", id, code, said)
		}
	}
}

// A target that ends while the image is pulled is told, and is no other process.
func TestJoinPIDsTooLate(t *testing.T) {
	w, h := unsealed(t)
	for i := range 5 {
		id := fmt.Sprint("c", i)
		must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), w.shell(id, "sleep 0.05")))
		must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: id}))
		debug := w.shell(fmt.Sprint("d", i), look)
		debug.JoinPids = true
		_, err := h.CreateContainer(t.Context(), debug)
		if code := status.Code(err); err != nil && code != codes.PermissionDenied && code != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
		must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: id}))
	}
}
