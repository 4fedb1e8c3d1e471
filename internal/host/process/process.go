// Package process runs the guest agent as a plain process of the host in place
// of a virtual machine: for development, tests and benchmarks. It protects
// nothing, and has no evidence to show.
//
// The process has mount, process, IPC and UTS namespaces of its own, and the
// network namespace it is given. What the agent mounts and starts is in them,
// so that the kernel takes all of it away when the process ends, and the kernel
// ends it with the program that launched it, however that ends. What is left
// then is an empty control group, which [Machine.Close] or, after a crash,
// [Remove] takes away.
package process

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/agentlink"
	"github.com/coffer-project/coffer/internal/host/console"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Config is a process to launch.
type Config struct {
	// ID names it: 1 to 64 of [A-Za-z0-9._-], a letter or digit first. At any
	// time one process has it.
	ID string
	// Agent is the path of the program coffer-agent.
	Agent string
	// Crun is the path of the container runtime; empty: /usr/bin/crun.
	Crun string
	// NetNS is the path of the network namespace that the pod has; empty: a new
	// one with a loopback device only. The agent leaves its devices, addresses and
	// routes as they are, whatever it is told of the network.
	NetNS string
	// Cgroup is the control group, of version 2, that the containers have theirs in;
	// empty: one at the top. Whoever names it removes it.
	Cgroup string
	// Development must be set: whoever wants a confidential pod must not get
	// this by mistake.
	Development bool
	// Debug has the agent log debug messages.
	Debug bool
	// BlobCache, when not nil, answers the agent's requests for blobs of images.
	BlobCache sandbox.BlobCache

	Logger *slog.Logger
	// ConsoleLine, when not nil, is called with every line that the agent logs,
	// safe to print. It must not block.
	ConsoleLine func(line string)
	// BootTimeout bounds the time until the agent answers. Zero: a minute.
	BootTimeout time.Duration
}

// defaultBootTimeout is for a busy machine: an agent answers within a second.
const defaultBootTimeout = time.Minute

// ErrNoDisks says that a process has no disks to attach.
var ErrNoDisks = errors.New("the process driver has no disks; use a handler with virtual machines (driver = \"qemu\")")

// Machine is a running agent. Its methods are safe for concurrent use.
type Machine struct {
	id      string
	console *console.Tail
	child   *child
	link    *agentlink.Link
	info    sandbox.Info

	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the process has been waited for and end is set
	end    *vmm.End

	closing sync.Once
	closed  error
}

// Causes of an end, beside those of vmm.
const (
	causeFailed vmm.Cause = "it failed"
	causeEnded  vmm.Cause = "it ended"
)

// errClosed is the cause of a context that Close has ended.
var errClosed = errors.New("closed")

// Launch starts the agent and shakes hands with it. It runs until it ends by
// itself, ctx ends, or Close is called, which must be in any case. When Launch
// fails nothing is left, and the error has what the agent logged last.
func Launch(ctx context.Context, c Config) (*Machine, error) {
	if err := c.prepare(); err != nil {
		return nil, fmt.Errorf("process %s: %w", c.ID, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	m := &Machine{id: c.ID, console: console.NewTail(0, c.ConsoleLine), cancel: cancel, done: make(chan struct{})}
	m.info = sandbox.Info{Kind: sandbox.None, KindReason: "the agent is a plain process of the host"}
	// An earlier one of this name, whose host was killed.
	if err := Remove(c.ID); err != nil {
		cancel(nil)
		return nil, fmt.Errorf("process %s: %w", c.ID, err)
	}
	started := time.Now()
	conn, err := m.spawn(ctx, c)
	if err != nil {
		cancel(nil)
		return nil, errors.Join(fmt.Errorf("process %s: %w", c.ID, err), Remove(c.ID))
	}
	if err := m.greet(ctx, c, conn); err != nil {
		return nil, errors.Join(fmt.Errorf("process %s: %w", c.ID, err), m.Close())
	}
	m.info.Boot = time.Since(started)
	if c.BlobCache != nil {
		m.link.ServeBlobs(ctx, c.BlobCache)
	}
	return m, nil
}

func (c *Config) prepare() error {
	switch {
	case !c.Development:
		return errors.New("the agent as a process protects nothing: it is for development only, and the configuration does not say development = true")
	case !validID(c.ID):
		return fmt.Errorf("id: expected 1 to 64 characters of [A-Za-z0-9._-], a letter or digit first, got %q", c.ID)
	case c.Agent == "":
		return errors.New("agent: expected the path of coffer-agent, got none")
	case c.Logger == nil:
		return errors.New("logger: expected one, got nil")
	case os.Geteuid() != 0:
		return errors.New("it needs root, to make namespaces and mounts")
	}
	if c.Crun == "" {
		c.Crun = "/usr/bin/crun"
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = defaultBootTimeout
	}
	return nil
}

func validID(id string) bool {
	for i, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || r != '.' && r != '_' && r != '-') {
			return false
		}
	}
	return id != "" && len(id) <= 64
}

// spawn starts the child and whoever waits for it; the connection leads to it.
func (m *Machine) spawn(ctx context.Context, c Config) (net.Conn, error) {
	child, conn, err := start(ctx, c, m.console)
	if err != nil {
		return nil, err
	}
	m.child = child
	go func() {
		defer close(m.done)
		<-child.done
		m.end = m.reason(ctx)
		c.Logger.DebugContext(ctx, "the agent's process has ended", "id", m.id, "cause", string(m.end.Cause), "detail", m.end.Detail)
	}()
	return conn, nil
}

// reason says how the process ended.
func (m *Machine) reason(ctx context.Context) *vmm.End {
	end := &vmm.End{Name: m.id, What: "agent process", Console: m.console.Lines()}
	switch cause := context.Cause(ctx); {
	case cause != nil:
		end.Cause = vmm.Stopped
		if !errors.Is(cause, errClosed) {
			end.Detail = cause.Error()
		}
	case m.child.err != nil:
		end.Cause, end.Detail = causeFailed, m.child.err.Error()
	default:
		end.Cause = causeEnded
	}
	return end
}

func (m *Machine) greet(ctx context.Context, c Config, conn net.Conn) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.BootTimeout, fmt.Errorf("the agent did not answer within %s", c.BootTimeout))
	defer cancel()
	link, err := agentlink.Connect(ctx, conn, running{m}, c.Logger, nil)
	if err != nil {
		return err
	}
	m.link, m.info.Hello = link, link.Hello()
	return nil
}

// running is the machine as a link sees it.
type running struct{ m *Machine }

func (r running) Done() <-chan struct{} { return r.m.done }

func (r running) Ended() error {
	if end := r.m.End(); end != nil {
		return end
	}
	return nil
}

// ID is the process's name.
func (m *Machine) ID() string { return m.id }

// Info describes the launch: no TEE, and what the agent says of itself.
func (m *Machine) Info() sandbox.Info { return m.info }

// Agent is the control connection's client. A call that fails because the
// process has ended returns its *vmm.End.
func (m *Machine) Agent() agentapi.AgentService { return m.link.Agent() }

// Open opens a stream to the agent.
func (m *Machine) Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error) {
	return m.link.Open(ctx, header)
}

// Events yields what the agent reports; see [agentlink.Link.Events].
func (m *Machine) Events(ctx context.Context) iter.Seq2[*agentapi.Event, error] {
	return m.link.Events(ctx)
}

// PID is the agent's process id, as the host sees it.
func (m *Machine) PID() int { return m.child.pid }

// Done is closed when the process has ended; End then says how.
func (m *Machine) Done() <-chan struct{} { return m.done }

// End says how the process ended; nil while it runs.
func (m *Machine) End() *vmm.End {
	select {
	case <-m.done:
		return m.end
	default:
		return nil
	}
}

// Console returns the last lines that the agent logged, safe to print.
func (m *Machine) Console() []string { return m.console.Lines() }

// AttachDisk fails with [ErrNoDisks].
func (m *Machine) AttachDisk(context.Context, vmm.Disk) error { return ErrNoDisks }

// DetachDisk fails with [ErrNoDisks].
func (m *Machine) DetachDisk(context.Context, string) error { return ErrNoDisks }

// Shutdown asks the agent to end and waits for that; the caller bounds it with
// ctx. Close is still to be called.
func (m *Machine) Shutdown(ctx context.Context) error {
	if err := m.link.Shutdown(ctx); err != nil {
		return fmt.Errorf("process %s: %w", m.id, err)
	}
	return nil
}

// Close ends the process and all that it has started, if it still runs, and
// waits until nothing of it is left. It may be called again.
func (m *Machine) Close() error {
	m.closing.Do(func() {
		m.cancel(errClosed)
		<-m.done
		if m.link != nil {
			m.link.Close()
		}
		if err := Remove(m.id); err != nil {
			m.closed = fmt.Errorf("process %s: %w", m.id, err)
		}
	})
	return m.closed
}
