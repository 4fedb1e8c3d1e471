package task

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/host/cri"
)

// world is a service with a fake pod. Bundles are named by their id and kind.
type world struct {
	t   *testing.T
	s   *Service
	v3  V3
	pod *fakePod
	log *logBuffer

	mu        sync.Mutex
	bundles   map[string]*cri.Bundle
	events    []string
	shutdowns int
}

// logBuffer may be read while others write.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *logBuffer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *logBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

func newWorld(t *testing.T, change ...func(*Options)) *world {
	w := &world{t: t, pod: newFakePod(), bundles: map[string]*cri.Bundle{}, log: new(logBuffer)}
	o := Options{
		Read: func(_, id string) (*cri.Bundle, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if b := w.bundles[id]; b != nil {
				return b, nil
			}
			return nil, fmt.Errorf("bundle of %s: it is broken", id)
		},
		NewPod: func(context.Context, *cri.Bundle) (Pod, error) { return w.pod, nil },
		Publish: func(_ context.Context, topic string, event any) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, describe(topic, event))
			return nil
		},
		Shutdown: func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.shutdowns++
		},
		Logger: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	for _, c := range change {
		c(&o)
	}
	w.s = New(o)
	w.v3 = w.s.V3()
	return w
}

// close ends the service; what is left of its goroutines fails a synctest.
func (w *world) close() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := w.s.Close(ctx); err != nil {
		w.t.Errorf("Close: %v", err)
	}
}

func describe(topic string, event any) string {
	switch e := event.(type) {
	case *events.TaskCreate:
		return "create " + e.GetContainerID()
	case *events.TaskStart:
		return "start " + e.GetContainerID()
	case *events.TaskExit:
		if e.GetID() == e.GetContainerID() {
			return fmt.Sprintf("exit %s %d", e.GetContainerID(), e.GetExitStatus())
		}
		return fmt.Sprintf("exit %s/%s %d", e.GetContainerID(), e.GetID(), e.GetExitStatus())
	case *events.TaskDelete:
		return fmt.Sprintf("delete %s %d", e.GetContainerID(), e.GetExitStatus())
	case *events.TaskExecAdded:
		return "exec-added " + e.GetContainerID() + "/" + e.GetExecID()
	case *events.TaskExecStarted:
		return "exec-started " + e.GetContainerID() + "/" + e.GetExecID()
	case *events.TaskOOM:
		return "oom " + e.GetContainerID()
	}
	return topic
}

func (w *world) bundle(kind cri.Kind, id string, args ...string) {
	b := &cri.Bundle{Kind: kind, SandboxID: "pod"}
	if kind != cri.KindContainer {
		b.Sandbox = &cri.Sandbox{ID: id}
	}
	if kind != cri.KindSandbox {
		b.Container = &cri.Container{ID: id, Name: id, Spec: &specs.Spec{Process: &specs.Process{Args: args}}}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bundles[id] = b
}

// must fails the test with an error.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) create(id string) {
	w.t.Helper()
	must[*api.CreateTaskResponse](w.t)(w.v3.Create(w.t.Context(), &api.CreateTaskRequest{ID: id, Bundle: "/b/" + id}))
}

func (w *world) start(id, exec string) {
	w.t.Helper()
	must[*api.StartResponse](w.t)(w.v3.Start(w.t.Context(), &api.StartRequest{ID: id, ExecID: exec}))
}

func (w *world) kill(id, exec string, signal uint32) error {
	_, err := w.v3.Kill(w.t.Context(), &api.KillRequest{ID: id, ExecID: exec, Signal: signal})
	return err
}

func (w *world) wait(id, exec string) *api.WaitResponse {
	w.t.Helper()
	return must[*api.WaitResponse](w.t)(w.v3.Wait(w.t.Context(), &api.WaitRequest{ID: id, ExecID: exec}))
}

func (w *world) delete(id, exec string) *api.DeleteResponse {
	w.t.Helper()
	return must[*api.DeleteResponse](w.t)(w.v3.Delete(w.t.Context(), &api.DeleteRequest{ID: id, ExecID: exec}))
}

func (w *world) state(id, exec string) string {
	r, err := w.v3.State(w.t.Context(), &api.StateRequest{ID: id, ExecID: exec})
	if err != nil {
		return "none"
	}
	return strings.ToLower(r.GetStatus().String())
}

func (w *world) exec(id, exec string, args ...string) error {
	_, err := w.v3.Exec(w.t.Context(), &api.ExecProcessRequest{ID: id, ExecID: exec, Spec: anyOf(w.t, "Process", specs.Process{Args: args, Cwd: "/"})})
	return err
}

// anyOf puts a value into a request as containerd does.
func anyOf(t *testing.T, name string, v any) *anypb.Any {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/" + name, Value: b}
}

// sandbox boots the pod and starts its sandbox.
func (w *world) sandbox() {
	w.t.Helper()
	w.bundle(cri.KindSandbox, "pod")
	w.create("pod")
	w.start("pod", "")
}

// run creates and starts a container.
func (w *world) run(id string, args ...string) {
	w.t.Helper()
	w.bundle(cri.KindContainer, id, args...)
	w.create(id)
	w.start(id, "")
}

// told is the events so far.
func (w *world) told() []string {
	w.t.Helper()
	if err := w.s.events.flush(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// about is the events of one container.
func (w *world) about(id string) []string {
	w.t.Helper()
	var out []string
	for _, e := range w.told() {
		if name := strings.Fields(e)[1]; name == id || strings.HasPrefix(name, id+"/") {
			out = append(out, e)
		}
	}
	return out
}

func (w *world) expect(got []string, want ...string) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		w.t.Errorf("events:\nexpected %q\ngot      %q\nlog:\n%s", want, got, w.log)
	}
}

// in runs a test in a bubble of its own, with a clock that does not wait.
func in(t *testing.T, f func(t *testing.T, w *world), change ...func(*Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, change...)
		defer w.close()
		f(t, w)
	})
}
