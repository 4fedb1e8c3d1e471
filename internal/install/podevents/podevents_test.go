package podevents

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/install/kubeapi"
)

// server is an API server that keeps events.
type server struct {
	mu     sync.Mutex
	events map[string]kubeapi.Event
	asked  []time.Time
	fail   func(kubeapi.Event) error
	posted chan kubeapi.Event
}

func newServer() *server {
	return &server{events: map[string]kubeapi.Event{}, posted: make(chan kubeapi.Event, 1000)}
}

func (s *server) CreateEvent(_ context.Context, e kubeapi.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, time.Now())
	if s.fail != nil {
		if err := s.fail(e); err != nil {
			return err
		}
	}
	if _, there := s.events[e.Name]; there {
		return kubeapi.ErrExists
	}
	s.events[e.Name] = e
	s.posted <- e
	return nil
}

func (s *server) set(fail func(kubeapi.Event) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func (s *server) counts() (events, asked int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events), len(s.asked)
}

// someone is a pod's.
func someone(name string) notice.Pod {
	return notice.Pod{ID: "box-" + name, Namespace: "shop", Name: name, UID: "uid-" + name}
}

func about(pod notice.Pod, messages ...string) []notice.Notice {
	var all []notice.Notice
	for _, m := range messages {
		all = append(all, notice.Notice{Pod: pod, At: time.Now(), Reason: notice.Refused, Message: m})
	}
	return all
}

func poster(s *server, dirs ...string) *Poster {
	return &Poster{Dirs: func() []string { return dirs }, API: s, Node: "n1", Every: time.Hour, Logger: slog.New(slog.DiscardHandler)}
}

// write adds a notice as the pod's shim does.
func write(t *testing.T, state string, pod notice.Pod, r notice.Reason, message string) {
	t.Helper()
	dir := filepath.Join(state, "k8s.io", pod.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := notice.New(dir, time.Now).Add(pod, r, message); err != nil {
		t.Fatal(err)
	}
}

// TestRun: files that come, change and go are noticed without waiting for the
// next round, which is an hour away.
func TestRun(t *testing.T) {
	t.Parallel()
	run, s := t.TempDir(), newServer()
	state := filepath.Join(run, "coffer")
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { poster(s, filepath.Join(run, "none"), state, filepath.Join(run, "no/where")).Run(ctx) })
	<-time.After(500 * time.Millisecond) // after a boot, none of it is there
	write(t, state, someone("first"), notice.Unsealed, "no policy")
	next := func(want string) kubeapi.Event {
		t.Helper()
		select {
		case e := <-s.posted:
			if got := e.Namespace + "/" + e.Pod + " " + e.UID + " " + e.Reason + ": " + e.Message; got != want || e.Node != "n1" || e.At.IsZero() {
				t.Errorf("got %q (%+v), want %q", got, e, want)
			}
			return e
		case <-time.After(20 * time.Second):
			t.Fatalf("no event for %q", want)
		}
		return kubeapi.Event{}
	}
	if e := next("shop/first uid-first Unsealed: no policy"); !e.Warning || !regexp.MustCompile(`^first\.[0-9a-f]{32}$`).MatchString(e.Name) {
		t.Errorf("%+v", e)
	}
	write(t, state, someone("second"), notice.Closed, "no logs")
	if e := next("shop/second uid-second StreamClosed: no logs"); e.Warning {
		t.Errorf("%+v", e)
	}
	// The same directory, another text; and one who is not in Kubernetes.
	write(t, state, notice.Pod{ID: "alone"}, notice.Refused, "of ctr")
	write(t, state, someone("second"), notice.Refused, "no exec")
	next("shop/second uid-second Refused: no exec")
	if err := os.RemoveAll(filepath.Join(state, "k8s.io")); err != nil {
		t.Fatal(err)
	}
	write(t, state, someone("third"), notice.Volume, "copied")
	next("shop/third uid-third Volume: copied")
	cancel()
	running.Wait()
	if n, _ := s.counts(); n != 4 {
		t.Errorf("%d events", n)
	}
}

// TestRestart: another run repeats nothing.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := newServer()
	for range 3 {
		p := poster(s)
		for range 3 {
			if !p.round(t.Context(), about(someone("a"), "1", "2")) {
				t.Error("it failed")
			}
		}
	}
	if events, asked := s.counts(); events != 2 || asked != 6 {
		t.Errorf("%d events of %d requests", events, asked)
	}
}

// TestServerAway: it is asked ever more rarely, and gets everything once when it
// is back.
func TestServerAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.set(func(kubeapi.Event) error { return errors.New("connection refused") })
		p := poster(s)
		w := &watcher{log: p.Logger, changed: make(chan struct{}, 1), done: make(chan struct{})}
		all := about(someone("a"), "1", "2", "3")
		var pause time.Duration
		for range 60 {
			if p.round(t.Context(), all) {
				t.Fatal("it did not fail")
			}
			pause = min(max(2*pause, firstRetry), lastRetry)
			w.changed <- struct{}{} // in the meantime
			if !w.wait(t.Context(), pause, p.Every) {
				t.Fatal("it ended")
			}
			<-w.changed
		}
		if _, asked := s.counts(); asked != 60 {
			t.Errorf("%d requests, expected one of each round", asked)
		}
		s.set(nil)
		if !p.round(t.Context(), all) {
			t.Error("it failed")
		}
		if events, _ := s.counts(); events != 3 {
			t.Errorf("%d events", events)
		}
	})
}

// TestRunBacksOff: the loop itself, from failure to success.
func TestRunBacksOff(t *testing.T) {
	t.Parallel()
	state, s := t.TempDir(), newServer()
	write(t, state, someone("a"), notice.Refused, "1")
	write(t, state, someone("b"), notice.Refused, "2")
	s.set(func(kubeapi.Event) error { return kubeapi.ErrUnauthorized })
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { poster(s, state).Run(ctx) })
	for { // two rounds
		if _, asked := s.counts(); asked >= 2 {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	s.set(nil)
	for range 2 {
		select {
		case <-s.posted:
		case <-time.After(20 * time.Second):
			t.Fatal("it has given up")
		}
	}
	cancel()
	running.Wait()
	if d := s.asked[1].Sub(s.asked[0]); d < firstRetry {
		t.Errorf("it was asked again after %s", d)
	}
}

// TestRefusals: what one pod's event meets does not keep others waiting.
func TestRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		tried := map[string]int{}
		s.set(func(e kubeapi.Event) error {
			tried[e.Pod]++
			switch e.Pod {
			case "bad":
				return fmt.Errorf("message: %w", kubeapi.ErrInvalid)
			case "gone":
				return kubeapi.ErrNotFound
			case "ending":
				return kubeapi.ErrForbidden
			}
			return nil
		})
		p := poster(s)
		all := slices.Concat(about(someone("bad"), "1"), about(someone("gone"), "1"), about(someone("ending"), "1"), about(someone("good"), "1"))
		for range 600 {
			if !p.round(t.Context(), all) {
				t.Fatal("the server is taken for broken")
			}
			<-time.After(time.Second)
		}
		if tried["bad"] != 1 || tried["gone"] != 1 || tried["good"] != 1 || tried["ending"] < 5 || tried["ending"] > 13 {
			t.Errorf("%v", tried)
		}
		if p.round(t.Context(), nil); len(p.known) != 0 {
			t.Errorf("%d notices that are gone are kept", len(p.known))
		}
	})
}

// TestEnd: a run that has ended posts nothing, and does not take that for a
// failure of the server's.
func TestEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := newServer()
	s.set(func(kubeapi.Event) error { cancel(); return ctx.Err() })
	p := poster(s)
	if p.round(ctx, about(someone("a"), "1", "2")) {
		t.Error("it goes on")
	}
	p.Run(ctx)
	if _, asked := s.counts(); asked != 1 {
		t.Errorf("%d requests", asked)
	}
}

// TestNames are subdomains of DNS, however long or strange a pod's is.
func TestNames(t *testing.T) {
	t.Parallel()
	subdomain := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	for _, name := range []string{"a", strings.Repeat("a", 253), strings.Repeat("a", 218) + "--." + strings.Repeat("b", 32), "a.b", "_", "a_"} {
		n := about(notice.Pod{Namespace: "x", Name: name, UID: "u"}, "m")[0]
		if got := eventName(n); len(got) > 253 || !subdomain.MatchString(got) || !strings.HasSuffix(got, n.Key()) {
			t.Errorf("%q: %q", name, got)
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	n := about(someone("a"), "m")[0]
	for _, at := range []time.Time{{}, time.Now().Add(time.Hour)} {
		n.At = at
		if d := time.Since(poster(newServer()).event(n).At); d < 0 || d > time.Minute {
			t.Errorf("%s became %s ago", at, d)
		}
	}
}
