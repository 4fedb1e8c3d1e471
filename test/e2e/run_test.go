package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// local returns the image in its layout.
func (s *suite) local(t *testing.T) *images {
	t.Helper()
	made, err := s.images()
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// TestContainer looks around in a container: everything that flags and the
// image's configuration say is so inside.
func TestContainer(t *testing.T) {
	s := need(t)
	t.Parallel()
	const script = `
echo "env $FROM_IMAGE $CHANGED $ADDED"
echo "dir $(pwd)"
echo "id $(id -u):$(id -g)"
echo "cpus $(nproc)"
echo "memory $(awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo)"
echo "pid $$"
echo "caps $(awk '/CapEff/ {print $2}' /proc/self/status)"
echo "new privileges $(awk '/NoNewPrivs/ {print $2}' /proc/self/status)"
[ -t 0 ] || echo "no terminal"
cat && echo "input ended"
touch /x 2>/dev/null || echo "root is not writable to it"
echo to stderr >&2
exit 7`
	c := s.run(t, "", "--cpus", "2", "--memory", "640", "--env", "CHANGED=flag", "--env", "ADDED=a b=c", "-u", "1234:5678", "-w", "/var/tmp",
		s.local(t).layout, "--", script)
	stdout, stderr := c.expect(7)
	contains(t, "stdout", stdout,
		"env image flag a b=c\n", "dir /var/tmp\n", "id 1234:5678\n", "cpus 2\n", "pid 1\n", "caps 0000000000000000\n", "new privileges 1\n",
		"no terminal\n", "input ended\n", "root is not writable to it\n")
	var mib int
	if _, rest, ok := strings.Cut(stdout, "memory "); ok {
		_, _ = fmt.Sscan(rest, &mib)
	}
	if mib < 500 || mib > 640 {
		t.Errorf("memory: expected most of 640 MiB inside, got %d MiB", mib)
	}
	contains(t, "stderr", stderr, "to stderr\n", "software TEE", "nothing is confidential")
	if strings.Contains(stdout, "to stderr") || strings.Contains(stderr, "env image") {
		t.Errorf("the streams are mixed\nstdout: %s\nstderr: %s", stdout, stderr)
	}
}

// TestConfinement looks for ways out of a container as its root: the agent's
// and the TEE's devices, the kernel's switches, mounts.
func TestConfinement(t *testing.T) {
	s := need(t)
	t.Parallel()
	const script = `
for d in /dev/vport* /dev/sev-guest /dev/tdx_guest /dev/vsock /dev/mem /dev/kmsg /dev/port /dev/ttyS0 /dev/hvc0; do
	[ -e "$d" ] && echo "there is $d"
done
for major in 4 1 5 10 229 240 241 242 243 244 245 246 247 248 249 250; do
	mknod /tmp/d$major c $major 1 2>/dev/null && echo "made a device $major"
done
(echo s > /proc/sysrq-trigger) 2>/dev/null && echo "sysrq"
(echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo "core_pattern"
(echo x > /sys/kernel/uevent_helper) 2>/dev/null && echo "uevent_helper"
mount -t tmpfs none /tmp 2>/dev/null && echo "mounted"
mount -o remount,rw /proc 2>/dev/null && echo "remounted"
chroot / true 2>/dev/null || echo "no chroot"
unshare -r true 2>/dev/null && echo "new user namespace"
dmesg >/dev/null 2>&1 && echo "kernel log"
[ "$(cat /proc/1/comm)" = sh ] || echo "sees other processes"
echo end`
	stdout, stderr := s.run(t, "", "-q", "-u", "0:0", s.local(t).layout, "--", script).expect(0)
	if strings.ReplaceAll(stdout, "no chroot\n", "") != "end\n" || stderr != "" {
		t.Errorf("expected no way out, got %q, stderr %q", stdout, stderr)
	}
}

// TestArchive runs what docker save wrote, as the image says.
func TestArchive(t *testing.T) {
	s := need(t)
	t.Parallel()
	stdout, stderr := s.run(t, "", "-q", "docker-archive:"+s.local(t).archive, "--", "id -un; pwd; nproc; cat /app/secret.txt").expect(0)
	if want := "app\n/tmp\n1\na marker\n"; stdout != want || stderr != "" {
		t.Errorf("expected stdout %q and no stderr, got %q and %q", want, stdout, stderr)
	}
}

// TestInput pipes more than any buffer through the container.
func TestInput(t *testing.T) {
	s := need(t)
	t.Parallel()
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	c := s.run(t, "", "-q", "-i", s.local(t).layout, "--", "cat | sha256sum")
	c.cmd.Stdin = bytes.NewReader(data)
	stdout, stderr := c.expect(0)
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); stdout != want || stderr != "" {
		t.Errorf("expected %q, got %q; stderr: %s", want, stdout, stderr)
	}
}

// endless is an input that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestInputIgnored shows that input which nobody reads does not keep a run
// alive, and that output which nobody reads any more does not either.
func TestInputIgnored(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.run(t, "", "-q", "-i", s.local(t).layout, "--", "sleep 1; exit 3")
	c.cmd.Stdin = endless{}
	if stdout, stderr := c.expect(3); stdout+stderr != "" {
		t.Errorf("expected no output, got %q and %q", stdout, stderr)
	}
}

// TestOutputClosed ends a run whose output nobody reads any more, as any program.
func TestOutputClosed(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.run(t, "", "-q", s.local(t).layout, "--", "while echo line; do sleep 0.1; done")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	c.cmd.Stdout = w
	c.start()
	_ = w.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "line\n" || err != nil {
		t.Errorf("got %q %v", line, err)
	}
	_ = r.Close()
	if code := c.wait(); code != 141 {
		t.Errorf("expected exit code 141, got %d; stderr: %s", code, &c.stderr)
	}
}

// TestSignals forwards signals to a program that handles them, and the exit
// code of one that does not.
func TestSignals(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.run(t, "", "-q", s.local(t).layout, "--", `
trap 'echo got usr1' USR1
trap 'echo got hup' HUP
trap 'echo got term; exit 42' TERM
echo ready
while :; do sleep 0.1; done`).start()
	c.until(&c.stdout, "ready\n")
	c.signal(syscall.SIGUSR1)
	c.until(&c.stdout, "got usr1\n")
	c.signal(syscall.SIGHUP)
	c.until(&c.stdout, "got hup\n")
	c.signal(syscall.SIGTERM)
	if code := c.wait(); code != 42 {
		t.Errorf("expected exit code 42, got %d; stderr: %s", code, &c.stderr)
	}
	contains(t, "stdout", c.stdout.String(), "got term\n")
}

// TestInterruptTwice ends a container that ignores the first interrupt.
func TestInterruptTwice(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.run(t, "", "-q", s.local(t).layout, "--", `
trap 'echo ignored' INT
echo ready
while :; do sleep 0.1; done`).start()
	c.until(&c.stdout, "ready\n")
	c.signal(syscall.SIGINT)
	c.until(&c.stdout, "ignored\n")
	c.signal(syscall.SIGINT)
	if code := c.wait(); code != 130 {
		t.Errorf("expected exit code 130, got %d; stderr: %s", code, &c.stderr)
	}
	contains(t, "stderr", c.stderr.String(), "interrupted")
}

// TestInterruptBoot interrupts while the machine boots.
func TestInterruptBoot(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.run(t, "", "--debug", s.local(t).layout).start()
	c.until(&c.stderr, "the emulator runs")
	qemu(t, c)
	c.signal(syscall.SIGINT)
	if code := c.wait(); code != 130 {
		t.Errorf("expected exit code 130, got %d; stderr: %s", code, &c.stderr)
	}
	contains(t, "stderr", c.stderr.String(), "coffer: interrupted")
}

// TestKilled kills coffer itself: the kernel ends the machine.
func TestKilled(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.run(t, "", "-q", s.local(t).layout, "--", "echo ready; sleep 1000").start()
	c.until(&c.stdout, "ready\n")
	pid := qemu(t, c)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	c.signal(syscall.SIGKILL)
	<-c.ended
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if err != nil || n != 1 {
		t.Errorf("QEMU %d outlives coffer (%v)", pid, err)
	}
	if left := session(c.cmd.Process.Pid); left != nil {
		t.Errorf("left processes %v", left)
	}
}

// qemu returns the process id of the command's machine.
func qemu(t *testing.T, c *command) int {
	t.Helper()
	for _, p := range session(c.cmd.Process.Pid) {
		if strings.HasPrefix(p.name, "qemu") {
			return p.pid
		}
	}
	t.Fatalf("%s: has no QEMU\nstderr: %s", c.name, &c.stderr)
	return 0
}
