package faults

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// step is a moment in a pod's life. It leaves the pod there; what it started and
// what has not ended is in the result.
type step struct {
	name string
	do   func(n *node) *life
}

// life is how far a pod has come.
type life struct {
	app     string       // its container; empty: none
	pending <-chan error // a call that waits; nil: none
	what    string       // that call
	running bool         // the container runs
	ended   bool         // or has ended by itself
}

// async makes a call that the test goes on beside.
func async(f func(ctx context.Context) error) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		defer cancel()
		done <- f(ctx)
	}()
	return done
}

var steps = []step{
	{"start", func(n *node) *life {
		n.startPod(n.specOf(n.pod, "sandbox"))
		return &life{}
	}},
	{"described", func(n *node) *life { // by the Sandbox API; nothing is booted
		n.startPod(n.specOf(n.pod, "sandbox"))
		ctx, cancel := n.call()
		defer cancel()
		if err := n.describe(ctx, n.box); err != nil {
			n.t.Fatal(err)
		}
		n.described = true
		return &life{}
	}},
	{"boot", func(n *node) *life {
		// An agent that does not answer: the boot goes on until something ends it.
		n.settings["agent"] = quoted(n.liar("deaf"))
		n.startPod(n.specOf(n.pod, "sandbox"))
		pending := async(n.creation(n.pod))
		n.until("an agent runs", func() bool { return n.machine() != 0 })
		n.noteSpaces()
		return &life{pending: pending, what: "the sandbox's creation"}
	}},
	{"booted", func(n *node) *life {
		n.boot()
		return &life{}
	}},
	{"pull", func(n *node) *life {
		held := n.reg.holdPulls()
		n.boot()
		l := &life{app: n.container(nil), what: "the container's creation"}
		l.pending = async(n.creation(l.app))
		select {
		case <-held:
		case err := <-l.pending:
			n.t.Fatalf("create: %v", err)
		case <-time.After(patience):
			n.t.Fatal("no pull")
		}
		return l
	}},
	{"created", func(n *node) *life {
		n.boot()
		l := &life{app: n.container(nil)}
		ctx, cancel := n.call()
		defer cancel()
		if err := n.create(ctx, l.app); err != nil {
			n.t.Fatal(err)
		}
		n.noteSpaces()
		return l
	}},
	{"running", running},
	{"exec", func(n *node) *life {
		l := running(n)
		if err := n.exec(l.app, "e1", "/bin/sleep", "1000"); err != nil {
			n.t.Fatalf("exec: %v", err)
		}
		return l
	}},
	{"deletion", func(n *node) *life {
		l := running(n)
		client := n.task
		l.pending, l.what = async(func(ctx context.Context) error {
			if _, err := client.Kill(ctx, &taskapi.KillRequest{ID: l.app, Signal: uint32(syscall.SIGKILL)}); err != nil {
				return err
			}
			if _, err := client.Wait(ctx, &taskapi.WaitRequest{ID: l.app}); err != nil {
				return err
			}
			_, err := client.Delete(ctx, &taskapi.DeleteRequest{ID: l.app})
			return err
		}), "the deletion"
		l.running = false
		wait(5 * time.Millisecond)
		return l
	}},
	{"exited", func(n *node) *life {
		n.boot()
		l := &life{app: n.container(func(s *specs.Spec) { s.Process.Args = []string{"/bin/true"} }), ended: true}
		n.run(l.app)
		ctx, cancel := n.call()
		defer cancel()
		if r, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: l.app}); err != nil || r.GetExitStatus() != 0 {
			n.t.Fatalf("wait: %v, %v", r, err)
		}
		return l
	}},
}

func running(n *node) *life {
	n.boot()
	l := &life{app: n.container(nil), running: true}
	n.run(l.app)
	return l
}

// fault breaks something, checks what the other side is told, and ends the pod
// as containerd would.
type fault struct {
	name  string
	steps []string // empty: all
	do    func(n *node, l *life)
	// linger is of the handler's configuration; empty: its default.
	linger string
}

// withMachine are steps at which there is a machine.
var withMachine = []string{"boot", "booted", "pull", "created", "running", "exec", "deletion", "exited"}

var faults = []fault{
	{name: "shim killed", do: func(n *node, l *life) {
		n.kill(n.shim)
		n.lost(l)
		n.abandon()
	}},
	{name: "machine killed", steps: withMachine, do: func(n *node, l *life) {
		n.kill(n.machine())
		n.machineDied(l)
		n.conclude()
	}},
	{name: "shim and machine killed", steps: []string{"boot", "pull", "running"}, do: func(n *node, l *life) {
		machine := n.machine()
		n.kill(n.shim)
		n.kill(machine)
		n.lost(l)
		n.abandon()
	}},
	{name: "containerd restarted", do: func(n *node, l *life) {
		n.disconnect()
		n.lost(l)
		if !n.alive() {
			n.t.Fatal("the shim has ended with its connection")
		}
		if err := n.connect(n.address()); err != nil {
			n.t.Fatal(err)
		}
		n.checkTasks(l)
		n.conclude()
	}},
	{name: "containerd gives the pod up", do: func(n *node, l *life) {
		n.disconnect()
		n.lost(l)
		n.abandon()
	}},
	// A caller that has gone: containerd hangs up and removes the bundles, and its
	// `delete` comes too late to find anything.
	{name: "containerd forgets the pod", linger: "1s", do: func(n *node, l *life) {
		n.disconnect()
		n.lost(l)
		n.forget()
	}},
	{name: "machine killed, and containerd forgets the pod", linger: "1s", steps: withMachine, do: func(n *node, l *life) {
		n.kill(n.machine())
		n.machineDied(l)
		wait(2 * time.Second)
		if !n.alive() {
			n.t.Error("the shim has ended under a containerd that is connected")
		}
		n.disconnect()
		n.forget()
	}},
	// One that is away for long: the shim does not wait for it, but what it wants to
	// know is kept.
	{name: "machine killed while containerd is away", linger: "1s", steps: []string{"booted", "running", "exited"}, do: func(n *node, l *life) {
		machine := n.machine()
		n.disconnect()
		n.kill(machine)
		n.until("the shim ends", func() bool { return !n.alive() })
		n.until("its socket is gone", func() bool { _, err := os.Stat(n.address()); return err != nil })
		for i := len(n.ids) - 1; i >= 0; i-- {
			id, want := n.ids[i], uint32(137)
			if id == l.app && l.ended {
				want = 0
			}
			if status, err := n.deleted(id); err != nil || status != want {
				n.t.Errorf("delete: want status %d, got %d, %v", want, status, err)
			}
		}
		n.abandon() // again
	}},
	{name: "registry killed", steps: []string{"booted", "pull", "running"}, do: func(n *node, l *life) {
		n.reg.kill()
		if l.app == "" {
			l.app = n.container(nil)
			l.pending, l.what = async(n.creation(l.app)), "the container's creation"
		}
		if l.pending != nil {
			err := n.answer(l, 2*patience)
			n.says(err, "the guest: pull "+n.image, "connection refused", "; check that the server runs, and that the pod's network lets it be reached")
		}
		if l.running {
			// It does not need the registry any more.
			if err := n.exec(l.app, "after", "/bin/true"); err != nil {
				n.t.Errorf("exec: %v", err)
			}
		}
		n.conclude()
	}},
}

func TestMatrix(t *testing.T) {
	need(t)
	for _, a := range apis {
		for _, f := range faults {
			for _, s := range steps {
				if len(f.steps) > 0 && !slices.Contains(f.steps, s.name) || s.name == "described" && !a.sandbox {
					continue
				}
				t.Run(a.name+"/"+f.name+"/"+s.name, func(t *testing.T) {
					t.Parallel()
					n := newNode(t)
					n.api = a
					if f.linger != "" {
						n.settings["linger"] = quoted(f.linger)
					}
					l := s.do(n)
					f.do(n, l)
					n.reg.letGo()
					n.expectClean()
				})
			}
		}
	}
}

// kill ends a process of the pod.
func (n *node) kill(pid int) {
	n.t.Helper()
	if pid <= 1 {
		n.t.Fatal("there is no process to kill")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

// machine is the process that the pod runs in: the shim's child.
func (n *node) machine() int {
	for _, field := range strings.Fields(n.children(n.shim)) {
		if pid := atoi(field); pid != 0 && !zombie(pid) && !strings.Contains(proc(pid, "cmdline"), shimName) {
			return pid
		}
	}
	return 0
}

// lost: a call in flight ends when its connection does.
func (n *node) lost(l *life) {
	n.t.Helper()
	if l.pending == nil {
		return
	}
	if err := n.answer(l, patience); err == nil && l.what != "the deletion" {
		n.t.Errorf("%s has succeeded", l.what)
	}
	l.pending = nil
}

func (n *node) answer(l *life, limit time.Duration) error {
	n.t.Helper()
	select {
	case err := <-l.pending:
		l.pending = nil
		return err
	case <-time.After(limit):
		n.t.Fatalf("%s has not ended after %s", l.what, limit)
		return nil
	}
}

// machineDied: calls end with the reason, tasks with status 137, and what is
// asked afterwards says why it cannot be.
func (n *node) machineDied(l *life) {
	n.t.Helper()
	if l.pending != nil {
		if err := n.answer(l, patience); err != nil {
			n.says(err, "(signal: killed); somebody on the node has killed it")
			if s := err.Error(); strings.Count(s, "signal: killed") != 1 {
				n.t.Errorf("said more than once: %s", s)
			}
		} else if l.what != "the deletion" {
			n.t.Errorf("%s has succeeded", l.what)
		}
	}
	ctx, cancel := n.call()
	defer cancel()
	for _, id := range n.ids {
		status, err := n.exitOf(ctx, id)
		switch {
		case err != nil:
			if !gone(err) {
				n.t.Errorf("wait: %v", err)
			}
		case status != 137 && (id != l.app || !l.ended):
			n.t.Errorf("status: want 137, got %d", status)
		}
	}
	if l.app != "" && l.running {
		n.says(n.exec(l.app, "late", "/bin/true"), "")
	}
}

// checkTasks: after a restart containerd finds its tasks as they are.
func (n *node) checkTasks(l *life) {
	n.t.Helper()
	if l.app == "" || l.what != "" {
		return
	}
	ctx, cancel := n.call()
	defer cancel()
	want := task.Status_CREATED
	switch {
	case l.running:
		want = task.Status_RUNNING
	case l.ended:
		want = task.Status_STOPPED
	}
	r, err := n.task.State(ctx, &taskapi.StateRequest{ID: l.app})
	if err != nil || r.GetStatus() != want {
		n.t.Errorf("state: want %v, got %v, %v", want, r, err)
	}
}

// says checks what a person would read: one bounded, printable line that has the
// words.
func (n *node) says(err error, words ...string) {
	n.t.Helper()
	if err == nil {
		n.t.Error("want an error, got none")
		return
	}
	text := err.Error()
	n.t.Logf("event: %s", text)
	// The console's last lines come behind what happened and what to do.
	const most = 1 << 10
	if first, console, _ := strings.Cut(text, "last lines of its console:"); len(first) > most+100 || len(console) > 8*most {
		n.t.Errorf("an error of %d bytes, %d of them of the console", len(text), len(console))
	}
	for _, r := range text {
		if r < ' ' && r != '\n' || r == 0x7f {
			n.t.Errorf("control character %q in %.300q", r, text)
			break
		}
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			n.t.Errorf("want %q in the error, got %s", w, text)
		}
	}
}

// TestLeftoversAreSeen: what is counted is counted, of a pod that runs.
func TestLeftoversAreSeen(t *testing.T) {
	n := newNode(t)
	running(n)
	var processes []string
	for _, pid := range n.processes() {
		processes = append(processes, commandLine(pid))
	}
	for what, found := range map[string][]string{
		"shim|coffer-agent|sleep 1000": processes, "-out open": n.openFiles(), "control group ": n.groups(), "state.json|file s/": n.files(),
	} {
		for _, w := range strings.Split(what, "|") {
			if !strings.Contains(strings.Join(found, "\n"), w) {
				t.Errorf("want %q among %q", w, found)
			}
		}
	}
	n.conclude()
	n.expectClean()
}
