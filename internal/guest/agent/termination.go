package agent

import (
	"context"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// TerminationMessage implements the protocol.
func (a *Agent) TerminationMessage(ctx context.Context, _ *agentapi.TerminationMessageRequest) (*agentapi.TerminationMessageResponse, error) {
	return nil, a.fail(ctx, "TerminationMessage", unready("this guest keeps no termination messages"))
}
