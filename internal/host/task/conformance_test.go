package task

import (
	"context"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	v2 "github.com/containerd/containerd/api/runtime/task/v2"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/stdio"
	"github.com/coffer-project/coffer/internal/host/task/tasktest"
)

// The suite, over a socket, by both versions of the API.
func TestConformance(t *testing.T) {
	for _, version := range []string{"v2", "v3"} {
		before := runtime.NumGoroutine()
		t.Run(version, func(t *testing.T) { conform(t, version) })
		// Nothing of the service or its streams is left; what ttrpc leaves goes
		// soon.
		deadline := time.Now().Add(10 * time.Second)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > before {
			buf := make([]byte, 1<<20)
			t.Errorf("%s: %d goroutines more than before:\n%s", version, n-before, buf[:runtime.Stack(buf, true)])
		}
	}
}

func conform(t *testing.T, version string) {
	var mu sync.Mutex
	var told []any
	w := newWorld(t, func(o *Options) {
		o.Publish = func(_ context.Context, _ string, event any) error {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, event)
			return nil
		}
		o.Times.Drain = stdio.Bound{Idle: 200 * time.Millisecond, Total: 5 * time.Second}
	})
	defer w.close()
	client := serve(t, w.s)
	task := api.NewTTRPCTaskClient(client)
	if version == "v2" {
		task = tasktest.V2(v2.NewTTRPCTaskClient(client))
	}
	e := &tasktest.Environment{
		Task: task, Sandbox: "pod", Dir: t.TempDir(),
		Bundle: func(id string, args []string, _ bool) (string, error) {
			kind := cri.KindContainer
			if args == nil {
				kind = cri.KindSandbox
			}
			w.bundle(kind, id, args...)
			return "/b/" + id, nil
		},
		Events: func() []any {
			mu.Lock()
			defer mu.Unlock()
			return told[:len(told):len(told)]
		},
	}
	for _, c := range tasktest.Cases() {
		t.Run(strings.ReplaceAll(c.Name, " ", "-"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := c.Run(ctx, e); err != nil {
				t.Error(err)
			}
		})
	}
	if t.Failed() {
		t.Logf("log:\n%s", w.log)
	}
}

// serve offers the service on a socket.
func serve(t *testing.T, s *Service) *ttrpc.Client {
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	s.RegisterV2(server)
	s.RegisterV3(server)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(context.Background(), l) })
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() {
		client.Close()
		server.Close()
		serving.Wait()
	})
	return client
}
