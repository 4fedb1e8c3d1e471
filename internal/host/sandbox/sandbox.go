package sandbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/agentlink"
	"github.com/coffer-project/coffer/internal/host/console"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/tee/measure"
)

// Sandbox is a launched machine with its agent. Its methods are safe for
// concurrent use.
type Sandbox struct {
	id      string
	log     *slog.Logger
	mac     net.HardwareAddr
	network *agentapi.Network // nil without a network

	info    Info
	started time.Time

	vm   *vmm.VM
	link *agentlink.Link

	background sync.WaitGroup
	closing    atomic.Bool
}

// Info is what is known of a launch.
type Info struct {
	// Kind is never Auto. KindReason says why it was chosen.
	Kind       Kind
	KindReason string
	// Accelerator and why.
	Accelerator accel.Verdict
	// Expected are the inputs of a launch as the image's manifest has it,
	// Launched those that were started; see Explain.
	Expected, Launched measure.Inputs
	// Measurement is the launch digest, of a SoftTDX guest MRTD; nil where only
	// hardware knows it.
	Measurement []byte
	// Hello is the agent's account of itself. The guest may be anything.
	Hello *agentapi.HelloResponse
	// Boot is the time from the machine's start to the agent's answer.
	Boot time.Duration
}

// greet waits for the agent and asks who it is.
func (s *Sandbox) greet(ctx context.Context, c Config) error {
	limit := fmt.Errorf("the guest agent did not answer within %s", c.BootTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, c.BootTimeout, limit)
	defer cancel()
	// The machine's end ends the wait.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.background.Go(func() {
		select {
		case <-s.vm.Done():
			stop(s.vm.End())
		case <-ctx.Done():
		}
	})
	conn, err := s.connect(ctx, c)
	if err != nil {
		return s.bootError(err)
	}
	s.link, err = agentlink.Connect(ctx, conn, running{s.vm}, s.log, func() { c.Progress(StageAgent) })
	if err != nil {
		return s.bootError(err)
	}
	hello := s.link.Hello()
	s.info.Hello, s.info.Boot = hello, time.Since(s.started)
	s.log.InfoContext(ctx, "the guest agent answers", "after", s.info.Boot, "build", hello.GetBuild(), "tee", hello.GetTee(),
		"simulated", hello.GetSimulated(), "sealed", hello.GetSealed())
	if c.BlobCache != nil {
		s.link.ServeBlobs(context.WithoutCancel(ctx), c.BlobCache)
	}
	c.Progress(StageReady)
	return nil
}

// bootError puts what the machine said behind an error. The connection may
// break shortly before the machine's end is known.
func (s *Sandbox) bootError(err error) error {
	if end, ok := errors.AsType[*vmm.End](err); ok {
		return end
	}
	lines := s.vm.Console()
	if len(lines) == 0 {
		return fmt.Errorf("%w; its console is empty", err)
	}
	const shown = 12
	return fmt.Errorf("%w; last lines of its console:\n    %s", err, strings.Join(console.Excerpt(lines, shown), "\n    "))
}

// running is the machine as a link sees it.
type running struct{ vm *vmm.VM }

func (r running) Done() <-chan struct{} { return r.vm.Done() }

func (r running) Ended() error {
	if end := r.vm.End(); end != nil {
		return end
	}
	return nil
}

// ID is the machine's name.
func (s *Sandbox) ID() string { return s.id }

// Info describes the launch.
func (s *Sandbox) Info() Info { return s.info }

// Agent is the control connection's client. A call that fails because the
// machine has ended returns its *vmm.End.
func (s *Sandbox) Agent() agentapi.AgentService { return s.link.Agent() }

// Network is what CreateSandbox is to be told: Config.Network's Guest, or what
// fits the user-mode network; nil without a network. It is the caller's to
// change.
func (s *Sandbox) Network() *agentapi.Network {
	return proto.CloneOf(s.network)
}

// AttachDisk gives the running machine another disk, see vmm.VM.AttachDisk. The
// guest agent is then told of it by its serial number (AttachVolume).
func (s *Sandbox) AttachDisk(ctx context.Context, d vmm.Disk) error {
	if err := s.vm.AttachDisk(ctx, d); err != nil {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	return nil
}

// DetachDisk takes out a disk that AttachDisk gave. It waits until the guest
// has let go, which the caller bounds with ctx, see vmm.VM.DetachDisk.
func (s *Sandbox) DetachDisk(ctx context.Context, serial string) error {
	if err := s.vm.DetachDisk(ctx, serial); err != nil {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	return nil
}

// Open opens a stream to the agent. A stream that the policy forbids opens
// like any other and stays empty.
func (s *Sandbox) Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error) {
	return s.link.Open(ctx, header)
}

// Events yields what the agent reports, see [agentlink.Link.Events].
func (s *Sandbox) Events(ctx context.Context) iter.Seq2[*agentapi.Event, error] {
	return s.link.Events(ctx)
}

// Done is closed when the machine has ended; End then says how.
func (s *Sandbox) Done() <-chan struct{} { return s.vm.Done() }

// End says how the machine ended; nil while it runs.
func (s *Sandbox) End() *vmm.End { return s.vm.End() }

// Console returns the console's last lines, safe to print.
func (s *Sandbox) Console() []string { return s.vm.Console() }

// PID is the emulator's process id.
func (s *Sandbox) PID() int { return s.vm.PID() }

// Shutdown asks the agent to end the machine and waits for that; the caller
// bounds it with ctx. Close is still to be called.
func (s *Sandbox) Shutdown(ctx context.Context) error {
	if err := s.link.Shutdown(ctx); err != nil {
		return fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	return nil
}

// Close ends the machine at once if it still runs, and waits until its
// process, sockets and everything started for it are gone. It may be called
// again.
func (s *Sandbox) Close() error {
	s.closing.Store(true)
	if s.vm == nil {
		return nil
	}
	err := s.vm.Close()
	if s.link != nil {
		s.link.Close()
	}
	s.background.Wait()
	return err
}
