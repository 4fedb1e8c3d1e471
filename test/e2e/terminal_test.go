package e2e

import (
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/containerd/console"
)

// terminal gives the command a terminal of its own and copies what it shows to
// stdout.
func (c *command) terminal(t *testing.T, size console.WinSize) console.Console {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	if err := master.Resize(size); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(&c.stdout, master) // until the last user of the slave has ended
	}()
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr.Setctty = true
	t.Cleanup(func() {
		_ = slave.Close()
		<-copied
		_ = master.Close()
	})
	return master
}

// TestTerminal types into a program on a terminal, resizes it, and presses
// Ctrl-C, which is the program's and not coffer's.
func TestTerminal(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.run(t, "", "-q", "-t", s.local(t).layout, "--", `
# A shell that is about to read does not notice a signal before there is input,
# so it waits for signals in loops.
trap 'echo resized to $(stty size); resized=1' WINCH
trap 'echo interrupted inside; interrupted=1' INT
[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo "a terminal, $TERM"
echo size $(stty size)
echo ready
while [ -z "$resized" ]; do sleep 0.1; done
read line; echo "read <$line>"
while [ -z "$interrupted" ]; do sleep 0.1; done
read line; echo "after: <$line>"
exit 5`)
	term := c.terminal(t, console.WinSize{Width: 91, Height: 37})
	c.start()
	c.until(&c.stdout, "ready\r\n")
	contains(t, "terminal", c.stdout.String(), "a terminal, xterm\r\n")
	if err := term.Resize(console.WinSize{Width: 120, Height: 50}); err != nil {
		t.Fatal(err)
	}
	c.signal(syscall.SIGWINCH)
	c.until(&c.stdout, "resized to 50 120\r\n")
	write := func(text string) {
		t.Helper()
		if _, err := io.WriteString(term, text); err != nil {
			t.Fatal(err)
		}
	}
	write("hello\n")
	c.until(&c.stdout, "read <hello>\r\n")
	write("\x03")
	// The terminal's own ^C may come between the text and the end of its line.
	c.until(&c.stdout, "interrupted inside")
	write("still here\n")
	c.until(&c.stdout, "after: <still here>\r\n")
	if code := c.wait(); code != 5 {
		t.Errorf("expected exit code 5, got %d:\n%s", code, &c.stdout)
	}
	contains(t, "terminal", c.stdout.String(), "size 37 91\r\n")
}
