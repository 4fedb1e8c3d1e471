package events_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	taskevents "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coffer-project/coffer/internal/host/shim/events"
)

// daemon is containerd's event service.
type daemon struct {
	path   string
	refuse string // a topic

	mu     sync.Mutex
	pids   []uint32
	topics []string
	header []string
	server *ttrpc.Server
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "ev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &daemon{path: filepath.Join(dir, "s")}
}

func (d *daemon) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	var e taskevents.TaskExit
	if err := r.GetEnvelope().GetEvent().UnmarshalTo(&e); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Envelope.Topic == d.refuse {
		return nil, status.Error(codes.InvalidArgument, "no such topic")
	}
	md, _ := ttrpc.GetMetadata(ctx)
	d.header, _ = md.Get("containerd-namespace-ttrpc")
	d.pids = append(d.pids, e.Pid)
	d.topics = append(d.topics, r.Envelope.Namespace+r.Envelope.Topic+" "+r.Envelope.Event.TypeUrl)
	return &emptypb.Empty{}, nil
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	_ = os.Remove(d.path)
	l, err := net.Listen("unix", d.path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the next one has the same path
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	d.server = server
	eventsapi.RegisterTTRPCEventsService(server, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(context.Background(), l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
}

func (d *daemon) got() []uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]uint32(nil), d.pids...)
}

func publisher(t *testing.T, address string) *events.Publisher {
	t.Helper()
	p := events.New(events.Options{Address: address, Namespace: "ns", Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = p.Close(ctx)
	})
	return p
}

func publish(t *testing.T, p *events.Publisher, first, last uint32) {
	t.Helper()
	for i := first; i <= last; i++ {
		if err := p.Publish(t.Context(), events.TopicExit, &taskevents.TaskExit{Pid: i}); err != nil {
			t.Fatal(err)
		}
	}
}

func checkOrder(t *testing.T, got []uint32, n uint32) {
	t.Helper()
	next := uint32(1)
	for _, pid := range got {
		if pid == next-1 && pid > 0 {
			continue // an attempt whose answer was lost
		}
		if pid != next {
			t.Fatalf("event %d came when %d was next: %v", pid, next, got)
		}
		next++
	}
	if next != n+1 {
		t.Errorf("want %d events, got %d", n, next-1)
	}
}

func TestOrderAndForm(t *testing.T) {
	d := newDaemon(t)
	d.start(t)
	p := publisher(t, "unix://"+d.path)
	publish(t, p, 1, 200)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkOrder(t, d.got(), 200)
	if d.topics[0] != "ns/tasks/exit containerd.events.TaskExit" || len(d.header) != 1 || d.header[0] != "ns" {
		t.Errorf("form: %q, header %q", d.topics[0], d.header)
	}
	if err := p.Publish(t.Context(), events.TopicExit, &taskevents.TaskExit{}); !errors.Is(err, events.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// containerd is away, comes, dies in the middle and comes again.
func TestRestarts(t *testing.T) {
	d := newDaemon(t)
	p := publisher(t, d.path)
	publish(t, p, 1, 50)
	d.start(t)
	var n uint32 = 50
	for range 3 {
		before := len(d.got())
		publish(t, p, n+1, n+100)
		n += 100
		for len(d.got()) <= before {
			<-time.After(time.Millisecond)
		}
		_ = d.server.Close()
		publish(t, p, n+1, n+50)
		n += 50
		d.start(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	checkOrder(t, d.got(), n)
}

func TestCloseIsBounded(t *testing.T) {
	p := publisher(t, filepath.Join(t.TempDir(), "nobody"))
	publish(t, p, 1, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	started := time.Now()
	if err := p.Close(ctx); err == nil || !strings.Contains(err.Error(), "3 not delivered") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

// The newest events survive when containerd is away for too long.
func TestQueueIsBounded(t *testing.T) {
	d := newDaemon(t)
	p := publisher(t, d.path)
	const n, limit = 6000, 4096
	publish(t, p, 1, n)
	d.start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	got := d.got()
	if len(got) < limit || len(got) > limit+1 || got[len(got)-1] != n {
		t.Errorf("got %d events, the last is %d", len(got), got[len(got)-1])
	}
}

// An event that containerd refuses does not hold up the rest for ever.
func TestRefused(t *testing.T) {
	d := newDaemon(t)
	d.refuse = "/refused"
	d.start(t)
	p := publisher(t, d.path)
	if err := p.Publish(t.Context(), d.refuse, &taskevents.TaskExit{Pid: 1000}); err != nil {
		t.Fatal(err)
	}
	publish(t, p, 1, 2)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkOrder(t, d.got(), 2)
}

func TestNotAnEvent(t *testing.T) {
	p := publisher(t, "/nobody")
	if err := p.Publish(t.Context(), "/x", strconv.Itoa); err == nil || !strings.Contains(err.Error(), "expected a message") {
		t.Errorf("got %v", err)
	}
}
