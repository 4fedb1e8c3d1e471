package vmm

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/host/console"
	"github.com/coffer-project/coffer/internal/host/qmp"
)

// Cause is why a machine ended.
type Cause string

const (
	// PoweredOff: the guest ended in order.
	PoweredOff Cause = "the guest powered off"
	// Reset: the guest reset itself, as a Linux that panics does.
	Reset Cause = "the guest reset (a kernel panic or the end of its init process)"
	// Panicked: the guest said so through a panic device.
	Panicked Cause = "the guest panicked"
	// Stuck: the accelerator cannot run the guest.
	Stuck Cause = "the accelerator failed to run the guest"
	// Stopped: by Close or by the end of the context.
	Stopped Cause = "the machine was stopped"
	// Failed: the emulator refused its command line, crashed or was killed.
	Failed Cause = "the emulator failed"
)

// End is how a machine ended, as an error for those who needed it to run.
type End struct {
	Name  string
	Cause Cause
	// What stands in for a machine, for messages; empty: it is one.
	What string
	// Detail is the exit status of the emulator or the cause of the context.
	Detail string
	// Emulator and Console are the last lines of each, safe to print.
	Emulator []string
	Console  []string

	err error // the process's, or the context's cause
}

// Unwrap is the cause of the context that stopped the machine, or the
// emulator's exit status.
func (e *End) Unwrap() error { return e.err }

// shownLines is how much of each tail an error message repeats.
const shownLines = 12

func (e *End) Error() string {
	var b strings.Builder
	what := e.What
	if what == "" {
		what = "virtual machine"
	}
	fmt.Fprintf(&b, "%s %s: %s", what, e.Name, e.Cause)
	if e.Detail != "" {
		fmt.Fprintf(&b, " (%s)", e.Detail)
	}
	if advice := e.advice(); advice != "" {
		b.WriteString("; " + advice)
	}
	show(&b, "QEMU", e.Emulator)
	show(&b, "console", e.Console)
	return b.String()
}

// advice is what to do about it; empty where nobody knows.
func (e *End) advice() string {
	switch {
	case strings.Contains(e.Detail, "signal: killed"):
		return "somebody on the node has killed it; if that was the kernel for want of memory, the node's kernel log says so"
	case e.Cause == Reset, e.Cause == Panicked:
		return "want of memory is the usual reason: raise the memory limits of the pod's containers"
	default:
		return ""
	}
}

func show(b *strings.Builder, source string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(b, "; last lines of its %s:", source)
	for _, l := range console.Excerpt(lines, shownLines) {
		fmt.Fprintf(b, "\n    %s", l)
	}
}

// shutdownCause reads a SHUTDOWN event (QEMU docs, ShutdownCause); "" is a
// shutdown that the host asked for.
func shutdownCause(e qmp.Event) Cause {
	var data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	}
	if json.Unmarshal(e.Data, &data) != nil || !data.Guest {
		return ""
	}
	switch data.Reason {
	case "guest-reset":
		return Reset
	case "guest-panic":
		return Panicked
	default:
		return PoweredOff
	}
}
