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
	// settle is how long pods are idle before they are looked at.
	settle = 30 * time.Second
	// machineMemory is that of the machines, in MiB.
	machineMemory = 1024
)

// memory compares idle pods with one container each.
func (b *bench) memory(ctx context.Context) error {
	process, err := b.world.processConfig()
	if err != nil {
		return err
	}
	var runc, ours footprint
	if err := b.idlePods(ctx, b.runc(), 1, func(s []*shim) (err error) {
		runc, err = memoryOf(s[0].pid, b.guest)
		return err
	}); err != nil {
		return err
	}
	if err := b.idlePods(ctx, b.coffer(process), 1, func(s []*shim) (err error) {
		if ours, err = memoryOf(s[0].pid, b.guest); err != nil {
			return err
		}
		agent, err := memoryOf(s[0].sandbox, b.guest)
		b.report.AtMost("memory/agent-process/resident", agent.resident, "MiB", mostAgent, "")
		return err
	}); err != nil {
		return err
	}
	const peer = "containerd-shim-runc-v2 2.2"
	b.report.Add("memory/shim/runc", runc.total(), "MiB", "")
	b.report.Add("memory/shim/process-driver", ours.total(), "MiB", "")
	b.report.AtMost("memory/shim/process-driver/over-runc", ours.total()-runc.total(), "MiB", mostShim, peer)
	alone, err := b.machines(ctx, 1)
	if err != nil {
		return err
	}
	b.report.Add("memory/shim/machine", alone.shim.total(), "MiB", "")
	b.report.AtMost("memory/shim/machine/over-runc", alone.shim.total()-runc.total(), "MiB", mostShim, peer)
	several, err := b.machines(ctx, b.idle)
	if err != nil {
		return err
	}
	bare, err := b.bareMachine(ctx, alone.arguments)
	if err != nil {
		return err
	}
	b.report.Add("memory/machine/bare", bare.total(), "MiB", "")
	b.reportMachine("memory/machine", alone.machine, bare)
	b.reportMachine(fmt.Sprintf("memory/machine/of-%d", b.idle), several.machine, bare)
	return nil
}

// reportMachine says what the difference between a pod's machine and a bare one
// is made of. The emulator's program is the same, and divided by as many as run it.
// The translator's code is not held against the pod: the guest executes more, but
// in hardware.
func (b *bench) reportMachine(name string, pod, bare footprint) {
	b.report.Add(name+"/pod", pod.total(), "MiB", "")
	b.report.Add(name+"/over-bare/all", pod.total()-bare.total(), "MiB", "")
	b.report.Add(name+"/over-bare/translator", pod.translator-bare.translator, "MiB", "")
	b.report.AtMost(name+"/over-bare", pod.own()-bare.own(), "MiB", mostMachine, "the same kernel and machine, an init that waits")
	b.report.Add(name+"/over-bare/guest-memory", pod.guest-bare.guest, "MiB", "")
	b.report.Add(name+"/over-bare/image-files", pod.image-bare.image, "MiB", "")
	b.report.Add(name+"/over-bare/emulator", pod.own()-pod.guest-pod.image-bare.own()+bare.guest+bare.image, "MiB", "")
}

// idleMachines are idle pods in machines, one or several at a time.
type idleMachines struct {
	shim, machine footprint // the means
	arguments     []string
}

// machines measures n idle pods in machines that are there at the same time.
func (b *bench) machines(ctx context.Context, n int) (m idleMachines, err error) {
	config, err := b.world.machineConfig(b.guest, machineMemory)
	if err != nil {
		return m, err
	}
	return m, b.idlePods(ctx, b.coffer(config), n, func(shims []*shim) error {
		var daemons, emulators []footprint
		for _, s := range shims {
			daemon, err := memoryOf(s.pid, b.guest)
			if err != nil {
				return err
			}
			emulator, err := memoryOf(s.sandbox, b.guest)
			if err != nil {
				return err
			}
			daemons, emulators = append(daemons, daemon), append(emulators, emulator)
		}
		m.shim, m.machine = mean(daemons), mean(emulators)
		m.arguments, err = argumentsOf(shims[0].sandbox)
		return err
	})
}

func mean(of []footprint) (m footprint) {
	n := float64(len(of))
	for _, f := range of {
		m.proportional += f.proportional / n
		m.resident += f.resident / n
		m.held += f.held / n
		m.guest += f.guest / n
		m.translator += f.translator / n
		m.image += f.image / n
		m.program += f.program / n
	}
	return m
}

// idlePods makes n pods with one container each, one after the other, and
// measures them when they have done nothing for a while.
func (b *bench) idlePods(ctx context.Context, h handler, n int, measure func([]*shim) error) (err error) {
	var shims []*shim
	defer func() {
		for _, s := range shims {
			if eerr := s.end(ctx); err == nil {
				err = eerr
			}
		}
	}()
	for range n {
		s, err := b.world.pod(ctx, h)
		if err != nil {
			return err
		}
		shims = append(shims, s)
		if err := s.boot(ctx); err != nil {
			return fmt.Errorf("%w%s", err, s.lastWords())
		}
		c, err := s.newContainer(s.pod.id + "-idle")
		if err != nil {
			return err
		}
		s.first = c
		if err := errors.Join(c.create(ctx), c.start(ctx)); err != nil {
			return fmt.Errorf("%w%s", err, s.lastWords())
		}
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	return measure(shims)
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
