package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/serial"
)

// portLimit is how long the agent's serial port may take to appear.
const portLimit = 30 * time.Second

// findTransport chooses how this guest hears its host: the serial port where
// there is one, else vsock, whose driver may have to be loaded first.
func findTransport(ctx context.Context, drivers func(context.Context) error) (agent.Transport, error) {
	finder := serial.System()
	if !finder.Has(channel.SerialPort) {
		if err := drivers(ctx); err != nil {
			return nil, err
		}
		if _, err := os.Stat("/dev/vsock"); err == nil && !finder.Has(channel.SerialPort) {
			l, err := vsock.Listen(channel.VsockPort, nil)
			if err != nil {
				return nil, fmt.Errorf("listen on vsock port %d: %w", channel.VsockPort, err)
			}
			return &listenTransport{l}, nil
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, portLimit, errors.New("the machine has neither this port nor a vsock device"))
	defer cancel()
	port, err := finder.Open(ctx, channel.SerialPort)
	if err != nil {
		return nil, err
	}
	return &serialTransport{port}, nil
}

// serialTransport serves host after host on one port.
type serialTransport struct{ port *serial.Port }

// Next implements agent.Transport. It does not wait: the connection does.
func (t *serialTransport) Next(context.Context) (io.ReadWriteCloser, error) {
	return t.port.Conn(), nil
}

// listenTransport takes connections.
type listenTransport struct{ l net.Listener }

// Next implements agent.Transport.
func (t *listenTransport) Next(ctx context.Context) (io.ReadWriteCloser, error) {
	stop := context.AfterFunc(ctx, func() { _ = t.l.Close() })
	defer stop()
	return t.l.Accept()
}
