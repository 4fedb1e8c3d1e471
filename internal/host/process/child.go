package process

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// drainTime bounds the wait for an ended process's last output.
const drainTime = 2 * time.Second

// child is a process that does not outlive this one.
type child struct {
	pid  int
	done chan struct{} // closed when it has been waited for
	err  error         // of Wait; valid once done is closed
}

// start runs the agent in namespaces of its own, with one end of a socket pair;
// the other is returned. It is killed when ctx ends.
func start(ctx context.Context, c Config, log io.Writer) (*child, net.Conn, error) {
	ours, theirs, err := pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close() //nolint:errcheck // the child has its own
	flags := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC)
	var netns *os.File
	if c.NetNS == "" {
		flags |= unix.CLONE_NEWNET
	} else {
		if netns, err = os.Open(c.NetNS); err != nil {
			_ = ours.Close()
			return nil, nil, fmt.Errorf("network namespace: %w", err)
		}
		defer netns.Close() //nolint:errcheck // entered, or not
	}
	args := []string{"serve", "--fd", "3", "--development", "--own-namespaces", "--cgroup", c.cgroup(), "--crun", c.Crun}
	if c.Debug {
		args = append(args, "--debug")
	}
	cmd := exec.CommandContext(ctx, c.Agent, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = drainTime
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: flags,
		// The kernel kills it with its parent, and with it, being the first
		// process of its namespace, every other one there.
		Pdeathsig: syscall.SIGKILL,
		// A terminal's Ctrl-C is not for it.
		Setpgid: true,
	}
	p := &child{done: make(chan struct{})}
	if err := p.run(cmd, netns); err != nil {
		_ = ours.Close()
		return nil, nil, fmt.Errorf("start %s: %w (agent of the runtime configuration has to name the program coffer-agent)", c.Agent, err)
	}
	return p, ours, nil
}

// run starts the command on a thread of its own: for the kernel the parent is
// the thread that forks, and a child has that one's network namespace. The
// thread lives as long as the child and is not used for anything else.
func (p *child) run(cmd *exec.Cmd, netns *os.File) error {
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		if netns != nil {
			if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
				started <- fmt.Errorf("enter network namespace %s: %w", netns.Name(), err)
				return
			}
		}
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
	}()
	err := <-started
	if err != nil {
		<-p.done
	}
	return err
}

// pair is a connected pair of stream sockets: ours and the child's.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "agent")
	defer mine.Close() //nolint:errcheck // net.FileConn has a copy
	theirs := os.NewFile(uintptr(fds[1]), "host")
	conn, err := net.FileConn(mine)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return conn, theirs, nil
}
