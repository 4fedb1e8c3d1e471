package agentlink

import (
	"context"
	"net"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Opener opens a stream to an agent.
type Opener func(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error)

// Cancelling is an agent whose long calls end in the guest when their context
// ends here. ttrpc tells the other side a call's deadline, but not that nobody
// waits for it any more; so such a call has a control stream of its own, which
// ends with it and ends what it carries.
func Cancelling(agent agentapi.AgentService, open Opener, intercept ttrpc.UnaryClientInterceptor) agentapi.AgentService {
	return cancelling{agent, open, intercept}
}

type cancelling struct {
	agentapi.AgentService
	open      Opener
	intercept ttrpc.UnaryClientInterceptor
}

// CreateContainer may have to pull an image.
func (c cancelling) CreateContainer(ctx context.Context, r *agentapi.CreateContainerRequest) (*agentapi.CreateContainerResponse, error) {
	conn, err := c.open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_CONTROL})
	if err != nil {
		return nil, err
	}
	client := ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(c.intercept))
	defer client.Close() //nolint:errcheck // nothing is written any more
	return agentapi.NewAgentClient(client).CreateContainer(ctx, r)
}
