package pod

import (
	"context"
	"net"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/portforward"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
)

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
			return m.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_PORT_FORWARD, Port: uint32(port)})
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
