package agent

import (
	"context"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// AttachVolume implements the protocol.
func (a *Agent) AttachVolume(ctx context.Context, req *agentapi.AttachVolumeRequest) (*agentapi.AttachVolumeResponse, error) {
	sb, err := a.theSandbox()
	if err == nil {
		err = sb.guard.Attach(req.GetVolume(), req.GetDisk())
	}
	if err == nil {
		err = unready("volume %s: block volumes are not supported by this guest yet", clip(req.GetVolume()))
	}
	return nil, a.fail(ctx, "AttachVolume", err)
}
