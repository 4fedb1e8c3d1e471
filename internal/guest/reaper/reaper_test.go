package reaper_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/reaper"
)

// One reaper for the whole test program: it collects every child there is.
var shared *reaper.Reaper

func TestMain(m *testing.M) {
	var err error
	if shared, err = reaper.New(time.Now); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = shared.Run(ctx) }()
	code := m.Run()
	cancel()
	<-ended
	os.Exit(code)
}

func shell(t *testing.T, script string, out *os.File) *reaper.Process {
	t.Helper()
	p, err := shared.Start("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Files: []*os.File{nil, out, nil}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		script string
		code   int
		signal unix.Signal
	}{
		{"exit 0", 0, 0},
		{"exit 42", 42, 0},
		{"kill -9 $$", 137, unix.SIGKILL},
	} {
		got, err := shell(t, tt.script, nil).Wait(t.Context())
		if err != nil || got.Code != tt.code || got.Signal != tt.signal || got.At.IsZero() {
			t.Errorf("%s: %+v, %v, want code %d, signal %d", tt.script, got, err, tt.code, tt.signal)
		}
	}
}

func TestManyShortProcesses(t *testing.T) {
	t.Parallel()
	var ps []*reaper.Process
	for i := range 50 {
		ps = append(ps, shell(t, "exit "+strconv.Itoa(i), nil))
	}
	for i, p := range ps {
		if got, err := p.Wait(t.Context()); err != nil || got.Code != i {
			t.Errorf("process %d: %+v, %v", i, got, err)
		}
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	if _, err := shared.Start("/nonexistent", []string{"x"}, &os.ProcAttr{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error = %v, want not exist", err)
	}
}

func TestSignal(t *testing.T) {
	t.Parallel()
	p := shell(t, "exec sleep 1000", nil)
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	got, err := p.Wait(t.Context())
	if err != nil || got.Signal != unix.SIGTERM {
		t.Fatalf("status %+v, %v", got, err)
	}
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, reaper.ErrExited) {
		t.Errorf("signal after the end: %v, want ErrExited", err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	p := shell(t, "exec sleep 1000", nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	_ = p.Signal(unix.SIGKILL)
	<-p.Done()
}

// orphan starts a process whose parent has ended when it returns. It waits for
// the returned function and then ends with code 7.
func orphan(t *testing.T) (pid int, release func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	holdR, holdW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holdR.Close() }()
	parent, err := shared.Start("/bin/sh", []string{"sh", "-c", "(read x <&3; exit 7) >/dev/null & echo $!"},
		&os.ProcAttr{Files: []*os.File{nil, w, nil, holdR}})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	<-parent.Done()
	pid, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return pid, func() { _ = holdW.Close() }
}

func TestClaimOfAnOrphan(t *testing.T) {
	t.Parallel()
	claim := shared.Claim()
	defer claim.Release()
	pid, release := orphan(t)
	p, err := claim.Watch(pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim.Watch(pid); err == nil {
		t.Error("the process was watched twice")
	}
	release()
	if got, err := p.Wait(t.Context()); err != nil || got.Code != 7 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestClaimOfAnOrphanThatHasEnded(t *testing.T) {
	t.Parallel()
	claim := shared.Claim()
	defer claim.Release()
	pid, release := orphan(t)
	release()
	for unix.Kill(pid, 0) == nil { // until it has been collected
		runtime.Gosched()
	}
	p, err := claim.Watch(pid)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Wait(t.Context()); err != nil || got.Code != 7 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestClaimOfAStranger(t *testing.T) {
	t.Parallel()
	claim := shared.Claim()
	defer claim.Release()
	if _, err := claim.Watch(1); err == nil {
		t.Error("process 1 was accepted as a child")
	}
}
