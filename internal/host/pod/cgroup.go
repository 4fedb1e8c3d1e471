package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

const mib = 1 << 20

// enterCgroup moves this program into the pod's control group, before it starts
// anything. A machine that has more memory than the group may have is refused:
// a guest uses all of its memory in time, and would then be killed.
func (p *Pod) enterCgroup(ctx context.Context, s *cri.Sandbox, plan *Plan) error {
	if p.o.Cgroup == nil {
		return nil
	}
	if s.Cgroup == "" {
		p.warn(ctx, notice.Degraded, "the container runtime names no control group for this pod: nothing on the node limits its machine")
		return nil
	}
	g, err := p.o.Cgroup(s.Cgroup, func(made []string) error {
		p.trace.Cgroups = made
		return p.note()
	}, func(message string) { p.warn(ctx, notice.Degraded, "%s", message) })
	if err != nil {
		return err
	}
	p.undo(g.Remove)
	p.mu.Lock()
	p.cgroup = g
	p.mu.Unlock()
	plan.Cgroup = g.Containers()
	if plan.Driver != runtimeconfig.DriverQEMU {
		return nil
	}
	return p.checkLimit(ctx, s, g.Limit(), int64(plan.Sandbox.MemoryMiB))
}

// leastShare is what QEMU and the shim take at the least, in MiB, besides the
// machine's memory.
const leastShare = 64

// checkLimit compares the pod's limit in bytes, 0 for none, with the machine's
// memory in MiB.
func (p *Pod) checkLimit(ctx context.Context, s *cri.Sandbox, limit, machine int64) error {
	switch {
	case limit == 0 || limit >= (machine+leastShare)*mib:
	case limit >= machine*mib:
		p.warn(ctx, notice.Degraded, "the pod's control group has at most %d MiB, of which its machine has %d MiB: what is left is too little for the emulator and the shim, so the kernel may kill them (raise overhead.podFixed.memory of the RuntimeClass)", limit/mib, machine)
	default:
		return fmt.Errorf("memory: the pod's control group has at most %d MiB, and its machine has %d MiB: "+
			"raise overhead.podFixed.memory of the RuntimeClass above overhead_memory of the handler (%d MiB)%s",
			limit/mib, machine, p.o.Config.OverheadMemory, annotated(s))
	}
	return nil
}

// annotated adds the other reason for a large machine.
func annotated(s *cri.Sandbox) string {
	if _, ok := s.Annotations[runtimeconfig.AnnotationMemory]; ok {
		return ", or lower the annotation " + runtimeconfig.AnnotationMemory
	}
	return ""
}

// leaveCgroup takes this program out of the pod's group before anybody is told
// that the pod has ended: who removes the group then kills what is in it.
func (p *Pod) leaveCgroup() {
	p.mu.Lock()
	g := p.cgroup
	p.mu.Unlock()
	if g == nil {
		return
	}
	if err := g.Leave(); err != nil {
		p.log.Error("the shim could not leave the pod's control group", "error", err)
	}
}

// killedText is what os/exec says of a process that got SIGKILL.
const killedText = "signal: killed"

// explainEnd says of a machine that the kernel killed for want of memory what to
// do about it.
func (p *Pod) explainEnd(end *vmm.End, err error) error {
	p.mu.Lock()
	g, s := p.cgroup, p.sandbox
	p.mu.Unlock()
	if _, told := errors.AsType[*shortage](err); told || g == nil || !strings.Contains(end.Detail, killedText) {
		return err
	}
	killed, own := g.OutOfMemory()
	if !killed {
		return err
	}
	text := "the kernel killed the pod's machine: the node, or a control group above the pod's, was out of memory"
	if own {
		text = fmt.Sprintf("the kernel killed the pod's machine: out of memory of the pod's control group (%d MiB for the guest, the emulator and the shim); "+
			"raise overhead.podFixed.memory of the RuntimeClass, or lower overhead_memory of the handler%s", g.Limit()/mib, annotated(s))
	}
	return &shortage{text, err}
}

// shortage is a machine's end for want of memory on the node.
type shortage struct {
	text string
	end  error
}

func (s *shortage) Error() string { return s.text + ": " + s.end.Error() }
func (s *shortage) Unwrap() error { return s.end }
