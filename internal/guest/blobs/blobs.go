// Package blobs is the guest's end of the host's blob cache: streams of kind
// BLOBS, which the host opens and over which the guest asks. The host may send
// anything, late or never; whoever uses a [Pool] checks the content
// (oci/blobcache does), and the pool bounds streams, bytes and time.
package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/oci"
)

// MaxStreams is how many streams a pool takes at once. More are refused.
const MaxStreams = 16

// limits are what a host's slowness may cost.
type limits struct {
	// stall is how long the host may send or take nothing.
	stall time.Duration
	// grace and rate bound the time of one blob: grace, and a second for rate
	// bytes.
	grace time.Duration
	rate  int64
}

func (l limits) whole(size int64) time.Duration {
	return l.grace + time.Duration(size/l.rate)*time.Second
}

// Pool keeps the streams that nobody uses. It implements blobcache.Cache. It is
// safe for concurrent use.
type Pool struct {
	limits limits

	mu    sync.Mutex
	count int
	idle  []*stream
}

// New makes an empty pool: everything is not found until the host opens
// streams.
func New() *Pool {
	return newPool(limits{stall: 20 * time.Second, grace: time.Minute, rate: 1 << 20})
}

func newPool(l limits) *Pool { return &Pool{limits: l} }

// errIdle ends the watch over an idle stream that is about to be used.
var errIdle = errors.New("the stream is idle")

// Serve lends conn, which has been accepted as a stream of kind BLOBS, to the
// pool until the host closes it, breaks the protocol, or ctx ends. It closes
// conn.
func (p *Pool) Serve(ctx context.Context, conn net.Conn) error {
	s := &stream{conn: conn, ended: make(chan struct{})}
	p.mu.Lock()
	if p.count >= MaxStreams {
		p.mu.Unlock()
		_ = conn.Close()
		return fmt.Errorf("blob streams: the host opened more than %d", MaxStreams)
	}
	p.count++
	p.mu.Unlock()
	p.put(s)
	select {
	case <-s.ended:
	case <-ctx.Done():
		s.end(context.Cause(ctx))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count--
	p.idle = slices.DeleteFunc(p.idle, func(i *stream) bool { return i == s })
	return s.err
}

// put makes a stream available.
func (p *Pool) put(s *stream) {
	s.watch()
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-s.ended:
	default:
		p.idle = append(p.idle, s)
	}
}

// take returns a stream that is in step, or nil.
func (p *Pool) take() *stream {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		s := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if s.unwatch() {
			return s
		}
	}
}

// Get implements blobcache.Cache. With no stream at hand the blob is not found.
func (p *Pool) Get(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if d.Size < 0 || d.Size > oci.MaxBlob {
		return nil, fmt.Errorf("blob %s: size: expected 0 to %d bytes, got %d", d.Digest, int64(oci.MaxBlob), d.Size)
	}
	s, reply, err := p.ask(ctx, agentapi.BlobRequest_GET, d)
	if err != nil {
		return nil, err
	}
	if !reply.GetFound() || reply.GetError() != "" {
		p.put(s)
		return nil, fmt.Errorf("blob %s: the host's cache: %w", d.Digest, oci.ErrNotFound)
	}
	size, most := reply.GetSize(), uint64(d.Size)
	if d.Size == 0 {
		most = oci.MaxDocument
	}
	if size > most || d.Size > 0 && size != most {
		err := fmt.Errorf("blob %s: size: expected %d bytes, got %d from the host", d.Digest, most, size)
		s.end(err)
		return nil, err
	}
	return &reader{ctx: ctx, pool: p, s: s, left: int64(size), patience: p.limits.whole(int64(size))}, nil
}

// ask sends a request on some stream and reads the reply. A stream that has
// died counts as not there.
func (p *Pool) ask(ctx context.Context, op agentapi.BlobRequest_Operation, d oci.Descriptor) (*stream, *agentapi.BlobReply, error) {
	// A host may open a new stream for each that it closes: it is asked so often, and
	// no more.
	for range MaxStreams {
		s := p.take()
		if s == nil {
			break
		}
		reply := &agentapi.BlobReply{}
		err := s.within(ctx, p.limits.stall, func() error {
			req := &agentapi.BlobRequest{Operation: op, Digest: string(d.Digest), Size: uint64(d.Size)}
			if err := channel.WriteMessage(s.conn, req); err != nil {
				return err
			}
			return channel.ReadMessage(s.conn, reply)
		})
		switch {
		case err == nil:
			return s, reply, nil
		case gone(err):
			continue
		}
		return nil, nil, fmt.Errorf("blob %s: ask the host's cache: %w", d.Digest, err)
	}
	return nil, nil, fmt.Errorf("blob %s: no stream of the host's cache is free: %w", d.Digest, oci.ErrNotFound)
}

// gone tells a stream that has ended from one that misbehaves.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed)
}

// chunk is how much of a blob is handed to the host at once.
const chunk = 64 << 10

// Put implements blobcache.Cache.
func (p *Pool) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if d.Size <= 0 || d.Size > oci.MaxBlob {
		return nil
	}
	s, reply, err := p.ask(ctx, agentapi.BlobRequest_PUT, d)
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !reply.GetFound() || reply.GetError() != "" {
		p.put(s)
		return nil // not wanted
	}
	if err := p.send(ctx, s, d, r); err != nil {
		err = fmt.Errorf("blob %s: give it to the host's cache: %w", d.Digest, err)
		s.end(err)
		return err
	}
	p.put(s)
	return nil
}

// send writes the content and reads what the host thinks of it.
func (p *Pool) send(ctx context.Context, s *stream, d oci.Descriptor, r io.Reader) error {
	patience := p.limits.whole(d.Size)
	buf := make([]byte, chunk)
	for left := d.Size; left > 0; {
		n, err := io.ReadFull(r, buf[:min(left, chunk)])
		if err != nil {
			return err
		}
		started := time.Now()
		// The buffer is given up with the stream when this fails.
		err = s.within(ctx, min(p.limits.stall, patience), func() error { _, err := s.conn.Write(buf[:n]); return err })
		if err != nil {
			return err
		}
		patience -= time.Since(started)
		left -= int64(n)
	}
	var done agentapi.BlobReply
	if err := s.within(ctx, p.limits.stall, func() error { return channel.ReadMessage(s.conn, &done) }); err != nil {
		return err
	}
	if done.GetError() != "" {
		return fmt.Errorf("the host says %.200q", done.GetError())
	}
	return nil
}
