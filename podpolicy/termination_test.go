package podpolicy_test

import (
	"bytes"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

func TestTerminationMessagePath(t *testing.T) {
	t.Parallel()
	// What a policy with a path (empty: none) makes of what a host says.
	for _, tt := range []struct {
		policy, host, want string
		refused            bool
	}{
		{policy: "", host: "", want: ""},
		{policy: "", host: podpolicy.DefaultTerminationPath, want: podpolicy.DefaultTerminationPath},
		{policy: "", host: "/tmp/words", refused: true},
		{policy: podpolicy.DefaultTerminationPath, host: podpolicy.DefaultTerminationPath, want: podpolicy.DefaultTerminationPath},
		{policy: "/tmp/words", host: "", want: "/tmp/words"},
		{policy: "/tmp/words", host: "/tmp/words", want: "/tmp/words"},
		{policy: "/tmp/words", host: "/tmp/words/x", refused: true},
		{policy: "/tmp/words", host: podpolicy.DefaultTerminationPath, refused: true},
	} {
		p := simplePolicy()
		p.Containers[0].TerminationMessagePath = tt.policy
		g := podpolicy.NewGuard(p)
		_, err := g.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "one"})
		ok(t, err)
		a, err := g.Admit(podpolicy.ContainerProposal{ID: "c", Name: "one", TerminationPath: tt.host})
		if tt.refused {
			refused(t, err, podpolicy.RuleContainerTermination, "terminationMessagePath")
			continue
		}
		ok(t, err)
		c, err := a.Configure(podpolicy.ImageConfig{Digest: webDigest})
		ok(t, err)
		if c.TerminationPath != tt.want {
			t.Errorf("policy %q, host %q: %q, want %q", tt.policy, tt.host, c.TerminationPath, tt.want)
		}
	}
	for _, bad := range []string{"tmp/words", "/tmp/../words", "/proc/self/mem", "/dev/null", "/sys/x", "/", "/a\nb"} {
		p := simplePolicy()
		p.Containers[0].TerminationMessagePath = bad
		if err := p.Validate(); err == nil {
			t.Errorf("%q is valid", bad)
		}
	}
	// The default is no difference, in whichever way it is written.
	plain, spelled := simplePolicy(), simplePolicy()
	spelled.Containers[0].TerminationMessagePath = podpolicy.DefaultTerminationPath
	a, err := plain.Canonical()
	ok(t, err)
	b, err := spelled.Canonical()
	ok(t, err)
	if !bytes.Equal(a, b) || len(podpolicy.Diff(plain, spelled)) != 0 {
		t.Errorf("the default makes a difference:\n%s\n%s", a, b)
	}
	spelled.Containers[0].TerminationMessagePath = "/tmp/words"
	if d := podpolicy.Diff(plain, spelled); len(d) != 1 || d[0].Path != "containers.one.terminationMessagePath" {
		t.Errorf("differences %v", d)
	}
}
