package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

// numbered is text in which every line of 16 bytes is its own offset.
func numbered(size int) string {
	var b strings.Builder
	for n := 0; n < size; n += 16 {
		fmt.Fprintf(&b, "%015d\n", n)
	}
	return b.String()
}

// The end of a process is not told before its output has been read: being in the
// FIFO is not enough.
func TestDrainWaitsForTheReader(t *testing.T) {
	p := Paths{Stdout: fifo(t, "out"), Terminal: true}
	s := openStreams(t, p)
	g := connect(t, s)
	out := reader(t, p.Stdout)
	text := numbered(48 << 10) // less than a FIFO holds
	write(t, g.out, text)
	g.out.Close()
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(t.Context(), quick) }()
	for len(text) > 0 {
		select {
		case err := <-drained:
			t.Fatalf("drained with %d bytes unread: %v", len(text), err)
		case <-time.After(20 * time.Millisecond):
		}
		read(t, out, text[:16<<10])
		text = text[16<<10:]
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// session is the two ends of the guest's channel.
func session(t *testing.T) (host, guest *channel.Session) {
	t.Helper()
	here, there := net.Pipe()
	accepted := make(chan *channel.Session, 1)
	go func() {
		s, err := channel.Accept(t.Context(), there, [16]byte{1})
		if err != nil {
			t.Error(err)
		}
		accepted <- s
	}()
	host, err := channel.Dial(t.Context(), here)
	if err != nil {
		t.Fatal(err)
	}
	guest = <-accepted
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

// containerd before 1.6.22 and 1.7.3 closes a FIFO when it hears of the process's
// end, whatever is in it (task.go of v1.6.20, Delete), and copies 32 KiB at once.
// A slow reader that does so misses nothing, through the guest's real channel.
func TestReaderClosesWithTheEnd(t *testing.T) {
	host, guest := session(t)
	const rounds = 30
	for round := range rounds {
		text := numbered(rand.IntN(512<<10)/16*16 + 16)
		var served sync.WaitGroup
		served.Go(func() {
			conn, err := guest.AcceptStream()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if _, err := channel.ReadHeader(conn); err != nil {
				t.Error(err)
			}
			if err := channel.WriteReply(conn, nil); err != nil {
				t.Error(err)
			}
			write(t, conn, text)
		})
		p := Paths{Stdout: fifo(t, "out"), Terminal: true}
		s := openStreams(t, p)
		out := reader(t, p.Stdout)
		var got bytes.Buffer
		var reading sync.WaitGroup
		reading.Go(func() {
			_, err := io.CopyBuffer(slow{&got}, struct{ io.Reader }{out}, make([]byte, chunk))
			if err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		})
		if err := s.Connect(t.Context(), func(ctx context.Context, kind agentapi.StreamHeader_Kind) (net.Conn, error) {
			return host.Open(ctx, &agentapi.StreamHeader{Kind: kind, ContainerId: "c"})
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Drain(t.Context(), quick); err != nil {
			t.Error(err)
		}
		out.Close()
		reading.Wait()
		served.Wait()
		s.Close()
		if got.String() != text {
			t.Fatalf("round %d: %d bytes of %d were read", round, got.Len(), len(text))
		}
	}
}

// slow takes its time with each write.
type slow struct{ w io.Writer }

func (s slow) Write(p []byte) (int, error) {
	time.Sleep(rand.N(2 * time.Millisecond)) //nolint:forbidigo // it is what makes it slow
	return s.w.Write(p)
}

// Where output is cut off, somebody is told how much.
func TestCutOffIsTold(t *testing.T) {
	var log lockedBuffer
	p := Paths{Stdout: fifo(t, "out"), Stderr: fifo(t, "err")}
	s, err := Open(p, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	g := connect(t, s)
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		_, _ = io.WriteString(g.out, numbered(1<<20))
	}()
	write(t, g.err, "nobody reads this")
	g.err.Close()
	err = s.Drain(t.Context(), Bound{Idle: 100 * time.Millisecond, Total: time.Minute})
	// A FIFO holds 64 KiB; the third chunk is on its way.
	if err == nil || !strings.Contains(err.Error(), "stdout: 98304 bytes came, 65536 of them are unread in the FIFO, 0 were lost, the guest has not ended it; "+
		"stderr: 17 bytes came, 17 of them are unread in the FIFO, 0 were lost, the guest has ended it") {
		t.Errorf("got %v", err)
	}
	s.Close()
	<-cut
	if got := log.String(); !strings.Contains(got, "a container's output was lost") || !strings.Contains(got, "stream=stdout bytes=32768 of=98304") {
		t.Errorf("got %s", got)
	}
}

// So they are where the file cannot be written, and where the channel breaks.
func TestLossIsTold(t *testing.T) {
	var log lockedBuffer
	s, err := Open(Paths{Stdout: "/dev/full"}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	broken := &breaks{first: strings.NewReader("some"), err: errors.New("the wire is cut")}
	var out net.Conn
	if err := s.Connect(t.Context(), func(_ context.Context, kind agentapi.StreamHeader_Kind) (net.Conn, error) {
		here, there := net.Pipe()
		if kind == agentapi.StreamHeader_STDERR {
			broken.Conn = here
			return broken, nil
		}
		out = there
		return here, nil
	}); err != nil {
		t.Fatal(err)
	}
	write(t, out, numbered(64<<10))
	out.Close()
	if err := s.Drain(t.Context(), quick); err != nil {
		t.Error(err)
	}
	s.Close()
	for _, want := range []string{
		"lost from here on\" stream=stdout after=0", "was lost\" stream=stdout bytes=65536 of=65536", "broke off before the guest had ended it; what follows is lost\" stream=stderr after=4",
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("expected %q, got %s", want, log.String())
		}
	}
}

// breaks is a connection that ends by an error.
type breaks struct {
	net.Conn
	first io.Reader
	err   error
}

func (b *breaks) Read(p []byte) (int, error) {
	n, err := b.first.Read(p)
	if err != nil {
		err = b.err
	}
	return n, err
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
