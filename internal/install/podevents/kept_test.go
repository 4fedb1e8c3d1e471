package podevents

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/install/kubeapi"
)

// end removes a pod as its shim does.
func end(t *testing.T, state string, pod notice.Pod) {
	t.Helper()
	dir := filepath.Join(state, "k8s.io", pod.ID)
	if err := notice.Keep(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// turn is one of Run's.
func (p *Poster) turn(t *testing.T) bool {
	t.Helper()
	places := p.look(t.Context(), p.Dirs())
	well := p.round(t.Context(), flat(places))
	p.settle(t.Context(), places)
	return well
}

func kept(t *testing.T, state string) int {
	t.Helper()
	all, err := notice.Kept(state, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func away(kubeapi.Event) error { return errors.New("connection refused") }

// TestEndsWhileAway: pods end while this program, or the API server, is away. What
// they had to say is posted once, late, with its own time.
func TestEndsWhileAway(t *testing.T) {
	t.Parallel()
	state, s := t.TempDir(), newServer()
	write(t, state, someone("a"), notice.Refused, "no exec")
	end(t, state, someone("a")) // nobody was there
	noticed := time.Now()
	s.set(away)
	first := poster(s, state)
	write(t, state, someone("b"), notice.Refused, "no exec")
	if first.turn(t) {
		t.Error("the server does not seem to be away")
	}
	end(t, state, someone("b"))
	if first.turn(t) || kept(t, state) != 2 {
		t.Errorf("%d are kept", kept(t, state))
	}
	<-time.After(20 * time.Millisecond)
	s.set(nil)
	for _, p := range []*Poster{first, first, poster(s, state)} {
		if !p.turn(t) {
			t.Error("it failed")
		}
	}
	if events, asked := s.counts(); events != 2 || asked != 4 || kept(t, state) != 0 {
		t.Errorf("%d events of %d requests, %d are kept", events, asked, kept(t, state))
	}
	if at := (<-s.posted).At; at.After(noticed) {
		t.Errorf("its time is that of the posting, %s later", at.Sub(noticed))
	}
}

// TestForgottenByServer: the API server keeps events for an hour. What was posted of
// a pod that still runs, or has ended since, is not posted again by another run.
func TestForgottenByServer(t *testing.T) {
	t.Parallel()
	state, s := t.TempDir(), newServer()
	write(t, state, someone("a"), notice.Unsealed, "no policy")
	write(t, state, someone("b"), notice.Unsealed, "no policy")
	if !poster(s, state).turn(t) {
		t.Error("it failed")
	}
	s.events = map[string]kubeapi.Event{}
	write(t, state, someone("c"), notice.Unsealed, "no policy")
	end(t, state, someone("b"))
	if info, err := os.Stat(filepath.Join(state, marksName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for range 2 {
		if !poster(s, state).turn(t) {
			t.Error("it failed")
		}
	}
	if events, asked := s.counts(); events != 1 || asked != 3 || kept(t, state) != 0 {
		t.Errorf("%d events of %d requests, %d are kept", events, asked, kept(t, state))
	}
	// With the last pod its notes go.
	end(t, state, someone("a"))
	end(t, state, someone("c"))
	poster(s, state).turn(t)
	if entries, err := os.ReadDir(filepath.Join(state, notice.KeptName)); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if _, asked := s.counts(); asked != 3 {
		t.Errorf("%d requests", asked)
	}
}

// TestNotesFail: on a full disk, or beside a file that is no notes of ours, all is
// posted, and once by one run.
func TestNotesFail(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, state string){
		"no directory": func(t *testing.T, state string) {
			if err := os.WriteFile(filepath.Join(state, notice.KeptName), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"notes of others": func(t *testing.T, state string) {
			if err := os.MkdirAll(filepath.Join(state, notice.KeptName), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(state, marksName), []byte("\x00 .. \xff\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"notes cannot be written": func(t *testing.T, state string) {
			if err := os.MkdirAll(filepath.Join(state, notice.KeptName, ".posted.new"), 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			state, s := t.TempDir(), newServer()
			spoil(t, state)
			write(t, state, someone("a"), notice.Unsealed, "no policy")
			p := poster(s, state)
			for range 3 {
				if !p.turn(t) {
					t.Error("it failed")
				}
			}
			if events, asked := s.counts(); events != 1 || asked != 1 {
				t.Errorf("%d events of %d requests", events, asked)
			}
		})
	}
}

// TestRunTellsOfEnded: the loop notices what is kept without waiting for its next
// round, an hour away.
func TestRunTellsOfEnded(t *testing.T) {
	t.Parallel()
	state, s := t.TempDir(), newServer()
	p := poster(s, state)
	p.Logger = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	defer running.Wait()
	defer cancel()
	<-time.After(300 * time.Millisecond)
	// Made elsewhere, so that nothing of it is seen before.
	other := t.TempDir()
	write(t, other, someone("a"), notice.Refused, "no exec")
	end(t, other, someone("a"))
	if err := os.Rename(filepath.Join(other, notice.KeptName), filepath.Join(state, notice.KeptName)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.posted:
	case <-time.After(20 * time.Second):
		t.Fatal("it was not posted")
	}
	for limit := time.Now().Add(20 * time.Second); kept(t, state) > 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("it is still kept")
		}
	}
}
