package podpolicy_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// recorder denies some kinds of questions and remembers all.
type recorder struct {
	deny  []podpolicy.QuestionKind
	asked []podpolicy.Question
}

func (r *recorder) Decide(q podpolicy.Question) error {
	r.asked = append(r.asked, q)
	if slices.Contains(r.deny, q.Kind) {
		return errors.New("no")
	}
	return nil
}

// live goes through everything that a host may ask for, and returns the errors.
func live(t *testing.T, g *podpolicy.Guard) map[podpolicy.QuestionKind]error {
	t.Helper()
	got := map[podpolicy.QuestionKind]error{}
	denied := func(allowed bool) error {
		if allowed {
			return nil
		}
		return errors.New("closed")
	}
	_, got[podpolicy.AskSandbox] = g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "web"})
	if got[podpolicy.AskSandbox] != nil {
		return got
	}
	_, got[podpolicy.AskNetwork] = g.UpdateNetwork(podpolicy.NetworkProposal{})
	a := must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "web", Image: "r.example/a@" + webDigest, Args: &[]string{"/x"}, Terminal: true, Stdin: true}))
	if _, got[podpolicy.AskContainer] = a.Configure(podpolicy.ImageConfig{Digest: webDigest}); got[podpolicy.AskContainer] != nil {
		return got
	}
	if got[podpolicy.AskStart] = g.Started("c", ""); got[podpolicy.AskStart] != nil {
		return got
	}
	_, got[podpolicy.AskExec] = g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: []string{"/bin/sh"}})
	got[podpolicy.AskSignal] = g.Signal("c", "", 9)
	got[podpolicy.AskResize] = g.Resize("c", "")
	_, got[podpolicy.AskUpdate] = g.Update("c", podpolicy.Resources{})
	got[podpolicy.AskStream] = denied(g.Stream("c", "", podpolicy.Stdout))
	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("v", 1))
	_, got[podpolicy.AskFile] = u.File("a/b", 1)
	got[podpolicy.AskPortForward] = denied(g.PodPort(80))
	for _, kind := range []podpolicy.QuestionKind{podpolicy.AskDelete, podpolicy.AskWait, podpolicy.AskStats, podpolicy.AskCloseStdin, podpolicy.AskShutdown} {
		got[kind] = g.Ask(kind, "c", "")
	}
	return got
}

func TestDelegatedGuardAsksAboutEverything(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	g := podpolicy.NewDelegatedGuard(r)
	if !g.Sealed() {
		t.Error("a pod with an owner's policy is not sealed")
	}
	all := live(t, g)
	for kind, err := range all {
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if !slices.ContainsFunc(r.asked, func(q podpolicy.Question) bool { return q.Kind == kind }) {
			t.Errorf("nobody was asked about %s", kind)
		}
	}
	for _, q := range r.asked {
		if q.SandboxID != "s" {
			t.Errorf("%s: sandbox %q", q.Kind, q.SandboxID)
		}
	}
	// Nobody but the guest itself opens a disk.
	refused(t, g.Attach("v", "disk1"), podpolicy.RuleVolumeAttach, "volume")
	for kind := range all {
		g := podpolicy.NewDelegatedGuard(&recorder{deny: []podpolicy.QuestionKind{kind}})
		for other, err := range live(t, g) {
			if (err != nil) != (other == kind) {
				t.Errorf("%s denied: %s gives %v", kind, other, err)
			}
			if r, ok := errors.AsType[*podpolicy.Refusal](err); ok && (r.Rule != podpolicy.RuleDelegated || r.Path != string(kind) || r.Got != `"no"`) {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
	// What was refused has changed nothing.
	r.deny = []podpolicy.QuestionKind{podpolicy.AskContainer}
	g = podpolicy.NewDelegatedGuard(r)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "web"}))
	a := must[*podpolicy.Admission](t)(g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "web", Image: "r.example/a@" + webDigest, Args: &[]string{"/x"}}))
	_, err := a.Configure(podpolicy.ImageConfig{Digest: webDigest})
	refused(t, err, podpolicy.RuleDelegated, "container")
	refused(t, g.Started("c", ""), podpolicy.RuleContainerState, "id")
	_, err = podpolicy.NewDelegatedGuard(nil).Sandbox(podpolicy.SandboxProposal{ID: "s"})
	refused(t, err, podpolicy.RulePolicyInvalid, "")
}
