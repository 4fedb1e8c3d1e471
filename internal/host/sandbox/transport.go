package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// vsockRetry is how soon a connection is tried again: nothing tells a host
// when its guest begins to listen.
const vsockRetry = 20 * time.Millisecond

// cid is a sandbox's vsock context id, fixed by its id. Two sandboxes that
// collide cannot both start: the kernel gives an id out once.
func cid(id string) uint32 {
	sum := sha256.Sum256([]byte(id))
	return vmm.MinVsockCID + binary.BigEndian.Uint32(sum[:])%(1<<31)
}

// connect opens the byte stream to the agent.
func (s *Sandbox) connect(ctx context.Context, c Config) (net.Conn, error) {
	if c.Transport != Vsock {
		return s.vm.Port(channel.SerialPort)
	}
	tick := time.NewTicker(vsockRetry)
	defer tick.Stop()
	for {
		conn, err := vsock.Dial(cid(c.ID), channel.VsockPort, nil)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("vsock: %w (last attempt: %w)", context.Cause(ctx), err)
		}
	}
}
