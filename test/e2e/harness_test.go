// Package e2e runs the built programs against real virtual machines. It holds
// what only the whole can show: that a container's output, exit code, signals
// and terminal come through, that a trustee gives a pod what is its own and
// nothing else, that no secret is printed, and that nothing is left behind.
//
// COFFER_BIN is the directory of the programs (../../bin) and
// COFFER_GUEST_IMAGE that of the guest image (../../build/guest). Where they
// are absent the tests are skipped, or fail if CI or COFFER_REQUIRE_VM is set.
package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// limit is for one command, on a busy machine that emulates.
const limit = 3 * time.Minute

// machines is how many virtual machines the tests run at once.
const machines = 2

// suite is what the tests share.
type suite struct {
	bin, guest string
	// dir holds images, keys and states until the tests end.
	dir string
	// slots has a token for each machine that may run.
	slots chan struct{}

	images   func() (*images, error)
	registry func() (*registryServer, error)

	mu sync.Mutex
	// secrets must not occur in what any program prints.
	secrets map[string]string
}

// the is the suite of this test program. It is set once, by TestMain.
var the *suite

// unavailable says why machines cannot be run here.
type unavailable struct{ missing []string }

func (u unavailable) Error() string {
	return "no virtual machine can be run here: " + strings.Join(u.missing, "; ") + " (`make build guest-image` makes them)"
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "coffer-e2e-")
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	the = &suite{
		bin: directory("COFFER_BIN", "../../bin"), guest: directory("COFFER_GUEST_IMAGE", "../../build/guest"),
		dir: dir, slots: make(chan struct{}, machines), secrets: map[string]string{},
	}
	the.images = sync.OnceValues(the.makeImages)
	the.registry = sync.OnceValues(the.startRegistry)
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func directory(variable, fallback string) string {
	dir := os.Getenv(variable)
	if dir == "" {
		dir = fallback
	}
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

// need skips the test where there is nothing to boot.
func need(t *testing.T) *suite {
	t.Helper()
	var u unavailable
	for _, file := range []string{
		filepath.Join(the.bin, "coffer"), filepath.Join(the.bin, "coffer-trustee"), filepath.Join(the.guest, "manifest.json"),
	} {
		if _, err := os.Stat(file); err != nil {
			u.missing = append(u.missing, err.Error())
		}
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		u.missing = append(u.missing, err.Error())
	}
	switch {
	case u.missing == nil:
		return the
	case os.Getenv("CI") != "" || os.Getenv("COFFER_REQUIRE_VM") != "":
		t.Fatal(u)
	default:
		t.Skip(u)
	}
	return nil
}

// hide makes value a secret: no program may print it, in whatever form.
func (s *suite) hide(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name] = value
	s.secrets[name+" in hex"] = hex.EncodeToString([]byte(value))
	s.secrets[name+" in base64"] = strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(value)), "=")
	s.secrets[name+" in base64url"] = base64.RawURLEncoding.EncodeToString([]byte(value))
	var numbers []string
	for _, b := range []byte(value) {
		numbers = append(numbers, strconv.Itoa(int(b)))
	}
	s.secrets[name+" as numbers"] = strings.Join(numbers, " ")
	s.secrets[name+" as JSON numbers"] = strings.Join(numbers, ",")
}

// checkSecrets fails the test if a secret is in what a program printed.
func (s *suite) checkSecrets(t *testing.T, what, text string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, value := range s.secrets {
		if strings.Contains(text, value) {
			t.Errorf("%s prints a secret: %s", what, name)
		}
	}
}

// output is what a program prints; readers can wait for a text in it.
type output struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// find tells whether text has come; if not, the channel is closed when more
// comes.
func (o *output) find(text string) (bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return strings.Contains(o.b.String(), text), o.changed
}

// command is one run of a program, with directories of its own for whatever
// it makes.
type command struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	// private is HOME and holds the temporary directory and the working one.
	private        string
	stdout, stderr output
	ended          chan struct{}
	// boots: it waits for a slot when it is started, and releases it.
	boots   bool
	release func()
}

// program prepares a command; its state is kept in state, or is its own if
// that is empty.
func (s *suite) program(t *testing.T, state, name string, args ...string) *command {
	t.Helper()
	c := &command{t: t, name: name + " " + strings.Join(args, " "), private: t.TempDir(), ended: make(chan struct{}), release: func() {}}
	if state == "" {
		state = filepath.Join(c.private, "state")
	}
	for _, d := range []string{"tmp", "work", "run"} {
		if err := os.Mkdir(filepath.Join(c.private, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	c.cmd = exec.Command(filepath.Join(s.bin, name), args...)
	c.cmd.Dir = filepath.Join(c.private, "work")
	c.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + c.private, "TMPDIR=" + filepath.Join(c.private, "tmp"),
		"XDG_RUNTIME_DIR=" + filepath.Join(c.private, "run"), "XDG_STATE_HOME=" + state,
		// The accelerator's verdict is shared: probing is not what is tested.
		"XDG_CACHE_HOME=" + filepath.Join(s.dir, "cache"),
	}
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	// A session of its own, by which whatever it starts can be found.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	return c
}

// run prepares `coffer run`.
func (s *suite) run(t *testing.T, state string, args ...string) *command {
	t.Helper()
	c := s.program(t, state, "coffer", append([]string{"run", "--tee", "soft", "--guest-image", s.guest}, args...)...)
	c.boots = true
	return c
}

func (c *command) start() *command {
	c.t.Helper()
	if c.boots {
		the.slots <- struct{}{}
		c.release = sync.OnceFunc(func() { <-the.slots })
	}
	// The kernel ends a child with the thread that made it.
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait()
		}
		close(c.ended)
	}()
	if err := <-started; err != nil {
		c.release()
		c.t.Fatalf("%s: %v", c.name, err)
	}
	c.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
		c.release()
	})
	return c
}

func (c *command) signal(sig syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.t.Fatalf("%s: signal %v: %v", c.name, sig, err)
	}
}

// until waits for a text in o.
func (c *command) until(o *output, text string) {
	c.t.Helper()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		found, changed := o.find(text)
		if found {
			return
		}
		select {
		case <-changed:
		case <-c.ended:
			if found, _ := o.find(text); !found {
				c.t.Fatalf("%s: ended with %v before it printed %q\nstdout: %s\nstderr: %s", c.name, c.cmd.ProcessState, text, &c.stdout, &c.stderr)
			}
			return
		case <-timeout.C:
			c.t.Fatalf("%s: did not print %q\nstdout: %s\nstderr: %s", c.name, text, &c.stdout, &c.stderr)
		}
	}
}

// wait waits for the end, checks that nothing is left and no secret printed,
// and returns the exit code; a program that a signal ended gives -1.
func (c *command) wait() int {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(limit):
		_ = c.cmd.Process.Signal(syscall.SIGQUIT)
		<-c.ended
		c.t.Fatalf("%s: did not end\nstdout: %s\nstderr: %s", c.name, &c.stdout, &c.stderr)
	}
	c.release()
	for _, p := range session(c.cmd.Process.Pid) {
		c.t.Errorf("%s: left process %s", c.name, p)
	}
	c.checkFiles()
	the.checkSecrets(c.t, c.name+": stdout", c.stdout.String())
	the.checkSecrets(c.t, c.name+": stderr", c.stderr.String())
	return c.cmd.ProcessState.ExitCode()
}

// checkFiles checks that no file or socket is left.
func (c *command) checkFiles() {
	c.t.Helper()
	for _, d := range []string{"tmp", "work", "run"} {
		err := filepath.WalkDir(filepath.Join(c.private, d), func(path string, e os.DirEntry, err error) error {
			if err == nil && filepath.Dir(path) != c.private {
				c.t.Errorf("%s: left %s (%s)", c.name, path, e.Type())
			}
			return err
		})
		if err != nil {
			c.t.Error(err)
		}
	}
}

// result runs the command to its end.
func (c *command) result() (code int, stdout, stderr string) {
	c.t.Helper()
	code = c.start().wait()
	return code, c.stdout.String(), c.stderr.String()
}

// expect runs the command to its end and checks how it ended.
func (c *command) expect(code int) (stdout, stderr string) {
	c.t.Helper()
	got, stdout, stderr := c.result()
	if got != code {
		c.t.Fatalf("%s: expected exit code %d, got %d\nstdout: %s\nstderr: %s", c.name, code, got, stdout, stderr)
	}
	return stdout, stderr
}

// process is one process of a session.
type process struct {
	pid  int
	name string
}

func (p process) String() string { return fmt.Sprintf("%d (%s)", p.pid, p.name) }

// session lists the living processes of a session: QEMU, registries and
// whatever else a program has started.
func session(id int) []process {
	var found []process
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range dirs {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		// pid (comm) state ppid pgrp session …; comm may contain anything.
		open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
		if open < 0 || end < open {
			continue
		}
		fields := strings.Fields(string(data[end+1:]))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(data[:open])))
		if len(fields) < 4 || fields[3] != strconv.Itoa(id) || fields[0] == "Z" {
			continue
		}
		found = append(found, process{pid, string(data[open+1 : end])})
	}
	return found
}

// contains checks that text has each of the parts.
func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: expected %q in it, got:\n%s", what, p, text)
		}
	}
}
