package agent

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

// filesWait is how long a FILES stream waits for its announcement, and an
// announcement for its stream.
const filesWait = 30 * time.Second

// delivery names what a FILES stream brings.
type delivery struct {
	volume  string
	version uint64
}

// rendezvous brings announcements (PutFiles) and streams together, whichever
// comes first.
type rendezvous struct {
	mu    sync.Mutex
	pairs map[delivery]*pair
}

type pair struct {
	users int
	conn  chan *incoming
}

// incoming is a stream; finished is closed when it has been read.
type incoming struct {
	conn     net.Conn
	finished chan struct{}
}

func newRendezvous() *rendezvous { return &rendezvous{pairs: map[delivery]*pair{}} }

func (r *rendezvous) join(d delivery) *pair {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pairs[d]
	if p == nil {
		p = &pair{conn: make(chan *incoming)}
		r.pairs[d] = p
	}
	p.users++
	return p
}

func (r *rendezvous) leave(d delivery, p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(r.pairs, d)
	}
}

// serveFiles hands a FILES stream to its announcement.
func (a *Agent) serveFiles(ctx context.Context, conn net.Conn, h *agentapi.StreamHeader) error {
	d := delivery{h.GetVolume(), h.GetVersion()}
	p := a.files.join(d)
	defer a.files.leave(d, p)
	ctx, cancel := context.WithTimeout(ctx, filesWait)
	defer cancel()
	in := &incoming{conn, make(chan struct{})}
	select {
	case p.conn <- in:
	case <-ctx.Done():
		return channel.WriteReply(conn, errors.New("nobody has announced these files: call PutFiles with the same volume and version"))
	}
	<-in.finished
	return nil
}

// PutFiles implements the protocol. It returns when the volume has been
// replaced, or left as it was.
func (a *Agent) PutFiles(ctx context.Context, req *agentapi.PutFilesRequest) (*agentapi.PutFilesResponse, error) {
	if err := a.putFiles(ctx, req); err != nil {
		return nil, a.fail(ctx, "PutFiles", err)
	}
	return &agentapi.PutFilesResponse{}, nil
}

func (a *Agent) putFiles(ctx context.Context, req *agentapi.PutFilesRequest) error {
	sb, err := a.theSandbox()
	if err != nil {
		return err
	}
	update, err := sb.guard.PutFiles(req.GetVolume(), req.GetVersion())
	if err != nil {
		return err
	}
	d := delivery{req.GetVolume(), req.GetVersion()}
	p := a.files.join(d)
	defer a.files.leave(d, p)
	waiting, cancel := context.WithTimeout(ctx, filesWait)
	defer cancel()
	var in *incoming
	select {
	case in = <-p.conn:
	case <-waiting.Done():
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return unready("no FILES stream came with this volume and version")
	}
	defer close(in.finished)
	stop := context.AfterFunc(ctx, func() { _ = in.conn.Close() })
	defer stop()
	if err := channel.WriteReply(in.conn, nil); err != nil {
		return err
	}
	config, err := sb.guard.Volume(req.GetVolume())
	if err != nil {
		return err
	}
	options, err := a.fetchFiles(ctx, sb, config)
	if err != nil {
		return err
	}
	if err := sb.volumes.Put(ctx, req.GetVolume(), in.conn, update, options...); err != nil {
		if refusalOf(err) == nil && ctx.Err() == nil {
			err = failed("files", err)
		}
		return err
	}
	return nil
}
