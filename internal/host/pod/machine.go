package pod

import (
	"context"
	"iter"
	"net"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/internal/host/volumes"
)

// Machine is what a pod runs in: a virtual machine (*sandbox.Sandbox) or, in
// development, a process.
type Machine interface {
	ID() string
	// Agent's calls fail with the machine's *vmm.End once it has ended.
	Agent() agentapi.AgentService
	// Open opens a stream to the agent.
	Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error)
	// Events yields what the agent reports from now on.
	Events(ctx context.Context) iter.Seq2[*agentapi.Event, error]
	// PID is that of the emulator or of the agent.
	PID() int
	// Done is closed when the machine has ended, and End then says how.
	Done() <-chan struct{}
	End() *vmm.End
	// Console returns the last lines, safe to print.
	Console() []string
	Info() sandbox.Info
	// Network is what the guest is to be told of its network; nil: there is none.
	Network() *agentapi.Network
	AttachDisk(ctx context.Context, d vmm.Disk) error
	DetachDisk(ctx context.Context, serial string) error
	// Shutdown asks the agent to end the machine, and waits for it.
	Shutdown(ctx context.Context) error
	// Close ends it at once and waits until nothing of it is left.
	Close() error
}

// Plan is what is launched.
type Plan struct {
	// Sandbox is the machine. Its network is that of the pod's namespace, or nil
	// for the user-mode network.
	Sandbox sandbox.Config
	// Driver and Agent are the configuration's.
	Driver, Agent string
	// NetNS is the pod's network namespace; empty: none.
	NetNS string
	// Cgroup is the control group of version 2 for the containers of a process;
	// empty: one of its own.
	Cgroup string
	Debug  bool
}

// Network is a machine's connection with a network namespace.
type Network interface {
	// Machine describes the network's cards and how the guest sets them up.
	Machine() *sandbox.Network
	// Close takes the connection apart. It may be called again.
	Close() error
}

// Volumes manages the volumes of a pod: *volumes.Manager.
type Volumes interface {
	// Prepare makes a container's volumes ready in the guest.
	Prepare(ctx context.Context, h volumes.Host, c volumes.Container) (*volumes.Proposal, error)
	// Exited writes the termination message.
	Exited(ctx context.Context, h volumes.Host, id string) error
	// Lost writes one for a container whose machine is gone.
	Lost(id, reason string) error
	// Release lets go of what only the container used.
	Release(id string)
	Close() error
}

// Cgroup is the pod's control group while this program is in it: *podcgroup.Group.
type Cgroup interface {
	// Containers is the group of version 2 for containers that are made beside the
	// machine; empty: there is none.
	Containers() string
	// Limit is how many bytes of memory the pod may have; 0: no limit is known.
	Limit() int64
	// OutOfMemory reports whether the kernel has killed a process in it for want of
	// memory, and whether the pod's own limit was the reason.
	OutOfMemory() (killed, own bool)
	// Leave moves this program back to where it was; Remove leaves, too, and removes
	// the group. Both may be called again, and by several at once.
	Leave() error
	Remove() error
}

// Trace is what would outlive this program if it were killed.
type Trace struct {
	// Cgroups are control groups that were made for the pod, its own first.
	Cgroups []string
	// NetNS is a network namespace with taps in it.
	NetNS string
	// PID is the machine's process; 0: none yet.
	PID int
}
