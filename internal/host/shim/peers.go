package shim

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
)

// peers are the open connections of a daemon. A ttrpc server that is shut down
// may close a connection between a call and its answer; the daemon rather
// waits until containerd has hung up, which it does after its last call.
type peers struct {
	check ttrpc.UnixCredentialsFunc

	mu   sync.Mutex
	open int
	last time.Time     // when the last of them was closed; at first the beginning
	left chan struct{} // capacity 1: a connection was closed
}

// newPeers accepts connections of this process's user only.
func newPeers() *peers {
	return &peers{check: ttrpc.UnixSocketRequireSameUser(), left: make(chan struct{}, 1), last: time.Now()}
}

// Handshake implements ttrpc's interface of a server's handshaker.
func (p *peers) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	conn, info, err := p.check.Handshake(ctx, conn)
	if err != nil {
		return conn, info, err
	}
	p.mu.Lock()
	p.open++
	p.mu.Unlock()
	return &peer{Conn: conn, closed: sync.OnceFunc(p.leave)}, info, nil
}

func (p *peers) leave() {
	p.mu.Lock()
	p.open--
	p.last = time.Now()
	p.mu.Unlock()
	select {
	case p.left <- struct{}{}:
	default:
	}
}

// alone is since when no connection is open; zero while one is.
func (p *peers) alone() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open > 0 {
		return time.Time{}
	}
	return p.last
}

// wait returns when no connection is open, or ctx ends.
func (p *peers) wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		open := p.open
		p.mu.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-p.left:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type peer struct {
	net.Conn
	closed func()
}

func (p *peer) Close() error {
	defer p.closed()
	return p.Conn.Close()
}
