package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/podpolicy"
)

// dialTimeout bounds a connection to a port of the pod's own.
const dialTimeout = 10 * time.Second

// servePort joins a host's stream to a port of the pod's. One that the
// policy forbids is accepted and drained, like any other stream.
func (a *Agent) servePort(ctx context.Context, conn net.Conn, h *agentapi.StreamHeader) error {
	sb, err := a.theSandbox()
	if err != nil {
		return channel.WriteReply(conn, err)
	}
	port := h.GetPort()
	if port == 0 || port > 65535 {
		return channel.WriteReply(conn, invalid("port: expected 1 to 65535, got %d", port))
	}
	// The guest's own interface gives secrets to whoever is on the pod's loopback:
	// it is no port of a container, whatever a policy lists.
	if port == sb.restPort || !sb.guard.PodPort(uint16(port)) {
		err := channel.WriteRefusal(conn, a.refusedStream(ctx, &podpolicy.Refusal{
			Rule: RuleStream, Path: "allow.portForward", Expected: "a port of a container that the policy lists", Got: strconv.Itoa(int(port)),
			Help: "the stream is accepted and drained inside the guest; nothing of it is sent",
		}))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, conn)
		return err
	}
	to, err := dialPod(ctx, port)
	if err != nil {
		// That nothing listens is what any client of the pod can find out.
		return channel.WriteReply(conn, unready("port %d: %w", port, err))
	}
	defer to.Close() //nolint:errcheck // both directions are done
	if err := channel.WriteReply(conn, nil); err != nil {
		return err
	}
	return join(ctx, conn, to)
}

// dialPod connects to a port of the pod: on its loopback, or, where a program
// listens there only, on its addresses.
func dialPod(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	hosts := []string{"127.0.0.1", "::1"}
	own, err := network.Addresses()
	errs := []error{err}
	for _, a := range own {
		hosts = append(hosts, a.String())
	}
	var d net.Dialer
	for _, host := range hosts {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("nothing answers: %w", errors.Join(errs...))
}

// join copies both ways until both directions have ended or ctx has. The end of
// one direction is passed on where the connection can be half closed.
func join(ctx context.Context, host, pod net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _, _ = host.Close(), pod.Close() })
	defer stop()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(pod, host)
		if half, ok := pod.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		done <- err
	}()
	_, err := io.Copy(host, pod)
	// The pod says no more, and a multiplexed stream is closed as a whole:
	// what the host still sends has no reader.
	_ = host.Close()
	return errors.Join(err, <-done)
}
