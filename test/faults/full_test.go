package faults

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/host/notice"
)

// TestDiskFillsUp: the disk of the node's state fills while a pod runs. The pod
// goes on, its containers' ends are told, a new one can be made, and nothing is
// left when it is deleted, or when its shim is killed.
func TestDiskFillsUp(t *testing.T) {
	need(t)
	for name, end := range map[string]func(n *node){
		"deleted":     (*node).conclude,
		"shim killed": func(n *node) { n.kill(n.shim); n.abandon() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.small("state", "size=256k")
			running(n)
			n.fill("state")
			n.mustBeFull("state")
			ctx, cancel := n.call()
			defer cancel()
			job := n.container(func(s *specs.Spec) {
				s.Annotations["io.kubernetes.cri.container-name"] = "job"
				s.Process.Args = []string{"/bin/sh", "-c", "exit 7"}
			})
			n.run(job)
			if status, err := n.exitOf(ctx, job); err != nil || status != 7 {
				t.Errorf("exit: want 7, got %d, %v", status, err)
			}
			end(n)
			n.expectClean()
			// What the pod had to say was written before.
			kept, err := notice.Kept(n.path("state"), time.Now())
			if err != nil || len(kept) != 1 || len(kept[0].Notices) == 0 || kept[0].Notices[0].Reason != notice.Unsealed {
				t.Errorf("notices: %v, %v", kept, err)
			}
		})
	}
}

// mustBeFull checks that the test tests something.
func (n *node) mustBeFull(dir string) {
	n.t.Helper()
	err := os.WriteFile(n.path(dir, "probe"), make([]byte, 8<<10), 0o600)
	if err == nil {
		n.t.Fatal("the disk is not full")
	}
	if err := os.Remove(n.path(dir, "probe")); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
}
