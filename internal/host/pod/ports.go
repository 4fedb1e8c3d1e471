package pod

import (
	"context"
	"errors"
	"net"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/portforward"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
)

// errPort is what a guest's refusal of a port means. The rule is in an event of its
// own.
var errPort = errors.New("the pod's policy does not open it (the annotation coffer-project.io/allow.CONTAINER with portForward does, when the pod is prepared)")

// forwardPorts has connections to the loopback of the pod's namespace arrive in
// the guest. A pod runs without it: what fails is told.
func (p *Pod) forwardPorts(ctx context.Context, plan *Plan) {
	if plan.NetNS == "" || plan.Driver == runtimeconfig.DriverProcess {
		return // a process is in the namespace itself
	}
	f, err := p.o.Forward(plan.NetNS, portforward.Options{
		Open: func(ctx context.Context, port uint16) (net.Conn, error) {
			m, err := p.running()
			if err != nil {
				return nil, err
			}
			c, err := m.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_PORT_FORWARD, Port: uint32(port)})
			if err != nil {
				return nil, p.explain(err)
			}
			if channel.Refusal(c) != nil {
				// The guest would drain it, and the client wait for ever.
				_ = c.Close()
				return nil, errPort
			}
			return c, nil
		},
		Failed: func(port uint16, err error) {
			p.warn(p.life, notice.PortForward, "to port %d: %v", port, err)
		},
		Logger: p.log,
	})
	if err != nil {
		p.warn(ctx, notice.Degraded, "kubectl port-forward does not reach this pod: %v", err)
		return
	}
	p.undo(f.Close)
}
