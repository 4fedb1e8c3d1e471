package channel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

var bootID = [16]byte{1, 2, 3}

// pair is a buffered byte pipe in both directions, as a virtio-serial port is.
func pair(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, err = net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	guest, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

type accepted struct {
	session *channel.Session
	err     error
}

func accept(ctx context.Context, conn io.ReadWriteCloser) <-chan accepted {
	c := make(chan accepted, 1)
	go func() {
		s, err := channel.Accept(ctx, conn, bootID)
		c <- accepted{s, err}
	}()
	return c
}

// echo serves a session: stdout streams are echoed, others refused.
func echo(s *channel.Session) {
	for {
		conn, err := s.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			header, err := channel.ReadHeader(conn)
			if err != nil {
				return
			}
			if header.GetKind() != agentapi.StreamHeader_STDOUT {
				_ = channel.WriteReply(conn, errors.New("unknown container"))
				return
			}
			_ = channel.WriteReply(conn, nil)
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func checkEcho(t *testing.T, s *channel.Session, n int) {
	t.Helper()
	conn, err := s.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT, ContainerId: "c"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), n/16)
	go func() { _, _ = conn.Write(want) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("echo of %d bytes: %v", n, err)
	}
}

func TestSessionOverLeftovers(t *testing.T) {
	t.Parallel()
	host, guest := pair(t)
	// What an earlier session left behind, the start of a frame included.
	junk := append(bytes.Repeat([]byte{0, 1, 0x89}, 5000), "\x89COFFER\n\x01"...)
	if _, err := host.Write(junk); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Write(junk); err != nil {
		t.Fatal(err)
	}
	c := accept(t.Context(), guest)
	hs, err := channel.Dial(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	defer hs.Close()
	gs := <-c
	if gs.err != nil {
		t.Fatal(gs.err)
	}
	go echo(gs.session)
	if hs.BootID() != bootID {
		t.Errorf("boot id: expected %x, got %x", bootID, hs.BootID())
	}
	checkEcho(t, hs, 1<<20)
	_, err = hs.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDIN})
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("unknown container")) {
		t.Errorf("refused stream: got %v", err)
	}
}

// relay is a virtio-serial port as QEMU serves it: the guest's end stays while
// host processes come and go, and the guest is not told.
func relay(guest net.Conn, hosts <-chan net.Conn) {
	toHost := make(chan []byte)
	go func() {
		defer close(toHost)
		for {
			b := make([]byte, 4096)
			n, err := guest.Read(b)
			if err != nil {
				return
			}
			toHost <- b[:n]
		}
	}()
	for host := range hosts {
		gone := make(chan struct{})
		go func() { _, _ = io.Copy(guest, host); close(gone) }()
		for open := true; open; {
			select {
			case b, ok := <-toHost:
				if !ok {
					return
				}
				_, _ = host.Write(b)
			case <-gone:
				open = false
			}
		}
	}
}

func TestHostRestart(t *testing.T) {
	t.Parallel()
	port, guest := pair(t)
	hosts := make(chan net.Conn)
	go relay(port, hosts)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			s, err := channel.Accept(ctx, keepOpen{guest}, bootID)
			if err != nil {
				return
			}
			echo(s)
			<-s.Done()
		}
	}()
	for range 3 {
		conn, qemu := pair(t)
		hosts <- qemu
		s, err := channel.Dial(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		checkEcho(t, s, 4096)
		// The host process dies in the middle of a frame.
		if _, err := conn.Write([]byte{0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	close(hosts)
}

// keepOpen survives its session, as a port does.
type keepOpen struct{ net.Conn }

func (k keepOpen) Close() error { return nil }

func TestDialEndsWithContext(t *testing.T) {
	t.Parallel()
	host, _ := pair(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errors.New("guest did not boot"))
	defer cancel()
	if _, err := channel.Dial(ctx, host); err == nil || err.Error() != "agent channel: waiting for the guest agent: guest did not boot" {
		t.Fatalf("got %v", err)
	}
}

func TestStreamLimit(t *testing.T) {
	t.Parallel()
	host, guest := pair(t)
	c := accept(t.Context(), guest)
	hs, err := channel.Dial(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	defer hs.Close()
	go echo((<-c).session)
	for i := range channel.MaxStreams {
		if _, err := hs.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT}); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	if _, err := hs.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT}); err == nil {
		t.Fatal("a stream above the limit was accepted")
	}
}

// FuzzGuest feeds a guest whatever a host may send.
func FuzzGuest(f *testing.F) {
	f.Add([]byte("\x89COFFER\n\x01\x00\x00\x01\x00\x01\x00\x00abcdefgh0000000000000000\x89COFFER\n\x03\x00\x00\x00\x00\x00\x00\x00abcdefgh0000000000000000\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		host, guest := net.Pipe()
		go func() { _, _ = host.Write(data); _ = host.Close() }()
		go func() { _, _ = io.Copy(io.Discard, host) }()
		s, err := channel.Accept(t.Context(), guest, bootID)
		if (err == nil) == (s == nil) {
			t.Fatal("neither a session nor an error")
		}
		if err != nil {
			return
		}
		for {
			conn, err := s.AcceptStream()
			if err != nil {
				return
			}
			_, _ = channel.ReadHeader(conn)
			_ = conn.Close()
		}
	})
}

// FuzzReadMessage must not panic or allocate beyond the limit.
func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 8, 1})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(_ *testing.T, data []byte) {
		var h agentapi.StreamHeader
		_ = channel.ReadMessage(bytes.NewReader(data), &h)
	})
}
