package faults

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// soon is how long the end of a pull may take that nobody wants any more: less
// than any time limit that could end it instead.
const soon = 15 * time.Second

// pulling begins the creation of a container whose registry is slow: it would
// take a minute.
func pulling(n *node, ctx context.Context) *life {
	n.t.Helper()
	n.reg.slow.Store(true)
	l := &life{app: n.container(nil), what: "the container's creation"}
	create := n.creation(l.app)
	done := make(chan error, 1)
	go func() { done <- create(ctx) }()
	l.pending = done
	n.until("blobs are on their way", func() bool { return n.reg.pulls.Load() > 0 })
	return l
}

// endings are what ends a pull that takes long.
var endings = []struct {
	name string
	do   func(n *node, l *life, giveUp context.CancelFunc)
	want string
	code codes.Code
	// again: the pod is well, and the container can be created again.
	again bool
}{
	{"machine killed", func(n *node, _ *life, _ context.CancelFunc) { n.kill(n.machine()) }, "(signal: killed); somebody on the node has killed it", codes.FailedPrecondition, false},
	{"registry killed", func(n *node, _ *life, _ context.CancelFunc) { n.reg.kill() }, "; check that the server runs, and that the pod's network lets it be reached", codes.FailedPrecondition, false},
	{"shim killed", func(n *node, _ *life, _ context.CancelFunc) { n.kill(n.shim) }, "ttrpc: closed", codes.Unknown, false},
	{"container killed", func(n *node, l *life, _ context.CancelFunc) {
		ctx, cancel := n.call()
		defer cancel()
		if _, err := n.task.Kill(ctx, &taskapi.KillRequest{ID: l.app, Signal: uint32(syscall.SIGKILL)}); err != nil {
			n.t.Errorf("kill: %v", err)
		}
	}, "it was killed before it was created", codes.Aborted, true},
	{"container deleted", func(n *node, l *life, _ context.CancelFunc) {
		ctx, cancel := n.call()
		defer cancel()
		if _, err := n.task.Delete(ctx, &taskapi.DeleteRequest{ID: l.app}); err == nil || !strings.Contains(err.Error(), "its creation is cancelled") {
			n.t.Errorf("delete: %v", err)
		}
	}, "it was deleted before it was created", codes.Aborted, true},
	{"kubelet gives up", func(_ *node, _ *life, giveUp context.CancelFunc) { giveUp() }, "", codes.Unknown, true},
}

// TestLongPull: a pull that takes long ends at once with what it is for, in the
// guest too, and leaves nothing.
func TestLongPull(t *testing.T) {
	need(t)
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.boot()
			ctx, cancel := n.call()
			defer cancel()
			l := pulling(n, ctx)
			begin := time.Now()
			e.do(n, l, func() { n.disconnect() })
			err := n.answer(l, patience)
			if took := time.Since(begin); took > soon {
				t.Errorf("the pull went on for %s", took)
			}
			n.says(err, e.want)
			if got := status.Code(err); e.code != codes.Unknown && got != e.code {
				t.Errorf("want code %v, got %v", e.code, got)
			}
			if e.again {
				n.pullsNoMore()
				n.againAndEnd(l.app)
				return
			}
			if n.alive() {
				n.conclude()
			} else {
				n.abandon()
			}
			n.expectClean()
		})
	}
}

// pullsNoMore: what was pulled is given up in the guest.
func (n *node) pullsNoMore() {
	n.t.Helper()
	begin := time.Now()
	n.until("the guest pulls no more", func() bool { return n.reg.pulls.Load() == 0 })
	if took := time.Since(begin); took > soon || n.reg.unread.Load() == 0 {
		n.t.Errorf("the guest has pulled to the end, for %s", took)
	}
}

// againAndEnd creates a container whose creation was given up.
func (n *node) againAndEnd(id string) {
	n.t.Helper()
	n.reg.slow.Store(false)
	if n.client == nil {
		if err := n.connect(n.address()); err != nil {
			n.t.Fatal(err)
		}
	}
	n.run(id)
	n.conclude()
	n.expectClean()
}

// TestPullTimeLimit: the caller's own time limit says that it was one, and which.
func TestPullTimeLimit(t *testing.T) {
	n := newNode(t)
	n.boot()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	l := pulling(n, ctx)
	err := n.answer(l, soon)
	// The connection's client may notice first; then the shim's words are in its log.
	text := n.logged()
	if err != nil {
		text += err.Error()
	}
	if !strings.Contains(text, "container app was not created within ") || !strings.Contains(text, "(kubelet: runtimeRequestTimeout)") {
		t.Errorf("want the limit and what to do, got %v", err)
	}
	n.pullsNoMore()
	n.againAndEnd(l.app)
}
