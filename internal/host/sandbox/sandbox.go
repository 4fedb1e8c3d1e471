package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/console"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/tee/measure"
)

// endTime is how long a broken connection waits for the machine's end to
// explain it.
const endTime = 3 * time.Second

// build is what the host calls itself in Hello.
const build = "coffer"

// Sandbox is a launched machine with its agent. Its methods are safe for
// concurrent use.
type Sandbox struct {
	id      string
	log     *slog.Logger
	mac     net.HardwareAddr
	network *agentapi.Network // nil without a network

	info    Info
	started time.Time

	vm      *vmm.VM
	session *channel.Session
	client  *ttrpc.Client
	agent   agentapi.AgentService

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
	if s.session, err = channel.Dial(ctx, conn); err != nil {
		return s.bootError(err)
	}
	c.Progress(StageAgent)
	control, err := s.session.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_CONTROL})
	if err != nil {
		return s.bootError(err)
	}
	s.client = ttrpc.NewClient(control, ttrpc.WithUnaryClientInterceptor(s.intercept))
	s.agent = agentapi.NewAgentClient(s.client)
	hello, err := s.agent.Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{channel.MaxVersion}, Build: build})
	if err != nil {
		return s.bootError(err)
	}
	if v := hello.GetVersion(); v < channel.MinVersion || v > channel.MaxVersion {
		return fmt.Errorf("guest agent: protocol version: expected %d to %d, got %d (build the guest image with this program)",
			channel.MinVersion, channel.MaxVersion, v)
	}
	s.info.Hello, s.info.Boot = hello, time.Since(s.started)
	s.log.InfoContext(ctx, "the guest agent answers", "after", s.info.Boot, "build", hello.GetBuild(), "tee", hello.GetTee(),
		"simulated", hello.GetSimulated(), "sealed", hello.GetSealed())
	if c.BlobCache != nil {
		s.serveBlobs(context.WithoutCancel(ctx), c.BlobCache)
	}
	c.Progress(StageReady)
	return nil
}

// bootError puts what the machine said behind an error. The connection may
// break shortly before the machine's end is known.
func (s *Sandbox) bootError(err error) error {
	if end := s.ended(err); end != nil {
		return end
	}
	lines := s.vm.Console()
	if len(lines) == 0 {
		return fmt.Errorf("%w; its console is empty", err)
	}
	const shown = 12
	return fmt.Errorf("%w; last lines of its console:\n    %s", err, strings.Join(console.Excerpt(lines, shown), "\n    "))
}

// ended returns how the machine ended if that explains err, else nil.
func (s *Sandbox) ended(err error) error {
	if end, ok := errors.AsType[*vmm.End](err); ok {
		return end
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if end := s.vm.End(); end != nil {
			return end
		}
		return nil
	}
	timer := time.NewTimer(endTime)
	defer timer.Stop()
	if s.session != nil {
		select {
		case <-s.session.Done():
		default:
			return nil // a refusal, not a broken connection
		}
	}
	select {
	case <-s.vm.Done():
		return s.vm.End()
	case <-timer.C:
		return nil
	}
}

// intercept explains a call that failed because the machine has ended.
func (s *Sandbox) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, req, resp)
	if err == nil || !broken(err) {
		return err
	}
	if end := s.ended(err); end != nil {
		return fmt.Errorf("%s: %w", info.FullMethod, end)
	}
	return err
}

// broken tells a lost connection from an answer.
func broken(err error) bool {
	return errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// ID is the machine's name.
func (s *Sandbox) ID() string { return s.id }

// Info describes the launch.
func (s *Sandbox) Info() Info { return s.info }

// Agent is the control connection's client. A call that fails because the
// machine has ended returns its *vmm.End.
func (s *Sandbox) Agent() agentapi.AgentService { return s.agent }

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
	conn, err := s.session.Open(ctx, header)
	if err != nil {
		if end := s.vm.End(); end != nil {
			return nil, end
		}
		return nil, err
	}
	return conn, nil
}

// Events yields what the agent reports from now on. It ends with the stream
// (machine ended, ctx ended, Close), after an error if there was one. Events
// come from the guest and prove nothing.
func (s *Sandbox) Events(ctx context.Context) iter.Seq2[*agentapi.Event, error] {
	return func(yield func(*agentapi.Event, error) bool) {
		conn, err := s.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_EVENTS})
		if err != nil {
			yield(nil, err)
			return
		}
		defer conn.Close() //nolint:errcheck // nothing was written
		stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		for {
			event := new(agentapi.Event)
			if err := channel.ReadMessage(conn, event); err != nil {
				if !errors.Is(err, io.EOF) && ctx.Err() == nil && !s.closing.Load() {
					yield(nil, fmt.Errorf("agent events: %w", err))
				}
				return
			}
			if !yield(event, nil) {
				return
			}
		}
	}
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
	if s.vm.End() != nil {
		return nil //nolint:nilerr // how it ended is not this call's matter
	}
	// The answer may be lost with the machine; its end is what counts.
	_, err := s.agent.Shutdown(ctx, &agentapi.ShutdownRequest{})
	if err != nil && !broken(err) {
		if _, ok := errors.AsType[*vmm.End](err); !ok {
			return fmt.Errorf("sandbox %s: shutdown: %w", s.id, err)
		}
	}
	// The guest waits a moment for its host to have the answer, or to leave.
	_ = s.session.Close()
	select {
	case <-s.vm.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sandbox %s: shutdown: the machine still runs: %w", s.id, context.Cause(ctx))
	}
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
	if s.client != nil {
		_ = s.client.Close()
	}
	if s.session != nil {
		_ = s.session.Close()
	}
	s.background.Wait()
	return err
}
