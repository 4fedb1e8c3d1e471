package task

import (
	"context"
	"iter"
	"net"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Kind is what a Create asks for.
type Kind int

// The kinds of a Create.
const (
	// Sandbox is the pause container of a pod: the machine itself.
	Sandbox Kind = iota + 1
	// Container is a container of a pod whose machine runs.
	Container
	// Single is a container and its machine in one.
	Single
)

// Request is what containerd says in a Create.
type Request struct {
	ID, Bundle string
	// Terminal and Stdin say what the container's process has.
	Terminal, Stdin bool
	Rootfs          []*types.Mount
	// Options are those of the runtime in containerd's configuration; may be nil.
	Options *anypb.Any
}

// Bundle is what a Create asks for, as read from its directory.
type Bundle struct {
	Request
	Kind Kind
	// User of the container's process; nil if it is not known. An exec as
	// another user is refused.
	User *specs.User
	// Parsed is for the Pod; this package does not look at it.
	Parsed any
}

// Machine is what a task needs of the machine that its pod runs in.
type Machine interface {
	Agent() agentapi.AgentService
	// Open opens a stream of the guest.
	Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error)
	// Events yields what the guest tells, see agentapi.Event.
	Events(ctx context.Context) iter.Seq2[*agentapi.Event, error]
	// PID is the process on the host that all tasks of the pod show.
	PID() int
}

// Pod is a pod on its way from Boot to Close.
type Pod interface {
	// Boot starts the machine for a bundle of kind Sandbox or Single. It is
	// called once, and ends when ctx ends.
	Boot(ctx context.Context, b *Bundle) error
	// Create makes a container ready to start. It may take as long as a pull,
	// and ends when ctx ends; it leaves nothing behind if it fails.
	Create(ctx context.Context, b *Bundle) error
	// Exited is told that a container's process has ended, before anybody else
	// is: the time for its last words.
	Exited(ctx context.Context, id string) error
	// Delete removes a container, or an exec of it, that has ended or was not
	// started.
	Delete(ctx context.Context, id, exec string) error
	// Machine is nil before Boot.
	Machine() Machine
	// Done is closed when the machine has ended; Err then says how. It must be
	// closed by Close at the latest.
	Done() <-chan struct{}
	Err() error
	// Close ends the machine, gracefully if ctx gives it the time, and removes
	// everything of the pod from the host. It may be called at any time after
	// Boot was, and again.
	Close(ctx context.Context) error
}
