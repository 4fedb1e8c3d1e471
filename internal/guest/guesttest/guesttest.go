// Package guesttest lets the tests of guest packages run real containers on
// an ordinary Linux machine. It is imported by tests only.
package guesttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/reaper"
)

// marker is set in the process that runs inside the namespaces.
const marker = "COFFER_TEST_NAMESPACES"

// Env is what a test of containers works in: fresh mount, process, network,
// UTS and IPC namespaces in which the test program is PID 1 and cgroup2 is
// mounted, as in a guest. Nothing of it is left when the test program ends.
type Env struct {
	// Reaper collects every child of the test program.
	Reaper *reaper.Reaper
	// Missing says why containers cannot be run here; nil if they can.
	Missing error
}

// Main is a TestMain: it runs m inside namespaces where that is possible, and
// as usual where it is not; then Env.Need skips.
func Main(m *testing.M, env *Env) {
	if os.Getenv(marker) == "" {
		err := prerequisites()
		if slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz") }) {
			err = errors.New("fuzzing starts processes of its own")
		}
		if err != nil {
			env.Missing = err
			os.Exit(m.Run())
		}
		os.Exit(enter())
	}
	if err := prepare(); err != nil {
		env.Missing = err
	}
	reap, err := reaper.New(time.Now)
	if err != nil {
		fmt.Fprintln(os.Stderr, "guesttest:", err)
		os.Exit(1)
	}
	env.Reaper = reap
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = env.Reaper.Run(ctx) }()
	code := m.Run()
	cancel()
	<-ended
	os.Exit(code)
}

// Need skips a test where containers cannot be run, with the reason.
func (e *Env) Need(t *testing.T) {
	t.Helper()
	if e.Missing != nil {
		if os.Getenv("COFFER_REQUIRE_VM") != "" {
			t.Fatalf("real containers cannot be run here, and COFFER_REQUIRE_VM is set: %v", e.Missing)
		}
		t.Skipf("real containers cannot be run here: %v", e.Missing)
	}
}

// Crun is the runtime's program.
const Crun = "/usr/bin/crun"

func prerequisites() error {
	if os.Getuid() != 0 {
		return errors.New("not root")
	}
	for _, p := range []string{Crun, "/bin/busybox"} {
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("%w (Debian packages crun and busybox-static)", err)
		}
	}
	return nil
}

// enter runs this program again inside namespaces.
func enter() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guesttest:", err)
		return 1
	}
	return 0
}

// prepare mounts what a guest has.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	// Whatever cgroup layout the machine has is covered up.
	if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("cover cgroups: %w", err)
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	return nil
}

// Rootfs makes a root directory with busybox and its shell in it.
func Rootfs(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "echo", "id", "ls", "sleep", "stty", "hostname", "true", "mkdir", "touch", "env"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// ShortDir is a temporary directory whose path leaves room for socket names.
func ShortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cof")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Tmpfs is a temporary directory on a tmpfs of its own, as a guest's are.
func Tmpfs(t *testing.T) string {
	t.Helper()
	dir := ShortDir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// Cgroup is the name of a control group below /sys/fs/cgroup for the containers of a
// test. With the test it ends, and so does what runs in it: the hierarchy is the
// machine's, whoever else has it mounted.
func Cgroup(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/sys/fs/cgroup", "coffer-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeCgroup(dir); err != nil {
			t.Error(err)
		}
	})
	return "/" + filepath.Base(dir)
}

// removeCgroup kills what is in a group and removes it. The kernel takes processes
// out of their groups a little after they were killed, and tells (cgroups(7),
// cgroup.events).
func removeCgroup(dir string) error {
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		buf := make([]byte, 256)
		n, err := events.ReadAt(buf, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		left := time.Until(deadline)
		if bytes.Contains(buf[:n], []byte("populated 0")) || left <= 0 {
			return removeGroups(dir)
		}
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func removeGroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}
