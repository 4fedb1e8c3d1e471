package coffershim

import (
	"context"

	"github.com/containerd/containerd/api/events"

	"github.com/coffer-project/coffer/internal/host/pod"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

// note writes down what the pod makes that would outlive this process.
func (n *node) note(t pod.Trace) error {
	var machines []podstate.Process
	if t.PID != 0 {
		p, err := podstate.Look("machine", t.PID)
		if err != nil {
			return err
		}
		machines = append(machines, p)
	}
	return n.d.State.Update(func(s *podstate.State) {
		s.NetNS, s.Machines, s.Cgroups = t.NetNS, machines, t.Cgroups
	})
}

// publish tells containerd, and notes how containers ended: should this process
// be killed, `delete` still knows.
func (n *node) publish(ctx context.Context, topic string, event any) error {
	switch e := event.(type) {
	case *events.TaskExit:
		if e.GetID() == e.GetContainerID() {
			n.record(ctx, func(s *podstate.State) {
				if s.Exits == nil {
					s.Exits = map[string]podstate.Exit{}
				}
				s.Exits[e.GetContainerID()] = podstate.Exit{Status: e.GetExitStatus(), PID: e.GetPid(), At: e.GetExitedAt().AsTime()}
			})
		}
	case *events.TaskDelete:
		if e.GetID() == "" || e.GetID() == e.GetContainerID() {
			n.record(ctx, func(s *podstate.State) { delete(s.Exits, e.GetContainerID()) })
		}
	}
	return n.d.Publisher.Publish(ctx, topic, event)
}

func (n *node) record(ctx context.Context, change func(*podstate.State)) {
	if err := n.d.State.Update(change); err != nil {
		n.d.Logger.WarnContext(ctx, "the end of a container could not be written down", "error", err)
	}
}
