package pod

import (
	"context"
	"io"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/network"
	"github.com/coffer-project/coffer/internal/host/portforward"
	"github.com/coffer-project/coffer/internal/host/process"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/volumes"
)

// withDefaults fills in what makes a real pod.
func (o Options) withDefaults() Options {
	if o.Launch == nil {
		o.Launch = launchMachine
	}
	if o.Network == nil {
		o.Network = func(ctx context.Context, netns string) (Network, error) {
			a, err := network.Attach(ctx, netns, network.Options{Logger: o.Logger})
			if err != nil {
				return nil, err
			}
			return attachment{a}, nil
		}
	}
	if o.Forward == nil {
		o.Forward = func(netns string, fo portforward.Options) (io.Closer, error) { return portforward.Listen(netns, fo) }
	}
	if o.OOMScore == nil {
		o.OOMScore = setOOMScore
	}
	if o.Volumes == nil {
		o.Volumes = func(vo volumes.Options) Volumes { return volumes.New(vo) }
	}
	return o
}

// attachment is a Network.
type attachment struct{ *network.Attachment }

func (a attachment) Machine() *sandbox.Network {
	return &sandbox.Network{Cards: a.Cards, Guest: a.Guest}
}

// launchMachine starts what the driver says.
func launchMachine(ctx context.Context, plan *Plan) (Machine, error) {
	if plan.Driver == runtimeconfig.DriverProcess {
		c := plan.Sandbox
		m, err := process.Launch(ctx, process.Config{
			ID: c.ID, Agent: plan.Agent, NetNS: plan.NetNS, Cgroup: plan.Cgroup, Development: c.Development, Debug: plan.Debug, BlobCache: c.BlobCache,
			Logger: c.Logger, ConsoleLine: c.ConsoleLine, BootTimeout: c.BootTimeout,
		})
		if err != nil {
			return nil, err
		}
		return agentProcess{m}, nil
	}
	m, err := sandbox.Launch(ctx, plan.Sandbox)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// agentProcess is a Machine. It is in the pod's network already, and is told of
// none.
type agentProcess struct{ *process.Machine }

func (agentProcess) Network() *agentapi.Network { return nil }
