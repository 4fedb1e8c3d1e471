package task

import (
	"context"
	"iter"
	"net"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
)

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
	// Boot starts the machine. It is called once, and ends when ctx ends.
	Boot(ctx context.Context, s *cri.Sandbox) error
	// Create makes a container ready to start. It may take as long as a pull,
	// and ends when ctx ends; it leaves nothing behind if it fails.
	Create(ctx context.Context, c *cri.Container) error
	// Exited is told that a container's process has ended, also with the
	// machine, before anybody else is: the time for its last words.
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

// Typed is a Pod whose Machine has a type of its own, such as *pod.Pod.
type Typed[M Machine] interface {
	Boot(ctx context.Context, s *cri.Sandbox) error
	Create(ctx context.Context, c *cri.Container) error
	Exited(ctx context.Context, id string) error
	Delete(ctx context.Context, id, exec string) error
	Machine() M
	Done() <-chan struct{}
	Err() error
	Close(ctx context.Context) error
}

// Of makes a Pod of one whose Machine has a type of its own. Two calls with the
// same pod give equal values.
func Of[M Machine](p Typed[M]) Pod { return typed[M]{p} }

type typed[M Machine] struct{ Typed[M] }

// Machine implements Pod. M is an interface, and its nil is none.
func (t typed[M]) Machine() Machine { return t.Typed.Machine() }
