package faults

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestOOMScore: on a node that is short of memory the machine is judged as its pod
// is to be, and not as the shim, which containerd protects.
func TestOOMScore(t *testing.T) {
	need(t)
	for _, a := range apis {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.api = a
			score := func(pid int) string { return strings.TrimSpace(proc(pid, "oom_score_adj")) }
			n.boot()
			shim := score(n.shim)
			if got := score(n.machine()); got != "0" {
				t.Errorf("before there is a container: %s, the shim %s", got, shim)
			}
			for _, want := range []string{"900", "650"} { // more and less worth than the one before
				n.run(n.container(func(s *specs.Spec) {
					s.Annotations["io.kubernetes.cri.container-name"] = "app" + want
					s.Process.OOMScoreAdj = new(atoi(want))
				}))
				if got := score(n.machine()); got != want || score(n.shim) != shim {
					t.Errorf("want %s, got %s; the shim's became %s, it was %s", want, got, score(n.shim), shim)
				}
			}
			n.conclude()
			n.expectClean()
		})
	}
}
