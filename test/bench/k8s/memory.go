package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// mostShim is how much more memory than runc's shim ours may have, and
	// mostMachine how much more a pod's machine than a bare one, in MiB.
	mostShim, mostMachine = 10, 25
	// mostAgent is what the agent may have resident.
	mostAgent = 25
	// settle is how long a pod is idle before it is looked at.
	settle = 15 * time.Second
	// machineMemory is that of the machines, in MiB.
	machineMemory = 1024
)

// memory compares idle pods with one container each.
func (b *bench) memory(ctx context.Context) error {
	process, err := b.world.processConfig()
	if err != nil {
		return err
	}
	machine, err := b.world.machineConfig(b.guest, machineMemory)
	if err != nil {
		return err
	}
	var runc, ours, virtual footprint
	if err := b.idlePod(ctx, b.runc(), func(s *shim) (err error) {
		runc, err = memoryOf(s.pid)
		return err
	}); err != nil {
		return err
	}
	if err := b.idlePod(ctx, b.coffer(process), func(s *shim) (err error) {
		if ours, err = memoryOf(s.pid); err != nil {
			return err
		}
		agent, err := memoryOf(s.sandbox)
		b.report.AtMost("memory/agent-process/resident", agent.resident, "MiB", mostAgent, "")
		return err
	}); err != nil {
		return err
	}
	var pod footprint
	var arguments []string
	if err := b.idlePod(ctx, b.coffer(machine), func(s *shim) (err error) {
		if virtual, err = memoryOf(s.pid); err != nil {
			return err
		}
		if arguments, err = argumentsOf(s.sandbox); err != nil {
			return err
		}
		pod, err = memoryOf(s.sandbox)
		return err
	}); err != nil {
		return err
	}
	bare, err := b.bareMachine(ctx, arguments)
	if err != nil {
		return err
	}
	const peer = "containerd-shim-runc-v2 2.2"
	b.report.Add("memory/shim/runc", runc.total(), "MiB", "")
	b.report.Add("memory/shim/process-driver", ours.total(), "MiB", "")
	b.report.AtMost("memory/shim/process-driver/over-runc", ours.total()-runc.total(), "MiB", mostShim, peer)
	b.report.Add("memory/shim/machine", virtual.total(), "MiB", "")
	b.report.AtMost("memory/shim/machine/over-runc", virtual.total()-runc.total(), "MiB", mostShim, peer)
	b.reportMachines(pod, bare)
	return nil
}

// reportMachines says what the difference between two machines is made of. The
// translator's code is not held against the pod: the guest executes more, but in
// hardware.
func (b *bench) reportMachines(pod, bare footprint) {
	b.report.Add("memory/machine/pod", pod.total(), "MiB", "")
	b.report.Add("memory/machine/bare", bare.total(), "MiB", "")
	b.report.Add("memory/machine/over-bare/all", pod.total()-bare.total(), "MiB", "")
	b.report.Add("memory/machine/over-bare/translator", pod.translator-bare.translator, "MiB", "")
	b.report.AtMost("memory/machine/over-bare", pod.total()-pod.translator-bare.total()+bare.translator, "MiB", mostMachine, "the same kernel and machine, an init that waits")
	b.report.Add("memory/machine/over-bare/guest-memory", pod.guest-bare.guest, "MiB", "")
}

// idlePod makes a pod with one container and measures it when it has done
// nothing for a while.
func (b *bench) idlePod(ctx context.Context, h handler, measure func(*shim) error) (err error) {
	s, err := b.world.pod(ctx, h)
	if err != nil {
		return err
	}
	defer func() {
		if eerr := s.end(ctx); err == nil {
			err = eerr
		}
	}()
	if err := s.boot(ctx); err != nil {
		return fmt.Errorf("%w%s", err, s.lastWords())
	}
	c, err := s.newContainer(s.pod.id + "-idle")
	if err != nil {
		return err
	}
	if err := errors.Join(c.create(ctx), c.start(ctx)); err != nil {
		return fmt.Errorf("%w%s", err, s.lastWords())
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	return errors.Join(measure(s), c.end(ctx))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
