package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// initName is argv[0] of the process that is the first of a node's namespaces.
const initName = "coffer-node-init"

// machine is the namespaces of a node, while its first process lives.
type machine struct {
	cmd   *exec.Cmd
	calls *rpc.Client
	ended chan struct{}
}

// startMachine starts this very program as the first process of new namespaces
// and waits until mounts and network are there.
func startMachine(s Setup, logFile string) (*machine, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	// It ends with the thread that starts it, or by kill.
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe")
	cmd.Args = []string{initName}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true,
	}
	m := &machine{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that started the process: this
		// one lives as long as the process does.
		runtime.LockOSThread()
		defer close(m.ended)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("making namespaces (root is needed): %w", err)
	}
	m.calls = rpc.NewClient(ours)
	if err := m.call("Init.Setup", s, &struct{}{}); err != nil {
		m.kill()
		return nil, fmt.Errorf("setting up the node: %w", err)
	}
	return m, nil
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "control")
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	theirs := os.NewFile(uintptr(fds[1]), "control")
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

func (m *machine) call(method string, args, reply any) error {
	err := m.calls.Call(method, args, reply)
	if errors.Is(err, rpc.ErrShutdown) {
		return errDown
	}
	return err
}

// kill ends every process of the namespaces and waits for the first one, which
// the kernel lets go last.
func (m *machine) kill() {
	_ = m.cmd.Process.Kill()
	<-m.ended
	if m.calls != nil {
		_ = m.calls.Close()
	}
}
