package pod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOOMScore: the machine is judged by what the specifications of its containers
// say, and never as its shim.
func TestOOMScore(t *testing.T) {
	t.Parallel()
	w := newWorld()
	p := New(w.options(config(t)))
	s := aSandbox()
	s.OOMScore = -998
	if err := p.Boot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	create := func(id string, score *int) {
		t.Helper()
		c := aContainer(id)
		c.Spec.Process.OOMScoreAdj = score
		if err := p.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(id string) {
		t.Helper()
		if err := p.Delete(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	create("init", new(900))
	remove("init") // it keeps what it has until there is another
	create("app", new(950))
	create("side", new(1000)) // it is not to be killed for this one
	create("silent", nil)
	create("worthy", new(-997))
	if err := p.Delete(t.Context(), "worthy", "exec"); err != nil {
		t.Fatal(err)
	}
	remove("worthy")
	remove("app")
	w.machine.agent.err = errStep
	c := aContainer("failed")
	c.Spec.Process.OOMScoreAdj = new(3)
	if err := p.Create(t.Context(), c); err == nil {
		t.Fatal("it was created")
	}
	if got, want := fmt.Sprint(w.scores), "[-998 900 950 -997 950 1000 3 1000]"; got != want {
		t.Errorf("set to %s, want %s", got, want)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := len(w.scores)
	if _ = p.Delete(t.Context(), "side", ""); len(w.scores) != before {
		t.Error("that of a machine that has ended was set")
	}
}

// TestOOMScoreUnsaid: without a word of the specification it is that of any
// process, not the shim's.
func TestOOMScoreUnsaid(t *testing.T) {
	t.Parallel()
	w := newWorld()
	p := New(w.options(config(t)))
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	if err := p.Create(t.Context(), aContainer("app")); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(w.scores); got != "[0]" {
		t.Errorf("set to %s", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestOOMScoreNotAllowed: the pod runs, and a person is told, once.
func TestOOMScoreNotAllowed(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.scoreErr = fmt.Errorf("set it to -997: %w", unix.EPERM)
	p := New(w.options(config(t)))
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c := aContainer(fmt.Sprint("c", i))
		c.Spec.Process.OOMScoreAdj = new(-997 + i)
		if err := p.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(w.warnings, "\n"); strings.Count(got, "Degraded: the machine's OOM score is not the pod's") != 1 || !strings.Contains(got, "operation not permitted") {
		t.Errorf("warnings: %s", got)
	}
}

// TestSetOOMScore: of a child, and of nobody else.
func TestSetOOMScore(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	read := func(pid int) string {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	own := read(os.Getpid())
	for _, score := range []int{700, 1000} {
		if err := setOOMScore(pid, score); err != nil || read(pid) != strconv.Itoa(score) {
			t.Errorf("want %d, got %s, %v", score, read(pid), err)
		}
	}
	if err := setOOMScore(pid, 1001); !errors.Is(err, unix.EINVAL) {
		t.Errorf("1001: %v", err)
	}
	if err := setOOMScore(os.Getpid(), 999); err != nil || read(os.Getpid()) != own {
		t.Errorf("of a process that is no child: %s, was %s; %v", read(os.Getpid()), own, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := setOOMScore(pid, 700); err != nil {
		t.Errorf("of one that has ended: %v", err)
	}
}
