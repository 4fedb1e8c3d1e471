package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/host/blobcache"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/internal/host/volumes"
)

// Boot starts the machine with its network and disks, and tells the guest which
// pod it is. It works once; after an error nothing is left and the pod is of no
// use. The error says what happened at which stage, with the console's last
// lines where there are any.
func (p *Pod) Boot(ctx context.Context, s *cri.Sandbox) error {
	p.mu.Lock()
	if p.booting != nil || p.closing {
		p.mu.Unlock()
		return errors.New("the pod has been started before, or is being removed")
	}
	booting := make(chan struct{})
	p.booting, p.sandbox = booting, s
	p.mu.Unlock()
	ctx, limit, cancel := within(ctx, p.o.Config.CreateTimeout.D(), "the pod's machine was not ready")
	defer cancel()
	// Close ends it, too.
	ctx, giveUp := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.life, func() { giveUp(errClosed) })
	err := limit.explain(ctx, p.boot(ctx, s))
	stop()
	giveUp(nil)
	p.mu.Lock()
	if err == nil && p.closing {
		err = errClosed
	}
	if err == nil {
		p.created = p.o.Now()
	}
	p.mu.Unlock()
	close(booting)
	if err == nil {
		return nil
	}
	err = p.explain(err)
	p.leaveCgroup()
	p.end(err)
	if cerr := p.Close(context.WithoutCancel(ctx)); cerr != nil {
		p.log.ErrorContext(ctx, "not all of a pod that failed could be removed", "error", cerr)
	}
	return err
}

func (p *Pod) boot(ctx context.Context, s *cri.Sandbox) error {
	c := p.o.Config
	if err := s.CheckAnnotations(c.Annotations); err != nil {
		return err
	}
	for _, w := range s.Warnings {
		p.warn(ctx, notice.NoEffect, "%s", w)
	}
	plan, err := p.plan(s)
	if err != nil {
		return err
	}
	if s.Initdata == nil {
		p.warn(ctx, notice.Unsealed, "unsealed: this pod has no initdata, so no policy is in force, the node decides what runs in it, and no secret is given to it (coffer prepare seals a pod)")
	}
	if err := p.setUp(ctx, s, plan); err != nil {
		return err
	}
	if err := p.launch(ctx, plan); err != nil {
		return err
	}
	p.score(ctx, func(score *scores) { score.sandbox = s.OOMScore })
	p.forwardPorts(ctx, plan)
	v := p.o.Volumes(volumes.Options{
		KubeletRoot: c.KubeletRoot, PodUID: s.UID, HostPath: volumes.HostPath(c.HostPath), Sealed: s.Initdata != nil, Initdata: s.Initdata,
		Annotations: s.Annotations, Logger: p.log, Warn: func(message string) { p.warn(p.life, notice.Volume, "%s", message) },
	})
	p.undo(v.Close)
	p.mu.Lock()
	p.volumes = v
	p.mu.Unlock()
	if s.Initdata == nil && !s.SharePIDKnown {
		// Only the containers' bundles tell what the guest is to be told: the first
		// of them makes the sandbox.
		return nil
	}
	_, err = p.createSandbox(ctx, s.SharePID)
	return err
}

// plan describes the machine, without what has to be set up for it.
func (p *Pod) plan(s *cri.Sandbox) (*Plan, error) {
	c := p.o.Config
	vcpus, memory, err := size(s, c)
	if err != nil {
		return nil, err
	}
	config := sandbox.Config{
		ID: p.o.ID, Image: c.GuestImage, TEE: sandbox.Kind(c.TEE), Firmware: c.Firmware, QEMU: c.QEMU, VCPUs: vcpus, MemoryMiB: memory,
		Accelerator: accelerator(c), AccelCache: filepath.Join(c.StateDir, "accel"), Development: c.Development, BootTimeout: c.BootTimeout.D(),
		DiskSlots: c.DiskSlots, Logger: p.log,
	}
	if c.Debug {
		config.ConsoleLine = func(line string) { p.log.Debug("console", "line", line) }
	}
	if s.Initdata != nil {
		// The guest reads the document for itself; here only its digest counts.
		raw, err := initdata.Decompress(s.Initdata, initdata.MaxBytes)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", cri.AnnotationInitdata, err)
		}
		if _, config.InitDataDigest, err = initdata.Digest(raw); err != nil {
			return nil, fmt.Errorf("annotation %s: %w (coffer prepare writes it)", cri.AnnotationInitdata, err)
		}
	}
	return &Plan{Sandbox: config, Driver: c.Driver, Agent: c.Agent, NetNS: s.NetNS, Debug: c.Debug}, nil
}

// setUp makes what the machine is started with. What it makes is undone by Close.
func (p *Pod) setUp(ctx context.Context, s *cri.Sandbox, plan *Plan) error {
	c := p.o.Config
	err := p.enterCgroup(ctx, s, plan)
	if err != nil {
		return err
	}
	if s.Initdata == nil {
		if p.trustee, err = unsealedTrustee(c.UnsealedTrustee); err != nil {
			return err
		}
		if p.registries, err = unsealedRegistries(c.UnsealedRegistries); err != nil {
			return err
		}
	}
	if plan.Driver == runtimeconfig.DriverQEMU && needsProcessor(c) {
		if plan.Sandbox.Processor, err = softTEE(c.SoftTEEState, p.o.Now()); err != nil {
			return fmt.Errorf("software TEE: %w", err)
		}
	}
	if c.BlobCache != "" {
		cache, err := blobcache.Open(c.BlobCache, blobcache.Options{MaxBytes: c.BlobCacheSize})
		if err != nil {
			// A pod runs without it, only slower.
			p.warn(ctx, notice.Degraded, "the node's blob cache is not used: %v", err)
		} else {
			plan.Sandbox.BlobCache = cache
			p.undo(cache.Close)
		}
	}
	if c.Scratch > 0 && plan.Driver == runtimeconfig.DriverQEMU {
		f, err := scratchDisk(c)
		if err != nil {
			return fmt.Errorf("scratch: %w", err)
		}
		p.undo(f.Close)
		plan.Sandbox.Disks = append(plan.Sandbox.Disks, vmm.Disk{Serial: scratchSerial, Image: vmm.Input{File: f}})
	}
	if s.NetNS == "" || plan.Driver == runtimeconfig.DriverProcess {
		return nil // a process is in the namespace itself
	}
	p.trace.NetNS = s.NetNS
	if err := p.note(); err != nil {
		return err
	}
	n, err := p.o.Network(ctx, s.NetNS)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	p.undo(n.Close)
	plan.Sandbox.Network = n.Machine()
	return nil
}

// launch starts the machine, whose life is the pod's and not the call's.
func (p *Pod) launch(ctx context.Context, plan *Plan) error {
	life, cancel := context.WithCancelCause(p.life)
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	m, err := p.o.Launch(life, plan)
	if err == nil && !stop() {
		// The caller gave up at the last moment.
		_ = m.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		cancel(nil)
		return err
	}
	p.undo(func() error {
		defer cancel(nil)
		return m.Close()
	})
	p.mu.Lock()
	p.machine, p.watched = m, make(chan struct{})
	p.mu.Unlock()
	go p.watch(m)
	if plan.Driver == runtimeconfig.DriverQEMU {
		// Checking and measuring the guest image took several times the memory
		// that this process needs from now on.
		debug.FreeOSMemory()
	}
	p.trace.NetNS, p.trace.PID = plan.NetNS, m.PID()
	return p.note()
}

// watch waits for the machine's end.
func (p *Pod) watch(m Machine) {
	defer close(p.watched)
	<-m.Done()
	p.mu.Lock()
	closing := p.closing
	p.mu.Unlock()
	if closing {
		p.leaveCgroup()
		p.end(nil)
		return
	}
	err := errors.New("the pod's machine has ended")
	if end := m.End(); end != nil {
		err = p.explain(end)
	}
	p.leaveCgroup()
	p.log.Error("the pod's machine has ended", "error", err)
	p.end(err)
}

// note tells of p.trace.
func (p *Pod) note() error {
	if p.o.Note == nil {
		return nil
	}
	if err := p.o.Note(p.trace); err != nil {
		return fmt.Errorf("write down what the pod consists of: %w", err)
	}
	return nil
}

// undo is called by Close, the last first.
func (p *Pod) undo(f func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release = append(p.release, f)
}
