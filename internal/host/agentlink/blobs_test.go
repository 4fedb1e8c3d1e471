package agentlink

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

// echo answers everything with itself.
type echo struct{ served atomic.Int32 }

func (e *echo) Serve(_ context.Context, conn net.Conn) error {
	defer conn.Close()
	e.served.Add(1)
	_, err := io.Copy(conn, conn)
	return err
}

// session makes a link to a guest that answers stream headers as reply
// says.
func session(t *testing.T) (*Link, *channel.Session) {
	t.Helper()
	ours, theirs := net.Pipe()
	s := &Link{log: slog.New(slog.DiscardHandler)}
	accepted := make(chan *channel.Session, 1)
	go func() {
		guest, err := channel.Accept(t.Context(), theirs, [16]byte{1})
		if err != nil {
			t.Error(err)
		}
		accepted <- guest
	}()
	var err error
	if s.session, err = channel.Dial(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	return s, <-accepted
}

// TestBlobStreams: the guest is lent streams, gets another for one that it gave
// up, and the end of the session ends them all.
func TestBlobStreams(t *testing.T) {
	t.Parallel()
	s, guest := session(t)
	e := &echo{}
	s.ServeBlobs(t.Context(), e)
	for i := range blobStreams + 1 {
		conn, err := guest.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		header, err := channel.ReadHeader(conn)
		if err != nil || header.GetKind() != agentapi.StreamHeader_BLOBS {
			t.Fatalf("stream %d: %v, %v", i, header, err)
		}
		if err := channel.WriteReply(conn, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil || b[0] != 'x' {
			t.Errorf("stream %d: %q, %v", i, b, err)
		}
		if i == 0 {
			_ = conn.Close()
		}
	}
	_ = s.session.Close()
	s.background.Wait()
	if n := e.served.Load(); n != blobStreams+1 {
		t.Errorf("%d streams were served", n)
	}
}

// TestGuestWithoutBlobStreams: one of another release refuses, and is not asked
// again.
func TestGuestWithoutBlobStreams(t *testing.T) {
	t.Parallel()
	s, guest := session(t)
	e := &echo{}
	s.ServeBlobs(t.Context(), e)
	for range blobStreams {
		conn, err := guest.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := channel.ReadHeader(conn); err != nil {
			t.Fatal(err)
		}
		if err := channel.WriteReply(conn, errors.New("stream kind 7 is not known")); err != nil {
			t.Fatal(err)
		}
	}
	s.background.Wait()
	_ = s.session.Close()
	if e.served.Load() != 0 {
		t.Error("a refused stream was served")
	}
}
