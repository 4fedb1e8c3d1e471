package podstate_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

func cleaner() podstate.Cleaner { return podstate.Cleaner{Logger: slog.New(slog.DiscardHandler)} }

// process starts a process that ends when it is killed.
func process(t *testing.T) podstate.Process {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	p, err := podstate.Look("test", cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDir(t *testing.T) {
	if got, err := podstate.Dir("/run/coffer", "k8s.io", "0a-1_b.c"); err != nil || got != "/run/coffer/k8s.io/0a-1_b.c" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []struct{ root, ns, id string }{
		{"/r", "..", "a"}, {"/r", "a", "../b"}, {"/r", "a", ""}, {"/r", "a", "a..b"}, {"/r", "a", "-a"},
		{"/r", "a", strings.Repeat("a", 77)}, {"r", "a", "b"}, {"/r", "a", "b\n"},
	} {
		if got, err := podstate.Dir(bad.root, bad.ns, bad.id); err == nil {
			t.Errorf("%q: got %q", bad, got)
		}
	}
}

func TestUpdateAndRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns", "pod")
	f, err := podstate.Create(dir, podstate.State{ID: "pod", Namespace: "ns", Bundle: "/b"})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := f.Update(func(s *podstate.State) { s.Files = append(s.Files, "/x") }); err != nil {
				t.Error(err)
			}
			if _, err := podstate.Read(dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	got, err := podstate.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Files) != 20 || got.Version != 1 {
		t.Errorf("got %+v", got)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	// A late change must not bring it back.
	if err := f.Update(func(s *podstate.State) { s.NetNS = "x" }); err != nil {
		t.Error(err)
	}
	if _, err := podstate.Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestProcessIsNotAnother(t *testing.T) {
	p := process(t)
	if !p.Alive() {
		t.Fatal("not alive")
	}
	for name, other := range map[string]podstate.Process{
		"another start": {PID: p.PID, Start: p.Start + 1, Boot: p.Boot},
		"another boot":  {PID: p.PID, Start: p.Start, Boot: "x"},
		"no id":         {},
		"negative":      {PID: -1, Start: p.Start, Boot: p.Boot},
	} {
		if other.Alive() {
			t.Errorf("%s: alive", name)
		}
		if err := other.Signal(syscall.SIGKILL); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := other.Wait(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !p.Alive() {
		t.Fatal("a signal for another process met this one")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a living process: %v", err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil || p.Alive() {
		t.Errorf("after SIGKILL: %v, alive %v", err, p.Alive())
	}
}

// fill makes a pod that left everything there is to leave.
func fill(t *testing.T, dir string) podstate.State {
	t.Helper()
	extra := filepath.Join(t.TempDir(), "extra")
	if err := os.MkdirAll(filepath.Join(extra, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := podstate.State{
		ID: "pod", Namespace: "ns", Bundle: filepath.Join(t.TempDir(), "gone"), Shim: process(t),
		Machines: []podstate.Process{process(t), {PID: os.Getpid(), Start: 1, Boot: "another"}},
		NetNS:    "/run/netns/x", Files: []string{extra}, Socket: filepath.Join(t.TempDir(), "s"),
	}
	if err := os.WriteFile(s.Socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := podstate.Create(dir, s); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "more"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func checkGone(t *testing.T, dir string, s podstate.State) {
	t.Helper()
	if s.Shim.Alive() || s.Machines[0].Alive() {
		t.Error("a process still runs")
	}
	for _, path := range append(s.Files, s.Socket, dir) {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestClean(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns", "pod")
	s := fill(t, dir)
	c := cleaner()
	var released atomic.Int32
	c.Release = func(got podstate.State) error {
		if diff := cmp.Diff(s.NetNS, got.NetNS); diff != "" || got.Shim.Alive() {
			t.Errorf("release: %s; the shim is alive: %v", diff, got.Shim.Alive())
		}
		released.Add(1)
		return nil
	}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if err := c.Clean(t.Context(), dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	checkGone(t, dir, s)
	if n := released.Load(); n != 1 {
		t.Errorf("released %d times", n)
	}
}

// What cannot be removed stays noted, and the next attempt removes it.
func TestCleanAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns", "pod")
	s := fill(t, dir)
	c := cleaner()
	c.Release = func(podstate.State) error { return errors.New("no netlink") }
	if err := c.Clean(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "no netlink") {
		t.Errorf("got %v", err)
	}
	if s.Machines[0].Alive() {
		t.Error("the machine was spared")
	}
	if _, err := podstate.Read(dir); err != nil {
		t.Error(err)
	}
	c.Release = nil
	if err := c.Clean(t.Context(), dir); err != nil {
		t.Error(err)
	}
	checkGone(t, dir, s)
}

func TestCleanRefusesPaths(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	for _, path := range []string{"/", "relative", "/a/../b", ""} {
		if _, err := podstate.Create(dir, podstate.State{ID: "pod", Files: []string{path}}); err != nil {
			t.Fatal(err)
		}
		if err := cleaner().Clean(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "expected a clean absolute path") {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestCleanOfHalfMade(t *testing.T) {
	root := t.TempDir()
	if err := cleaner().Clean(t.Context(), filepath.Join(root, "none")); err != nil {
		t.Error(err)
	}
	empty := filepath.Join(root, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := cleaner().Clean(t.Context(), empty); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSweep(t *testing.T) {
	root := t.TempDir()
	bundle := t.TempDir()
	dead := podstate.Process{PID: os.Getpid(), Start: 1, Boot: "another"}
	for id, s := range map[string]podstate.State{
		"orphan":    {Shim: dead, Bundle: filepath.Join(bundle, "gone")},
		"asked-for": {Shim: dead, Bundle: bundle},
		"alive":     {Shim: process(t), Bundle: filepath.Join(bundle, "gone")},
	} {
		s.ID = id
		if _, err := podstate.Create(filepath.Join(root, "ns", id), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "other", "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := cleaner().Sweep(t.Context(), root); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(root, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(root, "ns", "alive"), filepath.Join(root, "ns", "asked-for"), filepath.Join(root, "other", "dir")}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"a","shim":{"pid":1,"start":2}}`))
	f.Add([]byte(`{"files":["/"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := podstate.Read(dir)
		if err == nil && s.Shim.Boot == "" && s.Shim.Alive() {
			t.Errorf("a process without a boot id is alive: %+v", s.Shim)
		}
	})
}

// TestLeave: what containerd has not asked for stays, for `delete`, which then
// removes it; without any nothing stays.
func TestLeave(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "ns", "pod")
	create := func() *podstate.File {
		f, err := podstate.Create(dir, podstate.State{ID: "pod", Socket: "/s", NetNS: "/n", Cgroups: []string{"/c"}, Files: []string{"/f"}, Bundle: root})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "more", "of it"), 0o700); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if err := create().Leave(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without an end: %v", err)
	}
	f := create()
	end := podstate.Exit{Status: 3, PID: 7, At: time.Unix(1e9, 0).UTC()}
	if err := f.Update(func(s *podstate.State) { s.Exits = map[string]podstate.Exit{"a": end} }); err != nil {
		t.Fatal(err)
	}
	if err := f.Leave(); err != nil {
		t.Fatal(err)
	}
	got, err := podstate.Read(dir)
	want := podstate.State{Version: 1, ID: "pod", Bundle: root, Exits: map[string]podstate.Exit{"a": end}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := f.Update(func(s *podstate.State) { s.Exits = nil }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := cleaner().Clean(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a cleaning: %v", err)
	}
}
