package faults

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

// innocent is a process that has nothing to do with pods. After the test it must
// still run.
func innocent(t *testing.T) podstate.Process {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := podstate.Look("innocent", cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !p.Alive() {
			t.Error("a process that has only the id of one of the pod's was killed")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p
}

func (n *node) stateDir() string { return n.path("state", "k8s.io", n.pod) }

// losePower leaves of a pod that runs what a disk would keep: its bundles, state
// and socket. What the state names are other programs' ids now.
func (n *node) losePower(change func(s *podstate.State)) {
	n.t.Helper()
	machine := n.machine()
	state, err := podstate.Read(n.stateDir())
	if err != nil {
		n.t.Fatal(err)
	}
	n.kill(n.shim)
	n.kill(machine)
	n.disconnect()
	n.until("its processes have ended", func() bool { return len(n.processes()) == 0 })
	if change == nil {
		return
	}
	change(&state)
	data, err := json.Marshal(state)
	if err != nil {
		n.t.Fatal(err)
	}
	n.rewrite("state.json", data)
}

// rewrite replaces a file of the pod's state.
func (n *node) rewrite(name string, data []byte) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.stateDir(), name), data, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// forget removes the bundles, which are on a file system in memory.
func (n *node) forget() {
	n.t.Helper()
	if err := os.RemoveAll(n.path("b")); err != nil {
		n.t.Fatal(err)
	}
	n.ids = nil
	if err := os.Mkdir(n.path("b"), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

// another has a new pod started and ended on the node.
func (n *node) another() {
	n.t.Helper()
	n.pod = newID(n.t)
	n.boot()
	n.conclude()
}

// powerLosses are what is left of a pod when its node has lost power.
var powerLosses = []struct {
	name string
	do   func(n *node, other podstate.Process)
}{
	{"started anew", func(n *node, other podstate.Process) {
		n.losePower(func(s *podstate.State) {
			s.Shim, s.Machines = other, []podstate.Process{other}
			s.Shim.Boot, s.Machines[0].Boot = "another", "another"
		})
	}},
	{"ids given to others", func(n *node, other podstate.Process) {
		n.losePower(func(s *podstate.State) {
			s.Shim, s.Machines = other, []podstate.Process{other}
			s.Shim.Start, s.Machines[0].Start = other.Start-1, other.Start-1
		})
	}},
	{"network namespace is a file", func(n *node, other podstate.Process) {
		n.write("dead-netns", "")
		n.losePower(func(s *podstate.State) {
			s.Driver, s.NetNS = "qemu", n.path("dead-netns")
			s.Machines = []podstate.Process{{PID: other.PID, Start: other.Start, Boot: "another"}}
		})
	}},
	{"network namespace is gone", func(n *node, _ podstate.Process) {
		n.losePower(func(s *podstate.State) { s.Driver, s.NetNS = "qemu", n.path("no-netns") })
	}},
	{"state empty", func(n *node, _ podstate.Process) {
		n.losePower(nil)
		n.rewrite("state.json", nil)
	}},
	{"state cut", func(n *node, _ podstate.Process) {
		n.losePower(nil)
		n.rewrite("state.json", []byte(`{"version":1,"namespace":"k8s.io","id":"`))
	}},
	{"state not written", func(n *node, _ podstate.Process) {
		n.losePower(nil)
		if err := os.Remove(filepath.Join(n.stateDir(), "state.json")); err != nil {
			n.t.Fatal(err)
		}
		n.rewrite(".state.json", []byte("{"))
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(n.stateDir(), old, old); err != nil {
			n.t.Fatal(err)
		}
	}},
}

// TestPowerLoss: what was left is removed by whoever comes first, nobody else is
// hurt, and a pod can be made again under the same id.
func TestPowerLoss(t *testing.T) {
	need(t)
	for _, loss := range powerLosses {
		for how, after := range map[string]func(n *node){
			// containerd finds the bundles and asks for each.
			"delete": (*node).abandon,
			// It finds none, and nobody asks.
			"another pod": func(n *node) { n.forget(); n.another() },
			// The same id, as `ctr` may give it.
			"the same pod": func(n *node) { n.forget(); n.boot(); n.conclude() },
		} {
			t.Run(loss.name+"/"+how, func(t *testing.T) {
				t.Parallel()
				n := newNode(t)
				n.boot()
				loss.do(n, innocent(t))
				after(n)
				n.expectClean()
			})
		}
	}
}
