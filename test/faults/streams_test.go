package faults

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"

	"github.com/coffer-project/coffer/internal/host/cri"
)

// sealedApp is a container, created and not started, of a pod whose policy lets
// the host run /bin/true inside and read nothing.
func sealedApp(n *node) string {
	n.t.Helper()
	box := n.specOf(n.pod, "sandbox")
	annotation := n.sealed(nil)
	box.Annotations[cri.AnnotationInitdata] = annotation
	n.annotations = map[string]string{cri.AnnotationInitdata: annotation}
	n.startPod(box)
	ctx, cancel := n.call()
	defer cancel()
	if err := n.create(ctx, n.pod); err != nil {
		n.t.Fatal(err)
	}
	if err := n.begin(ctx, n.pod); err != nil {
		n.t.Fatal(err)
	}
	n.noteSpaces()
	id := n.container(agreed)
	if err := n.create(ctx, id); err != nil {
		n.t.Fatal(err)
	}
	return id
}

// attach opens a pipe of a process's output, as containerd does.
func (n *node) attach(name string) *os.File {
	n.t.Helper()
	f, err := os.OpenFile(n.fifo(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		n.t.Fatal(err)
	}
	return f
}

// ends reads output to its end.
func (n *node) ends(f *os.File) string {
	n.t.Helper()
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		n.t.Errorf("the output does not end: %v", err)
	}
	return string(data)
}

const (
	noLogs       = "coffer: the pod's policy keeps this output in the guest (refused by rule stream.forbidden, allow.logs): to read it, allow it there and prepare the pod again\n"
	noExecOutput = "coffer: the pod's policy keeps this output in the guest (refused by rule stream.forbidden, allow.exec): to read it, allow it there and prepare the pod again\n"
)

// TestWithheldStreams: who reads the logs of a container whose policy keeps them,
// attaches to it, or runs a command in it whose output is kept, is told so and
// waits for nothing.
func TestWithheldStreams(t *testing.T) {
	need(t)
	for _, a := range apis {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.api, n.execEnv = a, []string{"PATH=/bin", "MODE=prod"}
			id := sealedApp(n)
			ctx, cancel := n.call()
			defer cancel()
			stdout, stderr := n.attach(id+"-out"), n.attach(id+"-err")
			if err := n.begin(ctx, id); err != nil {
				t.Fatal(err)
			}
			n.noteSpaces()
			if out, notice := n.ends(stdout), n.ends(stderr); out != "" || notice != noLogs {
				t.Errorf("logs: %q, %q", out, notice)
			}
			// Who attaches later finds the output ended, and the container running.
			if late := n.ends(n.attach(id + "-out")); late != "" {
				t.Errorf("attach: %q", late)
			}
			// A command is run, and what it says is kept; another one is refused.
			output := n.attach("e1-out")
			held, err := os.OpenFile(n.fifo("e1-out"), os.O_WRONLY, 0) // until the shim has opened it
			if err != nil {
				t.Fatal(err)
			}
			if err := n.exec(id, "e1", "/bin/true"); err != nil {
				t.Fatal(err)
			}
			_ = held.Close()
			if out := n.ends(output); out != noExecOutput {
				t.Errorf("exec: %q", out)
			}
			if r, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: id, ExecID: "e1"}); err != nil || r.GetExitStatus() != 0 {
				t.Errorf("wait for the command: %v, %v", r, err)
			}
			if err := n.exec(id, "e2", "/bin/sh"); err == nil || !strings.Contains(err.Error(), "(rule exec.args)") {
				t.Errorf("another command: %v", err)
			}
			n.conclude()
			n.expectClean()
		})
	}
}
