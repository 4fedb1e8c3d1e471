package faults

import (
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
)

// lies are what an agent does wrong, and what is to be expected of the shim.
var lies = []struct {
	name string
	// want is in the error of the call that fails; empty: none does.
	want string
	// exec is tried, too.
	exec bool
}{
	{name: "hangs-Hello", want: "did not answer within 5s"},
	{name: "hangs-UpdateNetwork", want: "was not created within 6s"},
	{name: "hangs-CreateSandbox", want: "within 6s"},
	{name: "hangs-CreateContainer", want: "was not created within 6s"},
	{name: "hangs-Streams", want: "the guest did not open the streams of its input and output within 45s: its agent hangs; delete the pod, so that it gets another machine"},
	{name: "hangs-Stats"},
	{name: "hangs-Delete"},
	{name: "hangs-TerminationMessage"},
	{name: "hangs-Shutdown"},
	{name: "hangs-Wait"},
	{name: "refuses", want: "the guest"},
	{name: "errs", want: "the guest"},
	{name: "events"},
	{name: "output"},
	{name: "silence"},
	{name: "exits"},
	{name: "honest", exec: true},
}

// residentLimit is more than any shim needs, and less than what a guest that
// sends without end would fill.
const residentLimit = 160 << 20

// TestLies: an agent that hangs or lies costs its own pod, and nothing else:
// State is answered in time, errors are bounded and printable, memory is
// bounded, and the pod can be removed.
func TestLies(t *testing.T) {
	need(t)
	for _, lie := range lies {
		t.Run(lie.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.settings["agent"] = quoted(n.liar(lie.name))
			n.settings["shutdown_timeout"] = `"1s"`
			if lie.want != "" { // the others have the time that a busy machine needs
				n.settings["boot_timeout"], n.settings["create_timeout"] = `"5s"`, `"6s"`
			}
			app, err := n.tryPod(input{app: annotate("x", "y")})
			if lie.want == "" && err != nil {
				t.Fatalf("%v", err)
			}
			if lie.want != "" {
				n.says(err, lie.want)
			}
			n.inTime()
			if lie.exec {
				if err := n.exec(app, "e1", "/bin/true"); err != nil {
					t.Errorf("exec: %v", err)
				}
			}
			if lie.name == "output" || lie.name == "events" {
				wait(2 * time.Second)
			}
			if r := resident(n.shim); r > residentLimit {
				t.Errorf("the shim has grown to %d MiB", r>>20)
			}
			if lie.name == "hangs-Wait" {
				// Nobody waits a minute here: the pod's end is its containers'.
				ctx, cancel := n.call()
				defer cancel()
				if _, err := n.task.Kill(ctx, &taskapi.KillRequest{ID: n.pod, Signal: uint32(syscall.SIGKILL)}); err != nil {
					t.Error(err)
				}
			}
			if lie.name == "exits" {
				ctx, cancel := n.call()
				defer cancel()
				r, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: app})
				if err != nil || r.GetExitStatus() > 255 || time.Since(r.GetExitedAt().AsTime()) > time.Hour {
					t.Errorf("wait: %v, %v", r, err)
				}
			}
			n.conclude()
			n.expectClean()
		})
	}
}

// inTime: whoever lists tasks is answered whatever the guest does.
func (n *node) inTime() {
	n.t.Helper()
	if n.task == nil {
		return
	}
	ctx, cancel := n.call()
	defer cancel()
	for _, id := range n.ids {
		begin := time.Now()
		if r, err := n.task.State(ctx, &taskapi.StateRequest{ID: id}); err == nil && r.GetStatus() == task.Status_UNKNOWN {
			n.t.Errorf("state: %v", r)
		} else if err != nil && !gone(err) {
			n.t.Errorf("state: %v", err)
		}
		if _, err := n.task.Stats(ctx, &taskapi.StatsRequest{ID: id}); err != nil && !gone(err) && !strings.Contains(err.Error(), "stats") {
			n.t.Errorf("stats: %v", err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			n.t.Errorf("state and stats took %s", took)
		}
	}
}

// resident is a process's memory in bytes.
func resident(pid int) int {
	for line := range strings.Lines(proc(pid, "status")) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return atoi(strings.Fields(rest)[0]) << 10
		}
	}
	return 0
}
