package stdio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

var silent = slog.New(slog.DiscardHandler)

// guest holds the guest's ends of the streams.
type guest struct{ in, out, err net.Conn }

func connect(t *testing.T, s *Streams) *guest {
	t.Helper()
	g := &guest{}
	err := s.Connect(t.Context(), func(_ context.Context, kind agentapi.StreamHeader_Kind) (net.Conn, error) {
		here, there := net.Pipe()
		switch kind {
		case agentapi.StreamHeader_STDIN:
			g.in = there
		case agentapi.StreamHeader_STDOUT:
			g.out = there
		case agentapi.StreamHeader_STDERR:
			g.err = there
		}
		return here, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func fifo(t *testing.T, name string) string {
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openStreams(t *testing.T, p Paths) *Streams {
	t.Helper()
	s, err := Open(p, silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var quick = Bound{Idle: 10 * time.Second, Total: 20 * time.Second}

// reader opens a FIFO as containerd does.
func reader(t *testing.T, path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func writer(t *testing.T, path string) *os.File {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Errorf("write: %v", err)
	}
}

func read(t *testing.T, r io.Reader, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if n, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
		t.Errorf("expected %q, got %q (%v)", want, buf[:n], err)
	}
}

func TestOutput(t *testing.T) {
	p := Paths{Stdout: fifo(t, "out"), Stderr: "fifo://" + fifo(t, "err")}
	s := openStreams(t, p)
	g := connect(t, s)
	out, err := reader(t, p.Stdout), reader(t, strings.TrimPrefix(p.Stderr, "fifo://"))
	write(t, g.out, "one")
	write(t, g.err, "two")
	read(t, out, "one")
	read(t, err, "two")
	g.out.Close()
	g.err.Close()
	if err := s.Drain(t.Context(), quick); err != nil {
		t.Error(err)
	}
	s.Close()
	for _, f := range []*os.File{out, err} {
		if n, err := f.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("expected the end, got %d, %v", n, err)
		}
	}
}

// A reader that goes, as containerd does when it is restarted, is missed by
// nobody, and one that comes back finds what was written meanwhile.
func TestReaderIsRestarted(t *testing.T) {
	p := Paths{Stdout: fifo(t, "out"), Stdin: fifo(t, "in"), Terminal: true}
	s := openStreams(t, p)
	g := connect(t, s)
	out, in := reader(t, p.Stdout), writer(t, p.Stdin)
	write(t, g.out, "one")
	read(t, out, "one")
	write(t, in, "a")
	read(t, g.in, "a")
	out.Close()
	in.Close()
	write(t, g.out, "two")
	write(t, g.out, "three")
	out, in = reader(t, p.Stdout), writer(t, p.Stdin)
	read(t, out, "twothree")
	write(t, in, "b")
	read(t, g.in, "b")
}

// Who does not read standard output does not hold up standard error, and not
// the process's end for longer than the bound.
func TestUnreadStream(t *testing.T) {
	p := Paths{Stdout: fifo(t, "out"), Stderr: fifo(t, "err")}
	s := openStreams(t, p)
	g := connect(t, s)
	err := reader(t, p.Stderr)
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		_, _ = g.out.Write(bytes.Repeat([]byte("x"), 1<<20))
	}()
	for range 100 {
		write(t, g.err, "still here")
		read(t, err, "still here")
	}
	g.err.Close()
	if err := s.Drain(t.Context(), Bound{Idle: 20 * time.Millisecond, Total: time.Minute}); err == nil || !strings.Contains(err.Error(), "nothing moved") {
		t.Errorf("got %v", err)
	}
	s.Close()
	<-flooded
}

// Output that flows goes on being taken, until the total bound.
func TestDrainTotal(t *testing.T) {
	s := openStreams(t, Paths{Terminal: true})
	g := connect(t, s)
	go func() {
		for {
			if _, err := g.out.Write([]byte("more")); err != nil {
				return
			}
		}
	}()
	if err := s.Drain(t.Context(), Bound{Idle: 20 * time.Millisecond, Total: 200 * time.Millisecond}); err == nil || !strings.Contains(err.Error(), "within 200ms") {
		t.Errorf("got %v", err)
	}
}

// CloseStdin comes behind everything that was written before.
func TestCloseStdin(t *testing.T) {
	for range 20 {
		p := Paths{Stdin: fifo(t, "in"), Terminal: true}
		s := openStreams(t, p)
		g := connect(t, s)
		in := writer(t, p.Stdin)
		data := strings.Repeat("all of this. ", 5000) // as much as the FIFO holds
		got := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(g.in)
			got <- string(b)
		}()
		write(t, in, data)
		if err := s.CloseStdin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b := <-got; b != data {
			t.Fatalf("expected %d bytes, got %d", len(data), len(b))
		}
		// Nobody reads any more: the writer is told.
		if _, err := in.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("a later write: got %v", err)
		}
		if err := s.CloseStdin(t.Context()); err != nil {
			t.Errorf("again: %v", err)
		}
		s.Close()
	}
}

// Non-interactive exec: the input is closed before the process is connected.
func TestCloseStdinBeforeConnect(t *testing.T) {
	p := Paths{Stdin: fifo(t, "in"), Terminal: true}
	s := openStreams(t, p)
	in := writer(t, p.Stdin)
	write(t, in, "early")
	in.Close()
	if err := s.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := connect(t, s)
	if b, err := io.ReadAll(g.in); string(b) != "early" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
}

// A process that does not read its input does not hold up who closes it.
func TestCloseStdinOfASleeper(t *testing.T) {
	p := Paths{Stdin: fifo(t, "in"), Terminal: true}
	s := openStreams(t, p)
	g := connect(t, s)
	in := writer(t, p.Stdin)
	write(t, in, "nobody reads this")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.CloseStdin(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// It is closed nevertheless.
	if b, err := io.ReadAll(g.in); string(b) != "nobody reads this" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
}

// A process that ends while its input is open leaves nothing.
func TestCloseWithStdinOpen(t *testing.T) {
	p := Paths{Stdin: fifo(t, "in"), Stdout: fifo(t, "out"), Stderr: fifo(t, "err")}
	s := openStreams(t, p)
	connect(t, s)
	s.Close() // returns when the goroutines have
	s.Close()
	if err := s.CloseStdin(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "log")
	uri := "file://" + path
	for range 2 {
		s := openStreams(t, Paths{Stdout: uri, Stderr: uri})
		g := connect(t, s)
		write(t, g.out, "out ")
		g.out.Close()
		write(t, g.err, "err ")
		g.err.Close()
		if err := s.Drain(t.Context(), quick); err != nil {
			t.Error(err)
		}
		s.Close()
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 16 || strings.Count(string(b), "out ") != 2 || strings.Count(string(b), "err ") != 2 {
		t.Errorf("got %q, %v", b, err)
	}
}

// A disk that is full costs the output, not the process.
func TestOutputLost(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Fatal(err)
	}
	s := openStreams(t, Paths{Stdout: "/dev/full", Terminal: true})
	g := connect(t, s)
	write(t, g.out, strings.Repeat("x", 1<<20))
	g.out.Close()
	if err := s.Drain(t.Context(), quick); err != nil {
		t.Error(err)
	}
}

func TestNowhere(t *testing.T) {
	s := openStreams(t, Paths{Stdin: "/dev/null"})
	g := connect(t, s)
	if b, err := io.ReadAll(g.in); len(b) != 0 || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	write(t, g.out, strings.Repeat("x", 1<<20))
	write(t, g.err, strings.Repeat("x", 1<<20))
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		paths Paths
		want  string
		is    func(error) bool
	}{
		{Paths{Stdin: "ttrpc+unix:///run/x?streaming_id=1"}, `io_type = "fifo"`, errdefs.IsNotImplemented},
		{Paths{Stdout: dir + "/missing"}, "stdout: stat " + dir + "/missing", func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{Paths{Stderr: "log"}, "stderr: expected an absolute path", errdefs.IsInvalidArgument},
		{Paths{Stdout: "file://host/x"}, "expected file:///ABSOLUTE/PATH", errdefs.IsInvalidArgument},
		{Paths{Stdin: "file:///etc/passwd"}, "stdin: expected a FIFO", errdefs.IsInvalidArgument},
		{Paths{Stdout: dir}, "is a directory", func(error) bool { return true }},
	} {
		_, err := Open(test.paths, silent)
		if err == nil || !strings.Contains(err.Error(), test.want) || !test.is(err) {
			t.Errorf("%+v: expected %q, got %v", test.paths, test.want, err)
		}
	}
}

func TestGuestDoesNotOpen(t *testing.T) {
	s := openStreams(t, Paths{})
	n := 0
	err := s.Connect(t.Context(), func(context.Context, agentapi.StreamHeader_Kind) (net.Conn, error) {
		if n++; n > 1 {
			return nil, errors.New("no such container")
		}
		here, _ := net.Pipe()
		return here, nil
	})
	if err == nil || !strings.Contains(err.Error(), "no such container") {
		t.Errorf("got %v", err)
	}
}

// muxed behaves like a stream of the guest's channel: what is closed here can be
// read until the guest closes too, and a guest that reads nothing holds up the
// close.
type muxed struct {
	net.Conn
	stuck chan struct{}
}

func (m muxed) Close() error {
	<-m.stuck
	return m.Conn.Close()
}

// A guest that does not close its side, and does not hear that this one is
// closed, keeps nobody.
func TestGuestDoesNotClose(t *testing.T) {
	s := openStreams(t, Paths{Stdout: fifo(t, "out")})
	stuck := make(chan struct{})
	var there []net.Conn
	if err := s.Connect(t.Context(), func(context.Context, agentapi.StreamHeader_Kind) (net.Conn, error) {
		a, b := net.Pipe()
		there = append(there, b)
		return muxed{a, stuck}, nil
	}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s.Close()
	if d := time.Since(begin); d > 2*closeTime {
		t.Errorf("it took %s", d)
	}
	close(stuck) // the machine has ended
	for _, c := range there {
		if _, err := io.ReadAll(c); err != nil {
			t.Error(err)
		}
	}
	s.all.Wait()
}
