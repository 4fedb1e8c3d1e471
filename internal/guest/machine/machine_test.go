package machine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/guest/machine"
)

var env guesttest.Env

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == machine.PauseName {
		fmt.Fprintln(os.Stderr, machine.Pause())
		os.Exit(1)
	}
	guesttest.Main(m, &env)
}

// A container that shares the PID namespace sees its first process; one with
// CAP_SYS_PTRACE may go through it.
func TestThePauseProcessHasNothingOfTheAgent(t *testing.T) {
	env.Need(t)
	m := machine.New(machine.Options{Reaper: env.Reaper})
	path, err := m.SharedPIDs()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := m.SharedPIDs(); err != nil || again != path {
		t.Errorf("second call: %s, %v", again, err)
	}
	proc := filepath.Dir(filepath.Dir(path))
	entries, err := os.ReadDir(filepath.Join(proc, "root"))
	if err != nil || len(entries) != 0 {
		t.Errorf("its root has %v, %v, want nothing", entries, err)
	}
	raw, err := os.ReadFile(filepath.Join(proc, "mounts"))
	if err != nil || strings.Count(string(raw), "\n") != 1 {
		t.Errorf("its mounts: %q, %v, want one", raw, err)
	}
	tasks, err := os.ReadDir(filepath.Join(proc, "task"))
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		raw, err := os.ReadFile(filepath.Join(proc, "task", task.Name(), "status"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t4294967293\t4294967293\t4294967293\t4294967293\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n"} {
			if !strings.Contains(string(raw), want) {
				t.Errorf("thread %s: no %q in\n%s", task.Name(), want, raw)
			}
		}
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if target != "/dev/null" && !strings.HasPrefix(target, "anon_inode:") && !strings.HasPrefix(target, "pipe:") {
			t.Errorf("it has %s open", target)
		}
	}
	// SIGINT, SIGTERM and SIGHUP are ignored.
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	var ignored uint64
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "SigIgn:\t"); ok {
			if _, err := fmt.Sscanf(value, "%x", &ignored); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, sig := range []int{1, 2, 15} {
		if ignored&(1<<(sig-1)) == 0 {
			t.Errorf("signal %d is not ignored: %x", sig, ignored)
		}
	}
}
