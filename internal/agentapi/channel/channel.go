// Package channel carries the agent protocol over one byte stream: a
// virtio-serial port, a vsock connection or a UNIX socket. A preamble puts
// both ends into step whatever was in the stream before, so a host process
// may restart and pick up its guest; yamux then multiplexes streams. The host
// opens every stream and begins it with an [agentapi.StreamHeader]; the guest
// answers with an [agentapi.StreamReply].
//
// The guest treats the host as hostile: the number of streams, the receive
// window and the size of every message are bounded, and a malformed frame
// ends the session, never the agent.
package channel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Port names and numbers of the transports.
const (
	// SerialPort is the name of the virtio-serial port.
	SerialPort = "org.coffer.agent.0"
	// VsockPort is the port the agent listens on.
	VsockPort = 1024
)

const (
	// MaxStreams is how many streams a session may have open at once.
	MaxStreams = 256
	// maxWrite bounds one multiplexer frame, so that a bulk stream does not
	// hold up control traffic for long.
	maxWrite = 32 << 10
	// headerTimeout is how long the guest waits for a stream's header.
	headerTimeout = 30 * time.Second
)

// Session is one multiplexed connection. It is safe for concurrent use.
type Session struct {
	mux     *yamux.Session
	bootID  [16]byte
	streams atomic.Int32
}

// muxConfig has no keep-alive and practically no write timeout: an emulated
// guest may stall for long, and its end is noticed by other means (the
// hypervisor's process).
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = time.Hour
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 10 * time.Minute
	c.AcceptBacklog = 64
	c.LogOutput = nil
	c.Logger = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	return c
}

// buffered is the byte stream with what the preamble's reader read ahead.
type buffered struct {
	*bufio.Reader
	io.Writer
	io.Closer
}

// Accept is the guest's side: it waits for a host on rw, which it owns from
// then on, and returns the session. It ends when ctx does.
func Accept(ctx context.Context, rw io.ReadWriteCloser, bootID [16]byte) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { _ = rw.Close() })
	defer stop()
	r := bufio.NewReader(rw)
	if _, err := answerPreamble(r, rw, bootID); err != nil {
		_ = rw.Close()
		return nil, preambleError(ctx, "waiting for the host", err)
	}
	mux, err := yamux.Server(buffered{r, rw, rw}, muxConfig())
	if err != nil {
		_ = rw.Close()
		return nil, err
	}
	return &Session{mux: mux, bootID: bootID}, nil
}

// Dial is the host's side: it waits until the guest answers on rw, which it
// owns from then on. It ends when ctx does.
func Dial(ctx context.Context, rw io.ReadWriteCloser) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { _ = rw.Close() })
	defer stop()
	r := bufio.NewReader(rw)
	bootID, err := offerPreamble(ctx, r, rw)
	if err != nil {
		_ = rw.Close()
		return nil, preambleError(ctx, "waiting for the guest agent", err)
	}
	mux, err := yamux.Client(buffered{r, rw, rw}, muxConfig())
	if err != nil {
		_ = rw.Close()
		return nil, err
	}
	return &Session{mux: mux, bootID: bootID}, nil
}

func preambleError(ctx context.Context, doing string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("agent channel: %s: %w", doing, err)
}

// BootID is the guest's, new at each boot.
func (s *Session) BootID() [16]byte { return s.bootID }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Close ends the session and all its streams.
func (s *Session) Close() error { return s.mux.Close() }

// Open opens a stream (host's side) and waits for the guest's reply.
func (s *Session) Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error) {
	raw, err := s.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("agent channel: open %s stream: %w", header.GetKind(), err)
	}
	conn := &stream{Stream: raw, count: &s.streams}
	s.streams.Add(1)
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	err = WriteMessage(conn, header)
	var reply agentapi.StreamReply
	if err == nil {
		err = ReadMessage(conn, &reply)
	}
	if err == nil && reply.GetError() != "" {
		err = errors.New(reply.GetError())
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("agent channel: open %s stream: %w", header.GetKind(), err)
	}
	conn.refusal = reply.GetRefusal()
	return conn, nil
}

// AcceptStream returns the next stream the host opened (guest's side); its
// header is still to be read with [ReadHeader]. Streams above the limit are
// reset.
func (s *Session) AcceptStream() (net.Conn, error) {
	for {
		raw, err := s.mux.AcceptStream()
		if err != nil {
			return nil, err
		}
		if s.streams.Add(1) > MaxStreams {
			s.streams.Add(-1)
			_ = raw.Close()
			continue
		}
		return &stream{Stream: raw, count: &s.streams}, nil
	}
}

// stream is a yamux stream that writes in bounded frames and is counted.
type stream struct {
	*yamux.Stream
	count  *atomic.Int32
	closed atomic.Bool
	// refusal is the guest's, of a stream that the host opened.
	refusal *agentapi.Refusal
}

// Refusal says by which rule the guest's policy lets nothing through a stream
// that the host opened; nil: it lets it through, or conn is no such stream. It is
// the guest's word.
func Refusal(conn net.Conn) *agentapi.Refusal {
	if s, ok := conn.(*stream); ok {
		return s.refusal
	}
	return nil
}

func (s *stream) Write(p []byte) (int, error) {
	written := 0
	for {
		n, err := s.Stream.Write(p[:min(len(p), maxWrite)])
		written += n
		p = p[n:]
		if err != nil || len(p) == 0 {
			return written, err
		}
	}
}

func (s *stream) Close() error {
	if s.closed.CompareAndSwap(false, true) {
		s.count.Add(-1)
	}
	return s.Stream.Close()
}

// ReadHeader reads a stream's header (guest's side); a host that sends none in
// time loses the stream.
func ReadHeader(conn net.Conn) (*agentapi.StreamHeader, error) {
	_ = conn.SetReadDeadline(time.Now().Add(headerTimeout))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	var header agentapi.StreamHeader
	if err := ReadMessage(conn, &header); err != nil {
		return nil, fmt.Errorf("agent channel: stream header: %w", err)
	}
	return &header, nil
}

// WriteReply answers a header; a nil error accepts the stream.
func WriteReply(conn net.Conn, refused error) error {
	var reply agentapi.StreamReply
	if refused != nil {
		reply.Error = refused.Error()
	}
	return WriteMessage(conn, &reply)
}

// WriteRefusal answers the header of a stream that is accepted and drained,
// because the policy forbids it.
func WriteRefusal(conn net.Conn, r *agentapi.Refusal) error {
	return WriteMessage(conn, &agentapi.StreamReply{Refusal: r})
}
