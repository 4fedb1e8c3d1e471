package run

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// guest is a machine with one container that the test plays.
type guest struct {
	agentapi.AgentService // everything that is not expected panics

	stdin, stdout, stderr net.Conn // the container's ends
	started               chan struct{}
	signals               chan uint32
	exit                  chan *agentapi.WaitResponse
	startErr, openErr     error

	mu    sync.Mutex
	opens []agentapi.StreamHeader_Kind
}

func newGuest() *guest {
	return &guest{started: make(chan struct{}), signals: make(chan uint32, 16), exit: make(chan *agentapi.WaitResponse, 1)}
}

func (g *guest) Agent() agentapi.AgentService { return g }

func (g *guest) Open(_ context.Context, h *agentapi.StreamHeader) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.openErr != nil {
		return nil, g.openErr
	}
	g.opens = append(g.opens, h.GetKind())
	ours, theirs := net.Pipe()
	switch h.GetKind() {
	case agentapi.StreamHeader_STDIN:
		g.stdin = theirs
	case agentapi.StreamHeader_STDOUT:
		g.stdout = theirs
	case agentapi.StreamHeader_STDERR:
		g.stderr = theirs
	default:
		return nil, errors.New("unexpected stream")
	}
	return ours, nil
}

func (g *guest) Start(context.Context, *agentapi.StartRequest) (*agentapi.StartResponse, error) {
	if g.startErr != nil {
		return nil, g.startErr
	}
	close(g.started)
	return &agentapi.StartResponse{}, nil
}

func (g *guest) Signal(_ context.Context, r *agentapi.SignalRequest) (*agentapi.SignalResponse, error) {
	g.signals <- r.GetSignal()
	return &agentapi.SignalResponse{}, nil
}

func (g *guest) Wait(ctx context.Context, _ *agentapi.WaitRequest) (*agentapi.WaitResponse, error) {
	select {
	case r := <-g.exit:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// end ends the container.
func (g *guest) end(code uint32, reason string) {
	for _, c := range []net.Conn{g.stdin, g.stdout, g.stderr} {
		if c != nil {
			_ = c.Close()
		}
	}
	g.exit <- &agentapi.WaitResponse{ExitCode: code, Reason: reason}
}

type outcome struct {
	exit Exit
	err  error
}

func (g *guest) run(ctx context.Context, s Stdio) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		exit, err := RunContainer(ctx, g, "main", s)
		done <- outcome{exit, err}
	}()
	return done
}

func TestRunContainerOutput(t *testing.T) {
	t.Parallel()
	g := newGuest()
	var stdout, stderr bytes.Buffer
	done := g.run(t.Context(), Stdio{Stdout: &stdout, Stderr: &stderr})
	<-g.started
	// The exit is known before the output is drained: nothing of it is lost.
	g.exit <- &agentapi.WaitResponse{ExitCode: 7, Reason: "exited"}
	for conn, text := range map[net.Conn]string{g.stdout: "out", g.stderr: "err"} {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	if got := <-done; got.err != nil || got.exit != (Exit{Code: 7}) || stdout.String() != "out" || stderr.String() != "err" {
		t.Errorf("got %+v, %q and %q", got, &stdout, &stderr)
	}
}

func TestRunContainerOutOfMemory(t *testing.T) {
	t.Parallel()
	g := newGuest()
	done := g.run(t.Context(), Stdio{Stdout: io.Discard, Stderr: io.Discard})
	<-g.started
	g.end(137, "oom")
	if got := <-done; got.err != nil || got.exit != (Exit{Code: 137, OutOfMemory: true}) {
		t.Errorf("got %+v", got)
	}
}

func TestRunContainerInput(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest()
	done := g.run(t.Context(), Stdio{Stdin: r, Stdout: io.Discard, Stderr: io.Discard, Attach: true})
	<-g.started
	if _, err := io.WriteString(w, "input"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	// The end of the input is the end of the stream.
	data, err := io.ReadAll(g.stdin)
	if err != nil || string(data) != "input" {
		t.Errorf("got %q %v", data, err)
	}
	g.end(0, "exited")
	if got := <-done; got.err != nil {
		t.Error(got.err)
	}
}

// TestRunContainerInputOpen ends while the caller's input is still open and
// nobody reads the stream.
func TestRunContainerInputOpen(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	for _, text := range []string{"", "unread"} {
		g := newGuest()
		done := g.run(t.Context(), Stdio{Stdin: r, Stdout: io.Discard, Stderr: io.Discard, Attach: true})
		<-g.started
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		g.end(0, "exited")
		if got := <-done; got.err != nil {
			t.Error(got.err)
		}
	}
}

func TestRunContainerSignals(t *testing.T) {
	t.Parallel()
	g := newGuest()
	signals := make(chan os.Signal, 4)
	done := g.run(t.Context(), Stdio{Stdout: io.Discard, Stderr: io.Discard, Signals: signals})
	<-g.started
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGTERM} {
		signals <- sig
		if got := <-g.signals; got != uint32(sig) {
			t.Errorf("expected signal %d, got %d", sig, got)
		}
	}
	// A window's size is no signal for a container without a terminal.
	signals <- syscall.SIGWINCH
	signals <- syscall.SIGINT
	if got := <-done; !errors.Is(got.err, errInterrupted) {
		t.Errorf("the second ending signal: expected %v, got %+v", errInterrupted, got)
	}
	select {
	case got := <-g.signals:
		t.Errorf("the container got signal %d", got)
	default:
	}
}

// brokenWriter is a pipe whose reader has gone.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestRunContainerBrokenOutput(t *testing.T) {
	t.Parallel()
	g := newGuest()
	done := g.run(t.Context(), Stdio{Stdout: brokenWriter{}, Stderr: io.Discard})
	<-g.started
	var err error
	for err == nil { // until the stream is closed under it
		_, err = io.WriteString(g.stdout, "x")
	}
	if got := <-done; !errors.Is(got.err, syscall.EPIPE) || !errors.Is(got.err, errOutput) {
		t.Errorf("expected the run to end with the broken pipe, got %+v", got)
	}
}

func TestRunContainerErrors(t *testing.T) {
	t.Parallel()
	reason := errors.New("the reason")
	for name, g := range map[string]*guest{"start": {startErr: reason}, "open": {openErr: reason}} {
		if got := <-g.run(t.Context(), Stdio{Stdout: io.Discard, Stderr: io.Discard}); !errors.Is(got.err, reason) {
			t.Errorf("%s: expected the reason, got %+v", name, got)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	g := newGuest()
	done := g.run(ctx, Stdio{Stdout: io.Discard, Stderr: io.Discard})
	<-g.started
	cancel(reason)
	if got := <-done; !errors.Is(got.err, reason) {
		t.Errorf("cancelled: expected the reason, got %+v", got)
	}
}

func TestUntilStarted(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 4)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := untilStarted(signals, cancel)
	signals <- syscall.SIGWINCH
	signals <- syscall.SIGUSR1
	signals <- syscall.SIGTERM
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), errInterrupted) {
		t.Errorf("cause %v", context.Cause(ctx))
	}
	stop()
}
