package container_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
)

var env guesttest.Env

func TestMain(m *testing.M) { guesttest.Main(m, &env) }

func newCrun(t *testing.T) *container.Crun {
	t.Helper()
	env.Need(t)
	dir := guesttest.ShortDir(t)
	c, err := container.NewCrun(container.Options{
		Path: guesttest.Crun, StateDir: filepath.Join(dir, "s"), BundleDir: filepath.Join(dir, "b"),
		CgroupRoot: "/sys/fs/cgroup", CgroupParent: guesttest.Cgroup(t), Reaper: env.Reaper,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func config(t *testing.T, args ...string) container.Config {
	t.Helper()
	return container.Config{
		Rootfs: guesttest.Rootfs(t), Args: args, Env: []string{"PATH=/bin"}, Cwd: "/",
		NoNewPrivileges: true, WithoutDeviceRules: true,
	}
}

func create(t *testing.T, c *container.Crun, id string, cfg container.Config, streams container.IO) *container.Container {
	t.Helper()
	spec, err := container.Spec(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctr, err := c.Create(t.Context(), id, spec, streams)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ctr.Delete(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		ctr.Init.CloseIO()
	})
	return ctr
}

func start(t *testing.T, ctr *container.Container) {
	t.Helper()
	if err := ctr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, r io.Reader) string {
	t.Helper()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestRun(t *testing.T) {
	cfg := config(t, "/bin/sh", "-c", "echo out; echo err >&2; cat; id -u; id -g; echo $FOO; exit 7")
	cfg.UID, cfg.GID, cfg.Groups = 1000, 1001, []uint32{2000}
	cfg.Env = append(cfg.Env, "FOO=bar baz")
	ctr := create(t, newCrun(t), "run", cfg, container.IO{Stdin: true})
	select {
	case <-ctr.Init.Done():
		t.Fatal("ended before it was started")
	default:
	}
	start(t, ctr)
	if _, err := ctr.Init.Stdin.Write([]byte("in\n")); err != nil {
		t.Fatal(err)
	}
	_ = ctr.Init.Stdin.Close()
	if got, want := read(t, ctr.Init.Stdout), "out\nin\n1000\n1001\nbar baz\n"; got != want {
		t.Errorf("stdout = %q, want %q", got, want)
	}
	if got := read(t, ctr.Init.Stderr); got != "err\n" {
		t.Errorf("stderr = %q", got)
	}
	status, err := ctr.Init.Wait(t.Context())
	if err != nil || status.Code != 7 {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestExec(t *testing.T) {
	cfg := config(t, "/bin/sleep", "1000")
	ctr := create(t, newCrun(t), "exec", cfg, container.IO{})
	start(t, ctr)
	process, err := container.ExecProcess(cfg, []string{"/bin/sh", "-c", "pwd; cat; exit 3"}, cfg.Env, "/tmp", false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ctr.Exec(t.Context(), "init", process, container.IO{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIO()
	if _, err := p.Stdin.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = p.Stdin.Close()
	if got := read(t, p.Stdout); got != "/tmp\nhello" {
		t.Errorf("stdout = %q", got)
	}
	if status, err := p.Wait(t.Context()); err != nil || status.Code != 3 {
		t.Errorf("status %+v, %v", status, err)
	}
	process.Args = []string{"/nonexistent"}
	if _, err := ctr.Exec(t.Context(), "two", process, container.IO{}); err == nil || !strings.Contains(err.Error(), "nonexistent") {
		t.Errorf("exec of a missing program: %v", err)
	}
	if err := ctr.SignalAll(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, err := ctr.Init.Wait(t.Context()); err != nil || status.Signal != unix.SIGKILL {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestTerminal(t *testing.T) {
	cfg := config(t, "/bin/sh", "-c", "cat >/dev/null; stty size")
	cfg.Terminal = true
	ctr := create(t, newCrun(t), "tty", cfg, container.IO{Terminal: true, Stdin: true})
	if err := ctr.Init.Resize(101, 37); err != nil {
		t.Fatal(err)
	}
	start(t, ctr)
	if _, err := ctr.Init.Stdin.Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	_ = ctr.Init.Stdin.Close() // control-D
	out := read(t, ctr.Init.Stdout)
	if !strings.Contains(out, "typed") || !strings.Contains(out, "37 101") {
		t.Errorf("terminal output %q", out)
	}
}

func TestCreateFailsAndLeavesNothing(t *testing.T) {
	c := newCrun(t)
	cfg := config(t, "/bin/missing-program")
	spec, err := container.Spec(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second would trip over leftovers of the first
		_, err = c.Create(t.Context(), "fails", spec, container.IO{})
		if err == nil || !strings.Contains(err.Error(), "missing-program") {
			t.Fatalf("error = %v, want one that names the program", err)
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/coffer-test/fails"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup: %v, want none", err)
	}
}

func TestCreateIsCancelled(t *testing.T) {
	c := newCrun(t)
	spec, err := container.Spec(config(t, "/bin/true"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Create(ctx, "cancelled", spec, container.IO{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
}

func TestMountsAndReadOnlyRoot(t *testing.T) {
	volume := t.TempDir()
	cfg := config(t, "/bin/sh", "-c", "touch /x; echo new >/data/file; touch /config/x; cat /config/app; ls /sys/firmware; cat /proc/kcore | wc -c")
	cfg.ReadOnlyRoot = true
	conf := t.TempDir()
	if err := os.WriteFile(filepath.Join(conf, "app"), []byte("setting\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Mounts = []container.Mount{{Source: conf, Path: "/config", ReadOnly: true}, {Source: volume, Path: "/data"}}
	ctr := create(t, newCrun(t), "mounts", cfg, container.IO{})
	start(t, ctr)
	out, msgs := read(t, ctr.Init.Stdout), read(t, ctr.Init.Stderr)
	if !strings.HasPrefix(out, "setting\n") || strings.Count(msgs, "Read-only file system") != 2 {
		t.Errorf("stdout %q, stderr %q", out, msgs)
	}
	if got, err := os.ReadFile(filepath.Join(volume, "file")); err != nil || string(got) != "new\n" {
		t.Errorf("volume has %q, %v", got, err)
	}
}

func TestSeccompDeniesNamespaces(t *testing.T) {
	cfg := config(t, "/bin/busybox", "unshare", "-r", "/bin/true")
	ctr := create(t, newCrun(t), "seccomp", cfg, container.IO{})
	start(t, ctr)
	msgs := read(t, ctr.Init.Stderr)
	if status, err := ctr.Init.Wait(t.Context()); err != nil || status.Code == 0 || !strings.Contains(msgs, "Operation not permitted") {
		t.Errorf("status %+v, %v, %q", status, err, msgs)
	}
}

func TestStatsAndSignal(t *testing.T) {
	ctr := create(t, newCrun(t), "stats", config(t, "/bin/sleep", "1000"), container.IO{})
	start(t, ctr)
	s, err := ctr.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.CPUUsageNS == 0 {
		t.Errorf("stats = %+v, want some CPU time", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := ctr.WatchOOM(ctx, func(uint64) { t.Error("out of memory") }); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := ctr.Init.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, err := ctr.Init.Wait(t.Context()); err != nil || status.Code != 137 {
		t.Errorf("status %+v, %v", status, err)
	}
	if err := ctr.Init.Resize(1, 1); !errors.Is(err, container.ErrNoTerminal) {
		t.Errorf("resize: %v", err)
	}
}

func TestSpecRefusesUnknownCapability(t *testing.T) {
	t.Parallel()
	_, err := container.Spec(container.Config{Capabilities: []string{"CAP_NET_BIND_SERVICE", "net_raw"}})
	if err == nil || !strings.Contains(err.Error(), `"net_raw"`) {
		t.Errorf("error = %v", err)
	}
}

func TestBinaryOutputIsWhole(t *testing.T) {
	cfg := config(t, "/bin/busybox", "dd", "if=/dev/zero", "bs=65536", "count=64")
	ctr := create(t, newCrun(t), "binary", cfg, container.IO{})
	start(t, ctr)
	if got := []byte(read(t, ctr.Init.Stdout)); !bytes.Equal(got, make([]byte, 64<<16)) {
		t.Errorf("%d bytes, want %d zeros", len(got), 64<<16)
	}
}

// Kubernetes' ids have 64 characters, both the container's and the command's;
// the path of a UNIX socket has at most 107.
func TestTerminalOfACommandWithLongIDs(t *testing.T) {
	cfg := config(t, "/bin/sleep", "1000")
	ctr := create(t, newCrun(t), strings.Repeat("c", 64), cfg, container.IO{})
	start(t, ctr)
	process, err := container.ExecProcess(cfg, []string{"/bin/stty", "size"}, cfg.Env, "/", true)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ctr.Exec(t.Context(), strings.Repeat("e", 64), process, container.IO{Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseIO()
	if p.Stdin != nil {
		t.Error("a terminal without standard input can be typed on")
	}
	if status, err := p.Wait(t.Context()); err != nil || status.Code != 0 {
		t.Errorf("status %+v, %v", status, err)
	}
}

// The kernel takes 32 bits of an address family, a filter sees 64.
func TestSeccompKnowsAddressFamilies(t *testing.T) {
	t.Parallel()
	spec, err := container.Spec(container.Config{})
	if err != nil {
		t.Fatal(err)
	}
	allowed := func(family uint64) bool {
		for _, s := range spec.Linux.Seccomp.Syscalls {
			if !slices.Contains(s.Names, "socket") {
				continue
			}
			if len(s.Args) != 1 || s.Args[0].Index != 0 || s.Action != specs.ActAllow {
				t.Fatalf("rule %+v", s)
			}
			switch a := s.Args[0]; a.Op {
			case specs.OpLessThan:
				if family < a.Value {
					return true
				}
			case specs.OpEqualTo:
				if family == a.Value {
					return true
				}
			case specs.OpNotEqual:
				if family != a.Value {
					return true
				}
			default:
				t.Fatalf("operator %s", a.Op)
			}
		}
		return false
	}
	for family, want := range map[uint64]bool{
		unix.AF_UNIX: true, unix.AF_INET: true, unix.AF_INET6: true, unix.AF_NETLINK: true, unix.AF_PACKET: true,
		unix.AF_VSOCK: false, 1<<32 | unix.AF_VSOCK: false, 1<<63 | unix.AF_VSOCK: false,
	} {
		if got := allowed(family); got != want {
			t.Errorf("family %#x: allowed %v, want %v", family, got, want)
		}
	}
}

func TestSpecOfADevice(t *testing.T) {
	t.Parallel()
	spec, err := container.Spec(container.Config{Rootfs: "/r", UID: 7, GID: 8, Devices: []container.Device{
		{Path: "/dev/xvda", Major: 253, Minor: 3}, {Path: "/dev/xvdb", Major: 253, Minor: 4, ReadOnly: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"b 253:3 600 7 8", "b 253:4 400 7 8"}
	for i, d := range spec.Linux.Devices {
		if got := fmt.Sprintf("%s %d:%d %o %d %d", d.Type, d.Major, d.Minor, *d.FileMode, *d.UID, *d.GID); got != want[i] {
			t.Errorf("device %s is %s, want %s", d.Path, got, want[i])
		}
	}
	rules := spec.Linux.Resources.Devices
	if len(rules) != 3 || rules[0].Allow || rules[1].Access != "rw" || rules[2].Access != "r" || *rules[2].Minor != 4 {
		t.Errorf("device rules %+v", rules)
	}
}
