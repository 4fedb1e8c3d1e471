// Package pod runs a pod: the machine, its network, disks and volumes, from the
// request of a container runtime to the last file that is left of it.
//
// A [Pod] is made by [New], which starts nothing. [Pod.Boot] starts the machine
// and tells the guest which pod it is; [Pod.Create] and [Pod.Delete] make and
// remove containers in it; everything else goes to the guest directly, through
// [Pod.Machine]. [Pod.Close] ends it, also after a failure at any stage. When the
// machine dies, [Pod.Done] is closed and [Pod.Err] says why, with what it said
// last.
//
// No lock is held while something is waited for, and none is shared by pods:
// they boot side by side.
package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/portforward"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/volumes"
)

// Options of a Pod.
type Options struct {
	// ID is the sandbox's: 1 to 64 characters of [A-Za-z0-9._-].
	ID string
	// Namespace is containerd's, for logs.
	Namespace string
	Config    *runtimeconfig.Config
	Logger    *slog.Logger
	// Warn, when not nil, is told in plain words what a person should know of the
	// pod: that it is unsealed, what of it has no effect. It is logged as well, and
	// is first called by Boot. It must not wait for anything of the pod.
	Warn func(reason notice.Reason, message string)

	// Launch starts a machine; nil: the configuration's driver does.
	Launch func(ctx context.Context, plan *Plan) (Machine, error)
	// Network connects the machine with a network namespace; nil: package network
	// does.
	Network func(ctx context.Context, netns string) (Network, error)
	// Forward takes over the loopback of a network namespace; nil: package
	// portforward does.
	Forward func(netns string, o portforward.Options) (io.Closer, error)
	// Volumes makes the manager of the pod's volumes; nil: package volumes does.
	Volumes func(volumes.Options) Volumes
	// Cgroup moves this program into the pod's control group, in which the machine is
	// then born. It tells note what would be left before it makes anything, and warn
	// what of the pod the node does not limit. nil: this program stays where it is.
	Cgroup func(path string, note func([]string) error, warn func(string)) (Cgroup, error)
	// OOMScore sets how readily the kernel kills a child of this program that runs
	// a machine; nil: its oom_score_adj is set.
	OOMScore func(pid, score int) error
	// Note, when not nil, is told of what would be left behind if this program were
	// killed, before it is made or at once after. An error of it is the boot's.
	Note func(Trace) error
	// Now may be nil.
	Now func() time.Time
}

// Pod is a pod. Its methods are safe for concurrent use.
type Pod struct {
	o   Options
	log *slog.Logger

	// life ends with Close: the machine's context.
	life    context.Context //nolint:containedctx // of the machine, not of a call
	endLife context.CancelCauseFunc

	mu         sync.Mutex
	booting    chan struct{} // closed when Boot is done; nil before
	closing    bool
	sandbox    *cri.Sandbox
	machine    Machine
	cgroup     Cgroup // nil: none
	volumes    Volumes
	trustee    *agentapi.UnsealedTrustee
	registries *agentapi.UnsealedRegistries
	release    []func() error // undoes what Boot did, last first
	err        error
	created    time.Time
	hosts      bool // the guest has the entries of hostAliases

	trace  Trace // of Boot, which adds to it
	scores scores

	// turn holds one token: the right to create the sandbox in the guest.
	turn    chan struct{}
	exists  bool // under turn: the guest has the sandbox
	shares  bool // under turn: it has one PID namespace
	watched chan struct{}

	done      chan struct{}
	ended     sync.Once
	closeOnce sync.Once
	closed    chan struct{}
	closeErr  error
}

// New makes a pod of which nothing exists yet.
func New(o Options) *Pod {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o = o.withDefaults()
	p := &Pod{
		o: o, log: o.Logger.With("sandbox", o.ID, "namespace", o.Namespace), turn: make(chan struct{}, 1),
		done: make(chan struct{}), closed: make(chan struct{}),
	}
	p.turn <- struct{}{}
	p.life, p.endLife = context.WithCancelCause(context.Background())
	return p
}

// ID is the sandbox's.
func (p *Pod) ID() string { return p.o.ID }

// Config is the handler's configuration.
func (p *Pod) Config() *runtimeconfig.Config { return p.o.Config }

// Machine is what the pod runs in; nil before Boot has started it.
func (p *Pod) Machine() Machine {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.machine
}

// Sandbox is what Boot was given; nil before. It is not to be changed.
func (p *Pod) Sandbox() *cri.Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sandbox
}

// Created is when Boot had done its work; zero before.
func (p *Pod) Created() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.created
}

// Done is closed when the machine has ended, when Boot has failed, or when the
// pod is closed.
func (p *Pod) Done() <-chan struct{} { return p.done }

// Err says why the pod ended; nil while it has not, and when Close ended it.
func (p *Pod) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// end closes Done; the first reason counts.
func (p *Pod) end(err error) {
	p.ended.Do(func() {
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.done)
	})
}

var errClosed = errors.New("the pod is being removed")

// running returns the machine, or why there is none.
func (p *Pod) running() (Machine, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closing:
		return nil, errClosed
	case p.err != nil:
		return nil, p.err
	case p.machine == nil || p.created.IsZero():
		return nil, errors.New("the pod has not been started")
	}
	return p.machine, nil
}

// warn tells a person.
func (p *Pod) warn(ctx context.Context, reason notice.Reason, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	p.log.WarnContext(ctx, "of the pod", "reason", reason, "message", message)
	if p.o.Warn != nil {
		p.o.Warn(reason, message)
	}
}

// Delete removes a container or, with exec, one of its processes from the guest.
// With the container its volumes are released. What is not there counts as
// removed, and so does everything of a machine that has ended.
func (p *Pod) Delete(ctx context.Context, id, exec string) error {
	m := p.Machine()
	var err error
	if alive(m) {
		_, err = m.Agent().Delete(ctx, &agentapi.DeleteRequest{ContainerId: id, ExecId: exec})
		if gone(err) || !alive(m) {
			err = nil
		}
	}
	if exec == "" && err == nil {
		p.releaseVolumes(id)
		p.unscoreContainer(ctx, id)
	}
	return p.explain(err)
}

// alive tells that a machine can be asked.
func alive(m Machine) bool { return m != nil && m.End() == nil }

func (p *Pod) releaseVolumes(id string) {
	p.mu.Lock()
	v := p.volumes
	p.mu.Unlock()
	if v != nil {
		v.Release(id)
	}
}

// Exited is to be called when a container has ended and before anybody is told:
// it writes the container's termination message where the kubelet looks for it,
// or, of one that ended with its machine, why that was.
func (p *Pod) Exited(ctx context.Context, id string) error {
	p.mu.Lock()
	v, m := p.volumes, p.machine
	p.mu.Unlock()
	if v == nil {
		return nil
	}
	if !alive(m) {
		if err := p.Err(); err != nil {
			return v.Lost(id, "the pod's machine has ended: "+err.Error()+"\n")
		}
		return nil
	}
	return p.explain(v.Exited(ctx, m, id))
}
