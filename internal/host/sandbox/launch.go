// Package sandbox launches a pod's virtual machine and talks to the agent in
// it.
//
// [Launch] reads the guest image, chooses TEE and accelerator, measures what
// it starts where the TEE is the software one, boots, and shakes hands with
// the agent. All of it belongs to the host, which nobody trusts: what a
// sandbox is, its evidence tells, not this package.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// Launch starts a sandbox, which runs until its guest ends, ctx ends, or
// Close is called; Close must be called in any case. When Launch fails
// nothing is left running, and the error has the console's last lines.
func Launch(ctx context.Context, config Config) (*Sandbox, error) {
	c, err := config.prepare()
	if err != nil {
		return nil, err
	}
	s := &Sandbox{id: c.ID, log: c.Logger.With("sandbox", c.ID), mac: MAC(c.ID)}
	if err := s.launch(ctx, c); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("sandbox %s: %w", c.ID, err)
	}
	return s, nil
}

func (s *Sandbox) launch(ctx context.Context, c Config) error {
	var err error
	if s.info.Kind, s.info.KindReason, err = Choose(c.TEE, *c.Facts); err != nil {
		return err
	}
	if s.info.Kind.Software() && c.Processor == nil {
		return fmt.Errorf("tee %s: no software TEE is configured", s.info.Kind)
	}
	s.log.InfoContext(ctx, "TEE chosen", "tee", string(s.info.Kind), "reason", s.info.KindReason)

	c.Progress(StageImage)
	image, err := LoadImage(c.Image, s.info.Kind, c.Firmware)
	if err != nil {
		return err
	}
	defer image.Close() //nolint:errcheck // only read
	expected := image.Launch(s.info.Kind, c.VCPUs, c.Development)
	launched := expected
	if c.Override.AppendCmdline != "" {
		launched.Cmdline += " " + c.Override.AppendCmdline
	}
	if c.Override.Initrd != nil {
		launched.Initrd = c.Override.Initrd
	}
	s.info.Expected, s.info.Launched = expected.Inputs(), launched.Inputs()

	qemu, err := vmm.FindQEMU(ctx, c.QEMU)
	if err != nil {
		return err
	}
	c.Progress(StageAccel)
	if s.info.Accelerator, err = s.accelerator(ctx, c, qemu, image); err != nil {
		return err
	}
	m := s.machine(c, image, launched)
	var guest softGuest
	if s.info.Kind.Software() {
		c.Progress(StageMeasure)
		if guest, err = s.measure(c, launched); err != nil {
			return fmt.Errorf("software TEE: %w", err)
		}
	}
	c.Progress(StageBoot)
	if err := s.boot(ctx, c, qemu, m); err != nil {
		return err
	}
	if guest != nil {
		if err := s.serveSoftTEE(ctx, guest, c.TEEPort); err != nil {
			return err
		}
	}
	// A boot that fails may have failed of that.
	return errors.Join(s.greet(ctx, c), image.unchanged())
}

// softGuest is a guest of the software TEE.
type softGuest interface {
	Serve(ctx context.Context, port io.ReadWriter) error
}

// measure has the software TEE measure what is started.
func (s *Sandbox) measure(c Config, launched measure.Launch) (softGuest, error) {
	if s.info.Kind == SoftTDX {
		guest, err := c.Processor.LaunchTDX(TDXLaunch(launched, c.MemoryMiB), softtee.TDXPolicy{MRConfigID: [48]byte(hostData(c, 48))})
		if err != nil {
			return nil, err
		}
		measured := guest.MRTD()
		s.info.Measurement = measured[:]
		return guest, nil
	}
	guest, err := c.Processor.Launch(launched, softtee.Policy{HostData: [32]byte(hostData(c, 32))})
	if err != nil {
		return nil, err
	}
	measured := guest.Measurement()
	s.info.Measurement = measured[:]
	return guest, nil
}

// accelerator decides what executes the guest.
func (s *Sandbox) accelerator(ctx context.Context, c Config, qemu vmm.QEMU, image *Image) (accel.Verdict, error) {
	if s.info.Kind.Hardware() {
		if c.Accelerator == accel.TCG {
			return accel.Verdict{}, fmt.Errorf("accelerator: expected kvm for tee %s, got tcg", s.info.Kind)
		}
		return accel.Verdict{Accelerator: vmm.KVM, Reason: "the TEE needs it"}, nil
	}
	return accel.Decide(ctx, c.Accelerator, accel.Options{
		QEMU: qemu, Kernel: filepath.Join(image.Dir, image.Manifest.Kernel.Name), KernelDigest: image.Manifest.Kernel.SHA256,
		Firmware: image.FirmwarePath, Logger: s.log, CacheDir: c.AccelCache,
	})
}

// hostData is the fitted initdata digest, or what the host puts in its place.
func hostData(c Config, size int) []byte {
	if c.Override.HostData != nil {
		return tee.Fit(c.Override.HostData, size)
	}
	return tee.Fit(c.InitDataDigest, size)
}

// machine describes the machine, with the image's files.
func (s *Sandbox) machine(c Config, image *Image, launched measure.Launch) *vmm.Machine {
	m := &vmm.Machine{
		Name: c.ID, Accelerator: s.info.Accelerator.Accelerator, CPU: accel.CPU(s.info.Accelerator.Accelerator),
		VCPUs: c.VCPUs, MemoryMiB: c.MemoryMiB,
		Firmware: image.firmware.input(), Kernel: image.kernel.input(), Initrd: image.initrd.input(),
		Cmdline: launched.Cmdline,
		Disks:   c.Disks, DiskSlots: c.DiskSlots,
	}
	if c.Transport == Vsock {
		m.VsockCID = cid(c.ID)
	} else {
		m.Ports = []vmm.Port{{Name: channel.SerialPort}}
	}
	switch {
	case c.Network != nil:
		m.Cards = c.Network.Cards
		s.network = c.Network.Guest
	case !c.NoNetwork:
		m.Network = &vmm.UserNetwork{MAC: s.mac}
		s.network = network(s.mac)
	}
	switch s.info.Kind {
	case Soft, SoftTDX:
		m.Ports = append(m.Ports, vmm.Port{Name: softport.PortName})
	case SNP:
		m.CPU = MeasuredCPU
		m.Confidential = &vmm.SNP{
			CBitPos: c.Facts.CBitPos, ReducedPhysBits: c.Facts.ReducedPhysBits,
			HostData: [32]byte(hostData(c, 32)),
		}
	case TDX:
		m.Confidential = &vmm.TDX{MRConfigID: [48]byte(hostData(c, 48))}
	}
	return m
}

// boot starts the machine. An initrd that is not the image's is not in a file,
// and reaches the emulator in memory.
func (s *Sandbox) boot(ctx context.Context, c Config, qemu vmm.QEMU, m *vmm.Machine) error {
	if c.Override.Initrd != nil {
		f, err := vmm.Sealed("initrd", c.Override.Initrd)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // anonymous memory
		m.Initrd = vmm.Input{File: f}
	}
	vm, err := vmm.Start(ctx, m, vmm.Options{QEMU: qemu, Logger: s.log, ConsoleLine: c.ConsoleLine})
	if err != nil {
		return err
	}
	s.vm, s.started = vm, time.Now()
	return nil
}

// serveSoftTEE answers the guest's requests for reports until the machine
// ends.
func (s *Sandbox) serveSoftTEE(ctx context.Context, guest softGuest, wrap func(io.ReadWriter) io.ReadWriter) error {
	conn, err := s.vm.Port(softport.PortName)
	if err != nil {
		return err
	}
	var port io.ReadWriter = conn
	if wrap != nil {
		port = wrap(conn)
	}
	s.background.Go(func() {
		if err := guest.Serve(ctx, port); err != nil && ctx.Err() == nil && s.vm.End() == nil && !s.closing.Load() {
			s.log.WarnContext(ctx, "the software TEE no longer answers this guest", "error", err)
		}
	})
	return nil
}
