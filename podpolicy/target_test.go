package podpolicy_test

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// debugPolicy has a container to look into and one that does.
func debugPolicy(target string) *podpolicy.Policy {
	p := simplePolicy()
	debug := p.Containers[0]
	debug.Name, debug.Role, debug.Target = "debug", podpolicy.RoleEphemeral, target
	p.Containers = append(p.Containers, debug)
	return p
}

// runOne runs a container of a guard, and returns its configuration.
func runOne(t *testing.T, g *podpolicy.Guard, q podpolicy.ContainerProposal) (*podpolicy.ContainerConfig, error) {
	t.Helper()
	a, err := g.Admit(q)
	if err != nil {
		return nil, err
	}
	c, err := a.Configure(podpolicy.ImageConfig{Digest: webDigest, Entrypoint: []string{"/one"}})
	ok(t, err)
	ok(t, g.Started(q.ID, ""))
	return c, nil
}

func TestTarget(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewGuard(debugPolicy("one"))
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "one"}))
	debug := podpolicy.ContainerProposal{ID: "d", Name: "debug", JoinPIDs: true}
	_, err := g.Admit(debug)
	refused(t, err, podpolicy.RuleContainerTarget, "target")
	_, err = runOne(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one", JoinPIDs: true})
	refused(t, err, podpolicy.RuleContainerTarget, "joinPIDs")
	if c, err := runOne(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one"}); err != nil || c.Target != "" {
		t.Fatalf("the container itself: %+v, %v", c, err)
	}
	// It is the policy that decides, whatever the host says.
	for _, join := range []bool{true, false} {
		debug.JoinPIDs = join
		a, err := g.Admit(debug)
		ok(t, err)
		c, err := a.Configure(podpolicy.ImageConfig{Digest: webDigest})
		ok(t, err)
		if c.Target != "c" {
			t.Errorf("target %q", c.Target)
		}
		ok(t, g.Deleted("d", ""))
	}
	// It may end while the image is pulled.
	a, err := g.Admit(debug)
	ok(t, err)
	ok(t, g.Exited("c", "", 0))
	_, err = a.Configure(podpolicy.ImageConfig{Digest: webDigest})
	refused(t, err, podpolicy.RuleContainerTarget, "target")

	for name, p := range map[string]*podpolicy.Policy{"itself": debugPolicy("debug"), "unknown": debugPolicy("two"), "an app": debugPolicy("one")} {
		if name == "an app" {
			p.Containers[1].Role = podpolicy.RoleApp
		}
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "containers[1].target") {
			t.Errorf("%s: %v", name, err)
		}
	}
	shared := debugPolicy("one")
	shared.Pod.SharePID = true
	g = podpolicy.NewGuard(shared)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "one", SharePID: true}))
	if c, err := runOne(t, g, debug); err != nil || c.Target != "" || !c.SharePID {
		t.Errorf("where all share: %+v, %v", c, err)
	}
}

// A policy of another kind is not asked about it, so nobody gets it.
func TestTargetOfADelegatedPod(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewDelegatedGuard(&recorder{})
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "one"}))
	must[*podpolicy.ContainerConfig](t)(runOne(t, g, podpolicy.ContainerProposal{ID: "web", Name: "web", Image: "registry.example/one@" + webDigest}))
	_, err := runOne(t, g, podpolicy.ContainerProposal{ID: "debug", Name: "debug", Image: "registry.example/one@" + webDigest, JoinPIDs: true})
	refused(t, err, podpolicy.RuleContainerTarget, "joinPIDs")
}

// Where there is no policy, the host can only mean the one container that runs.
func TestTargetOfAnUnsealedPod(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewUnsealedGuard()
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "one"}))
	q := func(name string, join bool) podpolicy.ContainerProposal {
		return podpolicy.ContainerProposal{ID: name, Name: name, Image: "registry.example/one@" + webDigest, JoinPIDs: join}
	}
	_, err := runOne(t, g, q("early", true))
	refused(t, err, podpolicy.RuleContainerTarget, "joinPIDs")
	must[*podpolicy.ContainerConfig](t)(runOne(t, g, q("web", false)))
	for _, name := range []string{"debug", "again"} { // one that has joined is no other candidate
		if c, err := runOne(t, g, q(name, true)); err != nil || c.Target != "web" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	must[*podpolicy.ContainerConfig](t)(runOne(t, g, q("sidecar", false)))
	_, err = runOne(t, g, q("third", true))
	refused(t, err, podpolicy.RuleContainerTarget, "joinPIDs")
	if !strings.Contains(err.Error(), "sidecar, web") || !strings.Contains(err.Error(), "shareProcessNamespace") {
		t.Errorf("%v", err)
	}
	ok(t, g.Exited("web", "", 0))
	if c, err := runOne(t, g, q("third", true)); err != nil || c.Target != "sidecar" {
		t.Errorf("after the other has ended: %+v, %v", c, err)
	}
}
